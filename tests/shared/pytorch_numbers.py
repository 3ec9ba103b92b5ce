"""Networks of PyTorch as NumPy arrays: their weights, to put into ours, and what comes out of them.

A small network's numbers are kept in a file, rounded to float32, for machines without PyTorch. Where it is
installed,

    python -m tests.shared.pytorch_numbers

makes the file anew.
"""

import pathlib

import numpy as np

from experiments.speed.peers.pytorch_networks import torch_resnet

IMAGES, CLASSES = 5, 7
LABELS = np.array([0, 3, 6, 1, 1])
KEPT = ("resnet18", 2, (32, 32, 3), True)
FILE = pathlib.Path(__file__).with_name("pytorch_resnet18.npz")


def images(shape):
    return np.random.default_rng(1).normal(size=(IMAGES, *shape)).astype(np.float32)


def arrays(prefix, tensors):
    """Named tensors as arrays, without the counters of batches."""
    return {f"{prefix}{name}": x.detach().numpy().copy() for name, x in tensors if x.ndim > 0}


def numbers(architecture, width, image, bias):
    """A network's weights in float32, and in float64 what comes of them in training, then at inference.

    The keys: `weights/NAME`, `gradients/NAME` and, after the training pass, `moved/NAME`, as PyTorch names
    them, and `training_logits`, `logits` and `features`.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch_resnet(architecture, CLASSES, width, image[-1], bias)
    found = arrays("weights/", network.state_dict().items())
    network = network.double().train()
    x = torch.tensor(images(image).transpose(0, 3, 1, 2)).double()
    logits, _ = network(x)
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    found |= arrays("gradients/", ((name, p.grad) for name, p in network.named_parameters()))
    found |= arrays("moved/", network.named_buffers())
    with torch.no_grad():
        inferred, features = network.eval()(x)
    return found | arrays("", {"training_logits": logits, "logits": inferred, "features": features}.items())


def kept():
    """The `numbers` of `KEPT`, from the file."""
    with np.load(FILE) as file:
        return dict(file)


def kernel(weight):
    """(outputs, inputs, height, width) as ours: (height, width, inputs, outputs)."""
    return weight.transpose(2, 3, 1, 0)


def batch_norms(ours):
    """Our batch norms and their names in PyTorch."""
    yield "stem_norm", ours.stem_norm
    for i, block in enumerate(ours.blocks):
        yield from ((f"blocks.{i}.norms.{j}", norm) for j, norm in enumerate(block.norms))
        if block.shortcut is not None:
            yield f"blocks.{i}.shortcut_norm", block.shortcut_norm


def convolutions(ours):
    """Our convolutions and their names in PyTorch."""
    yield "stem", ours.stem
    for i, block in enumerate(ours.blocks):
        yield from ((f"blocks.{i}.convs.{j}", conv) for j, conv in enumerate(block.convs))
        if block.shortcut is not None:
            yield f"blocks.{i}.shortcut", block.shortcut


def copy_weights(weights, ours):
    """Puts every array of a PyTorch network, by its name there, into its place of ours."""
    left = dict(weights)
    for name, conv in convolutions(ours):
        conv.kernel[...] = kernel(left.pop(f"{name}.weight"))
    for name, norm in batch_norms(ours):
        norm.scale[...], norm.bias[...] = left.pop(f"{name}.weight"), left.pop(f"{name}.bias")
        norm.mean[...], norm.variance[...] = (
            left.pop(f"{name}.running_mean"),
            left.pop(f"{name}.running_var"),
        )
    ours.W[...] = left.pop("classifier.weight")
    if "classifier.bias" in left:
        ours.bias[...] = left.pop("classifier.bias")
    assert not left, f"no place for {sorted(left)}"


def under(prefix, found):
    """The entries below a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: x.astype(np.float32) for name, x in numbers(*KEPT).items()})
