"""Networks counted all at once against one after the other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.core.task import MULTI_LABEL, SINGLE_LABEL, Task
from src.evaluation import together
from src.evaluation.scores import AgreementCounter

NAMES = ["end", "front", "a", "b"]


def counted(task: Task, *, at_once: bool, labelled: bool, unlabelled: Any = ("front",)) -> AgreementCounter:
    generator = torch.Generator().manual_seed(0)
    couples = [("end", "a"), ("a", "b")]
    counts = AgreementCounter(
        task,
        target="end",
        couples=couples,
        labelled=labelled,
        unlabelled=unlabelled,
        keep=["a", "end"],
        at_once=at_once,
    )
    for images in (7, 5):
        logits = {name: torch.randn(images, 4, generator=generator) for name in NAMES}
        labels = torch.randint(0, 4, (images,), generator=generator)
        if task is MULTI_LABEL:
            labels = torch.randint(0, 2, (images, 4), generator=generator).float()
        counts.update(logits, labels)
    return counts


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL], ids=["single", "multi"])
def test_the_same_is_counted(task: Task, labelled: bool) -> None:
    one, other = (counted(task, at_once=at_once, labelled=labelled) for at_once in (False, True))
    assert (one.images, one.decisions, one.classes) == (other.images, other.decisions, other.classes)
    for name in NAMES:
        for found, expected in ((other.scores(name), one.scores(name)), (other.agreement(name), one.agreement(name))):
            assert found == {key: value if value is None else pytest.approx(value) for key, value in expected.items()}
        assert other.loss_to_target(name) == pytest.approx(one.loss_to_target(name))
    for couple in one.couples:
        assert other.hits(*couple) == one.hits(*couple)
    for kind in ("right", "same"):
        for name in ("a", "end"):
            found, expected = other.shares(kind, name), one.shares(kind, name)
            assert (found is None) == (expected is None) == (kind == "right" and not labelled)
            if found is not None and expected is not None:
                np.testing.assert_array_equal(found, expected)


def test_those_of_other_classes_or_too_many_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}
    assert not together.fits(logits) and together.fits({"a": logits["a"]})
    monkeypatch.setattr(together, "LARGEST", 5)
    assert not together.fits({"a": logits["a"]})


def test_as_many_operators_for_many_as_for_few() -> None:
    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    found = []
    for networks in (2, 40):
        names = [str(number) for number in range(networks)]
        counts = AgreementCounter(SINGLE_LABEL, target="0", keep=names, at_once=True)
        logits, labels = {name: torch.randn(5, 3) for name in names}, torch.zeros(5, dtype=torch.long)
        counts.update(logits, labels)
        with Count() as count:
            counts.update(logits, labels)
        found.append(count.count)
    assert found[0] == found[1]
