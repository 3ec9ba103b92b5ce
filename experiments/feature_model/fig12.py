"""Figure 12: minima of label smoothing, against its value at collapse and its closed-form minimum."""

import dataclasses

import ufm_jax as ufm
from experiments.feature_model import minima

TITLE = "label smoothing: minima and theory"
DURATION = "30 s"


@dataclasses.dataclass(frozen=True)
class Config(minima.Config):
    """The paper's setting: alpha = 0.1, d = 16, n = 3."""

    alpha: float = 0.1
    """Smoothing parameter."""


check, run, claims, plot = minima.parts(
    minima.Setting(
        problem=lambda config, labels, num_classes, tau: ufm.normalized(
            labels,
            num_classes,
            loss=lambda logits, labels: ufm.losses.label_smoothing(logits, labels, config.alpha),
            tau=tau,
            classifier_weight=config.samples_per_class,
        ),
        minimum=lambda config, num_classes, tau: ufm.theory.label_smoothing_minimum(
            num_classes, tau, config.alpha
        ),
        title="label smoothing",
        theory="the closed-form minimum",
        at_collapse=lambda config, num_classes, tau: ufm.theory.label_smoothing_at_collapse(
            num_classes, tau, config.alpha
        ),
        threshold=lambda config, num_classes: float(
            ufm.theory.label_smoothing_threshold(num_classes, config.alpha)
        ),
    )
)
