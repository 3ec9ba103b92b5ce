"""Training networks by the paper's recipe, as pure functions; an epoch is one compiled program.

Devices can share the batches of one network. Then the samples of a batch are laid along the axis "batch"
of the surrounding mesh, and XLA divides the rest: means over the batch, those of batch normalization and
the gradient among them, become sums over devices, and parameters stay alike on all of them. So the program
computes what it computes on one device, even where the devices do not divide a batch: XLA then pads it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

import ufm_jax as ufm
from nets import ResNet, datasets, resnet
from ufm_jax import _checks

Model = Literal["normalized", "regularized"]
BatchNorm = Literal["global", "replica"]
Precision = Literal["float32", "tf32", "bfloat16"]
_LABELS_SEED = 1
"""Added to the seed for the draw of random labels, so that it differs from the draw of samples."""
MODELS: tuple[Model, ...] = get_args(Model)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: the paper's Appendix E, chosen there to equal its reference [4]."""

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    decay_every: int = 40
    """Epochs after which the learning rate is multiplied by `decay_factor`, again and again."""
    decay_factor: float = 0.1
    weight_decay: float = 1e-4
    """Of the regularized model's classifier."""
    feature_decay: float = 1e-4
    """Of the regularized model's features."""
    data_parallel: int = 1
    """Devices that share every batch, along the axis "batch" of the surrounding mesh."""
    batch_norm: BatchNorm = "global"
    """Statistics of the whole batch, or of each device's part; the devices must then divide every batch."""
    precision: Precision = "float32"
    """Of the network's products, and with bfloat16 of its images; all else is float32."""
    initialization: resnet.Initialization = "he"
    """How convolutions start, one of `resnet.KERNELS`."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_every", "data_parallel"):
            _checks.count(name, getattr(self, name), 1)
        _checks.one_of("batch_norm", self.batch_norm, get_args(BatchNorm))
        _checks.one_of("precision", self.precision, get_args(Precision))
        _checks.one_of("initialization", self.initialization, resnet.KERNELS)


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that is static about training one network; two equal setups share their compiled programs.

    Attributes:
        architecture: the residual network.
        model: "normalized" (features on the sphere of radius tau, rows of W on the unit sphere) or
            "regularized" (both free and decayed).
        num_classes: K.
        width: channels of the first stage.
        recipe: how it is trained.
        released: as the authors' released code rather than as the paper: the regularized classifier is
            projected too, and classifiers have a bias.
        shuffle: whether every epoch draws a new order of the samples.
    """

    architecture: resnet.Architecture
    model: Model
    num_classes: int
    width: int
    recipe: Recipe
    released: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        _checks.one_of("model", self.model, MODELS)


class Samples(NamedTuple):
    """A split on the device: uint8 images, labels, and what standardizes the images, (C,) each."""

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    deviation: jax.Array


class State(NamedTuple):
    """A network in training: trained arrays, the others (running statistics, tau), the optimizer's."""

    params: Any
    rest: Any
    optimizer: Any


def samples(split: datasets.Split, training: datasets.Split) -> Samples:
    """`split`, standardized by channel with the statistics of the `training` split.

    Raises:
        ValueError: images are not uint8 (N, H, W, C), or have not as many labels, integers of at least 0.
    """
    for each in (split, training):
        images, labels = np.asarray(each.images), each.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            found = f"shape {images.shape} and dtype {images.dtype}"
            raise ValueError(f"images must be uint8, (N, H, W, C), but have {found}.")
        _checks.class_labels(labels, shape=images.shape[:1], rows_of="images")
    mean, deviation = datasets.channel_statistics(training.images)
    return Samples(*(jnp.asarray(x) for x in (split.images, split.labels, mean, deviation)))


def draw(
    dataset: datasets.Name, samples_per_class: int, random_labels: bool, seed: int, *, tested: bool
) -> tuple[Samples, ...]:
    """The first samples of each class of a training set, in an order drawn from `seed`, all of them if 0.

    With `random_labels` their labels are drawn, too; with `tested` the whole test set follows. Both are
    standardized with the statistics of the whole training set.
    """
    whole = datasets.load(dataset, "train")
    split = datasets.first_of_each_class(whole, samples_per_class or None, seed)
    if random_labels:
        split = datasets.random_labels(split, seed + _LABELS_SEED)
    splits = [split, datasets.load(dataset, "test")] if tested else [split]
    return tuple(samples(x, whole) for x in splits)


def init(setup: Setup, data: Samples, seed: Any, tau: Any) -> State:
    """An untrained network; `seed` decides its parameters, and may be traced, as `tau`."""
    _, params, *rest = nnx.split(_network(setup, data, jax.random.key(seed), tau), nnx.Param, ...)
    return State(params, rest[0], _optimizer(setup, len(data.labels)).init(params))


def epoch(
    setup: Setup, data: Sequence[Samples], state: State, seed: Any, index: Any
) -> tuple[State, dict[str, jax.Array]]:
    """The epoch `index` of training on the first split of `data`, and what is measured after it.

    Returns:
        The state after it, the metrics of `evaluate` and the "loss", and with a second split the former
        also of it, as "test_nc1" and so on.
    """
    state, loss = train_epoch(setup, data[0], state, seed, index)
    row = {**evaluate(setup, data[0], state), "loss": loss}
    for test in data[1:]:
        row |= {f"test_{name}": x for name, x in evaluate(setup, test, state).items()}
    return state, row


