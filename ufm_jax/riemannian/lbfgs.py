"""Riemannian limited-memory BFGS."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ufm_jax import _checks
from ufm_jax.riemannian.line_search import LineSearch, UnitStep, check_search
from ufm_jax.riemannian.manifolds import Tree
from ufm_jax.riemannian.minimize import Iterate, Solver, iterate_at
from ufm_jax.riemannian.objective import Objective


class Memory(NamedTuple):
    """The last pairs of a step and the change of the gradient along it, in a ring.

    Attributes:
        steps: a pytree like the point, each array with a leading axis of m.
        changes: of the gradient, likewise.
        products: `<step, change>` of each pair, (m,).
        scale: `<step, change> / <change, change>` of the last pair: the first guess of the inverse Hessian.
        pairs: how many came since the last start from the gradient, int32; the last m of them are kept.
    """

    steps: Tree
    changes: Tree
    products: jax.Array
    scale: jax.Array
    pairs: jax.Array


class LBFGSState(NamedTuple):
    iterate: Iterate
    memory: Memory
    search: Any
    stalled: jax.Array


@dataclasses.dataclass(frozen=True)
class LBFGS(Solver):
    """Riemannian L-BFGS: minus the gradient times an inverse Hessian estimated from the last steps.

    A new pair is projected to the tangent space at the new point, those before are left as they are, and
    the direction is projected at the end: transporting every pair at each step takes three times as long
    and gains no steps. A pair enters only where the curvature along it is safely positive (cautious
    updates), so that every direction descends.

    Args:
        memory_size: pairs to keep, at least 1.
        line_search: how to choose the step; it should try step 1 first, since directions have the right
            length.
        caution: a pair of a step and the change of the gradient enters where the cosine of the two is
            positive and at least this, in [0, 1]; with a Hessian of condition number k it is at least
            `2 / sqrt(k)`, nearly.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> def rosenbrock(x):
        ...     return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
        >>> objective = ufm.Objective(rosenbrock, ufm.manifolds.Euclidean())
        >>> result = ufm.minimize(objective, jnp.zeros(4), ufm.solvers.lbfgs(), tolerance=1e-3)
        >>> print(result.point.round(2))
        [1. 1. 1. 1.]

    Reference: Huang, Gallivan, Absil, *A Broyden Class of Quasi-Newton Methods for Riemannian
    Optimization*, SIAM J. Optim. 2015. Li and Fukushima's cautious updates, SIAM J. Optim. 2001, bound the
    curvature along a step by the gradient's norm; the cosine does not depend on the size of the variables.
    """

    memory_size: int = 10
    line_search: LineSearch = UnitStep()
    caution: float = 1e-8

    def __post_init__(self) -> None:
        check_search(self.line_search)
        _checks.count("memory_size", self.memory_size, 1)
        _checks.within("caution", self.caution, 0, 1)

    def init(self, objective: Objective, point: Tree) -> LBFGSState:
        iterate = iterate_at(objective, objective.evaluate(point))
        return LBFGSState(
            iterate,
            _no_memory(iterate, self.memory_size),
            self.line_search.init(iterate.value.dtype),
            jnp.array(False),
        )

    def step(self, objective: Objective, state: LBFGSState) -> LBFGSState:
        manifold, old, memory = objective.manifold, state.iterate, state.memory

        def inner(a: Tree, b: Tree) -> jax.Array:
            return manifold.inner_product(old.point, a, b)

        direction = optax.tree.scale(-1, _times_inverse_hessian(memory, old.gradient, inner))
        direction = manifold.project(old.point, direction)
        slope = inner(old.gradient, direction)
        found = self.line_search.search(objective, old, direction, slope, state.search)
        new = iterate_at(objective, found.evaluation)

        step = manifold.transport(old.point, new.point, optax.tree.scale(found.step, direction))
        change = optax.tree.sub(new.gradient, manifold.transport(old.point, new.point, old.gradient))
        told = _with_pair(memory, step, change, self.caution, manifold, new)
        # A search that failed along a quasi-Newton direction starts again from the gradient.
        fails, has_pairs = ~found.moved, memory.pairs > 0
        return LBFGSState(
            new,
            # Pairs that do not count are not read: nothing of their size is made.
            told._replace(
                scale=jnp.where(fails, _first_scale(new), told.scale),
                pairs=jnp.where(fails, 0, told.pairs),
            ),
            optax.tree.where(fails & has_pairs, self.line_search.init(new.value.dtype), found.state),
            found.exhausted & ~has_pairs,
        )


def _no_memory(iterate: Iterate, size: int) -> Memory:
    """No pairs, and a first direction of length 1."""
    empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), iterate.gradient)
    products = jnp.zeros(size, iterate.gradient_norm.dtype)
    return Memory(empty, empty, products, _first_scale(iterate), jnp.int32(0))


def _first_scale(iterate: Iterate) -> jax.Array:
    norm = iterate.gradient_norm
    return 1 / jnp.where(norm > 0, norm, 1)


def _with_pair(memory, step, change, least_cosine, manifold, iterate) -> Memory:
    """The memory with one more pair in place of the oldest, if its cosine is positive and at least that."""
    product = manifold.inner_product(iterate.point, step, change)
    step_length, change_length = (manifold.norm(iterate.point, x) for x in (step, change))
    lengths = step_length * change_length
    is_safe = (product >= least_cosine * lengths) & (product > 0)
    place = memory.pairs % len(memory.products)

    def put(ring: jax.Array, x: jax.Array) -> jax.Array:
        return ring.at[place].set(jnp.where(is_safe, x, ring[place]))

    return Memory(
        jax.tree.map(put, memory.steps, step),
        jax.tree.map(put, memory.changes, change),
        put(memory.products, product),
        # <s, y> / <y, y>, whose denominator may underflow.
        jnp.where(is_safe, product / lengths * (step_length / change_length), memory.scale),
        memory.pairs + is_safe.astype(jnp.int32),
    )


def _times_inverse_hessian(memory: Memory, vector: Tree, inner: Callable[[Tree, Tree], jax.Array]) -> Tree:
    """The two loops of L-BFGS, Nocedal and Wright, Algorithm 7.4."""
    size = len(memory.products)
    kept = jnp.minimum(memory.pairs, size)

    def pair(place):
        step, change = (jax.tree.map(lambda x: x[place], ring) for ring in (memory.steps, memory.changes))
        return step, change, memory.products[place]

    def from_the_last(i, carry):
        vector, weights = carry
        place = (memory.pairs - 1 - i) % size
        step, change, product = pair(place)
        weight = inner(step, vector) / product
        return optax.tree.add_scale(vector, -weight, change), weights.at[place].set(weight)

    def from_the_first(i, vector):
        place = (memory.pairs - kept + i) % size
        step, change, product = pair(place)
        weight = memory_weights[place] - inner(change, vector) / product
        return optax.tree.add_scale(vector, weight, step)

    vector, memory_weights = jax.lax.fori_loop(0, kept, from_the_last, (vector, memory.products))
    return jax.lax.fori_loop(0, kept, from_the_first, optax.tree.scale(memory.scale, vector))
