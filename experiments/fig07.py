"""Figure 7: the normalized against the regularized UFM under Riemannian conjugate gradients."""

from experiments import descent

EXPERIMENT = descent.experiment("fig7", "conjugate_gradient", steps=200, duration="45 s")
