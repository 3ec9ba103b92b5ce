"""Which cases run by default."""

from typing import Any

import pytest


def few(count: int, *cases: Any, **named: Any) -> list[Any]:
    """Cases of a parameter, or of several as tuples: so many by default, the others with the slow tests."""
    as_tuples = (case if isinstance(case, tuple) else (case,) for case in cases)
    every = [*((None, case) for case in as_tuples), *((name, (case,)) for name, case in named.items())]
    return [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (index >= count))
        for index, (name, case) in enumerate(every)
    ]
