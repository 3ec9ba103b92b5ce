"""Figure 7: the normalized against the regularized UFM under Riemannian conjugate gradients."""

from experiments.feature_model import two_models

TITLE = "normalized vs. regularized, conjugate gradient"
DURATION = "45 s"
Config, check, run, claims, plot = two_models.under("conjugate_gradient", steps=200)
