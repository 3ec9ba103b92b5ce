"""Convolutions of images (B, H, W, C) by kernels (S, S, C, C') that are fast on CPUs too.

XLA's own convolution on CPUs takes two to three times as long as PyTorch's at 32x32 with 64 channels, and
its gradients longer still where they stand within a loop, as an epoch does. So there a convolution is
stated as matrix products of so few images at a time that what they read stays in the caches: by Winograd's
minimal filtering where it applies and the images are not small, otherwise by im2col.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm_jax import _checks

_SMALL = 2**18
"""Numbers (1 MiB) of all images up to which Winograd's filtering gains less than its compilation takes."""
_AT_ONCE = 2**21
"""Numbers (8 MiB) that may be made of a few images for their products."""

# Winograd's minimal filtering F(2x2, 3x3): a tile of 2x2 outputs is
#     Y = A^T [(G k G^T) * (B^T X B)] A
# of the 4x4 inputs X that it sees, where * is entry by entry: 16 multiplications instead of 36. All entries
# of A and B are 0 and +-1, so its rounding errors are no more than about twice those of the definition.
# Lavin, Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016, equations (7) and (8).
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])
_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Grid = list[list[jax.Array]]
"""A small matrix of arrays: each holds what stands at one place of every tile, or of every kernel."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution with zero padding `S // 2` on every side, in the dtype of `x`.

    Args:
        x: images (B, H, W, C).
        kernel: (S, S, C, C'), S odd; it is rounded to the dtype of `x`.
        stride: at least 1.

    Returns:
        (B, H', W', C') with H' = (H - 1) // stride + 1, and W' likewise. Their sums are made in float32 at
        least.

    Raises:
        ValueError: a shape is none of these, or the stride is below 1.
    """
    if x.ndim != 4:
        raise ValueError(f"images must have the axes (B, H, W, C), but have shape {x.shape}.")
    size = kernel.shape[0] if kernel.ndim == 4 else 0
    if size % 2 == 0 or kernel.shape[:3] != (size, size, x.shape[3]):
        raise ValueError(
            f"kernel must have shape (S, S, {x.shape[3]}, C'), S odd, for images of {x.shape[3]} channels, "
            f"but has shape {kernel.shape}."
        )
    _checks.at_least("stride", stride, 1)
    kernel = kernel.astype(x.dtype)
    margin = size // 2
    if x.shape[1:3] == (1, 1):
        # All other taps see only padding, which XLA does not know.
        return jnp.matmul(x, kernel[margin, margin])
    if jax.default_backend() != "cpu":
        padding = [(margin, margin)] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x_wide, kernel_wide = x.astype(wide), kernel.astype(wide)
    if size == 3 and stride == 1 and x.shape[3] > 3 and x.size > _SMALL:
        return _winograd(x_wide, kernel_wide).astype(x.dtype)
    return _im2col(x_wide, kernel_wide, stride).astype(x.dtype)


