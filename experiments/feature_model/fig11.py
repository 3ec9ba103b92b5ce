"""Figure 11: minima of the focal loss found by gradient descent, against its value at collapse."""

import dataclasses

import ufm_jax as ufm
from experiments.feature_model import minima

TITLE = "focal loss: minima and theory"
DURATION = "30 s"


@dataclasses.dataclass(frozen=True)
class Config(minima.Config):
    """The paper's setting: gamma = 3, d = 16, n = 3."""

    gamma: float = 3.0
    """Focusing parameter of the focal loss."""
    tolerance: float = 1e-15
    """Norm of the Riemannian gradient at which a trial ends: the loss is flat at a large tau."""


check, run, claims, plot = minima.parts(
    minima.Setting(
        problem=lambda config, labels, num_classes, tau: ufm.normalized(
            labels,
            num_classes,
            loss=lambda logits, labels: ufm.losses.focal(logits, labels, config.gamma),
            tau=tau,
            classifier_weight=config.samples_per_class,
        ),
        minimum=lambda config, num_classes, tau: ufm.theory.focal_at_collapse(
            num_classes, tau, config.gamma
        ),
        title="focal loss",
        theory="the value at collapse",
    )
)
