"""The networks against the same networks made of PyTorch's layers, their weights copied over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nets import ResNet, convolution, resnet
from tests.shared import pytorch_numbers
from tests.shared.marks import few
from tests.shared.pytorch_numbers import (
    CLASSES,
    KEPT,
    LABELS,
    batch_norms,
    convolutions,
    copy_weights,
    kernel,
    under,
)


def count(network):
    return sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(
    ("architecture", "width", "image", "bias", "small"),
    [
        (*KEPT, 2**14),
        ("resnet18", 4, (32, 32, 3), False, 2**14),
        pytest.param("resnet18", 4, (8, 8, 1), True, 2**40, marks=pytest.mark.slow),
        pytest.param("resnet34", 4, (8, 8, 1), False, 0, marks=pytest.mark.slow),
        pytest.param("resnet50", 4, (16, 16, 3), True, 0, marks=pytest.mark.slow),
        pytest.param("resnet18", 64, (32, 32, 3), False, 2**18, marks=pytest.mark.slow),
    ],
)
def test_a_network_equals_pytorch(architecture, width, image, bias, small, monkeypatch):
    """Outputs, gradients and running statistics after a training pass, then outputs at inference.

    Ours in float32, theirs in float64: in float32 theirs is the farther from it, and both by rounding.
    """
    if (architecture, width, image, bias) == KEPT:
        theirs = pytorch_numbers.kept()
    else:
        pytest.importorskip("torch")
        theirs = pytorch_numbers.numbers(architecture, width, image, bias)
    monkeypatch.setattr(convolution, "_SMALL", small)
    weights, gradients, moved_there = (under(x, theirs) for x in ("weights/", "gradients/", "moved/"))
    ours = ResNet(
        architecture, CLASSES, width=width, channels=image[-1], head="plain", bias=bias, rngs=nnx.Rngs(0)
    )
    copy_weights(weights, ours)
    assert count(ours) == sum(x.size for x in gradients.values())
    images = pytorch_numbers.images(image)

    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    @jax.jit
    def run(params, rest):
        def loss(params):
            network = nnx.merge(graph, params, rest, copy=True)
            logits, _ = network(images, training=True)
            log_p = jax.nn.log_softmax(logits)
            value = -jnp.mean(log_p[jnp.arange(len(images)), LABELS])
            return value, (nnx.split(network, nnx.Param, ...)[2], logits)

        (_, (moved, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradient, moved, nnx.merge(graph, params, moved)(images)

    training_logits, gradient, moved, (logits, features) = run(params, rest)
    for name, x in [("training_logits", training_logits), ("logits", logits), ("features", features)]:
        assert x.shape == theirs[name].shape
        np.testing.assert_allclose(x, theirs[name], rtol=2e-4, atol=2e-5)

    after = nnx.merge(graph, gradient, moved)
    for name, conv in convolutions(after):
        expected = kernel(gradients[f"{name}.weight"])
        np.testing.assert_allclose(conv.kernel[...], expected, atol=2e-4 * np.abs(expected).max())
    expected = gradients["classifier.weight"]
    np.testing.assert_allclose(after.W[...], expected, atol=5e-4 * np.abs(expected).max())
    for name, norm in batch_norms(after):
        np.testing.assert_allclose(
            norm.mean[...], moved_there[f"{name}.running_mean"], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(norm.variance[...], moved_there[f"{name}.running_var"], rtol=1e-4)
        for ours_there, which in [(norm.scale, "weight"), (norm.bias, "bias")]:
            expected = gradients[f"{name}.{which}"]
            np.testing.assert_allclose(ours_there[...], expected, atol=5e-4 * np.abs(expected).max())


def test_the_stride_of_a_bottleneck_is_that_of_its_middle_kernel():
    """As torchvision has it, where He et al. had it in the first."""
    assert resnet.Bottleneck._convolutions(8, 2, 2) == [(8, 2, 1, 1), (2, 2, 3, 2), (2, 8, 1, 1)]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("resnet18", 11_220_032), ("resnet34", 21_328_192), ("resnet50", 23_705_152)],
)
def test_parameter_counts_at_the_paper_size(architecture, expected):
    """For 100 classes without bias: 11,173,962 - 5,130 + 51,200 and 23,520,842 - 20,490 + 204,800.

    And torchvision's ResNet-34, 21,797,672 - 513,000 + 51,200, whose first kernel is 7x7: - 9,408 + 1,728.
    """
    shapes = nnx.eval_shape(lambda: ResNet(architecture, 100, rngs=nnx.Rngs(0)))
    assert count(shapes) == expected
    assert shapes.W.shape == (100, shapes.dim)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(form, x, kernel, g):
    y, gradient = jax.vjp(form, x, kernel)
    return y, *gradient(g)


def xla(x, kernel, stride):
    margins = [(kernel.shape[0] // 2,) * 2] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), margins, dimension_numbers=layout)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "image"), few(2, (3, (7, 5)), (1, (4, 5)), (3, (2, 2)), (3, (4, 6)), (3, (1, 1)))
)
@pytest.mark.parametrize("at_once", few(1, 1800, 2**20))
def test_convolutions_and_their_gradients_are_those_of_xla(stride, size, image, at_once, key, monkeypatch):
    """All images at one time, and few of them, which need not divide all, or only one."""
    monkeypatch.setattr(convolution, "_SMALL", 0)
    monkeypatch.setattr(convolution, "_AT_ONCE", at_once)
    x, kernel = jax.random.normal(key, (7, *image, 5)), jax.random.normal(key, (size, size, 5, 4))
    forms = [convolution.convolve, convolution._im2col]
    forms += [lambda x, kernel, _: convolution._winograd(x, kernel)] if size == 3 and stride == 1 else []

    g = jax.random.normal(key, jax.eval_shape(lambda: xla(x, kernel, stride)).shape)
    expected, *found = (
        with_gradients(lambda x, kernel: form(x, kernel, stride), x, kernel, g)  # noqa: B023
        for form in [xla, *forms]
    )
    for arrays in found:
        for a, b in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_convolutions_in_float32_are_within_its_rounding(key):
    """Winograd's beside XLA's, both against float64; of 4 x 64 channels, so that sums are long."""
    x, kernel = jax.random.normal(key, (4, 8, 8, 64)), jax.random.normal(key, (3, 3, 64, 64))
    g = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
    exact = with_gradients(lambda x, kernel: xla(x, kernel, 1), x, kernel, g)
    found = with_gradients(convolution._winograd, *(array.astype(jnp.float32) for array in (x, kernel, g)))
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert jnp.linalg.norm(ours - true) < 1e-6 * jnp.linalg.norm(true)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_bfloat16_round_what_they_take_and_return(stride, key, monkeypatch):
    """But not their sums, which also parts of a batch share."""
    monkeypatch.setattr(convolution, "_SMALL", 0)
    x, kernel = jax.random.normal(key, (200, 4, 4, 64)), jax.random.normal(key, (3, 3, 64, 4))
    x = x.astype(jnp.bfloat16)
    size = jax.eval_shape(lambda: xla(x, kernel.astype(x.dtype), stride)).shape
    g = jax.random.normal(jax.random.fold_in(key, 1), size).astype(jnp.bfloat16)
    found = with_gradients(lambda x, kernel: convolution.convolve(x, kernel, stride), x, kernel, g)
    rounded = kernel.astype(jnp.bfloat16)
    exact = with_gradients(
        lambda x, kernel: xla(x, kernel, stride), *(array.astype(jnp.float64) for array in (x, rounded, g))
    )
    assert [array.dtype for array in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float64]
    for ours, true in zip(found, exact, strict=True):
        assert jnp.linalg.norm(ours.astype(jnp.float64) - true) < 2**-8 * jnp.linalg.norm(true)


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "message"),
    [
        (
            (4, 4, 3),
            (3, 3, 3, 2),
            1,
            r"images must have the axes \(B, H, W, C\), but have shape \(4, 4, 3\)",
        ),
        (
            (1, 4, 4, 3),
            (3, 3, 1, 2),
            1,
            r"kernel must have shape \(S, S, 3, C'\), S odd, for images of 3 ch",
        ),
        ((1, 4, 4, 3), (2, 2, 3, 2), 1, r"kernel must have .* but has shape \(2, 2, 3, 2\)"),
        ((1, 4, 4, 3), (3, 1, 3, 2), 1, r"kernel must have .* but has shape \(3, 1, 3, 2\)"),
        ((1, 4, 4, 3), (3, 3), 1, r"kernel must have .* but has shape \(3, 3\)"),
        ((1, 4, 4, 3), (3, 3, 3, 2), 0, "stride must be finite and at least 1, but is 0"),
    ],
)
def test_shapes_that_are_no_convolution_are_one_sentence(x, kernel, stride, message):
    with pytest.raises(ValueError, match=message):
        convolution.convolve(jnp.zeros(x), jnp.zeros(kernel), stride)


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


def test_batches_that_do_not_fit_are_one_sentence():
    network = ResNet("resnet18", 3, width=2, batch_parts=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="batch_parts must divide a batch of 4, but is 3"):
        nnx.eval_shape(lambda network: network(jnp.ones((4, 8, 8, 3)), training=True), network)
    with pytest.raises(ValueError, match="images must be an array of real numbers"):
        network(np.ones((4, 8, 8, 3), complex))


def test_convolutions_start_as_in_pytorch():
    """The kept weights are those of PyTorch's own layers, by their default."""
    theirs = under("weights/", pytorch_numbers.kept())
    architecture, width, image, _ = KEPT
    start = functools.partial(ResNet, architecture, CLASSES, width=width, channels=image[-1])
    he, default = (start(initialization=x, rngs=nnx.Rngs(0)) for x in ("he", "pytorch"))
    for (name, conv), (_, of_he) in zip(convolutions(default), convolutions(he), strict=True):
        size, _, inputs, outputs = conv.kernel.shape
        expected, ours = theirs[f"{name}.weight"], conv.kernel[...]
        noise = 4 / np.sqrt(ours.size)  # Of a deviation, relative, four times over.
        assert jnp.max(jnp.abs(ours)) <= size**-1 * inputs**-0.5
        assert np.max(np.abs(expected)) <= size**-1 * inputs**-0.5
        assert jnp.std(ours) == pytest.approx(np.std(expected), rel=2 * noise)
        assert jnp.std(of_he.kernel[...]) == pytest.approx(np.sqrt(2 / outputs) / size, rel=noise)


