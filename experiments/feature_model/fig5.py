"""Figure 5: the normalized against the regularized UFM under Riemannian gradient descent."""

from experiments.feature_model import two_models

TITLE = "normalized vs. regularized, gradient descent"
DURATION = "40 s"
Config, check, run, claims, plot = two_models.under("gradient_descent", steps=200)
