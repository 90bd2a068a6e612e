"""Validation after each epoch: the front is computed once where it fits, and the last one is the final scoring."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import src.stitching.run
import src.stitching.validation
from src.dataset import load_split
from src.stitching import CutNetworks, StitchSpec, build_stitch
from src.stitching.inits import random_uniform
from src.stitching.run import Callbacks, StitchPlan, stitch
from src.stitching.validation import Validation
from tests.toy import save_toy

SAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize("labelled", [True, False])
def test_what_no_stitch_changes_is_computed_once(toy: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [StitchSpec("bn1", "bn1"), StitchSpec("conv2", "conv2")]
    networks = [save_toy(toy / f"{seed}.pt", 4 + seed, seed) for seed in range(2)]
    cuts = CutNetworks(networks[0], networks[1], specs, SAMPLE)
    passes, original = [], cuts.front_activations
    monkeypatch.setattr(cuts, "front_activations", lambda *some: passes.append(some[0]) or original(*some))
    generator, val = torch.Generator().manual_seed(0), load_split("toy", "val")
    sewn = {
        spec.front_layer: (
            spec,
            build_stitch(random_uniform(cuts.geometry(spec.cut), generator), cuts.geometry(spec.cut)),
        )
        for spec in specs
    }
    batches = -(-len(val) // 64)
    keeping, forgetful = (Validation(cuts, val, labelled=labelled, at_once=0, room=room) for room in (1e9, 0))
    first = keeping(sewn)
    assert len(passes) == batches and set(first) == {"bn1", "conv2"}
    assert keeping(sewn) == first and len(passes) == batches
    fewer = {"conv2": sewn["conv2"]}
    assert keeping(fewer) == {"conv2": first["conv2"]} and len(passes) == batches
    assert forgetful(sewn) == first == forgetful(sewn) and len(passes) == 3 * batches
    other = Validation(cuts, val, labelled=labelled, at_once=0, room=1e9)
    assert other(fewer) == {"conv2": first["conv2"]} and other(sewn) == first and len(passes) == 5 * batches


BASE = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, save_frequency=2)
TO_CONV = replace(BASE, end_layer="conv1", train_end_norm=True)  # bn1 of the end network is behind it
STAGED = replace(BASE, target_type="match_final,hard", epochs=3, stage_epochs="1,2")
KINDS = {
    "full": [BASE, replace(BASE, lr=0.1, seed=1), replace(BASE, end_layer="conv2")],
    "restricted": [replace(BASE, low_rank=2), replace(BASE, mask="semi-match"), replace(BASE, orthogonal=True)],
    "whitened": [replace(BASE, whiten=True), replace(BASE, whiten=True, low_rank=2, init="ps_inv")],
    "wider": [replace(BASE, kernel=3), replace(BASE, hidden=8), replace(BASE, norm=True)],
    "end's statistics": [TO_CONV],
    "targets": [replace(BASE, target_type="soft_2"), STAGED],
    "one epoch": [replace(BASE, epochs=1), replace(BASE, epochs=1, lr=1e-30)],
    "early stop": [replace(BASE, early_stop=1, epochs=4, lr=rate, optimizer="sgd") for rate in (1e-3, 10.0)],
}


def made(folder: Path, specs: Sequence[StitchSpec], **options: Any) -> tuple[list[Any], list[tuple[StitchSpec, dict]]]:
    """The results of stitches, and what was told of their epochs."""
    told = []
    callbacks = Callbacks(on_epoch=lambda spec, history: told.append((spec, history.epochs[-1])))
    networks = [save_toy(folder / f"{seed}.pt", 4 + seed, seed) for seed in range(2)]
    plan = StitchPlan(similarity=False, callbacks=callbacks, **options)
    cuts = CutNetworks(networks[0], networks[1], list(specs), SAMPLE)
    return stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), plan), told


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_epoch_is_what_the_final_scoring_finds(
    toy: Path, kind: str, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit what a pass of its own finds; and there is none, unless a watch may go back to another epoch."""
    specs = KINDS[kind] if labelled else [replace(spec, target_type="soft_2", stage_epochs="") for spec in KINDS[kind]]
    passes, tally = [], src.stitching.validation.tally
    monkeypatch.setattr(src.stitching.validation, "tally", lambda *some, **how: passes.append(1) or tally(*some, **how))
    options = {"labelled": labelled, "controls": ["self"]}
    results, told = made(toy, specs, **options)
    needed = len(passes)
    passes.clear()
    with monkeypatch.context() as patched:
        patched.setattr(src.stitching.run, "comes_later", lambda *_: False)
        expected, told_then = made(toy, specs, **options)
    groups = len({spec.together for spec in specs})
    assert len(passes) - needed == (0 if kind == "early stop" else groups)
    assert sorted(told, key=str) == sorted(told_then, key=str)
    assert len(told) == sum(len(result["trans_fit"]) for result in results)
    for one, other in zip(results, expected, strict=True):
        for key in ("trans_fit", "trans_history", "trans_m", "model_results"):
            assert pickle.dumps(one[key]) == pickle.dumps(other[key])
        assert one["trans_fit"].notna().all(axis=None)


def test_lines_of_an_epoch_come_once_and_in_order(toy: Path) -> None:
    _, told = made(toy, [BASE, replace(BASE, lr=0.1)])
    assert [spec.lr for spec, _ in told] == [BASE.lr, 0.1] * 2
    assert all(row.keys() == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} for _, row in told)


@pytest.mark.parametrize("bound", [src.stitching.validation.TAME, math.inf])
def test_what_the_last_step_damaged_has_no_result(toy: Path, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one step, whose own loss is finite: known before maps are made of it, or at the latest from the scoring."""
    monkeypatch.setattr(src.stitching.validation, "TAME", bound)
    wild = replace(BASE, epochs=1, batch_size=48, optimizer="sgd", lr=2e9, l1=1e30)
    (good, failed), told = made(toy, [replace(wild, lr=0.01, l1=0.0), wild])
    assert isinstance(failed, FloatingPointError) and isinstance(good, dict)
    words = "the validation loss is (nan|inf) after epoch 1, step 1 of 1; lower the rate with --lr"
    with pytest.raises(FloatingPointError, match=words):
        raise failed
    assert [spec.lr for spec, _ in told] == [0.01]
