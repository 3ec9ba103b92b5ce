"""Softmax codes: the logarithm of cross entropy, and what the claims judge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from experiments.landscape import softmax_codes


def test_the_logarithm_is_that_of_cross_entropy(key):
    logits, labels = 3 * jax.random.normal(key, (12, 4)), ufm.balanced_labels(4, 3)
    expected = np.log(np.mean(ufm.losses.cross_entropy(logits, labels)))
    assert softmax_codes.log_cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-13)


def test_the_logarithm_and_its_gradient_do_not_underflow():
    """At tau = 1e4 the loss of the square is exp(-1e4); its two neighbours share the gradient."""
    logits, labels = 1e4 * ufm.theory.regular_polygon(4) @ ufm.theory.regular_polygon(4).T, jnp.arange(4)
    assert softmax_codes.log_cross_entropy(logits, labels) == pytest.approx(np.log(2) - 1e4, rel=1e-13)
    gradient = jax.grad(softmax_codes.log_cross_entropy)(logits, labels)
    np.testing.assert_allclose(gradient[0], [-1 / 4, 1 / 8, 0, 1 / 8], atol=1e-10)


def test_claims_judge_the_data():
    config = softmax_codes.Config(num_classes=(5, 7), dim=(2, 3), tau=(1.0, 1e4), trials=1)
    packing = np.array([ufm.theory.packing_angle(5, 2), ufm.theory.packing_angle(7, 3)])
    each = np.ones((2, 2))
    good = {
        "num_classes": np.array(config.num_classes),
        "dim": np.array(config.dim),
        "tau": np.array(config.tau),
        "packing_angle": packing,
        "best_angle": packing[:, None] * each,
        "best_soft_margin": each,
        "polygon_soft_margin": each,
        "gnc2": (1 - np.cos(packing))[:, None] * each,
        "gnc3": 0 * each,
    }
    assert [c.holds for c in softmax_codes.claims(config, good)] == [True] * 5
    wrong = {"best_angle": 0.99, "best_soft_margin": 1.01, "gnc2": 1.01}
    bad = good | {name: factor * good[name] for name, factor in wrong.items()} | {"gnc3": each}
    assert [c.holds for c in softmax_codes.claims(config, bad)] == [False] * 5


def test_problems_without_a_known_packing_are_refused():
    config = softmax_codes.Config(num_classes=(9,), dim=(4,))
    with pytest.raises(ValueError, match=r"packing angles are known for .* not for num_classes 9 at dim 4"):
        softmax_codes.check(config)
    softmax_codes.check(dataclasses.replace(config, num_classes=(8,)))
