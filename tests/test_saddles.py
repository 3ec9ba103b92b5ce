"""Critical points that are built are critical, and those that are found too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from ufm_jax import landscape, saddles

K, DIM = 5, 8
LABELS = jax.random.permutation(jax.random.key(9), ufm.balanced_labels(K, 3))


def problem_at(tau):
    return ufm.normalized(LABELS, K, tau=tau)


def gradient_norm(problem, point):
    return problem.manifold.norm(point, problem.gradient(problem.evaluate(point)))


@jax.jit
def merged(tau, groups):
    built = saddles.merged_classes(problem_at(tau), groups, DIM)
    polished = saddles.find_critical_point(problem_at(tau), built)
    return built, polished.point, polished.gradient_norm


def test_rank_one_points_are_critical_with_beta_zero():
    problem = problem_at(3.0)
    for reflected in (False, True):
        point = saddles.rank_one(problem, jax.random.key(0), DIM, reflected=reflected)
        assert gradient_norm(problem, point) < 1e-15
        np.testing.assert_allclose(np.linalg.norm(point.H, axis=1), 1, rtol=1e-14)
        alpha, beta = landscape.multipliers(problem, point)
        np.testing.assert_allclose(beta, 0, atol=1e-16)
        assert (np.abs(alpha).max() > 1e-3) == reflected
        np.testing.assert_allclose(problem.cost(point), np.log(K), rtol=1e-14)


def test_the_antipodal_point_is_critical():
    assert gradient_norm(problem_at(3.0), saddles.antipodal(problem_at(3.0), DIM)) < 1e-14


@pytest.mark.parametrize("tau", [0.3, 4.0])
def test_every_partition_gives_a_critical_point_that_polishes_to_rounding(tau):
    values = []
    for groups in saddles.partitions(K):
        groups = np.array(groups)
        built, point, norm = merged(tau, groups)
        assert norm <= 1e-12
        assert gradient_norm(problem_at(tau), built) < 1e-9
        for rows, label in [(point.W, np.arange(K)), (point.H, np.asarray(LABELS))]:
            same = groups[label][:, None] == groups[label][None, :]
            np.testing.assert_array_equal(np.asarray(rows @ rows.T)[same] > 1 - 1e-12, True)
            assert np.asarray(rows @ rows.T)[~same].max() < 0.9
        values.append(float(problem_at(tau).cost(point)))
    assert len(set(np.round(values, 9))) == len(values) == 5
    assert min(values) > ufm.theory.cross_entropy_minimum(K, tau) + 1e-4


def test_groups_of_one_size_end_at_their_simplex():
    """Two pairs of four classes: opposite vectors."""
    labels = ufm.balanced_labels(4, 2)
    point = saddles.merged_classes(ufm.normalized(labels, 4, tau=2.0), jnp.array([0, 0, 1, 1]), 6)
    np.testing.assert_allclose(
        point.W @ point.W.T, np.kron([[1, -1], [-1, 1]], np.ones((2, 2))), atol=1e-12
    )


def test_partitions():
    assert list(saddles.partitions(4)) == [(0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2)]
    assert [len(list(saddles.partitions(k))) for k in (2, 3, 5, 10)] == [0, 1, 5, 40]


def test_random_starts_are_driven_to_critical_points():
    @jax.jit
    def run(key):
        problem = problem_at(1.0)
        found = saddles.find_critical_point(problem, problem.random_point(key, DIM))
        return found, gradient_norm(problem, found.point), landscape.certify(problem, found.point)

    results = [run(jax.random.key(seed)) for seed in range(10)]
    reached = [r for r in results if r[0].gradient_norm <= 1e-12]
    assert len(reached) >= 5
    for found, norm, verdict in reached:
        np.testing.assert_allclose(norm, found.gradient_norm, atol=1e-15)
        assert verdict.is_critical
        assert found.steps <= 200


SQUARED_ERROR = ufm.normalized(ufm.balanced_labels(4, 3), 4, loss=ufm.losses.squared_error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: saddles.rank_one(problem_at(1.0), jax.random.key(0), 0),
            "dim must be finite and at least 1",
        ),
        (
            lambda: saddles.merged_classes(problem_at(1.0), jnp.arange(4), DIM),
            r"groups must be integers of shape \(5,\)",
        ),
        (
            lambda: saddles.merged_classes(problem_at(1.0), jnp.arange(5), DIM),
            "number between 2 and 4, but",
        ),
        (lambda: saddles.merged_classes(problem_at(1.0), jnp.zeros(5, int), DIM), "but number 1"),
        (
            lambda: saddles.merged_classes(problem_at(1.0), jnp.arange(5) + 1, DIM),
            "groups must lie in 0..4, but go from 1 to 5",
        ),
        (lambda: saddles.antipodal(problem_at(1.0), 3), "at least 4 dimensions, but dim is 3"),
        (lambda: saddles.rank_one(SQUARED_ERROR, jax.random.key(0), 4), "must not see a constant"),
        (lambda: saddles.full_rank(SQUARED_ERROR, 4), "must be ufm_jax.losses.cross_entropy"),
        (lambda: saddles.full_rank(problem_at(1.0), 4), "classifiers of rank 5 need at least 5 dimensions"),
        (lambda: saddles.full_rank(problem_at(1e-3), 5), "tau must be finite and at least"),
        (
            lambda: saddles.sign_pattern(problem_at(1.0), jnp.ones(4), jnp.ones(15), 5),
            r"classifier_signs must have shape \(5,\)",
        ),
        (
            lambda: saddles.sign_pattern(problem_at(1.0), jnp.ones(5), jnp.ones(3), 5),
            r"feature_signs must have shape \(15,\)",
        ),
        (
            lambda: saddles.sign_pattern(problem_at(1.0), jnp.full(5, 2.0), jnp.ones(15), 5),
            r"must be \+1 or -1",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def weighted(logits, labels):
    return jnp.array([1.0, 2.0, 5.0, 1.0])[labels] * ufm.losses.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    "build",
    [
        lambda problem: saddles.rank_one(problem, jax.random.key(0), 6),
        lambda problem: saddles.antipodal(problem, 6),
        lambda problem: saddles.merged_classes(problem, jnp.array([0, 0, 1, 2]), 6),
    ],
)
def test_saddles_by_symmetry_are_refused_where_the_loss_has_none(build):
    problem = ufm.normalized(ufm.balanced_labels(4, 2), 4, loss=weighted)
    with pytest.raises(ValueError, match="the loss must treat all classes alike"):
        build(problem)


def test_critical_points_are_found_in_any_metric():
    """The Hessian is symmetric in the metric alone: by Euclidean inner products 60 steps ended at 1e-3."""
    problem = ufm.normalized(ufm.balanced_labels(4, 3), 4, tau=2.0, classifier_weight=30.0)
    for seed in range(4):
        start = problem.random_point(jax.random.key(seed), 6)
        found = saddles.find_critical_point(problem, start, max_steps=30, tolerance=1e-12)
        assert found.gradient_norm < 1e-12, seed


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ufm.regularized(ufm.balanced_labels(3, 2), 3), "normalized problems alone"),
        (ufm.normalized(jnp.array([0, 0, 0, 1, 1, 2]), 3), r"equal size, but sizes are \[3, 2, 1\]"),
    ],
)
def test_saddles_are_refused_where_they_would_not_be_critical(problem, message):
    for build in (
        lambda: ufm.saddles.rank_one(problem, jax.random.key(0), 6),
        lambda: ufm.saddles.merged_classes(problem, jnp.array([0, 0, 1]), 6),
        lambda: ufm.saddles.antipodal(problem, 6),
    ):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize(
    ("reversed_samples", "message"),
    [
        (1.5, "must be an integer, but is 1.5"),
        (0, "at least 1, but is 0"),
        (2, r"at least 1 and below n/2 = 2, but is 2"),
    ],
)
def test_samples_that_are_reversed_are_counted(reversed_samples, message):
    with pytest.raises(ValueError, match=message):
        saddles.full_rank_threshold(3, 4, reversed_samples)
