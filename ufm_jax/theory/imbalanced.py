"""What is known in closed form of classes of unequal sizes."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ufm_jax import _checks


def seli(class_sizes: ArrayLike, dim: int) -> tuple[jax.Array, jax.Array]:
    """Classifiers and features of simplex-encoded labels interpolation (SELI), for classes of any size.

    Of all W and H whose margins `<w_y - w_k, h>` are at least 1, they have the least `|W|^2 + |H|^2`: the
    limit of directions of the regularized UFM under cross entropy as its decays go to 0, slowly, like one
    over the logarithm of the decay. The logits are the labels' simplex encoding `Z = Y - 11^T/K`; with
    `Z = U S V^T`, W W^T is `V S V^T` and H H^T is `U S U^T`. For equal sizes this is neural collapse, and
    for unequal ones, samples of a class still share a feature, but lengths and angles differ.

    Args:
        class_sizes: n_k, positive integers, (K,), at least two.
        dim: d, at least K - 1.

    Returns:
        W (K, d), and the feature of each class, (K, d): `H = features[labels]`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> W, features = ufm.theory.seli([10, 10, 1], dim=2)
        >>> print((features @ W.T).round(2))
        [[ 0.67 -0.33 -0.33]
         [-0.33  0.67 -0.33]
         [-0.33 -0.33  0.67]]
        >>> print(jnp.linalg.norm(W, axis=1).round(2), jnp.linalg.norm(features, axis=1).round(2))
        [1.38 1.38 1.15] [0.49 0.49 0.58]

    Reference: Thrampoulidis, Kini, Vakilian, Behnia, *Imbalance Trouble: Revisiting Neural-Collapse
    Geometry*, NeurIPS 2022.
    """
    _checks.positive("class_sizes", class_sizes)
    sizes = jnp.asarray(class_sizes, float)
    if sizes.ndim != 1 or len(sizes) < 2:
        raise ValueError(f"class_sizes must be a vector of at least two, but has shape {sizes.shape}.")
    if _checks.is_concrete(sizes) and jnp.any(sizes != jnp.round(sizes)):
        raise ValueError(f"class_sizes must be whole numbers, but are {class_sizes}.")
    k = len(sizes)
    _checks.count("dim", dim, k - 1)
    # Rows of Z are equal within a class: once each, of weight sqrt(n_k), they have its singular values.
    root = jnp.sqrt(sizes)[:, None]
    _, values, right = jnp.linalg.svd(root * (jnp.eye(k) - 1 / k))
    rank = k - 1  # The last singular value is zero.
    lengths = jnp.sqrt(values[:rank])
    room = ((0, 0), (0, dim - rank))
    # Right singular vectors are in the span of Z, so a feature is its left one, `Z v / value`, without Z.
    return jnp.pad(right[:rank].T * lengths, room), jnp.pad(right[:rank].T / lengths, room)
