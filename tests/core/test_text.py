"""Texts of others: what is near a name, and what a line shows."""

import pytest

from src.core.text import close_to
from src.dataset import known_datasets
from src.metrics import MEASURES
from src.models import model_names


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("CKA", MEASURES, "; close: cka"),
        ("cka-debiased", MEASURES, "; close: cka_debiased"),
        ("procruste", MEASURES, "; close: procrustes"),
        ("cifar-10", known_datasets(), "; close: cifar10"),
        ("CIFAR 100", known_datasets(), "; close: cifar100"),
        ("Tiny_10", model_names(), "; close: tiny10"),
        ("resnet", ["lenet", "tiny10"], ""),
        ("", MEASURES, ""),
        ("?", MEASURES, ""),
    ],
)
def test_near_spellings_are_found(text: str, names: list[str], expected: str) -> None:
    assert close_to(text, names) == expected
