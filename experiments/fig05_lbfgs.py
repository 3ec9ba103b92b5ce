"""Figure 5 under L-BFGS, which the paper does not try."""

from experiments import descent

EXPERIMENT = descent.experiment("fig5-lbfgs", "lbfgs", steps=100, duration="45 s")
