"""Claims of the experiments on networks hold of data that bear them, and fail where one thing is not so."""

import numpy as np
import pytest

from experiments.networks import fig4, fig6, fig10, table2

EPOCHS = 4


def histories(finals, firsts=None, first_perfect=None):
    """Histories (settings, 1 trial, epochs) of NC1 to NC3 that fall to `finals`, and of accuracy."""
    finals = np.asarray(finals, float)
    falling = np.linspace(10 if firsts is None else firsts, finals, EPOCHS, axis=-1)[:, None]
    epochs = np.arange(1, EPOCHS + 1)
    perfect = np.full(len(finals), 1) if first_perfect is None else np.asarray(first_perfect)
    accuracy = np.where(epochs >= perfect[:, None, None], 1.0, 0.5)
    return {"nc1": falling, "nc2": falling, "nc3": falling, "accuracy": accuracy}


def judged(module, config, data):
    return [claim.holds for claim in module.claims(config, data)]


def test_figure_4():
    config = fig4.Config(width=(4, 16, 8))
    width = {"width": np.array(config.width)}
    assert judged(fig4, config, width | histories([3, 1, 2])) == [True] * 4
    assert judged(fig4, config, width | histories([3, 2, 1])) == [False, False, False, True]
    assert judged(fig4, config, width | histories([3, 1, 2], first_perfect=[1, 9, 1]))[3] is False
    assert judged(fig4, config, width | histories([3, 1, 2], firsts=1.5))[3] is False
    for name in ("nc1", "nc2", "nc3"):
        data = width | histories([3, 1, 2])
        data[name] = data[name].copy()
        data[name][1, :, -1] = 9
        assert judged(fig4, config, data).count(False) == 2


def test_figure_10():
    tau = (0.001, 0.5, 1.0, 5.0, 10.0, 100.0)
    config = fig10.Config(tau=tau)
    finals, first = [9, 5, 4, 1, 3, 8], [9, 3, 2, 1, 2, 9]
    good = {"tau": np.array(tau)} | histories(finals, first_perfect=first)
    assert judged(fig10, config, good) == [True] * 5
    for changes, failing in [
        ({"first_perfect": [9, 3, 2, 1, 9, 9]}, {0, 1}),  # Not perfect at tau = 10.
        ({"first_perfect": [9, 3, 2, 1, 2, 4]}, {0}),  # Perfect at tau = 100.
        ({"first_perfect": [9, 1, 2, 1, 2, 9]}, {1}),  # At tau = 1/2 before tau = 1.
    ]:
        found = judged(fig10, config, good | histories(finals, **changes))
        assert {i for i, holds in enumerate(found) if not holds} == failing
    assert (
        judged(fig10, config, good | histories([9, 5, 1, 4, 3, 8], first_perfect=first))[2:] == [False] * 3
    )
    never = good | {name: np.full_like(good[name], np.nan) for name in ("nc1", "nc2", "nc3")}
    assert judged(fig10, config, never)[2:] == [False] * 3
    # One temperature is the best of itself, and none outside says nothing.
    one = fig10.Config(tau=(5.0,))
    assert judged(fig10, one, {"tau": np.array([5.0])} | histories([1], first_perfect=[1])) == [True]
    inside = {"tau": np.array([1.0, 5.0])} | histories([2, 1], first_perfect=[1, 1])
    claims = fig10.claims(fig10.Config(tau=(1.0, 5.0)), inside)
    assert claims[0].claim == "perfect training accuracy for tau from 0.1 to 10"
    assert len(claims) == 4


def two_models(ours, theirs):
    data = {f"{name}_normalized_resnet18": x[0] for name, x in ours.items()}
    return data | {f"{name}_regularized_resnet18": x[0] for name, x in theirs.items()}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (histories([1], first_perfect=[2]), histories([3], first_perfect=[3]), [True, True]),
        (histories([1], first_perfect=[3]), histories([3], first_perfect=[3]), [False, True]),
        (histories([1], first_perfect=[9]), histories([3], first_perfect=[9]), [False, True]),
        (histories([3], first_perfect=[2]), histories([1], first_perfect=[3]), [True, False]),
        # Less at the end, and more at most epochs.
        (histories([1], firsts=40, first_perfect=[2]), histories([1.5], first_perfect=[3]), [True, False]),
    ],
)
def test_figure_6(ours, theirs, expected):
    config = fig6.Config(architecture=("resnet18",), tau=(1.0,))
    assert judged(fig6, config, two_models(ours, theirs)) == expected


@pytest.mark.parametrize("accuracies", [(0.8, 0.7), (0.7, 0.7), (0.6, 0.7)])
@pytest.mark.parametrize("nc1", [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)])
def test_table_2(accuracies, nc1):
    config = table2.Config(architecture=("resnet18",))
    data = {}
    for i, model in enumerate(("normalized", "regularized")):
        data[f"test_accuracy_{model}_resnet18"] = np.full((1, EPOCHS), accuracies[i])
        data[f"test_nc1_{model}_resnet18"] = np.full((1, EPOCHS), nc1[i])
    assert judged(table2, config, data) == [accuracies[0] > accuracies[1], nc1[0] < nc1[1]]
