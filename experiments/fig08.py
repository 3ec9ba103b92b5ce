"""Figure 8: the normalized against the regularized UFM under Riemannian trust region."""

from experiments import descent

EXPERIMENT = descent.experiment("fig8", "trust_region", steps=40, duration="80 s")
