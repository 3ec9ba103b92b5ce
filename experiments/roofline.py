"""What a step of the normalized UFM costs on paper: bytes, operations and communication, on any machine.

Products dominate, in blocks as well: each multiplies N samples, K classes and d dimensions. A gradient in
blocks makes four of them with the cost before it, and each step size that is tried one.
"""

import dataclasses

GRADIENT_PRODUCTS = 4
"""Products of N x K x d in a cost followed by a gradient, in blocks."""


def product_flops(num_classes: int, samples: int, dim: int) -> float:
    """Additions and multiplications of one product of N x K x d."""
    return 2.0 * num_classes * samples * dim
