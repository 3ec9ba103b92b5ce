"""Experiments on networks, and how trained networks are kept."""
