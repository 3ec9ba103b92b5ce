"""Flax networks on real data: CIFAR ResNets with the normalized and the plain head."""

try:
    from nets.resnet import ResNet
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "flax":
        raise
    message = "nets needs Flax, which is not installed: run `pip install -e '.[nets]'` in the clone."
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["ResNet"]
