"""Residual networks for small images, with the normalized and the plain head.

Written in Flax NNX, the interface that Flax recommends for new code. `flax.nnx.split` turns a network into
a graph definition, which is static, and pytrees of arrays. A training step is then a plain function of
those arrays, and an ensemble is the same pytrees with a leading axis; so Linen's one advantage, that its
modules are pure to begin with, costs two lines here. All that varies within an ensemble, the temperature
included, is an array of the state and not part of the graph definition.

The layers compute what PyTorch's compute: padding, batch normalization and its running statistics.
Parameters, statistics, features and logits are float32; the images inside the network, and so the products
of its convolutions, can be bfloat16. Reference: He, Zhang, Ren, Sun, *Deep Residual Learning for Image
Recognition*, CVPR 2016. The stem for 32x32 images, one 3x3 convolution without pooling, is that of the
paper's reference [4].
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from nets.convolution import convolve
from ufm_jax import _checks
from ufm_jax.riemannian.manifolds import normalize

Architecture = Literal["resnet18", "resnet34", "resnet50"]
Head = Literal["normalized", "plain"]
Initialization = Literal["he", "pytorch"]

KERNELS: dict[str, nnx.Initializer] = {
    "he": nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "pytorch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}
"""How convolutions start: from He's normal initialization with the fan of the outputs, as in PyTorch's own
residual networks, or from the default of PyTorch's layer, six times smaller in variance where inputs and
outputs are as many."""


class Temperature(nnx.Variable):
    """The temperature tau of a normalized head: an array of the network's state that is not trained."""


