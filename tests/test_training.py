"""Training steps against NumPy's formulas and PyTorch, and the epochs made of them."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ufm_jax as ufm
from experiments.networks import fig4, fig10, settings, table2, trainer
from experiments.speed.peers import pytorch_networks
from nets import datasets, resnet, training
from tests.shared.pytorch_numbers import arrays, copy_weights

RECIPE = training.Recipe(batch_size=16)


def setup(model="normalized", **changes):
    return training.Setup("resnet18", model, 10, 4, RECIPE, **changes)


@pytest.fixture(autouse=True, scope="module")
def _shallow():
    """One block a stage: all the kinds of layers there are, in half the compile time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, "resnet18", (resnet.BasicBlock, (1, 1, 1, 1)))
        patch.setitem(pytorch_networks.STAGES, "resnet18", (1, 1, 1, 1))
        yield


@pytest.fixture(scope="module")
def samples():
    split = datasets.first_of_each_class(datasets.load("synthetic", "train"), 4, 0)
    return training.samples(split, split)


@functools.cache
def program(function, of):
    return jax.jit(functools.partial(function, of))


@pytest.fixture(scope="module")
def start(samples):
    return program(training.init, setup())(samples, 0, 2.0)


@pytest.mark.parametrize("model", training.MODELS)
def test_losses_equal_numpy(model):
    generator = np.random.default_rng(0)
    W, h = generator.normal(size=(10, 6)), generator.normal(size=(16, 6))
    labels = generator.integers(0, 10, 16)
    logits = h @ W.T
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(16), labels])
    if model == "regularized":
        expected += 0.5e-4 * np.square(W).sum() + 0.5e-4 * np.square(h).sum()
    found = training.loss(setup(model), *(jnp.asarray(x) for x in (logits, h, W, labels)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_an_epoch_is_a_step_for_each_batch_and_a_smaller_last_one(samples, start):
    """Against a loop over batches; 40 samples make two batches of 16 and one of 8."""
    state, loss = program(training.train_epoch, setup())(samples, start, 5, 2)
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(5), 2), jnp.arange(40))
    expected, total = start, 0.0
    for batch in np.split(order, [16, 32]):
        expected, value = program(training.train_step, setup())(samples, expected, batch)
        total += len(batch) * float(value)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    assert float(loss) == pytest.approx(total / 40, rel=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(state.params["W"][...], axis=-1), 1, atol=1e-6)
    assert state.rest["tau"][...] == 2


def test_two_steps_are_sgd_with_momentum_on_batch_statistics(samples, start):
    """Against the formulas, with gradients of a loss that is written here."""
    graph = training._graph(setup(), samples)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(params, rest, batch):
        network = nnx.merge(graph, params, rest, copy=True)
        images = (samples.images[batch] / 255.0 - samples.mean) / samples.deviation
        logits, _ = network(images.astype(np.float32), training=True)
        of_label = jax.nn.log_softmax(logits)[jnp.arange(len(batch)), samples.labels[batch]]
        return -jnp.mean(of_label), nnx.state(network, nnx.Not(nnx.Param))

    state, params, rest = start, start.params, start.rest
    velocity = jax.tree.map(jnp.zeros_like, params)
    for batch in jnp.arange(32).reshape(2, 16):
        gradient, rest = slope(params, rest, batch)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda x, v: x - 0.05 * v, params, velocity)
        params["W"][...] = ufm.manifolds.normalize(params["W"][...])
        state, _ = program(training.train_step, setup())(samples, state, batch)
    for found, expected in [(state.params, params), (state.rest, rest)]:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: setup("normalised"), "model must be one of normalized, regularized, but is 'normalised'"),
        (
            lambda: training.Recipe(precision="bf16"),
            "precision must be one of float32, tf32, bfloat16, but",
        ),
        (lambda: training.Recipe(batch_norm="local"), "batch_norm must be one of global, replica, but is"),
        (
            lambda: training.Recipe(initialization="xavier"),
            "initialization must be one of he, pytorch, but is 'xavier'",
        ),
        (lambda: training.Recipe(batch_size=0), "batch_size must be finite and at least 1, but is 0"),
    ],
)
def test_a_setup_of_other_words_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.ones((4, 8, 8, 3)), [0, 1, 0, 1], r"images must be uint8, \(N, H, W, C\), but have shape \(4"),
        (
            np.ones((4, 8, 8), np.uint8),
            [0, 1, 0, 1],
            r"images must be uint8, \(N, H, W, C\), but have shape",
        ),
        (
            np.ones((4, 8, 8, 3), np.uint8),
            [0, 1, 0],
            r"integers of shape \(4,\), one for each row of images",
        ),
        (
            np.ones((4, 8, 8, 3), np.uint8),
            [0, 1, 0, -1],
            "labels must lie in 0..2147483647, but go from -1",
        ),
    ],
)
def test_images_of_ones_own_are_checked(images, labels, message):
    split = datasets.Split(images, np.array(labels))
    with pytest.raises(ValueError, match=message):
        training.samples(split, split)