def train_epoch(
    setup: Setup, data: Samples, state: State, seed: Any, epoch: Any
) -> tuple[State, jax.Array]:
    """One pass over the samples in an order drawn from `seed` and `epoch`.

    The last batch is smaller where the batch size does not divide the samples, as in PyTorch's loader.

    Returns:
        The state after it, and the mean loss of the samples, each at its step.
    """
    count, size = len(data.labels), setup.recipe.batch_size
    order = jnp.arange(count)
    if setup.shuffle:
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), order)
    step = functools.partial(train_step, setup, data)
    full = count // size * size
    state, losses = jax.lax.scan(step, state, order[:full].reshape(-1, size))
    total = size * jnp.sum(losses)
    if full < count:
        state, loss = step(state, order[full:])
        total += (count - full) * loss
    return state, total / count


def train_step(setup: Setup, data: Samples, state: State, batch: jax.Array) -> tuple[State, jax.Array]:
    """One step of SGD on the samples with the indices `batch`; returns the loss before it, too."""
    graph = _graph(setup, data)
    batch = _spread(setup, batch)

    def objective(params):
        network = nnx.merge(graph, params, state.rest, copy=True)
        logits, features = network(_standardized(data, batch), training=True)
        value = loss(setup, logits, features, network.W[...], data.labels[batch])
        return value, nnx.state(network, nnx.Not(nnx.Param))

    with _precision_of_products(setup):
        (value, rest), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    optimizer = _optimizer(setup, len(data.labels))
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), rest, optimizer_state), value


def loss(
    setup: Setup, logits: jax.Array, features: jax.Array, W: jax.Array, labels: jax.Array
) -> jax.Array:
    """Mean cross entropy of a batch, plus the penalties of the regularized model.

    They are `weight_decay / 2 ||W||^2 + feature_decay / 2 sum ||h||^2`, a sum over the batch, not a mean.
    """
    value = jnp.mean(ufm.losses.cross_entropy(logits, labels))
    if setup.model == "regularized":
        recipe = setup.recipe
        value += recipe.weight_decay / 2 * jnp.sum(W**2) + recipe.feature_decay / 2 * jnp.sum(features**2)
    return value


def evaluate(setup: Setup, data: Samples, state: State) -> dict[str, jax.Array]:
    """Metrics of `ufm_jax.streaming.measure`, batch normalization at inference."""
    count, size = len(data.labels), setup.recipe.batch_size
    network = nnx.merge(_graph(setup, data), state.params, state.rest)

    def forward(_, batch):
        batch = _spread(setup, batch)
        with _precision_of_products(setup):
            return None, network(_standardized(data, batch))[1]

    # Samples do not see each other here: the last batch is filled up with the first samples again.
    batches = (jnp.arange(-(-count // size) * size) % count).reshape(-1, size)
    _, features = jax.lax.scan(forward, None, batches)
    features = features.reshape(-1, features.shape[-1])[:count]
    bias = None if network.bias is None else network.bias[...]
    found = ufm.streaming.measure(network.W[...], features, data.labels, bias=bias)
    return {name: found[name] for name in ("nc1", "nc2", "nc3", "nc4", "cdnv", "gnc3", "accuracy")}


def _network(setup: Setup, data: Samples, key: jax.Array, tau: Any) -> ResNet:
    return ResNet(
        setup.architecture,
        setup.num_classes,
        width=setup.width,
        channels=data.images.shape[-1],
        head="normalized" if setup.model == "normalized" else "plain",
        tau=tau,
        bias=setup.released,
        batch_parts=setup.recipe.data_parallel if setup.recipe.batch_norm == "replica" else 1,
        dtype=jnp.bfloat16 if setup.recipe.precision == "bfloat16" else jnp.float32,
        initialization=setup.recipe.initialization,
        rngs=nnx.Rngs(params=key),
    )


def _graph(setup: Setup, data: Samples) -> Any:
    return nnx.split(nnx.eval_shape(lambda: _network(setup, data, jax.random.key(0), 1.0)))[0]


def _optimizer(setup: Setup, count: int) -> optax.GradientTransformation:
    recipe = setup.recipe
    steps = recipe.decay_every * -(-count // recipe.batch_size)
    # By integers: optax's staircase is late where XLA rounds the quotient of a multiple of `steps` down.
    sgd = optax.sgd(
        lambda count: recipe.learning_rate * jnp.power(recipe.decay_factor, count // steps), recipe.momentum
    )
    if setup.model == "regularized" and not setup.released:
        return sgd
    return optax.chain(sgd, optax.masked(ufm.transforms.project_to_sphere(), _is_classifier))


def _is_classifier(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "W" in [getattr(k, "key", None) for k in path], params)


def _spread(setup: Setup, batch: jax.Array) -> jax.Array:
    """The indices of a batch, each device with its part of them."""
    if setup.recipe.data_parallel == 1:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec("batch"))


def _precision_of_products(setup: Setup) -> Any:
    """How float32 factors are rounded; factors in bfloat16 are used as they are."""
    return jax.default_matmul_precision("tensorfloat32" if setup.recipe.precision == "tf32" else "highest")


def _standardized(data: Samples, batch: jax.Array) -> jax.Array:
    return (data.images[batch].astype(np.float32) / 255 - data.mean) / data.deviation
