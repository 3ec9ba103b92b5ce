"""What `rates` and `metric` share: gradient descent with a fixed step, from a point near collapse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ufm_jax as ufm


def collapsed(problem: ufm.Problem, dim: int) -> ufm.Point:
    """The minimum of a balanced problem with cross entropy: a simplex ETF, and features on it."""
    K, N = problem.num_classes, len(problem.labels)
    if problem.decay is not None:
        return ufm.Point(*ufm.theory.regularized_minimizer(K, N // K, dim, *problem.decay))
    frame = ufm.theory.simplex_etf(K, dim)
    return ufm.Point(frame, frame[problem.labels])


def perturbed(problem: ufm.Problem, point: ufm.Point, key: jax.Array, distance: float) -> ufm.Point:
    """`point`, with each row moved along the manifold by about `distance` times its length."""

    def noise(key: jax.Array, rows: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(rows, axis=-1, keepdims=True) / rows.shape[-1] ** 0.5
        return distance * size * jax.random.normal(key, rows.shape, rows.dtype)

    moved = ufm.Point(*map(noise, jax.random.split(key), point))
    return problem.manifold.retract(point, problem.manifold.project(point, moved))


def descend(
    problem: ufm.Problem, start: ufm.Point, step: Any, steps: int, record: Callable[[ufm.Point], Any]
) -> Any:
    """What `record` says after each of `steps` steps of length `step` times the Riemannian gradient."""

    def move(point: ufm.Point, _: None) -> tuple[ufm.Point, Any]:
        gradient = problem.gradient(problem.evaluate(point))
        new = problem.manifold.retract(point, optax.tree.scale(-step, gradient))
        return new, record(new)

    return jax.lax.scan(move, start, length=steps)[1]


def factor_of_a_step(squares: np.ndarray, low: float, high: float) -> float:
    """The factor by which a sum of few exponentials falls in a step, measured where it is in [low, high].

    A sum of two exponentials satisfies `y[t+2] = a y[t+1] + b y[t]`. A regression on the tail gives a and
    b, and the larger root of `x^2 = a x + b` is the slower factor, also where the other one is close. NaN
    where the tail has fewer than four values.
    """
    begin = np.argmax(squares <= high) if np.any(squares <= high) else len(squares)
    below = squares[begin:] < low
    tail = squares[begin:][: np.argmax(below) if below.any() else None]
    if len(tail) < 4:
        return np.nan
    rows = np.stack([tail[1:-1], tail[:-2]], 1) / tail[2:, None]
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=1e-5)
    return float(np.max(np.abs(np.roots([1, -a, -b]))))