def test_an_epoch_draws_its_own_order(samples, monkeypatch):
    """Of all samples, by the seed and the epoch, unless the setup says not to shuffle."""
    batches = []

    def step(of, data, state, batch):
        jax.debug.callback(lambda x: batches.append(np.asarray(x)), batch, ordered=True)
        return state, jnp.zeros(())

    monkeypatch.setattr(training, "train_step", step)
    orders = {}
    for name, of, seed, epoch in [
        ("first", setup(), 5, 2),
        ("again", setup(), 5, 2),
        ("epoch", setup(), 5, 3),
        ("seed", setup(), 6, 2),
        ("not shuffled", setup(shuffle=False), 5, 2),
    ]:
        batches.clear()
        training.train_epoch(of, samples, jnp.zeros(()), seed, epoch)
        jax.effects_barrier()
        assert [len(x) for x in batches] == [16, 16, 8]
        orders[name] = np.concatenate(batches).tolist()
        assert sorted(orders[name]) == list(range(40))
    assert orders["first"] == orders["again"]
    assert orders["not shuffled"] == list(range(40))
    assert len({tuple(order) for order in orders.values()}) == 4


def test_the_test_set_is_drawn_and_labels_are_random_where_asked_for():
    plain, test = training.draw("synthetic", 4, False, 3, tested=True)
    (dealt,) = training.draw("synthetic", 4, True, 3, tested=False)
    np.testing.assert_array_equal(test.images, datasets.load("synthetic", "test").images)
    np.testing.assert_array_equal(test.mean, plain.mean)
    np.testing.assert_array_equal(dealt.images, plain.images)
    assert np.mean(dealt.labels == plain.labels) < 0.5
    assert all(network.random_labels for network in fig4.needed(fig4.Config()))
    assert not any(network.random_labels for network in fig10.needed(fig10.Config()))
    for variant, samples_per_class in [("paper", 0), ("released", 0), ("released", 4)]:
        config = table2.Config(variant=variant, samples_per_class=samples_per_class)
        for network in table2.needed(config):
            assert network.tested
            assert network.setup.released == (variant == "released")
            assert network.setup.shuffle == (variant == "paper" or samples_per_class > 0)


def test_measurements_are_those_of_the_features_at_inference(samples):
    of = setup(released=True)  # With a bias.
    start = program(training.init, of)(samples, 0, 2.0)
    start.params["bias"][...] = jnp.linspace(-1, 1, 10, dtype="float32")
    found = program(training.evaluate, of)(samples, start)
    network = nnx.merge(training._graph(of, samples), start.params, start.rest)
    images = (np.asarray(samples.images) / 255 - samples.mean) / samples.deviation
    logits, features = nnx.jit(lambda network, images: network(images))(network, images)
    W = network.W[...]
    expected = {
        "nc1": ufm.metrics.nc1(features, samples.labels, 10),
        "nc2": ufm.metrics.nc2(W),
        "nc3": ufm.metrics.nc3(W, features, samples.labels),
        "nc4": ufm.metrics.nc4(W, features, samples.labels, bias=network.bias[...]),
        "accuracy": np.mean(np.argmax(logits, -1) == samples.labels),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3)


def test_the_classifier_is_projected_where_the_variant_says_so(samples, start):
    ones = jax.tree.map(jnp.ones_like, start.params)
    for model, released, projected in [
        ("normalized", False, True),
        ("normalized", True, True),
        ("regularized", False, False),
        ("regularized", True, True),
    ]:
        optimizer = training._optimizer(setup(model, released=released), 40)
        updates, _ = optimizer.update(ones, optimizer.init(start.params), start.params)
        moved = optax.apply_updates(start.params, updates)
        lengths = np.linalg.norm(moved["W"][...], axis=-1)
        assert np.allclose(lengths, 1, atol=1e-6) == projected
        np.testing.assert_allclose(
            moved["stem"]["kernel"][...], start.params["stem"]["kernel"][...] - 0.05, atol=1e-6
        )


