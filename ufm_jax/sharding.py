"""One problem over many devices: features and labels split over the samples, the classifier on each.

The solvers know nothing of it. Arrays carry their placement, and under `jit` XLA splits the same program:
scores, their slopes and the features' gradient stay where their samples are, and a gradient adds up one
K x d matrix over the devices, that of W.

    problem = ufm.sharding.shard_problem(problem, mesh)
    start = ufm.sharding.random_point(problem, mesh, key, dim)
    result = jax.jit(lambda problem, start: ufm.minimize(problem, start, solver))(problem, start)

The samples must divide by the number of devices. A problem in blocks goes through blocks of `block_size`
samples on each device; W's gradient is added up after the last one. What fits where, and what bounds it:
docs/large.md.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ufm_jax.problems import AnyPoint, BiasedPoint, Point, Problem


def placement(problem: Problem, mesh: Mesh) -> AnyPoint:
    """Where the parts of a point lie: W and b on every device, H split by its rows over all axes.

    Args:
        problem: whose point.
        mesh: the devices, in any number of axes.

    Returns:
        `Point` of a `NamedSharding` each, W None for a contrastive problem, a `BiasedPoint` with a bias:
        what `jax.device_put` and the `out_shardings` of `jax.jit` take.

    Raises:
        ValueError: the samples do not divide by the number of devices, or the mesh has Explicit axes.
    """
    _check_divides(problem, mesh)
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "the axes of the mesh must be Auto, as those of jax.sharding.Mesh(devices, names), but some "
            "are Explicit."
        )
    replicated = NamedSharding(mesh, PartitionSpec())
    by_samples = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    if problem.has_bias:
        return BiasedPoint(replicated, by_samples, replicated)
    return Point(replicated if problem.has_classifier else None, by_samples)


def shard_problem(problem: Problem, mesh: Mesh) -> Problem:
    """The same problem with its labels split over the devices of `mesh`, and what else it holds on each.

    Args:
        problem: any; one in blocks goes through its blocks on each device apart.
        mesh: the devices, in any number of axes.

    Returns:
        The problem, its arrays placed.

    Raises:
        ValueError: the samples do not divide by the number of devices.
    """
    where = placement(dataclasses.replace(problem, has_classifier=True), mesh)
    return dataclasses.replace(
        problem,
        labels=jax.device_put(problem.labels, where.H),
        tau=jax.device_put(problem.tau, where.W),
        decay=jax.device_put(problem.decay, where.W),
        manifold=jax.device_put(problem.manifold, where.W),
        shards=mesh.size,
    )


def random_point(
    problem: Problem, mesh: Mesh, key: jax.Array, dim: int, dtype: DTypeLike | None = None
) -> Any:
    """`problem.random_point(key, dim, dtype)`, every device drawing its own samples: none ever holds all.

    Args:
        problem: whose point.
        mesh: the devices, in any number of axes.
        key: random key; the point is the same on any mesh.
        dim: d, at least 1.
        dtype: floating type; JAX's default if None.

    Returns:
        The point, placed as `placement` says.

    Raises:
        ValueError: d < 1, or the samples do not divide by the number of devices.
    """
    where = placement(problem, mesh)
    return jax.jit(lambda key: problem.random_point(key, dim, dtype), out_shardings=where)(key)


def _check_divides(problem: Problem, mesh: Mesh) -> None:
    count, devices = len(problem.labels), mesh.size
    if count % devices:
        fewer = max(d for d in range(1, devices) if count % d == 0)
        raise ValueError(
            f"{count} samples do not divide by {devices} devices: use {fewer}, the most below that they "
            f"divide by, or other samples."
        )