class Conv(nnx.Module):
    """Convolution without bias, zero padding `size // 2` on every side; images are (B, H, W, C)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        *,
        initialize: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(initialize(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(x, self.kernel[...], self.stride)


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last, with PyTorch's running statistics.

    Whether a call trains is its argument, or else what `train` or `eval` of a network chose, which set
    `use_running_average` as in Flax's own layers.

    Training normalizes by the mean and the biased variance of the batch, and moves the running mean and the
    running *unbiased* variance by `momentum` towards it; `flax.nnx.BatchNorm` would take the biased one.
    Inference normalizes by the running statistics. Reference: Ioffe, Szegedy, ICML 2015.

    With `parts` above 1, training cuts the batch into so many equal parts and normalizes each by its own
    statistics, as devices do that share a batch and compute statistics apart; the running ones then move
    towards the mean over the parts. Images of a lower precision are normalized in float32.
    """

    def __init__(self, channels: int, parts: int = 1, momentum: float = 0.1, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.use_running_average = True
        self.parts = parts
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, training: bool | None = None) -> jax.Array:
        wide = x.astype(jnp.float32)
        training = not self.use_running_average if training is None else training
        if not training:
            y = self._normalized(wide, self.mean[...], self.variance[...])
        elif self.parts == 1:
            y, mean, variance = self._normalized_by_its_own(wide)
            self._move(mean, variance)
        else:
            if len(x) % self.parts != 0:
                raise ValueError(f"batch_parts must divide a batch of {len(x)}, but is {self.parts}.")
            parts = wide.reshape(self.parts, -1, *x.shape[1:])
            y, means, variances = jax.vmap(self._normalized_by_its_own)(parts)
            y = y.reshape(x.shape)
            self._move(jnp.mean(means, 0), jnp.mean(variances, 0))
        return y.astype(x.dtype)

    def _normalized(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        slope = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        return x * slope + (self.bias[...] - mean * slope)

    def _normalized_by_its_own(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The normalized images, their mean, and their unbiased variance."""
        axes = tuple(range(x.ndim - 1))
        mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
        count = x.size // x.shape[-1]
        return self._normalized(x, mean, variance), mean, variance * (count / max(count - 1, 1))

    def _move(self, mean: jax.Array, variance: jax.Array) -> None:
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.variance[...] += self.momentum * (variance - self.variance[...])


class Block(nnx.Module):
    """Convolutions, each followed by batch normalization, around which the input passes by."""

    expansion: int

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        *,
        conv: Callable[[int, int, int, int], Conv],
        parts: int,
    ):
        shapes = self._convolutions(inputs, channels, stride)
        self.convs = nnx.List([conv(*shape) for shape in shapes])
        self.norms = nnx.List([BatchNorm(outputs, parts) for _, outputs, _, _ in shapes])
        outputs = self.expansion * channels
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, 1, stride) if changes_shape else None
        self.shortcut_norm = BatchNorm(outputs, parts) if changes_shape else None

    def __call__(self, x: jax.Array, training: bool | None = None) -> jax.Array:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(nnx.relu(y) if i > 0 else y), training)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), training)
        return nnx.relu(x + y)

    @staticmethod
    def _convolutions(inputs: int, channels: int, stride: int) -> list[tuple[int, int, int, int]]:
        raise NotImplementedError


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    @staticmethod
    def _convolutions(inputs, channels, stride):
        return [(inputs, channels, 3, stride), (channels, channels, 3, 1)]


class Bottleneck(Block):
    """A 3x3 convolution between two 1x1, which narrow and widen; the stride is the 3x3's."""

    expansion = 4

    @staticmethod
    def _convolutions(inputs, channels, stride):
        return [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, 4 * channels, 1, 1)]


ARCHITECTURES: dict[str, tuple[type[Block], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""The blocks of each network, and how many each of its four stages has."""


class ResNet(nnx.Module):
    """A residual network whose classifier has either normalized or plain features.

    With the encoder's output h in R^d, the features are `tau h / ||h||` under the normalized head and h
    itself under the plain one; the logits are `W features`, plus a bias where one is asked for. The
    normalized head starts with unit rows of W; to keep them so is the optimizer's part
    (`ufm_jax.transforms.project_to_sphere`). Products are at JAX's default precision, which on GPUs and
    TPUs rounds float32 factors: call it in `jax.default_matmul_precision("highest")` for full float32.

    Attributes:
        W: classifier, a parameter (K, d).
        bias: parameter (K,), or None.
        tau: temperature of the normalized head, None under the plain one.
        dim: d, 8 times `width` for ResNet-18 and 34 and 32 times for ResNet-50.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        *,
        width: int = 64,
        channels: int = 3,
        head: Head = "normalized",
        tau: ArrayLike = 1.0,
        bias: bool = False,
        batch_parts: int = 1,
        dtype: DTypeLike = jnp.float32,
        initialization: Initialization = "he",
        rngs: nnx.Rngs,
    ):
        """Draws the parameters from `rngs`.

        Args:
            architecture: "resnet18", "resnet34" or "resnet50".
            num_classes: K, at least 2.
            width: channels of the first stage, at least 1; 64 is the original's.
            channels: of the images, at least 1.
            head: "normalized" or "plain".
            tau: temperature of the normalized head, positive, a scalar.
            bias: whether the classifier has one.
            batch_parts: equal parts of a training batch that batch normalization takes apart, at least 1;
                they must divide it.
            dtype: of the images inside the network, float32 or bfloat16; parameters, statistics, features
                and logits are float32.
            initialization: of the convolutions, a name of `KERNELS`; the classifier starts from PyTorch's
                default.
            rngs: its `params` stream is used.

        Raises:
            ValueError: an argument is out of its range or unknown.
        """
        for name, value, low in [
            ("num_classes", num_classes, 2),
            ("width", width, 1),
            ("channels", channels, 1),
            ("batch_parts", batch_parts, 1),
        ]:
            _checks.count(name, value, low)
        _checks.positive_scalar("tau", tau)
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"dtype must be float32 or bfloat16, but is {dtype!r}.")
        _checks.one_of("architecture", architecture, ARCHITECTURES)
        _checks.one_of("head", head, ("normalized", "plain"))
        _checks.one_of("initialization", initialization, KERNELS)
        block, sizes = ARCHITECTURES[architecture]
        conv = functools.partial(Conv, initialize=KERNELS[initialization], rngs=rngs)
        self.stem = conv(channels, width, 3, 1)
        self.stem_norm = BatchNorm(width, batch_parts)
        self.dtype = dtype
        blocks, inputs = [], width
        for stage, size in enumerate(sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(inputs, width * 2**stage, stride, conv=conv, parts=batch_parts))
                inputs = block.expansion * width * 2**stage
        self.blocks = nnx.List(blocks)
        self.dim = inputs

        bound = inputs**-0.5  # PyTorch's initialization of a linear layer.
        rows, offsets = (
            jax.random.uniform(rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound)
            for shape in [(num_classes, inputs), (num_classes,)]
        )
        self.W = nnx.Param(normalize(rows) if head == "normalized" else rows)
        self.bias = nnx.Param(offsets) if bias else None
        self.tau = Temperature(jnp.asarray(tau, jnp.float32)) if head == "normalized" else None

    def __call__(self, images: jax.Array, training: bool | None = None) -> tuple[jax.Array, jax.Array]:
        """Classifies `images`.

        Args:
            images: (B, H, W, channels).
            training: whether batch normalization uses the batch, and updates its running statistics. If
                None, what the last call of `train()` or `eval()` chose, inference at first.

        Returns:
            Logits (B, K) and features (B, d).

        Raises:
            ValueError: the images are no real numbers, or have other axes, as PyTorch's (B, channels, H,
                W), or `batch_parts` does not divide a training batch.
        """
        channels, shape = self.stem.kernel.shape[2], jnp.shape(images)
        if len(shape) != 4 or shape[-1] != channels:
            is_torchs = len(shape) == 4 and shape[1] == channels
            hint = ", as PyTorch has them: pass images.transpose(0, 2, 3, 1)" if is_torchs else ""
            raise ValueError(
                f"images must have the axes (B, H, W, {channels}), but have shape {shape}{hint}."
            )
        x = jnp.asarray(_checks.array("images", images), self.dtype)
        x = nnx.relu(self.stem_norm(self.stem(x), training))
        for block in self.blocks:
            x = block(x, training)
        features = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.tau is not None:
            features = self.tau[...] * normalize(features)
        logits = jnp.matmul(features, self.W[...].T)
        return (logits if self.bias is None else logits + self.bias[...]), features
