"""Deep unconstrained feature models against NumPy, the closed form, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm_jax as ufm
from tests.shared.marks import few

LABELS = jnp.repeat(jnp.arange(3), np.array([4, 3, 2]))
ONE_HOT = np.eye(3)[np.asarray(LABELS)]


def test_the_cost_is_the_formula(key):
    for activation, s in [(None, lambda x: x), (jax.nn.relu, lambda x: np.maximum(x, 0))]:
        problem = ufm.deep.problem(LABELS, 3, [0.1, 0.2, 0.3], 0.4, activation=activation)
        point = problem.random_point(key, [5, 4, 6])
        (W1, W2, W3), H = (jax.tree.map(np.asarray, part) for part in point)
        assert (W1.shape, W2.shape, W3.shape, H.shape) == ((4, 5), (6, 4), (3, 6), (9, 5))
        logits = s(s(H @ W1.T) @ W2.T) @ W3.T
        squares = [np.sum(x**2) for x in (W1, W2, W3, H)]
        expected = np.sum((logits - ONE_HOT) ** 2) / 18 + np.dot([0.1, 0.2, 0.3, 0.4], squares) / 2
        np.testing.assert_allclose(problem.cost(point), expected, rtol=1e-14)
        np.testing.assert_allclose(problem.scores(point), logits, rtol=1e-12)


def test_one_layer_is_the_regularized_problem(key):
    deep = ufm.deep.problem(LABELS, 3, [0.1], 0.2, loss=ufm.losses.cross_entropy)
    plain = ufm.regularized(LABELS, 3, weight_decay=0.1, feature_decay=0.2)
    (W,), H = deep.random_point(key, 4)
    np.testing.assert_allclose(
        deep.cost(ufm.deep.DeepPoint((W,), H)), plain.cost(ufm.Point(W, H)), rtol=1e-14
    )


@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_derivatives(activation, key):
    problem = ufm.deep.problem(LABELS, 3, [0.1, 0.2], 0.4, activation=activation)
    point = problem.random_point(key, 4)
    assert ufm.riemannian.diagnostics.check_gradient(problem, point, key).passed
    assert ufm.riemannian.diagnostics.check_hessian(problem, point, key).passed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept_and_decays_may_be_traced(dtype, key):
    @jax.jit
    def costs(rates):
        def one(rate):
            problem = ufm.deep.problem(LABELS, 3, [rate, rate], rate, activation=jax.nn.relu)
            point = problem.random_point(key, 4, dtype)
            return problem.cost(point), problem.gradient(problem.evaluate(point)), problem.measure(point)

        return jax.vmap(one)(rates)

    found = costs(jnp.array([0.1, 0.2]))
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("seed", range(20))
def test_the_minimizer_of_the_linear_model_attains_its_minimum(seed):
    generator = np.random.default_rng(seed)
    depth, bias = 2 + seed % 4, bool(seed % 2)
    Y = np.eye(3)[generator.integers(0, 3, 8)] if seed % 3 else generator.normal(size=(8, 3))
    decays = np.exp(generator.uniform(np.log(1e-4), np.log(2e-2), depth))
    weights, H, b = ufm.theory.deep_linear_minimizer(Y, 5, decays, bias)
    logits = np.asarray(H)
    for W in weights:
        logits = logits @ np.asarray(W).T
    factors = [H, *weights]
    value = np.sum((logits + b - Y) ** 2) / 16
    value += sum(rate / 2 * np.sum(np.square(x)) for rate, x in zip(decays, factors, strict=True))
    np.testing.assert_allclose(value, ufm.theory.deep_linear_minimum(Y, decays, bias), rtol=1e-12)


@pytest.mark.parametrize("depth", few(1, 3, 2, 4))
def test_our_solver_finds_the_minimum_of_the_linear_model(depth):
    @jax.jit
    def values(rates, keys):
        problem = ufm.deep.problem(LABELS, 3, list(rates[1:]), rates[0])

        def one(key):
            start = problem.random_point(key, 4)
            found = ufm.minimize(problem, start, ufm.solvers.lbfgs(), max_steps=3000, tolerance=1e-9)
            return found.value, problem.measure(found.point)

        return jax.lax.map(one, keys)

    generator = np.random.default_rng(depth)
    for _ in range(4):
        rates = np.exp(generator.uniform(np.log(1e-4), np.log(1e-3), depth))
        found, measured = values(rates, jax.random.split(jax.random.key(0), 6))
        theory = ufm.theory.deep_linear_minimum(ONE_HOT, rates)
        np.testing.assert_allclose(found.min(), theory, rtol=0, atol=1e-10)
        assert found.min() > theory - 1e-10
        assert measured.nc1[np.argmin(found)].max() < 1e-6


@pytest.mark.slow
def test_relu_attains_the_linear_minimum_by_a_collapse_and_scipy_goes_no_lower():
    """Two layers and few classes, where that collapse is the minimum."""
    labels, rate = ufm.balanced_labels(3, 2), 2e-3
    problem = ufm.deep.problem(labels, 3, [rate, rate], rate, activation=jax.nn.relu)
    theory = float(ufm.theory.deep_linear_minimum(np.eye(3)[labels], [rate] * 3))
    # Each factor has the singular value x^(1/3) for the three columns of the targets, of length sqrt(2).
    (W1, *_), *_ = ufm.theory.deep_linear_minimizer(np.eye(3)[labels], 3, [rate] * 3)
    x = float(jnp.linalg.norm(W1, ord=2))
    frame = np.eye(3)
    collapsed = ufm.deep.DeepPoint((x * frame, x * frame), x * frame[labels] / 2**0.5)
    np.testing.assert_allclose(problem.cost(collapsed), theory, rtol=1e-12)
    measured = problem.measure(collapsed)
    for values in measured:
        np.testing.assert_allclose(values, 0, atol=1e-7)
    leaves, structure = jax.tree.flatten(collapsed)
    sizes = np.cumsum([leaf.size for leaf in leaves])

    def unravel(flat):
        parts = zip(np.split(flat, sizes[:-1]), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in parts])

    both = jax.jit(jax.value_and_grad(problem.cost))

    def cost(flat):
        value, gradient = both(unravel(flat))
        return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])

    generator = np.random.default_rng(0)
    best = min(
        minimize(cost, generator.normal(size=sizes[-1]), jac=True, method="L-BFGS-B").fun for _ in range(20)
    )
    assert best > theory - 1e-9


def test_the_orthogonality_of_an_orthogonal_frame_has_the_derivative_0():
    problem = ufm.deep.problem(ufm.balanced_labels(4, 2), 4)
    point = ufm.deep.DeepPoint((jnp.eye(4), jnp.eye(4)), jnp.repeat(jnp.eye(4), 2, axis=0))
    gradient = jax.grad(lambda point: jnp.sum(problem.measure(point).orthogonality))(point)
    assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))


def test_measures_of_layers_are_those_of_the_metrics(key):
    problem = ufm.deep.problem(LABELS, 3, [0.1, 0.2, 0.3], 0.4, activation=jax.nn.relu)
    point = problem.random_point(key, 5)
    measured = problem.measure(point)
    for i, x in enumerate(map(np.asarray, problem.features(point))):
        means = np.stack([x[np.asarray(LABELS) == k].mean(0) for k in range(3)])
        np.testing.assert_allclose(measured.nc1[i], ufm.metrics.nc1(x, LABELS, 3), rtol=1e-12)
        np.testing.assert_allclose(measured.nc2[i], ufm.metrics.nc2(means - x.mean(0)), rtol=1e-10)
        gram = means @ means.T
        expected = np.linalg.norm(gram / np.linalg.norm(gram) - np.eye(3) / 3**0.5)
        np.testing.assert_allclose(measured.orthogonality[i], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: ufm.deep.problem(LABELS, 3, []), "weight_decay must be a sequence"),
        (lambda p: ufm.deep.problem(LABELS, 3, 0.1), "weight_decay must be a sequence"),
        (lambda p: ufm.deep.problem(LABELS, 3, [-0.1]), "weight_decay must be finite and at least 0"),
        (lambda p: ufm.deep.problem(LABELS, 2), "labels must lie in 0..1"),
        (lambda p: p.random_point(jax.random.key(0), [3]), "widths must be 2, one a layer, but are 1"),
        (
            lambda p: p.check_point(
                ufm.deep.DeepPoint((np.ones((4, 4)), np.ones((4, 4))), np.ones((9, 4)))
            ),
            r"to W_L \(3, d_L\)",
        ),
        (
            lambda p: p.check_point(ufm.deep.DeepPoint((np.ones((4, 4)), np.ones((3, 4))), np.ones(9))),
            r"must be matrices, but have shapes \(4, 4\), \(3, 4\), \(9,\)",
        ),
        (
            lambda p: p.check_point(ufm.deep.DeepPoint((np.ones((4, 4)), np.ones((3, 4))), None)),
            r"must be matrices, but have shapes \(4, 4\), \(3, 4\), \(\)",
        ),
        (
            lambda p: p.random_point(jax.random.key(0), 4.0),
            "a width must be an integer, but is 4.0",
        ),
        (lambda p: p.random_point(jax.random.key(0), [4, 4.5]), "a width must be an integer, but is 4.5"),
        (lambda p: p.check_point((np.ones((3, 4)), np.ones((9, 4)))), "DeepPoint.*but this is a tuple"),
        (lambda p: ufm.theory.deep_linear_minimizer(ONE_HOT, 2, [0.1, 0.1]), "width must be at least"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(ufm.deep.problem(LABELS, 3))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_orthogonality_of_means_feels_no_scale(scale, key):
    problem = ufm.deep.problem(LABELS, 3)
    point = problem.random_point(key, 4, dtype=jnp.float32)
    scaled = point._replace(H=point.H * np.float32(scale))
    np.testing.assert_allclose(
        problem.measure(scaled).orthogonality, problem.measure(point).orthogonality, rtol=1e-6
    )
