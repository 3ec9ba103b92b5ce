"""Steps on the sphere against pymanopt and optax, and that nothing leaves the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pymanopt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm_jax as ufm
from ufm_jax.riemannian import transforms


def matrices(seed, shape, dtype, count=2):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=shape), dtype) for _ in range(count)]


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(optax.exponential_decay(0.1, 100, 0.9)),
    "lion": lambda: optax.lion(0.05),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from([*OPTIMIZERS, "riemannian"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    radius=st.sampled_from([0.01, 1.0, 30.0]),
    axis=st.sampled_from([0, -1]),
)
@settings(deadline=None, max_examples=5)
def test_parameters_stay_on_the_sphere_for_thousands_of_steps(seed, name, dtype, radius, axis):
    # Some way off the sphere: the first update brings them there.
    params = {"W": radius * matrices(seed, (3, 5), dtype)[0], "free": jnp.ones(4, dtype)}
    mask = {"W": True, "free": False}
    if name == "riemannian":
        step = transforms.riemannian_sgd(0.1, momentum=0.9, radius=radius, axis=axis)
        optimizer = optax.partition({True: step, False: optax.sgd(0.1)}, mask)
    else:
        projection = optax.masked(transforms.project_to_sphere(radius, axis), mask)
        optimizer = optax.chain(OPTIMIZERS[name](), projection)

    @jax.jit
    def run(params, key):
        def step(carry, key):
            params, state = carry
            gradient = {n: jax.random.normal(key, x.shape, x.dtype) for n, x in params.items()}
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.linalg.norm(params["W"], axis=axis) / radius

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 3000))

    (params, _), lengths = run(params, jax.random.key(seed))
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert {x.dtype for x in params.values()} == {np.dtype(dtype)}
    assert not np.allclose(params["free"], 1, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(deadline=None, max_examples=20)
def test_the_projection_is_the_nearest_point(seed, scale):
    x, u = matrices(seed, (4, 6), np.float64)
    projection = transforms.project_to_sphere(2.0)
    update, _ = projection.update(scale * u, projection.init(x), x)
    nearest = jax.vmap(lambda v: optax.projections.projection_l2_sphere(v, 2.0))(x + scale * u)
    np.testing.assert_allclose(x + update, nearest, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("radius", [1.0, 30.0])
def test_the_sphere_may_lie_along_any_axis_and_have_any_radius(radius):
    x, gradient = matrices(1, (4, 6), np.float64)
    x = ufm.manifolds.normalize(x)

    def steps(optimizer, x, gradient):
        state = optimizer.init(x)
        for _ in range(5):
            updates, state = optimizer.update(gradient, state, x)
            x = optax.apply_updates(x, updates)
        return x

    expected = steps(transforms.riemannian_sgd(0.1, momentum=0.9), x, gradient)
    other = transforms.riemannian_sgd(0.1, momentum=0.9, radius=radius, axis=0)
    found = steps(other, radius * x.T, radius * gradient.T)
    np.testing.assert_allclose(found.T / radius, expected, rtol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), momentum=st.sampled_from([0.0, 0.5, 0.9]))
@settings(deadline=None, max_examples=15)
def test_riemannian_sgd_follows_pymanopt(seed, momentum):
    """Momentum from pymanopt's projection, transport and retraction, step by step."""
    x, target = matrices(seed, (4, 6), np.float64)
    x = ufm.manifolds.normalize(x)
    schedule = optax.exponential_decay(0.3, 10, 0.5)
    optimizer = transforms.riemannian_sgd(schedule, momentum)
    state, manifold = optimizer.init(x), pymanopt.manifolds.Oblique(6, 4)
    theirs = np.array(x).T
    m = np.zeros_like(theirs)
    for step in range(30):
        updates, state = optimizer.update(jnp.tanh(x) - target, state, x)
        x = optax.apply_updates(x, updates)
        gradient = manifold.projection(theirs, np.tanh(theirs) - np.array(target).T)
        m = gradient + momentum * m
        end = manifold.retraction(theirs, -schedule(jnp.int32(step)) * m)
        theirs, m = end, manifold.transport(theirs, end, m)
        np.testing.assert_allclose(x, theirs.T, atol=1e-12)
        np.testing.assert_allclose(jnp.sum(state[0].trace * (x - updates), -1), 0, atol=1e-12)


def test_both_find_the_minimum_on_the_sphere():
    """min <x, A x> over the unit sphere is the smallest eigenvalue."""
    a = matrices(0, (5, 5), np.float64)[0]
    a = a @ a.T
    for optimizer in [
        optax.chain(optax.sgd(0.05, momentum=0.9), transforms.project_to_sphere()),
        transforms.riemannian_sgd(0.05, momentum=0.9),
    ]:
        x = jnp.ones(5)

        def step(_, carry, optimizer=optimizer):
            x, state = carry
            updates, state = optimizer.update(jax.grad(lambda x: x @ a @ x / 2)(x), state, x)
            return optax.apply_updates(x, updates), state

        x, _ = jax.lax.fori_loop(0, 800, step, (x, optimizer.init(x)))
        assert x @ a @ x == pytest.approx(np.linalg.eigvalsh(a)[0], rel=1e-8)


def test_a_vanishing_vector_has_a_defined_answer():
    projection = transforms.project_to_sphere(3.0)
    update, _ = projection.update(-jnp.ones((2, 3)), projection.init(None), jnp.ones((2, 3)))
    np.testing.assert_allclose(jnp.ones((2, 3)) + update, [[3, 0, 0], [3, 0, 0]])


def test_bad_arguments_are_one_sentence():
    with pytest.raises(ValueError, match="radius must be positive and finite, but is -1"):
        transforms.project_to_sphere(-1)
    with pytest.raises(ValueError, match="decay must lie between 0 and 1, but is 2"):
        transforms.riemannian_trace(2)
    for transform in (transforms.project_to_sphere(), transforms.riemannian_sgd(0.1)):
        with pytest.raises(ValueError, match="call update with params"):
            transform.update(jnp.ones(3), transform.init(jnp.ones(3)))


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (transforms.riemannian_sgd, {"learning_rate": 0.1, "momentum": 0.9, "radius": 2.0}),
        (transforms.project_to_sphere, {"radius": 2.0}),
        (transforms.riemannian_trace, {"decay": 0.9}),
    ],
)
def test_numbers_may_be_injected(make, numbers):
    x, gradient = matrices(3, (3, 5), np.float64)
    static = ("axis", *(("accumulator_dtype",) if make is not transforms.project_to_sphere else ()))
    injected = optax.inject_hyperparams(make, static_args=static)(**numbers)
    found, _ = jax.jit(injected.update)(gradient, injected.init(x), x)
    plain = make(**numbers)
    np.testing.assert_allclose(found, plain.update(gradient, plain.init(x), x)[0], atol=1e-14)


@pytest.mark.parametrize(("kept", "expected"), [(None, "bfloat16"), ("float32", "float32")])
def test_the_momentum_keeps_its_dtype(kept, expected):
    x, gradient = matrices(3, (3, 5), jnp.float32)
    x = x.astype(jnp.bfloat16)
    optimizer = transforms.riemannian_trace(np.float64(0.9), accumulator_dtype=kept)
    state = optimizer.init(x)
    _, after = optimizer.update(gradient, state, x)
    assert state.trace.dtype == after.trace.dtype == expected
