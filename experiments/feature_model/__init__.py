"""Experiments on the unconstrained feature model."""
