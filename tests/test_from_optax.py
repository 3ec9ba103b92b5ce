"""Optax transformations as solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ufm_jax as ufm

LABELS = ufm.balanced_labels(4, 3)
TRANSFORMATIONS = {
    "sgd": optax.sgd(0.3, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.02),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.02, 100), weight_decay=0.01),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_in_euclidean_space_it_is_optax(name):
    problem = ufm.regularized(LABELS, 4, weight_decay=0.01, feature_decay=0.001)
    start, transformation = problem.random_point(jax.random.key(0), 5), TRANSFORMATIONS[name]
    solver = ufm.solvers.from_optax(transformation)
    found = jax.jit(lambda x: ufm.minimize(problem, x, solver, max_steps=30, tolerance=0.0))(start)

    @jax.jit
    def update(x, state):
        updates, state = transformation.update(jax.grad(problem.cost)(x), state, x)
        return optax.apply_updates(x, updates), state

    x, state = start, transformation.init(start)
    for _ in range(30):
        x, state = update(x, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found.point, x)
    assert found.steps == 30


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_on_spheres_it_finds_the_minimum(name):
    problem = ufm.normalized(LABELS, 4, tau=2.0)
    start = problem.random_point(jax.random.key(0), 5)
    solver = ufm.solvers.from_optax(TRANSFORMATIONS[name])
    found = jax.jit(lambda x: ufm.minimize(problem, x, solver, max_steps=4000, tolerance=1e-6))(start)
    assert found.status == ufm.Status.CONVERGED
    np.testing.assert_allclose(found.value, ufm.theory.cross_entropy_minimum(4, 2.0), atol=1e-10)
    assert all(np.allclose(np.linalg.norm(x, axis=1), 1) for x in found.point)


def test_a_step_to_where_the_cost_is_not_finite_ends_the_run():
    objective = ufm.Objective(lambda x: jnp.log(x[0]), ufm.manifolds.Euclidean())
    solver = ufm.solvers.from_optax(optax.sgd(10.0))
    found = ufm.minimize(objective, jnp.array([1.0]), solver, max_steps=5)
    assert found.status == ufm.Status.STALLED
    assert found.value == 0


def test_what_is_no_transformation_is_refused():
    with pytest.raises(ValueError, match="transformation must be Optax's"):
        ufm.solvers.from_optax("adam")


def test_noise_that_keeps_a_key_is_a_transformation_as_well():
    objective = ufm.Objective(lambda x: jnp.sum(x**2), ufm.manifolds.Euclidean())
    noisy = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(0)), optax.sgd(0.1))
    solver = ufm.solvers.from_optax(noisy)
    found = ufm.minimize(objective, jnp.ones(3), solver, max_steps=50)
    assert found.value < 0.1
    state = solver.step(objective, solver.init(objective, jnp.ones(3)))
    assert state.iterate.value < 3
