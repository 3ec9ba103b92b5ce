"""The networks against the same networks made of PyTorch's layers, their weights copied over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nets import ResNet, resnet

STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def torch_resnet(architecture, num_classes, width, channels, bias):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    nn = torch.nn

    def conv(i, o, size, stride):
        return nn.Conv2d(i, o, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, i, c, stride):
            super().__init__()
            if architecture == "resnet50":
                o = 4 * c
                shapes = [(i, c, 1, 1), (c, c, 3, stride), (c, o, 1, 1)]
            else:
                o = c
                shapes = [(i, c, 3, stride), (c, c, 3, 1)]
            self.convs = nn.ModuleList([conv(*shape) for shape in shapes])
            self.norms = nn.ModuleList([nn.BatchNorm2d(shape[1]) for shape in shapes])
            self.shortcut = None
            if stride != 1 or i != o:
                self.shortcut, self.shortcut_norm = conv(i, o, 1, stride), nn.BatchNorm2d(o)
            self.outputs = o

        def forward(self, x):
            y = x
            for i, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                y = norm(layer(y))
                y = y if i == len(self.convs) - 1 else torch.relu(y)
            return torch.relu(y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.stem_norm = conv(channels, width, 3, 1), nn.BatchNorm2d(width)
            self.blocks, i = nn.ModuleList(), width
            for stage, count in enumerate(STAGES[architecture]):
                for j in range(count):
                    self.blocks.append(Block(i, width * 2**stage, 2 if stage and not j else 1))
                    i = self.blocks[-1].outputs
            self.classifier = nn.Linear(i, num_classes, bias=bias)

        def forward(self, x):
            x = torch.relu(self.stem_norm(self.stem(x)))
            for block in self.blocks:
                x = block(x)
            features = x.mean((2, 3))
            return self.classifier(features), features

    torch.manual_seed(0)
    return Net()


def numpy(tensor):
    return tensor.detach().numpy()


def copy_weights(theirs, ours):
    """Puts every array of the PyTorch network into its place of ours."""

    def norm(a, b):
        b.scale[...], b.bias[...] = numpy(a.weight), numpy(a.bias)
        b.mean[...], b.variance[...] = numpy(a.running_mean), numpy(a.running_var)

    def conv(a, b):
        b.kernel[...] = numpy(a.weight).transpose(2, 3, 1, 0)

    conv(theirs.stem, ours.stem)
    norm(theirs.stem_norm, ours.stem_norm)
    for a, b in zip(theirs.blocks, ours.blocks, strict=True):
        for i in range(len(a.convs)):
            conv(a.convs[i], b.convs[i])
            norm(a.norms[i], b.norms[i])
        assert (a.shortcut is None) == (b.shortcut is None)
        if a.shortcut is not None:
            conv(a.shortcut, b.shortcut)
            norm(a.shortcut_norm, b.shortcut_norm)
    ours.W[...] = numpy(theirs.classifier.weight)
    if theirs.classifier.bias is not None:
        ours.bias[...] = numpy(theirs.classifier.bias)


def norms(network):
    yield network.stem_norm
    for block in network.blocks:
        yield from block.norms
        if block.shortcut is not None:
            yield block.shortcut_norm


def count(network):
    return sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(
    ("architecture", "width", "image", "bias", "by_product"),
    [
        ("resnet18", 4, (32, 32, 3), False, True),
        pytest.param("resnet18", 4, (8, 8, 1), True, False, marks=pytest.mark.slow),
        pytest.param("resnet34", 4, (8, 8, 1), False, True, marks=pytest.mark.slow),
        pytest.param("resnet50", 4, (16, 16, 3), True, False, marks=pytest.mark.slow),
        pytest.param("resnet18", 16, (32, 32, 3), False, True, marks=pytest.mark.slow),
    ],
)
def test_a_network_equals_pytorch(architecture, width, image, bias, by_product, monkeypatch):
    """Outputs, gradients and running statistics after a training pass, then outputs at inference."""
    torch = pytest.importorskip("torch")
    if not by_product:
        monkeypatch.setattr(resnet, "_convolve_by_product", resnet._convolve)
    theirs = torch_resnet(architecture, 7, width, image[-1], bias)
    ours = ResNet(
        architecture, 7, width=width, channels=image[-1], head="plain", bias=bias, rngs=nnx.Rngs(0)
    )
    copy_weights(theirs, ours)
    assert count(ours) == sum(p.numel() for p in theirs.parameters())
    images = np.random.default_rng(1).normal(size=(5, *image)).astype(np.float32)
    labels = np.array([0, 3, 6, 1, 1])

    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    @jax.jit
    def run(params, rest):
        def loss(params):
            network = nnx.merge(graph, params, rest, copy=True)
            logits, _ = network(images, training=True)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.mean(log_p[jnp.arange(5), labels]), (nnx.split(network, nnx.Param, ...)[2], logits)

        (_, (moved, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradient, moved, nnx.merge(graph, params, moved)(images)

    logits, gradient, moved, (inferred, features) = run(params, rest)
    torch_images = torch.tensor(images.transpose(0, 3, 1, 2))
    torch_logits, _ = theirs.train()(torch_images)
    torch.nn.functional.cross_entropy(torch_logits, torch.tensor(labels)).backward()
    assert logits.shape == (5, 7)
    np.testing.assert_allclose(logits, numpy(torch_logits), rtol=2e-4, atol=2e-5)

    after = nnx.merge(graph, gradient, moved)
    for a, b in [(theirs.stem, after.stem), (theirs.blocks[-1].convs[-1], after.blocks[-1].convs[-1])]:
        expected = numpy(a.weight.grad).transpose(2, 3, 1, 0)
        np.testing.assert_allclose(b.kernel[...], expected, atol=2e-4 * np.abs(expected).max())
    expected = numpy(theirs.classifier.weight.grad)
    np.testing.assert_allclose(after.W[...], expected, atol=5e-4 * np.abs(expected).max())
    batch_norms = [m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    ordered = {m.weight.data_ptr(): m for m in batch_norms}
    for a, b in zip(ordered.values(), norms(after), strict=True):
        np.testing.assert_allclose(b.mean[...], numpy(a.running_mean), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b.variance[...], numpy(a.running_var), rtol=1e-4)

    with torch.no_grad():
        torch_logits, torch_features = theirs.eval()(torch_images)
    assert features.shape == (5, ours.dim)
    np.testing.assert_allclose(inferred, numpy(torch_logits), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(features, numpy(torch_features), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("architecture", "expected"), [("resnet18", 11_220_032), ("resnet50", 23_705_152)])
def test_parameter_counts_at_the_paper_size(architecture, expected):
    """For 100 classes without bias: 11,173,962 - 5,130 + 51,200 and 23,520,842 - 20,490 + 204,800."""
    shapes = nnx.eval_shape(lambda: ResNet(architecture, 100, rngs=nnx.Rngs(0)))
    assert count(shapes) == expected
    assert shapes.W.shape == (100, shapes.dim)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "image"), [(3, (7, 5)), (3, (2, 2)), (1, (4, 4)), (3, (1, 1))])
def test_both_convolutions_are_the_same(stride, size, image, key):
    x, kernel = jax.random.normal(key, (2, *image, 3)), jax.random.normal(key, (size, size, 3, 4))
    expected = resnet._convolve(x, kernel, stride, size // 2)
    np.testing.assert_allclose(
        resnet._convolve_by_product(x, kernel, stride, size // 2), expected, atol=1e-12
    )
    layer = resnet.Conv(3, 4, size, stride, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(kernel)
    np.testing.assert_allclose(layer(x), expected, atol=1e-12)


def test_parts_of_a_batch_are_normalized_apart():
    """Against NumPy's statistics of each half."""
    x = np.random.default_rng(0).normal(size=(6, 2, 2, 3)).astype(np.float32)
    layer = resnet.BatchNorm(3, parts=2)
    found = layer(jnp.asarray(x), training=True)
    halves = x.astype(np.float64).reshape(2, 12, 3)
    mean, variance = halves.mean(1, keepdims=True), halves.var(1, keepdims=True)
    expected = ((halves - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean.mean((0, 1)), atol=1e-7)
    unbiased = halves.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(layer.variance[...], 0.9 + 0.1 * unbiased, rtol=1e-6)
    whole = resnet.BatchNorm(3)(jnp.asarray(x), training=True)
    assert np.abs(found - whole).max() > 0.01


def test_the_normalized_head(key):
    network = ResNet("resnet18", 5, width=4, tau=3.0, rngs=nnx.Rngs(0))
    logits, features = network(jax.random.normal(key, (6, 8, 8, 3)), training=True)
    np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 3, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(network.W[...], axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(logits, features @ network.W[...].T, rtol=1e-5)


def test_bad_arguments_are_one_sentence():
    for arguments, message in [
        ({"architecture": "resnet19"}, "architecture must be one of resnet18, resnet34, resnet50, but is"),
        ({"head": "bald"}, "head must be one of normalized, plain, but is 'bald'"),
        ({"width": 0}, "width must be finite and at least 1, but is 0"),
        ({"num_classes": 1}, "num_classes must be finite and at least 2"),
        ({"tau": -1.0}, "tau must be positive and finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            ResNet(**{"architecture": "resnet18", "num_classes": 3, "rngs": nnx.Rngs(0)} | arguments)
