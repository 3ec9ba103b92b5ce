"""What programs cost: their time, in turns, and how many products of matrices a descent makes."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import ufm_jax as ufm
from experiments.harness.experiment import Progress


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource  # Which Windows lacks.

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found  # KiB but on a Mac.


def no_progress(done: float, total: float, note: str = "") -> None:
    pass


def take_turns(
    programs: Mapping[str, Callable[[int], Any]], rounds: int, progress: Progress = no_progress
) -> dict[str, dict]:
    """Seconds of each program's first call, and of `rounds` more (arrays), interleaved.

    Args:
        programs: by name; each takes the index of its round, and 0 at the first call.
        rounds: at least 1.
        progress: is told of every call of the first round and of every round.

    Returns:
        "first" and "later": what was taken by each name.
    """
    first, later = {}, {name: np.zeros(rounds) for name in programs}
    for done, (name, program) in enumerate(programs.items()):
        progress(done, len(programs) * (rounds + 1))
        first[name] = seconds_of(functools.partial(program, 0))
    for index in range(rounds):
        progress(index + 1, rounds + 1)
        for name, program in programs.items():
            later[name][index] = seconds_of(functools.partial(program, index))
    return {"first": first, "later": later}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Counted(ufm.manifolds.Oblique):
    """The oblique manifold, which tells `hook` of every Hessian applied."""

    hook: Callable[[], None] = lambda: None

    def riemannian_hessian(self, *arguments: Any) -> Any:
        jax.debug.callback(self.hook)
        return super().riemannian_hessian(*arguments)


def counted_products(
    problem: ufm.Problem, starts: ufm.Point, descent: Callable[[ufm.Problem, ufm.Point], ufm.Result]
) -> float:
    """Products of N x K x d in a trial, the mean over `starts`.

    One for every forward pass, two more for a gradient, six for a Hessian. A gradient is taken at the start
    and after every step.

    Args:
        problem: normalized, on the oblique manifold.
        starts: points with a leading axis.
        descent: minimizes a problem from a point.
    """
    passes, hessians, steps = [0], [0], 0

    def add_to(counter: list[int]) -> Callable[[], None]:
        def hook() -> None:
            counter[0] += 1

        return hook

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        jax.debug.callback(add_to(passes))
        return problem.loss(logits, labels)

    counted = dataclasses.replace(problem, loss=loss, manifold=_Counted(add_to(hessians)))
    program = jax.jit(lambda start: descent(counted, start).steps)
    count = len(starts.H)
    for index in range(count):
        steps += int(program(jax.tree.map(lambda x, i=index: x[i], starts)))
    jax.effects_barrier()
    return (passes[0] + 2 * (steps + count) + 6 * hessians[0]) / count
