"""Inputs that a layer cannot tell from others: how near they come, and that they come out alike after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.dataset import load_split
from src.evaluation import identical
from src.evaluation.identical import IdenticalCache, IdenticalInputs, fixed_subset, identical_inputs
from src.networks.checkpoints import load
from src.stitching import CutNetworks, StitchSpec

LAYER = "bn1"


def forward() -> Callable[[Tensor], Tensor]:
    spec = StitchSpec(LAYER, LAYER)
    cuts = CutNetworks(load("a3.pt").network, load("b3.pt").network, [spec], torch.zeros(2, 1, 8, 8))
    return lambda images: cuts.outputs("front", [LAYER], images)[LAYER]


def made(cache: Path | None = None, *, steps: int = 30, count: int = 20, **options: Any) -> IdenticalInputs:
    kept = IdenticalCache(cache, {"weights": "a"}, **options)
    return identical_inputs(forward(), load_split("toy", "train"), LAYER, kept, steps=steps, count=count)


def test_the_error_that_is_told_is_that_of_the_bytes(toy: Path) -> None:
    found = made(steps=60)
    function, split = forward(), load_split("toy", "train")
    (seen, _), (original, _) = (next(each.batches(100)) for each in (found.split, found.originals))
    with torch.no_grad():
        f, wanted = (function(images).flatten(1) for images in (seen, original))
    torch.testing.assert_close(found.errors, (f - wanted).norm(dim=1) / wanted.norm(dim=1))
    assert float(found.errors.median()) < 0.6 * float(made(steps=0).errors.median())
    raw = next(found.split.with_preprocessing(None).batches(100))[0]
    assert raw.dtype == torch.uint8 and not torch.equal(
        raw, next(found.originals.with_preprocessing(None).batches(100))[0]
    )
    assert torch.equal(found.split.labels, found.originals.labels) and len(found.split) == 20
    facts = found.facts()
    assert facts["images"] == 20 and facts["steps"] == 60
    assert facts["relative_error"]["low"] <= facts["relative_error"]["median"] <= facts["relative_error"]["high"]
    assert fixed_subset(split, 20).digest() == fixed_subset(split, 20).digest() != fixed_subset(split, 21).digest()


def test_a_step_goes_by_one_against_the_sign_of_the_gradient(toy: Path) -> None:
    start, after = (next(made(steps=steps).split.with_preprocessing(None).batches(100))[0].int() for steps in (0, 1))
    moved = (after - start).abs()
    assert moved.max() == 1 and (moved == 1).float().mean() > 0.9
    inside = (start > 0) & (start < 255)
    function, split = forward(), load_split("toy", "train")
    pixels = start.float().requires_grad_()
    wanted = function(next(made().originals.batches(100))[0]).detach()
    (gradient,) = torch.autograd.grad((function(split.as_seen(pixels)) - wanted).square().sum(), pixels)
    expected = -gradient.sign()[inside]
    assert ((after - start)[inside] == expected).float().mean() > 0.99


def test_they_are_not_changed_at_random(toy: Path) -> None:
    found = made(steps=1)
    still, changed = (next(found.split.batches(20, augment=torch.Generator().manual_seed(seed)))[0] for seed in (0, 1))
    assert torch.equal(still, changed)
    split = load_split("toy", "train")
    assert not torch.equal(
        next(split.batches(48, augment=torch.Generator().manual_seed(0)))[0], next(split.batches(48))[0]
    )


def test_the_same_bytes_come_after_a_kill_and_from_the_cache(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identical, "BATCH", 8)
    whole = made(None)
    original, calls = identical._descend, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(identical, "_descend", killed)
    with pytest.raises(KeyboardInterrupt):
        made(Path("cache"))
    calls = 10
    resumed = made(Path("cache"))
    assert calls == 14  # the time is measured twice; two batches of three were missing
    again = made(Path("cache"))
    assert calls == 14
    (file, *_) = sorted(Path("cache").rglob("*.pt"))
    file.write_bytes(file.read_bytes()[:-9])
    mended = made(Path("cache"))
    assert calls == 15
    for other in (resumed, again, mended):
        assert other.split.digest() == whole.split.digest() and torch.equal(other.errors, whole.errors)
    made(Path("cache"), steps=31)
    assert calls == 20 and len(list(Path("cache").iterdir())) == 2  # other steps are another set


def test_it_is_said_how_long_it_takes(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(identical, "BATCH", 8)
    clock = iter([0.0, 6.0])  # 2 s a step and batch, 30 steps, 2.5 batches
    monkeypatch.setattr(identical, "monotonic", lambda: next(clock))
    made(on_message=told.append)
    assert told == ["20 inputs alike at bn1, 30 steps each: about 2 min"]
