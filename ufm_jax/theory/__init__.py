"""What is known in closed form: the simplex ETF, the losses' values at collapse and their minima."""

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

__all__ = [
    "FOCAL_CLASSES",
    "cross_entropy_minimum",
    "focal_at_collapse",
    "focal_is_optimal_at_collapse",
    "label_smoothing_at_collapse",
    "label_smoothing_cone",
    "label_smoothing_minimum",
    "label_smoothing_threshold",
    "multipliers_at_collapse",
    "packing_angle",
    "regular_polygon",
    "simplex_etf",
    "strict_saddle_threshold",
    "supervised_contrastive_minimum",
]
