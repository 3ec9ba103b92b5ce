"""Experiments at the paper's own size, against figures known from elsewhere."""

import numpy as np
import pytest

import ufm_jax as ufm
from experiments.feature_model import fig9


@pytest.mark.slow
def test_fig9_at_paper_size():
    config = fig9.Config()
    data = fig9.run(config, lambda done, total: None)
    tau = list(config.tau)
    assert data["nc2"].shape == (8, 20, 201)
    assert np.all(data["accuracy"][:, :, -1] == 1)

    final = {name: data[name][:, :, -1].mean(1) for name in ("nc1", "nc2", "nc3")}
    gap = data["loss"][tau.index(1.0), :, -1] - ufm.theory.cross_entropy_minimum(10, 1.0)
    assert np.all(np.abs(gap) < 1e-12)
    # Armijo's rule on values ends near 5e-8 here; slopes lead further.
    assert final["nc2"][tau.index(1.0)] < 5e-8
    after_100 = data["nc2"][:, :, 100].mean(1)
    assert after_100[tau.index(5.0)] < 1e-8
    assert all(after_100[tau.index(5.0)] < after_100[i] for i, t in enumerate(tau) if t <= 1)
    assert final["nc2"][tau.index(0.01)] > 0.1
    assert final["nc2"][tau.index(100.0)] > 0.1
    assert np.all(data["gradient_norm"][tau.index(100.0)] < 1e-12)
