"""Which cases run by default."""

import pytest


def one_by_default(default, *others):
    """Cases of a parameter: the first by default, the others with the slow tests."""
    return [default, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]
