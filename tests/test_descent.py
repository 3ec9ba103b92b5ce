"""Figures 5, 7 and 8: their claims judge the data."""

import numpy as np

from experiments.feature_model import two_models
from experiments.harness.experiment import all_experiments


def data(first_normalized, first_regularized):
    """Histories in which each model is perfect and collapsed from the given step on."""
    step = np.arange(8)
    made = {"step": step}
    for name, first in [("normalized", first_normalized), ("regularized", first_regularized)]:
        reached = np.tile(step >= first, (3, 1))
        made[f"accuracy_{name}"] = np.where(reached, 1.0, 0.5)
        made[f"nc1_{name}"] = np.where(reached, 0.0, 1.0)
    return made


def test_the_faster_model_wins():
    config = two_models.Config(steps=7)
    assert all(c.holds for c in two_models.claims(config, data(2, 5)))
    assert not any(c.holds for c in two_models.claims(config, data(5, 2)))
    assert not any(c.holds for c in two_models.claims(config, data(3, 3)))
    never = two_models.claims(config, data(2, 100))
    assert all(c.holds for c in never)
    assert "regularized: never (never to never)" in never[0].measured


def test_the_three_figures_differ_in_their_solver_alone():
    catalog = all_experiments()
    solvers = [catalog[name].run.args[0] for name in ("fig5", "fig7", "fig8")]
    assert solvers == ["gradient_descent", "conjugate_gradient", "trust_region"]
    sizes = {
        (e.config().num_classes, e.config().samples_per_class, e.config().dim, e.config().trials)
        for e in (catalog["fig5"], catalog["fig7"], catalog["fig8"])
    }
    assert sizes == {(100, 30, 128, 10)}
