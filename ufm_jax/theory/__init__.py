"""What is known in closed form: minima, the losses' values at collapse, and how fast collapse comes.

K is the number of classes, d the dimension, n the samples of each class, tau the temperature. The minima
are the paper's (Theorem 1, Appendix E), and where it leaves one open, of docs/label_smoothing.md and
docs/focal.md; their functions of tau accept arrays and broadcast. The rates are of docs/rates.md.
Minima of the regularized models are those of the field.
"""

from ufm_jax.theory.imbalanced import seli
from ufm_jax.theory.minima import (
    FOCAL_CLASSES,
    cross_entropy_minimum,
    focal_at_collapse,
    focal_is_optimal_at_collapse,
    label_smoothing_at_collapse,
    label_smoothing_cone,
    label_smoothing_minimum,
    label_smoothing_threshold,
    multipliers_at_collapse,
    packing_angle,
    regular_polygon,
    simplex_etf,
    strict_saddle_threshold,
    supervised_contrastive_minimum,
)
from ufm_jax.theory.rates import (
    CollapseRates,
    Modes,
    best_temperature,
    best_temperature_of_fixed_step,
    collapse_condition_number,
    collapse_rates,
    collapse_spectrum,
    contrastive_collapse_spectrum,
    regularized_collapse_spectrum,
)
from ufm_jax.theory.regularized import (
    deep_linear_minimizer,
    deep_linear_minimum,
    layer_peeled_minimum,
    minority_collapse_threshold,
    nearest_simplex_etf,
    nonnegative_cross_entropy_minimum,
    regularized_cross_entropy_minimum,
    regularized_label_smoothing_minimum,
    regularized_margin,
    regularized_minimizer,
    regularized_squared_error_minimizer,
    regularized_squared_error_minimum,
)

__all__ = [
    "FOCAL_CLASSES",
    "CollapseRates",
    "Modes",
    "best_temperature",
    "best_temperature_of_fixed_step",
    "collapse_condition_number",
    "collapse_rates",
    "collapse_spectrum",
    "contrastive_collapse_spectrum",
    "cross_entropy_minimum",
    "deep_linear_minimizer",
    "deep_linear_minimum",
    "focal_at_collapse",
    "focal_is_optimal_at_collapse",
    "label_smoothing_at_collapse",
    "label_smoothing_cone",
    "label_smoothing_minimum",
    "label_smoothing_threshold",
    "layer_peeled_minimum",
    "minority_collapse_threshold",
    "multipliers_at_collapse",
    "nearest_simplex_etf",
    "nonnegative_cross_entropy_minimum",
    "packing_angle",
    "regular_polygon",
    "regularized_collapse_spectrum",
    "regularized_cross_entropy_minimum",
    "regularized_label_smoothing_minimum",
    "regularized_margin",
    "regularized_minimizer",
    "regularized_squared_error_minimizer",
    "regularized_squared_error_minimum",
    "seli",
    "simplex_etf",
    "strict_saddle_threshold",
    "supervised_contrastive_minimum",
]
