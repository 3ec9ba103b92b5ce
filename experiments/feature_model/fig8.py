"""Figure 8: the normalized against the regularized UFM under Riemannian trust region."""

from experiments.feature_model import two_models

TITLE = "normalized vs. regularized, trust region"
DURATION = "80 s"
Config, check, run, claims, plot = two_models.under("trust_region", steps=40)
