"""Flax networks on real data: CIFAR ResNets with the normalized and the plain head."""

from nets.resnet import ResNet

__all__ = ["ResNet"]