@pytest.mark.parametrize("steps", [3, 11])
def test_the_learning_rate_falls_every_forty_epochs(start, steps):
    """Compiled, a division by 440 is a product with the rounded 1/440, and 440 times that is below 1."""
    optimizer = training._optimizer(setup("regularized"), 16 * steps - 7)  # In batches of 16.
    gradient = {"x": jnp.ones(())}

    @jax.jit
    def rate(state):
        # Without memory of earlier steps the update is the rate itself.
        state = optax.tree.set(state, trace={"x": jnp.zeros(())})
        updates, state = optimizer.update(gradient, state)
        return state, -updates["x"]

    rates, state = [], optimizer.init(gradient)
    for _ in range(81 * steps):
        state, found = rate(state)
        rates.append(found)
    wanted = np.repeat([0.05, 0.005, 0.0005], [40 * steps, 40 * steps, steps])
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", training.MODELS)
def test_three_steps_follow_pytorch(model, samples):
    """The released variant from the same weights: momentum, penalties, bias and projection."""
    torch = pytest.importorskip("torch")
    of = setup(model, released=True)
    theirs = pytorch_networks.torch_resnet("resnet18", 10, 4, 3, bias=True)
    network = training._network(of, samples, jax.random.key(0), 1.0)
    copy_weights(arrays("", theirs.state_dict().items()), network)
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    state = training.State(params, rest, training._optimizer(of, 40).init(params))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9)
    theirs.train()
    images = (np.asarray(samples.images) / 255 - samples.mean) / samples.deviation
    for batch in np.split(np.arange(40), [16, 32]):
        state, value = program(training.train_step, of)(samples, state, jnp.asarray(batch))
        h = theirs(torch.tensor(np.asarray(images)[batch].transpose(0, 3, 1, 2), dtype=torch.float32))[1]
        W = theirs.classifier.weight
        h = torch.nn.functional.normalize(h) if model == "normalized" else h
        labels = torch.tensor(np.asarray(samples.labels)[batch]).long()
        loss = torch.nn.functional.cross_entropy(h @ W.T + theirs.classifier.bias, labels)
        if model == "regularized":
            loss = loss + 0.5e-4 * (W**2).sum() + 0.5e-4 * (h**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            W.copy_(torch.nn.functional.normalize(W))
        np.testing.assert_allclose(value, loss.item(), rtol=2e-3)
    after = nnx.merge(graph, state.params, state.rest)
    np.testing.assert_allclose(after.W[...], W.detach().numpy(), atol=2e-3)
    kernel = theirs.stem.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(after.stem.kernel[...], kernel, atol=2e-3)
    np.testing.assert_allclose(after.bias[...], theirs.classifier.bias.detach().numpy(), atol=2e-3)


@pytest.mark.slow
def test_networks_do_not_depend_on_how_they_are_spread_over_devices(tmp_path):
    """Four networks, two beside each other on two devices, or one alone."""
    few = {"dataset": "synthetic", "samples_per_class": 4, "epochs": 2, "batch_size": 16}

    def run(taus, **changes):
        config = fig10.Config(out=tmp_path / str(len(changes)), width=4, tau=taus, **few, **changes)
        return fig10.run(config, lambda done, total, note="": None)

    beside, alone = run((0.5, 1.0, 5.0, 9.0)), run((5.0,), seed=0)
    assert beside["nc1"].shape == (4, 1, 2)
    for name in ("nc1", "nc2", "nc3", "accuracy", "loss"):
        np.testing.assert_allclose(alone[name][0], beside[name][2], rtol=0.02, atol=1e-4)


def train_tiny(folder, *, batch_size=15, taus=(1.0,), **changes):
    """Two epochs of a network of three convolutions on 40 samples, in batches of 15, 15 and 10."""
    config = fig10.Config(
        out=folder, dataset="synthetic", samples_per_class=4, epochs=2, batch_size=batch_size, **changes
    )
    of = training.Setup("tiny", "normalized", 10, 4, config.recipe)
    needed = [settings.network(config, of, seed, tau) for seed, tau in enumerate(taus)]
    return trainer.stacked(trainer.train(config, needed, lambda *_: None), len(taus))


@pytest.fixture
def _tiny(monkeypatch):
    monkeypatch.setitem(resnet.ARCHITECTURES, "tiny", (resnet.BasicBlock, (1,)))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.slow
def test_devices_that_share_batches_do_what_one_does(tmp_path):
    """Two devices, which do not divide the batches of 15."""
    alone, shared = (train_tiny(tmp_path / str(m), data_parallel=m) for m in (1, 2))
    for name in alone:
        assert alone[name].shape == (1, 2)
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny")
def test_statistics_of_replicas_are_another_network(tmp_path):
    whole, replicas = (
        train_tiny(tmp_path / name, batch_size=20, data_parallel=2, batch_norm=name)
        for name in ("global", "replica")
    )
    assert abs(whole["nc3"][0, 1] / replicas["nc3"][0, 1] - 1) > 3e-4


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.usefixtures("_tiny")
def test_precision_is_that_of_the_products_alone(precision):
    """The network's products are asked for as said, and what is measured, kept or trained is float32."""
    of = training.Setup("tiny", "regularized", 10, 4, fig10.Config(precision=precision).recipe)
    split = datasets.load("synthetic", "train")
    data = training.samples(split, split)
    state = jax.eval_shape(functools.partial(training.init, of), data, 0, 1.0)
    step = functools.partial(training.train_step, of)
    lines = jax.jit(step).lower(data, state, jnp.arange(16)).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    asked = {"float32": "HIGHEST", "tf32": "HIGH"}
    # The head, and three convolutions: forward, and backward in both factors but for the first images.
    assert len(products) == 3 + 2 + 3 + 3
    if precision in asked:
        assert all(f"precision = [{asked[precision]}, {asked[precision]}]" in line for line in products)
    else:
        # Kernels and their gradients are rounded. On CPUs factors are widened again, to sum in float32.
        kernels = [x for x in lines if "convert" in x and "(tensor<3x3x" in x and x.endswith("xbf16>")]
        assert len(kernels) == 3 + 3
        assert all("f32" in line.split("->")[1] for line in products)
    after, value = jax.eval_shape(step, data, state, jnp.arange(16))
    measured = jax.eval_shape(functools.partial(training.evaluate, of), data, state)
    for x in jax.tree.leaves((after.params, after.rest, value, measured)):
        assert x.dtype == np.float32


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny")
def test_bfloat16_trains_like_float32(tmp_path):
    found, expected = (train_tiny(tmp_path / name, precision=name) for name in ("bfloat16", "float32"))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0.02)
    assert np.all(found["loss"] != expected["loss"])


