"""The metrics beside loops of PyTorch, Flax and sequence models, as docs/training_loop.md has them."""

import re
from pathlib import Path

import numpy as np
import pytest

import ufm_jax as ufm

PAGE = Path(__file__).parent.parent / "docs" / "training_loop.md"
TORCH, FLAX, SEQUENCES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


class Layer:
    """What `layer_inputs` asks of a PyTorch module, in NumPy."""

    def __init__(self):
        self.hooks = []

    def register_forward_pre_hook(self, hook):
        self.hooks.append(hook)
        return self

    def remove(self):
        self.hooks.pop()

    def __call__(self, inputs):
        for hook in self.hooks:
            hook(self, (inputs,))
        return inputs


def test_a_hook_sees_what_goes_into_the_layer():
    layer, x = Layer(), np.arange(6.0).reshape(2, 3)
    batches = [(x, [0, 1]), (x + 1, [1, 0])]
    found = list(ufm.streaming.layer_inputs(lambda inputs: layer(2 * inputs), layer, batches))
    for (inputs, labels), (features, same) in zip(batches, found, strict=True):
        np.testing.assert_array_equal(features, 2 * inputs)
        assert labels is same
    assert layer.hooks == []


@pytest.mark.parametrize("times", [0, 2])
def test_a_layer_that_does_not_run_once_is_an_error(times):
    layer = Layer()

    def model(inputs):
        for _ in range(times):
            layer(inputs)

    with pytest.raises(ValueError, match=f"layer must run once when the model runs, but ran {times} times"):
        list(ufm.streaming.layer_inputs(model, layer, [(np.ones((2, 2)), [0, 1])]))
    assert layer.hooks == []


class Tensor:
    """Of PyTorch, as far as NumPy sees it: on a graph, it is no array before it is detached."""

    def __init__(self, value, requires_grad=True):
        self.value, self.requires_grad = np.asarray(value), requires_grad
        self.dtype = self.value.dtype

    def detach(self):
        return Tensor(self.value, requires_grad=False)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.value


def test_tensors_that_require_gradients_are_taken_everywhere():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 4)
    h, W, b, outside = (generator.normal(size=size) for size in [(12, 5), (3, 5), 3, (2, 5)])
    expected = ufm.metrics.measure(h, labels, W, bias=b, outside=outside)
    h, W, b, outside, labels = map(Tensor, (h, W, b, outside, labels))
    assert ufm.metrics.measure(h, labels, W, bias=b, outside=outside) == expected
    found = ufm.streaming.measure_batches([(h, labels)], 3, W, b, outside=outside)
    assert found.as_dict() == pytest.approx(expected.as_dict(), rel=1e-12)
    values = expected.as_dict()
    assert float(ufm.metrics.nc4(W, h, labels, b)) == values["nc4"]
    assert float(ufm.metrics.bias_duality(W, h, labels, b)) == pytest.approx(values["bias_duality"])


def test_the_loop_of_pytorch(capsys):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(width)

        def forward(self, x):
            return torch.relu(x + self.bn1(self.conv1(x)))

    class ResNet(torch.nn.Module):
        """Torchvision's names, in small."""

        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.layer1 = torch.nn.Sequential(Block(16), Block(16))
            self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
            self.fc = torch.nn.Linear(16, 10)

        def forward(self, x):
            return self.fc(torch.flatten(self.avgpool(self.layer1(self.conv1(x))), 1))

    labels = torch.arange(120) % 10
    images = torch.randn(10, 3, 8, 8)[labels] + 0.3 * torch.randn(120, 3, 8, 8)
    data = torch.utils.data.TensorDataset(images, labels)
    model, logged = ResNet(), []
    names = {
        "model": model,
        "loader": torch.utils.data.DataLoader(data, batch_size=32, shuffle=True),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "log": logged.append,
    }
    exec(TORCH, names)
    assert "variability within classes" in capsys.readouterr().out
    assert [row["epoch"] for row in logged] == [0, 1]
    assert list(logged[0]) == list(logged[1])
    assert model.training
    # By hand, without the hook.
    model.eval()
    with torch.no_grad():
        features = torch.flatten(model.avgpool(model.layer1(model.conv1(images))), 1)
        right = (model.fc(features).argmax(1) == labels).double().mean()
    expected = ufm.metrics.measure(features, labels, model.fc.weight, bias=model.fc.bias).as_dict()
    assert logged[-1]["accuracy"] == pytest.approx(float(right))
    for name, value in expected.items():
        assert logged[-1][name] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name


def test_the_loop_of_flax():
    pytest.importorskip("flax")
    names: dict = {}
    exec(FLAX, names)
    found, network = names["found"], names["network"]
    features = np.asarray(network.features(names["inputs"]), np.float64)
    expected = ufm.metrics.measure(
        features, names["labels"], np.asarray(network.head.kernel[...]).T, bias=network.head.bias[...]
    )
    for name in ("nc1", "nc2", "nc3", "cdnv", "unc3", "nc4"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
    scores = np.asarray(network(names["inputs"]))
    assert found.accuracy == pytest.approx(np.mean(np.argmax(scores, 1) == names["labels"]))


def test_sequences_with_a_mask():
    names: dict = {}
    exec(SEQUENCES, names)
    found = names["found"]
    assert (found.num_classes, found.absent_classes) == (20, 30)
    features, labels = (np.concatenate(x) for x in zip(*names["batches"](), strict=True))
    assert found.samples == len(labels) < 4 * 8 * 15
    expected = ufm.metrics.measure(features, labels, names["W"], absent="skip")
    for name, value in expected.as_dict().items():
        assert found.as_dict()[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_tokens_keep_what_counts():
    generator = np.random.default_rng(0)
    hidden, labels = generator.normal(size=(3, 5, 2)), generator.integers(-1, 4, size=(3, 5))
    mask = generator.integers(0, 2, size=(3, 5))
    kept = [
        (hidden[i, t], labels[i, t])
        for i in range(3)
        for t in range(5)
        if mask[i, t] and labels[i, t] != -1
    ]
    features, classes = ufm.streaming.tokens(hidden, labels, mask, ignored=-1)
    np.testing.assert_array_equal(features, [x for x, _ in kept])
    np.testing.assert_array_equal(classes, [c for _, c in kept])
    assert len(ufm.streaming.tokens(hidden, labels)[0]) == 15
    for wrong in ((hidden, labels[:, 1:]), (hidden, labels, mask[:2]), (hidden[0, 0], labels)):
        with pytest.raises(ValueError, match="labels and mask must have the shape"):
            ufm.streaming.tokens(*wrong)
