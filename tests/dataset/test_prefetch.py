"""Batches that go ahead to a device, with a stand-in for its streams."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.dataset import prefetch
from src.dataset.prefetch import on_device

GPU: Any = SimpleNamespace(type="cuda")


class Batch:
    """A batch of the processor, and what becomes of it."""

    def __init__(self, number: int, log: list[str], *, pinned: bool) -> None:
        self.number, self.log, self.pinned, self.device = number, log, pinned, "there"

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> "Batch":
        self.log.append(f"pin {self.number}")
        return self

    def to(self, device: Any, *, non_blocking: bool) -> "Batch":
        assert non_blocking
        self.log.append(f"copy {self.number}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.log.append(f"keep {self.number}")


def test_the_next_is_copied_before_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    cuda = SimpleNamespace(
        Stream=lambda device: None,
        stream=lambda stream: nullcontext(),
        Event=lambda: SimpleNamespace(record=lambda stream: None),
        current_stream=lambda device: SimpleNamespace(wait_event=lambda event: log.append("wait")),
    )
    monkeypatch.setattr(prefetch, "torch", SimpleNamespace(cuda=cuda))
    batches: Any = iter([Batch(number, log, pinned=number > 0) for number in range(3)])
    for batch in on_device(batches, GPU):
        log.append(f"use {batch.number}")  # pyright: ignore[reportAttributeAccessIssue]
    assert log == [
        *("pin 0", "copy 0", "copy 1", "wait", "keep 0", "use 0"),
        *("copy 2", "wait", "keep 1", "use 1", "wait", "keep 2", "use 2"),
    ]


def test_on_a_processor_they_come_as_they_are() -> None:
    batches = [torch.zeros(2), torch.ones(2)]
    found = list(on_device(iter(batches), torch.device("cpu")))
    assert all(one is other for one, other in zip(found, batches, strict=True))
    assert list(on_device(iter([]), torch.device("cpu"))) == []
