"""Validation after each epoch: the front is computed once where what it gives fits, and the scores are the same."""

from pathlib import Path

import pytest
import torch

from src.dataset import load_split
from src.stitching import CutNetworks, StitchSpec, build_stitch
from src.stitching.inits import random_uniform
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
