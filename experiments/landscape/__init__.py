"""Experiments on the loss landscape: saddles, spurious minima, and where the theorems end."""
