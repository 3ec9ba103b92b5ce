"""Figure 5: the normalized against the regularized UFM under Riemannian gradient descent."""

from experiments import descent

EXPERIMENT = descent.experiment("fig5", "gradient_descent", steps=200, duration="40 s")
