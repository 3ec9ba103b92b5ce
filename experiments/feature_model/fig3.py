"""Figure 3: minima of the normalized UFM found by gradient descent, against Theorem 1."""

import ufm_jax as ufm
from experiments.feature_model import minima

TITLE = "cross entropy: minima and theory"
DURATION = "30 s"

Config = minima.Config
check, run, claims, plot = minima.parts(
    minima.Setting(
        problem=lambda config, labels, num_classes, tau: ufm.normalized(
            labels, num_classes, tau=tau, classifier_weight=config.samples_per_class
        ),
        minimum=lambda config, num_classes, tau: ufm.theory.cross_entropy_minimum(num_classes, tau),
        title="cross entropy",
        theory="the minimum of Theorem 1",
    )
)
