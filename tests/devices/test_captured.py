"""A step that is recorded once and replayed, with a recorder that does on the processor what a GPU's does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.stitching import run
from src.stitching.stacked import stack
from src.training import capture
from src.training.capture import WARM, Captured
from tests.same import assert_same
from tests.stitching.test_stacked import BASE, replace, results_of

CPU = torch.device("cpu")


class Recorder:
    """Stands for torch.cuda: what runs while it records is done when it is replayed, and not before."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.recorded, self.replayed, self.recording = broken, 0, 0, False
        self.work: Callable[[], None] = lambda: None
        self.told: list[str] = []

    def Stream(self, device: Any = None) -> Any:
        return SimpleNamespace(wait_stream=lambda stream: None)

    current_stream = Stream

    def device(self, device: Any) -> Any:
        return nullcontext()

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.replayed += 1
        self.work()

    @contextmanager
    def graph(self, graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.recorded += 1
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.recording = True
        yield
        self.recording = False


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(capture, "torch", SimpleNamespace(cuda=made, device=torch.device))
    return made


def of(recorder: Recorder, work: Callable[[], None]) -> Captured:
    """Work that does nothing while it is recorded."""
    recorder.work = work
    return Captured(lambda: None if recorder.recording else work(), CPU, recorder.told.append)


def test_it_is_done_as_often_as_it_is_called(recorder: Recorder) -> None:
    calls: list[int] = []
    captured = of(recorder, lambda: calls.append(1))
    for number in range(1, 8):
        captured()
        assert len(calls) == number
    assert (recorder.recorded, recorder.replayed) == (1, 7 - WARM)


def test_what_cannot_be_recorded_goes_on_as_before(recorder: Recorder) -> None:
    calls: list[int] = []
    recorder.broken = True
    captured = of(recorder, lambda: calls.append(1))
    for _ in range(7):
        captured()
    assert len(calls) == 7 and (recorder.recorded, recorder.replayed) == (1, 0)
    assert captured.failure == "operation not permitted when stream is capturing"
    (told,) = recorder.told
    assert told.endswith(f"since it cannot be recorded: {captured.failure}")


def test_stitches_learn_the_same_from_a_recorded_step(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [replace(BASE, lr=rate, seed=seed) for rate in (1e-3, 2e-3) for seed in (0, 1)]
    specs += [replace(BASE, lr=rate, **wider) for rate in (1e-4, 2e-4) for wider in ({"kernel": 3}, {"hidden": 128})]
    specs += [replace(BASE, orthogonal=True), replace(BASE, target_type="match,hard", stage_epochs="1,1")]
    expected = results_of(specs, 3)

    class Replaying(Captured):
        def __init__(self, work: Callable[[], None], device: Any, told: Any) -> None:
            self.recording = False
            super().__init__(lambda: None if recorder.recording else work(), device, told)
            self.real = work

        def __call__(self) -> None:
            recorder.work = self.real
            super().__call__()

    monkeypatch.setattr("src.training.stacked.Captured", Replaying)
    monkeypatch.setattr(run, "stack", lambda *given, **how: partial(stack, *given)(**how | {"captured": True}))
    found = results_of(specs, 3)
    assert recorder.recorded >= 2 and recorder.replayed > 20
    for one, other in zip(expected, found, strict=True):
        assert_same(one["trans_m"]["after"], other["trans_m"]["after"])
        assert one["trans_fit"].equals(other["trans_fit"])
