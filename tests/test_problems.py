import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from tests.shared.marks import few
from tests.shared.problems import LABELS, PROBLEMS


def test_balanced_labels():
    labels = ufm.balanced_labels(3, 2)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])


def test_normalized_cost_is_equation_4(key):
    problem = PROBLEMS["cross_entropy"]
    W, H = problem.random_point(key, 6)
    logits = 2.0 * np.asarray(H) @ np.asarray(W).T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -np.mean(log_p[np.arange(12), np.asarray(LABELS)])
    np.testing.assert_allclose(problem.cost(ufm.Point(W, H)), expected, rtol=1e-14)


def test_a_classifier_on_spheres_is_that_of_the_normalized_problem():
    problem = ufm.normalized(LABELS, 4, classifier=ufm.manifolds.Oblique(), classifier_weight=3.0)
    assert problem.is_normalized
    assert problem.manifold == ufm.normalized(LABELS, 4, classifier_weight=3.0).manifold


def test_regularized_cost_adds_the_decays(key):
    problem = PROBLEMS["regularized"]
    point = problem.random_point(key, 6)
    plain = ufm.regularized(LABELS, 4, weight_decay=0.0, feature_decay=0.0).cost(point)
    decays = 1e-2 / 2 * np.sum(np.square(point.W)) + 3e-2 / 2 * np.sum(np.square(point.H))
    np.testing.assert_allclose(problem.cost(point), plain + decays, rtol=1e-14)
    default = ufm.regularized(LABELS, 4)
    squares = np.sum(np.square(point.W)) + np.sum(np.square(point.H))
    np.testing.assert_allclose(default.cost(point), plain + 1e-4 / 2 * squares, rtol=1e-14)


def test_contrastive_cost_is_the_loss_of_the_features(key):
    point = PROBLEMS["contrastive"].random_point(key, 6)
    assert point.W is None
    expected = ufm.losses.supervised_contrastive(point.H, LABELS, 1.5)
    np.testing.assert_allclose(PROBLEMS["contrastive"].cost(point), expected, rtol=1e-14)


@pytest.mark.parametrize("problem", few(4, **PROBLEMS))
class TestEveryProblem:
    def test_gradient_is_that_of_automatic_differentiation(self, problem, key):
        point = problem.random_point(key, 6)
        ours = problem.euclidean_gradient(problem.evaluate(point))
        theirs = jax.grad(problem.cost)(point)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-15), ours, theirs)

    def test_riemannian_gradient_predicts_the_change_along_a_retraction(self, problem, key):
        point = problem.random_point(key, 6)
        gradient = problem.gradient(problem.evaluate(point))
        tangent = problem.manifold.random_tangent(jax.random.key(1), point)

        def along(t):
            return problem.cost(problem.manifold.retract(point, jax.tree.map(lambda v: t * v, tangent)))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            problem.manifold.inner_product(point, gradient, tangent), slope, atol=1e-9
        )

    @pytest.mark.parametrize("dtype", few(1, jnp.float32, jnp.float64))
    def test_dtype_is_kept(self, problem, dtype, key):
        point = problem.random_point(key, 6, dtype)
        evaluation = problem.evaluate(point)
        everything = (point, evaluation, problem.euclidean_gradient(evaluation), problem.cost(point))
        assert {x.dtype for x in jax.tree.leaves(everything)} == {jnp.dtype(dtype)}

    def test_problems_pass_through_jit(self, problem, key):
        point = problem.random_point(key, 6)
        through = jax.jit(lambda p, x: p.cost(x))(problem, point)
        np.testing.assert_allclose(through, problem.cost(point), rtol=1e-14)


def test_a_batch_of_temperatures_is_one_vmap(key):
    taus = jnp.array([0.5, 1.0, 5.0])
    point = PROBLEMS["cross_entropy"].random_point(key, 6)
    together = jax.vmap(lambda tau: ufm.normalized(LABELS, 4, tau=tau).cost(point))(taus)
    alone = [ufm.normalized(LABELS, 4, tau=float(tau)).cost(point) for tau in taus]
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def test_random_points_are_unit_rows_or_standard_normal(key):
    point = ufm.normalized(ufm.balanced_labels(3, 2000), 3).random_point(key, 8)
    np.testing.assert_allclose(np.linalg.norm(point.H, axis=1), 1, rtol=1e-14)
    assert np.abs(np.mean(point.H, 0)).max() < 0.03
    free = ufm.regularized(ufm.balanced_labels(3, 2000), 3).random_point(key, 8)
    assert abs(np.std(free.H) - 1) < 0.02


def test_the_product_of_float32_is_a_full_one():
    """The compiled program asks for full precision, whatever device runs it."""
    problem = PROBLEMS["cross_entropy"]
    point = problem.random_point(jax.random.key(0), 6, jnp.float32)

    def step(point):
        return problem.gradient(problem.evaluate(point))

    lowered = jax.jit(step).lower(point).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ufm.balanced_labels(1, 5), "num_classes must be finite and at least 2, but is 1"),
        (lambda: ufm.balanced_labels(3, 0), "samples_per_class must be finite and at least 1, but is 0"),
        (lambda: ufm.normalized(LABELS, 4, tau=0.0), "tau must be positive and finite, but is 0.0"),
        (lambda: ufm.normalized(LABELS, 4, tau=np.nan), "tau must be positive and finite, but is nan"),
        (lambda: ufm.normalized(LABELS, 1), "num_classes must be"),
        (lambda: ufm.normalized(LABELS, 3), r"labels must lie in 0..2, but go from 0 to 3"),
        (lambda: ufm.normalized(LABELS - 1, 4), r"labels must lie in 0..3, but go from -1 to 2"),
        (lambda: ufm.normalized(LABELS.astype(float), 4), "labels must be a non-empty vector of integers"),
        (lambda: ufm.normalized(jnp.zeros((0,), int), 4), "labels must be a non-empty vector"),
        (
            lambda: ufm.regularized(LABELS, 4, weight_decay=-1.0),
            "weight_decay must be finite and at least 0",
        ),
        (lambda: ufm.contrastive(jnp.array([0, 0, 1]), 2), "at least two samples of every class"),
        (lambda: PROBLEMS["focal"].random_point(jax.random.key(0), 0), "dim must be finite and at least 1"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_few_dimensions_for_collapse_are_a_warning():
    with pytest.warns(UserWarning, match="dim is 2, but a simplex ETF of 4 classes needs at least 3"):
        PROBLEMS["cross_entropy"].random_point(jax.random.key(0), 2)


def test_a_point_of_integers_has_the_cost_of_its_numbers():
    """A temperature of 0.5 in their dtype would be 0."""
    W, H = np.eye(4, 6, dtype=int), np.eye(4, 6, dtype=int)[np.asarray(LABELS)]
    for problem in (ufm.normalized(LABELS, 4, tau=0.5), ufm.regularized(LABELS, 4, weight_decay=0.1)):
        found = problem.cost(ufm.Point(jnp.asarray(W), jnp.asarray(H)))
        np.testing.assert_allclose(found, problem.cost(ufm.Point(W * 1.0, H * 1.0)), rtol=1e-14)


def test_a_point_of_lists_is_refused():
    point = ufm.Point(np.eye(4, 6).tolist(), np.eye(4, 6)[np.asarray(LABELS)].tolist())
    with pytest.raises(ValueError, match="the point must hold arrays"):
        ufm.landscape.certify(PROBLEMS["cross_entropy"], point)
