"""One small problem of each kind."""

import jax.numpy as jnp

import ufm_jax as ufm

LABELS = ufm.balanced_labels(4, 3)
PROBLEMS = {
    "cross_entropy": ufm.normalized(LABELS, 4, tau=2.0),
    "regularized": ufm.regularized(LABELS, 4, weight_decay=1e-2, feature_decay=3e-2),
    "decayed bias": ufm.regularized(
        jnp.array([0, 0, 0, 1, 2, 3, 3]), 4, ufm.losses.squared_error, 1e-2, 3e-2, bias_decay=0.2
    ),
    "contrastive": ufm.contrastive(LABELS, 4, tau=1.5),
    "focal": ufm.normalized(LABELS, 4, loss=ufm.losses.focal, tau=0.7),
    "label_smoothing": ufm.normalized(LABELS, 4, loss=ufm.losses.label_smoothing, tau=3.0),
    "unbalanced": ufm.normalized(jnp.array([0, 0, 0, 1, 2, 3, 3]), 4, tau=1.3),
    "free bias": ufm.regularized(LABELS, 4, weight_decay=1e-2, feature_decay=3e-2, bias_decay=0.0),
}
"""The first ones, which run by default, differ most."""
