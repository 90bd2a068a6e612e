"""Measures of what two networks decide, from their logits."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

import compare_frank_m2
import compare_nets
import stitch_nets
from src import results
from src.core.task import MULTI_LABEL, SINGLE_LABEL, Task
from src.metrics import FUNCTIONAL

LABELS = torch.tensor([0, 1, 2, 0])
X = torch.tensor([[2.0, 0, 0], [0, 3, 0], [5, 0, 1], [0, 1, 0]])
Y = torch.tensor([[1.0, 0, 0], [0, 1, 2], [0, 0, 4], [1, 0, 0]])


def of(name, x, y, labels=LABELS, task: Task = SINGLE_LABEL) -> float:
    return FUNCTIONAL[name].of(x, y, labels, task)


def test_known_answers():
    p, q = (softmax(side.double().numpy(), axis=1) for side in (X, Y))
    assert of("jsd", X, Y) == pytest.approx(np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]))
    assert of("disagreement", X, Y) == 0.75
    assert of("abs_acc_diff", X, Y) == 0.25  # 2 of 4 and 3 of 4


@pytest.mark.parametrize("name", sorted(FUNCTIONAL))
def test_equal_and_opposite_outputs(name):
    measure = FUNCTIONAL[name]
    assert of(name, X, X) == measure.identical == 0 and not measure.higher_is_better
    labels = torch.zeros(2, dtype=torch.long)
    sure, other = torch.tensor([[1e3, 0.0], [1e3, 0]]), torch.tensor([[0.0, 1e3], [0, 1e3]])
    assert of(name, sure, other, labels) == pytest.approx(measure.range[1])
    assert of(name, X, Y) == of(name, Y, X)


def test_several_labels_count_each():
    x, y = torch.tensor([[3.0, -2, 1, -1]]), torch.tensor([[3.0, 2, -1, -1]])
    labels = torch.tensor([[1.0, 0, 1, 0]])
    assert of("disagreement", x, y, labels, MULTI_LABEL) == 0.5
    assert of("abs_acc_diff", x, y, labels, MULTI_LABEL) == 0.5
    p, q = (side.double().sigmoid().numpy()[0] for side in (x, y))
    expected = [jensenshannon([a, 1 - a], [b, 1 - b]) ** 2 for a, b in zip(p, q, strict=True)]
    assert of("jsd", x, y, labels, MULTI_LABEL) == pytest.approx(np.mean(expected))
    assert of("jsd", x, y, labels, MULTI_LABEL) < math.log(2)


def test_the_scripts_give_them_beside_measures_of_layers(toy, capsys) -> None:
    names = sorted(FUNCTIONAL)
    compare_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "toy", "cka", *names, "--run-name", "p"])
    result = results.read(next(toy.rglob("results/p/*.pkl")))
    assert list(result["values"]) == ["cka", *names] and result["views"]["jsd"] == "logits"
    assert list(result["frame"]["method"]) == ["cka", *names]
    compare_nets.main(["a3.pt", "b5.pt", "bn1,fc1", "bn1", "toy", "jsd", "--run-name", "g", "--plot"])
    frame = results.read(next(toy.rglob("results/g/*.pkl")))["frame"]
    assert list(frame["value"]) == [result["values"]["jsd"]] * 2
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-e", "0", "-i", "ps_inv", "--run-name", "s"])
    compare_frank_m2.main(["results/s/bn1-bn1.pkl", "after", "jsd", "l2", "--run-name", "f"])
    values = results.read(next(toy.rglob("results/f/*.pkl")))["values"]
    assert list(values) == ["jsd", "l2"] and 0 < values["jsd"] < math.log(2)
