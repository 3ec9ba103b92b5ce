"""The networks against the same networks made of PyTorch's layers, their weights copied over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments._pytorch import torch_resnet
from nets import ResNet, resnet


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
    ("architecture", "width", "image", "bias", "small"),
    [
        ("resnet18", 4, (32, 32, 3), False, 0),
        pytest.param("resnet18", 4, (8, 8, 1), True, 2**40, marks=pytest.mark.slow),
        pytest.param("resnet34", 4, (8, 8, 1), False, 0, marks=pytest.mark.slow),
        pytest.param("resnet50", 4, (16, 16, 3), True, 0, marks=pytest.mark.slow),
        pytest.param("resnet18", 16, (32, 32, 3), False, 2**21, marks=pytest.mark.slow),
    ],
)
def test_a_network_equals_pytorch(architecture, width, image, bias, small, monkeypatch):
    """Outputs, gradients and running statistics after a training pass, then outputs at inference."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    monkeypatch.setattr(resnet, "_SMALL", small)
    torch.manual_seed(0)
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
@pytest.mark.parametrize(
    ("size", "image"), [(3, (7, 5)), (3, (2, 2)), (3, (4, 6)), (1, (4, 5)), (3, (1, 1))]
)
@pytest.mark.parametrize("at_once", [1, 250, 2**20])
def test_convolutions_and_their_gradients_are_those_jax_derives(
    stride, size, image, at_once, key, monkeypatch
):
    """All images at one time, one by one, and a few that divide them."""
    monkeypatch.setattr(resnet, "_AT_ONCE", at_once)
    x, kernel = jax.random.normal(key, (6, *image, 3)), jax.random.normal(key, (size, size, 3, 4))
    expected, derived = jax.vjp(lambda x, kernel: resnet._convolve(x, kernel, stride), x, kernel)
    forms = [lambda x, kernel: resnet._convolve_by_product(x, kernel, stride)]
    forms += [resnet._convolve_on_cpu] if stride == 1 else []
    for form in forms:
        got, gradient = jax.vjp(form, x, kernel)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        g = jax.random.normal(key, expected.shape)
        for a, b in zip(gradient(g), derived(g), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
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


@pytest.mark.parametrize("count", [24, 22])
def test_the_gradient_of_a_kernel_is_summed_over_parts_of_the_batch(count, key):
    """Images so large that only 8 of them are taken at a time; 22 are filled up."""
    x = jax.random.normal(key, (count, 32, 32, 1))
    g = jax.random.normal(key, (count, 32, 32, 33))
    shape = (3, 3, 1, 33)
    _, derived = jax.vjp(lambda kernel: resnet._convolve(x, kernel, 1), jnp.zeros(shape))
    np.testing.assert_allclose(resnet._kernel_gradient(x, g, jnp.zeros(shape)), derived(g)[0], atol=1e-9)


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