EIGHT_DEVICES = """
import jax, numpy as np, sys, pathlib
jax.config.update("jax_num_cpu_devices", 8)
from nets import resnet
from tests.test_training import train_tiny
resnet.ARCHITECTURES["tiny"] = (resnet.BasicBlock, (1,))
out = pathlib.Path(sys.argv[1])
np.savez(out / "found.npz", **{
    f"{name} {m}": values
    for m in (1, 2, 3, 8)
    for name, values in train_tiny(out / str(m), taus=(1.0, 5.0), data_parallel=m).items()
})
"""


@pytest.mark.slow
def test_two_networks_on_eight_devices(tmp_path):
    """Beside each other on one, two, or three devices each, and one after the other on all eight."""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", EIGHT_DEVICES, tmp_path], cwd=root, check=True, timeout=1200)
    with np.load(tmp_path / "found.npz") as found:
        for name in ("nc1", "nc2", "nc3", "accuracy", "loss"):
            for m in (2, 3, 8):
                np.testing.assert_allclose(
                    found[f"{name} {m}"], found[f"{name} 1"], rtol=2e-4, err_msg=f"{name}, {m} devices"
                )


def test_a_batch_that_devices_cannot_share_is_one_sentence(tmp_path):
    few = {"out": tmp_path, "dataset": "synthetic", "samples_per_class": 4}
    for changes, message in [
        ({"batch_norm": "replica"}, "batch_norm replica needs data_parallel of at least 2"),
        ({"data_parallel": 3}, "data_parallel must be at most 2, the devices here, but is 3"),
        (
            {"data_parallel": 2, "batch_norm": "replica", "batch_size": 13},
            r"data_parallel must divide every batch, but 2 does not divide a batch of 13 \(40 samples in",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            settings.check(fig10.Config(**{**few, **changes}))
    settings.check(fig10.Config(**few, data_parallel=2, batch_norm="replica", batch_size=16))
