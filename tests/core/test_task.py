"""What logits mean, against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from src.core.task import MULTI_LABEL, SINGLE_LABEL, Task

# softmax of log(p) is p, sigmoid of log(odds) is the probability
PROBABILITIES = tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
LABELS = tensor([0, 1])
YES = tensor([[0.75, 0.5], [0.2, 0.9]])
ATTRIBUTES = tensor([[1.0, 1.0], [0.0, 0.0]])


def logits(task: Task, probabilities: Tensor) -> Tensor:
    return probabilities.log() if task is SINGLE_LABEL else (probabilities / (1 - probabilities)).log()


def test_loss_of_labels() -> None:
    expected = -(math.log(0.5) + math.log(0.2)) / 2
    assert SINGLE_LABEL.loss(logits(SINGLE_LABEL, PROBABILITIES), LABELS).item() == pytest.approx(expected)


def test_loss_of_attributes_is_the_mean_over_images_and_attributes() -> None:
    expected = -(math.log(0.75) + math.log(0.5) + math.log(0.8) + math.log(0.1)) / 4
    assert MULTI_LABEL.loss(logits(MULTI_LABEL, YES), ATTRIBUTES).item() == pytest.approx(expected)


def test_energy_of_classes_is_joint_and_that_of_attributes_a_sum() -> None:
    assert_close(SINGLE_LABEL.energy(logits(SINGLE_LABEL, PROBABILITIES) + 2), tensor([-2.0, -2.0]))
    expected = [math.log(0.25) + math.log(0.5), math.log(0.8) + math.log(0.1)]  # of no attribute at all
    assert_close(MULTI_LABEL.energy(logits(MULTI_LABEL, YES)), tensor(expected))


def test_loss_of_soft_targets() -> None:
    uniform = torch.full((2, 3), 1 / 3)
    expected = -sum(math.log(p) for p in (0.5, 0.25, 0.25, 0.1, 0.2, 0.7)) / 6
    assert SINGLE_LABEL.loss(logits(SINGLE_LABEL, PROBABILITIES), uniform).item() == pytest.approx(expected)
    half = torch.full((2, 2), 0.5)
    expected = -sum(math.log(p) for p in (0.75, 0.25, 0.5, 0.5, 0.2, 0.8, 0.9, 0.1)) / 8
    assert MULTI_LABEL.loss(logits(MULTI_LABEL, YES), half).item() == pytest.approx(expected)


@pytest.mark.parametrize(("task", "probabilities"), [(SINGLE_LABEL, PROBABILITIES), (MULTI_LABEL, YES)])
def test_own_probabilities_are_the_best_soft_targets(task: Task, probabilities: Tensor) -> None:
    values = logits(task, probabilities).requires_grad_()
    assert_close(task.probabilities(values), probabilities)
    (slope,) = torch.autograd.grad(task.loss(values, probabilities), values)
    assert_close(slope, torch.zeros_like(slope))


def test_predictions_have_the_form_of_the_labels() -> None:
    decided = SINGLE_LABEL.predictions(logits(SINGLE_LABEL, PROBABILITIES))
    assert_close(decided, tensor([0, 2]))
    decided = MULTI_LABEL.predictions(logits(MULTI_LABEL, YES))
    assert_close(decided, tensor([[1.0, 0.0], [0.0, 1.0]]))  # 0.5 itself is a no
    assert decided.dtype == ATTRIBUTES.dtype


def test_correct_decisions() -> None:
    assert SINGLE_LABEL.correct(logits(SINGLE_LABEL, PROBABILITIES), LABELS).tolist() == [True, False]
    assert MULTI_LABEL.correct(logits(MULTI_LABEL, YES), ATTRIBUTES).tolist() == [[True, False], [True, False]]


def test_crossentropy_is_the_mean_over_images_and_classes() -> None:
    target = tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    expected = -(math.log(0.5) + 0.5 * math.log(0.2) + 0.5 * math.log(0.7)) / 6
    assert SINGLE_LABEL.crossentropy(logits(SINGLE_LABEL, PROBABILITIES), target).item() == pytest.approx(expected)
    target = tensor([[1.0, 0.5], [0.0, 0.0]])
    expected = -(math.log(0.75) + math.log(0.5) + math.log(0.8) + math.log(0.1)) / 4
    assert MULTI_LABEL.crossentropy(logits(MULTI_LABEL, YES), target).item() == pytest.approx(expected)


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_large_logits_stay_finite(task: Task) -> None:
    values = tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert task.loss(values, values.flip(1).sigmoid()).isfinite()
    assert_close(task.probabilities(values), tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_integer_attributes_are_targets_too() -> None:
    values = logits(MULTI_LABEL, YES).double()
    assert MULTI_LABEL.loss(values, ATTRIBUTES.long()).dtype == torch.float64
    assert_close(MULTI_LABEL.loss(values, ATTRIBUTES.long()), MULTI_LABEL.loss(values, ATTRIBUTES))
