"""Figure 5 under L-BFGS, which the paper does not try."""

from experiments.feature_model import two_models

TITLE = "normalized vs. regularized, L-BFGS"
DURATION = "45 s"
Config, check, run, claims, plot = two_models.under("lbfgs", steps=100)