def _im2col(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` as one product: of a matrix whose rows hold all that a place sees, by the kernel."""
    size, _, channels, outputs = kernel.shape
    margin = size // 2
    height, width = ((n - 1) // stride + 1 for n in x.shape[1:3])
    down, right = (slice(0, stride * (n - 1) + 1, stride) for n in (height, width))

    @jax.checkpoint  # Gradients put together again what each place sees: faster than to read it.
    def of_part(images: jax.Array) -> jax.Array:
        padded = jnp.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        seen = [padded[:, i:, j:][:, down, right] for i in range(size) for j in range(size)]
        y = jnp.matmul(_flat(jnp.concatenate(seen, -1)), kernel.reshape(-1, outputs))
        return y.reshape(-1, height, width, outputs)

    return _in_parts(of_part, x, _AT_ONCE // (height * width * size**2 * channels))


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` with a 3x3 kernel at stride 1, by minimal filtering; without forward-mode derivatives."""
    return _filter(x, _both_sides(_G, [list(row) for row in kernel]))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _winograd(x, kernel), (x, kernel)


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By the images, `g` filtered by the kernel turned half round; by the kernel, see below."""
    x, kernel = saved
    turned = _both_sides(_G, [list(row[::-1]) for row in kernel[::-1]])
    return _filter(g, jax.tree.map(jnp.transpose, turned)), _gradient_by_kernel(x, g)


_winograd.defvjp(_forward, _backward)


def _filter(x: jax.Array, filters: Grid) -> jax.Array:
    """A^T [U * (B^T X B)] A, of the transformed kernel U = G k G^T: 4 by 4 matrices (C, C')."""
    height, width = x.shape[1:3]

    def of_part(images: jax.Array) -> jax.Array:
        inputs = _both_sides(_B.T, _inputs_of_tiles(images))
        tiles = inputs[0][0].shape[:3]
        products = jax.tree.map(lambda v, u: jnp.matmul(_flat(v), u).reshape(*tiles, -1), inputs, filters)
        return _image_of_tiles(_both_sides(_A.T, products))[:, :height, :width]

    return _in_parts(of_part, x, _AT_ONCE // (4 * x[0].size))


def _gradient_by_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
    """G^T [sum over images and tiles of (B^T X B) (A g A^T)] G: (3, 3, C, C')."""

    def add(total: Grid, part: tuple[jax.Array, jax.Array]) -> tuple[Grid, None]:
        images, slopes = part
        inputs = _both_sides(_B.T, _inputs_of_tiles(images))
        outputs = _both_sides(_A, _outputs_of_tiles(slopes))
        found = jax.tree.map(lambda v, m: jnp.matmul(_flat(v).T, _flat(m)), inputs, outputs)
        return jax.tree.map(jnp.add, total, found), None

    few = _AT_ONCE // (4 * (x[0].size + g[0].size))
    zero = [[jnp.zeros((x.shape[-1], g.shape[-1]), x.dtype)] * 4] * 4
    total, _ = jax.lax.scan(add, zero, (_parts(x, few), _parts(g, few)))
    return jnp.stack([jnp.stack(row) for row in _both_sides(_G.T, total)])


def _both_sides(matrix: np.ndarray, grid: Grid) -> Grid:
    """M P M^T for a matrix of numbers M and a matrix of arrays P; zeros of M cost nothing."""
    arrays = [array for row in grid for array in row]

    def combination(weights: np.ndarray) -> jax.Array:
        terms = [
            array if weight == 1 else -array if weight == -1 else weight * array
            for weight, array in zip(weights.ravel().tolist(), arrays, strict=True)
            if weight != 0
        ]
        return sum(terms[1:], terms[0])

    return [[combination(np.outer(left, right)) for right in matrix] for left in matrix]


def _inputs_of_tiles(images: jax.Array) -> Grid:
    """The 4x4 places that the 2x2 outputs of a tile see: 4 by 4 arrays (B, ceil(H / 2), ceil(W / 2), C)."""
    height, width = (n + n % 2 for n in images.shape[1:3])
    padded = jnp.pad(images, [(0, 0), *((1, 1 + n % 2) for n in images.shape[1:3]), (0, 0)])
    return [[padded[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]


def _outputs_of_tiles(images: jax.Array) -> Grid:
    """The 2x2 places of every tile: 2 by 2 arrays (B, ceil(H / 2), ceil(W / 2), C)."""
    padded = jnp.pad(images, [(0, 0), *((0, n % 2) for n in images.shape[1:3]), (0, 0)])
    return [[padded[:, i::2, j::2] for j in range(2)] for i in range(2)]


def _image_of_tiles(grid: Grid) -> jax.Array:
    """The inverse of `_outputs_of_tiles`, for even height and width."""
    tiles = jnp.stack([jnp.stack(row, 3) for row in grid], 2)
    batch, h, _, w, _, channels = tiles.shape
    return tiles.reshape(batch, 2 * h, 2 * w, channels)


def _flat(images: jax.Array) -> jax.Array:
    """(N, C): gradients of products of matrices are much faster than of products of whole images."""
    return images.reshape(-1, images.shape[-1])


def _in_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array, few: int) -> jax.Array:
    """`function` of the images `x`, at most `few` of them at a time.

    With `ufm_jax._blocks.over_blocks`, which also goes through samples by blocks but leaves a smaller last
    one, a training step took a quarter longer.
    """
    if few >= len(x):
        return function(x)
    y = jax.lax.map(function, _parts(x, few))
    return y.reshape(-1, *y.shape[2:])[: len(x)]


def _parts(x: jax.Array, few: int) -> jax.Array:
    """`x` in equal parts of at most `few` images, and at least one; zeros fill the last."""
    count = -(-len(x) // max(few, 1))
    few = -(-len(x) // count)
    filled = jnp.pad(x, [(0, count * few - len(x))] + [(0, 0)] * (x.ndim - 1))
    return filled.reshape(count, few, *x.shape[1:])