def test_the_normalized_head(key):
    network = ResNet("resnet18", 5, width=4, tau=3.0, rngs=nnx.Rngs(0))
    classify = nnx.jit(lambda network, images: network(images, training=True))
    logits, features = classify(network, jax.random.normal(key, (6, 8, 8, 3)))
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
        ({"tau": jnp.ones(16)}, r"tau must be a scalar, but has shape \(16,\)"),
        ({"dtype": jnp.int32}, "dtype must be float32 or bfloat16, but is"),
        ({"initialization": "xavier"}, "initialization must be one of he, pytorch, but is 'xavier'"),
        ({"initialization": ["he"]}, r"initialization must be one of he, pytorch, but is \['he'\]"),
        ({"initialization": None}, "initialization must be one of he, pytorch, but is None"),
    ]:
        with pytest.raises(ValueError, match=message):
            ResNet(**{"architecture": "resnet18", "num_classes": 3, "rngs": nnx.Rngs(0)} | arguments)


def test_train_and_eval_choose_what_a_call_does_not_say(key, monkeypatch):
    """As in Flax's own networks; a call that says it has its way. One block is enough."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", (resnet.BasicBlock, (1,)))
    images = jax.random.normal(key, (6, 8, 8, 3))

    def run(mode, **arguments):
        network = ResNet("resnet18", 3, width=2, rngs=nnx.Rngs(0))
        network.stem_norm.mean[...] += 0.5  # So that the running statistics are nobody's.
        for name in mode:
            getattr(network, name)()
        call = nnx.jit(lambda network, images: network(images, **arguments))
        return call(network, images)[0], network.stem_norm.mean[...]

    training, inference = run([], training=True), run([], training=False)
    assert np.abs(training[0] - inference[0]).max() > 0.01
    np.testing.assert_array_equal(inference[1], 0.5)
    for mode, arguments, expected in [
        ([], {}, inference),
        (["train"], {}, training),
        (["train", "eval"], {}, inference),
        (["eval"], {"training": True}, training),
        (["train"], {"training": False}, inference),
    ]:
        for found, right in zip(run(mode, **arguments), expected, strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (
            3,
            (5, 3, 8, 8),
            r"axes \(B, H, W, 3\), .* \(5, 3, 8, 8\), as PyTorch .* images.transpose\(0, 2, 3, 1\)",
        ),
        (1, (5, 1, 8, 8), r"axes \(B, H, W, 1\), .* as PyTorch has them"),
        (3, (8, 8, 3), r"axes \(B, H, W, 3\), but have shape \(8, 8, 3\)\.$"),
        (3, (5, 8, 8, 1), r"axes \(B, H, W, 3\), but have shape \(5, 8, 8, 1\)\.$"),
    ],
)
def test_images_of_other_axes_are_one_sentence(channels, shape, message):
    network = ResNet("resnet18", 3, width=2, channels=channels, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        network(jnp.zeros(shape))
