"""Closed forms beyond least squares: ridge, soft matching, and the inverse relative projection."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stitch_nets
from src import results
from src.core.errors import UserError
from src.dataset import load_split
from src.metrics.algebra.moments import PairedMoments, joined, least_squares
from src.metrics.alignment import matching_plan, soft_match
from src.networks.checkpoints import load
from src.stitching import CutNetworks, StitchSpec
from src.stitching.inits import STRENGTHS, best_ridge, init_of, relative, ridged, soft_matched
from src.stitching.run import StitchPlan, stitch

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "bn1", epochs=0, batch_size=16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(x: Tensor, y: Tensor) -> PairedMoments:
    moments = PairedMoments(x.shape[1], y.shape[1])
    moments.update(x, y)
    return moments


def run(spec: StitchSpec, end: str = "b5.pt") -> Any:
    cuts = CutNetworks(load("a3.pt").network, load(end).network, [spec], SAMPLE)
    return stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), StitchPlan())[0]


def test_ridge_is_least_squares_of_rows_that_pull_to_zero() -> None:
    x = drawn(60, 3) * torch.tensor([1.0, 5.0, 0.2]) + 2
    y = x @ drawn(3, 5, seed=1) + drawn(60, 5, seed=2) + 1
    found = ridged(moments_of(x, y), 0.1)
    centred = x - x.mean(0), y - y.mean(0)
    pull = 0.1 * float(centred[0].square().sum()) / 3
    rows = torch.cat([centred[0], pull**0.5 * torch.eye(3)]), torch.cat([centred[1], torch.zeros(3, 5)])
    expected = np.linalg.lstsq(*(side.numpy() for side in rows), rcond=None)[0]
    np.testing.assert_allclose(found.w.numpy(), expected.T, rtol=1e-7)
    np.testing.assert_allclose((x @ found.w.T + found.b).mean(0), y.mean(0))
    np.testing.assert_allclose(ridged(moments_of(x, y), 0.0).w, least_squares(moments_of(x, y)).w, rtol=1e-6)


def test_its_strength_predicts_images_it_has_not_seen() -> None:
    x, noise = drawn(40, 20), 3 * drawn(40, 5, seed=2)
    y = x @ drawn(20, 5, seed=1) / 5 + noise
    folds = [moments_of(x[part::5], y[part::5]) for part in range(5)]
    errors = []
    for strength in STRENGTHS:
        error = 0.0
        for part in range(5):
            kept = torch.arange(40) % 5 != part
            w, b = ridged(moments_of(x[kept], y[kept]), strength)
            error += float((x[~kept] @ w.T + b - y[~kept]).square().sum())
        errors.append(error)
    expected = STRENGTHS[int(np.argmin(errors))]
    assert STRENGTHS[0] < expected  # noise asks for some
    whole = moments_of(x, y)
    np.testing.assert_allclose(best_ridge(whole, folds).w, ridged(whole, expected).w)


def test_moments_of_parts_join_to_those_of_all() -> None:
    x, y = drawn(50, 3) + 5, drawn(50, 4, seed=1)
    whole, parts = moments_of(x, y), joined([moments_of(x[part], y[part]) for part in (slice(0, 7), slice(7, 50))])
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.n == 50


@pytest.mark.parametrize("outputs", [4, 6])
def test_soft_matching_carries_channels_over(outputs: int) -> None:
    x = drawn(300, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 1
    order = torch.tensor([2, 0, 3, 1])
    y = torch.cat([x[:, order] * 7 - 2, drawn(300, outputs - 4, seed=1)], 1)
    moments = moments_of(x, y)
    plan = matching_plan(moments)
    np.testing.assert_allclose(plan.sum(0), 1 / 4)
    np.testing.assert_allclose(plan.sum(1), 1 / outputs)
    w, b = soft_matched(moments)
    if outputs == 4:
        torch.testing.assert_close(x @ w.T + b, y)
        assert soft_match(moments) == pytest.approx(1)
    sd = x.std(0, correction=0), y.std(0, correction=0)
    expected = outputs * plan * (sd[1][:, None] / sd[0]).numpy()
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)
    dead = moments_of(torch.cat([x, torch.ones(300, 1)], 1), y)
    assert not soft_matched(dead).w[:, 4].any()


def test_relative_projection_finds_a_rotation() -> None:
    rotation = torch.linalg.qr(drawn(6, 6))[0]
    x = drawn(200, 6, seed=1) + 3
    y = 2 * (x - 1) @ rotation.T + 5
    w, b = relative(moments_of(x, y), (x[:50], y[:50]))
    torch.testing.assert_close(w, 2 * rotation)
    torch.testing.assert_close(x @ w.T + b, y)
    x, y = drawn(100, 3), drawn(100, 5, seed=2)
    found = relative(moments_of(x, y), (x, y))
    a, c = (side - side.mean(0) for side in (x, y))
    scale = float((c.square().mean() / a.square().mean()).sqrt())
    a, c = a / a.norm(dim=1, keepdim=True), c / c.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.w, scale * torch.linalg.pinv(c) @ a)


def test_each_is_fitted_to_activations_of_training_images(toy: Path) -> None:
    cuts = CutNetworks(load("a3.pt").network, load("b5.pt").network, [BASE], SAMPLE)
    split = load_split("toy", "train")
    images = next(split.batches(100))[0]
    with torch.no_grad():
        x, y = (cuts.outputs(role, ["bn1"], images)["bn1"].double() for role in ("front", "end"))
    sides = [side.movedim(1, -1).flatten(0, -2) for side in (x, y)]
    whole = moments_of(*sides)
    part = torch.randperm(48, generator=torch.Generator().manual_seed(0)) % 5
    folds = [moments_of(*(s.movedim(1, -1)[part == fold].flatten(0, -2) for s in (x, y))) for fold in range(5)]
    chosen = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:7].sort().values
    anchors = tuple(s.movedim(1, -1)[chosen].flatten(0, -2) for s in (x, y))
    expected = {
        "ridge": best_ridge(whole, folds),
        "ridge:0.5": ridged(whole, 0.5),
        "soft-match": soft_matched(whole),
        "relative:7": relative(whole, anchors),
    }
    for init, affine in expected.items():
        found = run(replace(BASE, init=init))
        np.testing.assert_allclose(found["trans_m"]["before"]["w"][:, :, 0, 0], affine.w, atol=1e-5)
        np.testing.assert_allclose(found["trans_m"]["before"]["b"], affine.b, atol=1e-5)
        assert "ls_train" in found["trans_m"]
    kernel = run(replace(BASE, init="ridge:0.5", kernel=3))["trans_m"]["before"]["w"]
    np.testing.assert_allclose(kernel[:, :, 1, 1], expected["ridge:0.5"].w, atol=1e-5)


def test_they_stand_beside_each_other_in_one_command(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inits = "ridge,ridge:0.1,soft-match,relative:5,ps_inv"
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-i", inits, "-e", "0", "--controls", "self", "--run-name", "r"])
    assert "relative:5" in capsys.readouterr().out
    names = {path.stem for path in Path("results/r").glob("*.pkl")}
    assert "bn1-bn1,init=ridge-0.1" in names and len(names) == 5
    assert set(results.table("results")["init"]) == set(inits.split(","))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "unknown init 'best'; choose from .*relative:K.*ridge"),
        ("eye:3", "unknown init 'eye:3'"),
        ("ridge:-1", "--init ridge:-1: '-1' is not a number, 0 or more"),
        ("relative", "--init relative: .*relative:K"),
        ("relative:x", "is not a whole number above 0"),
    ],
)
def test_what_is_no_init(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        init_of(text)


def test_more_anchors_than_images_are_refused(toy: Path) -> None:
    with pytest.raises(UserError, match="relative:49 asks for more anchors than the 48 training images"):
        run(replace(BASE, init="relative:49"))
    with pytest.raises(UserError, match="--low-rank 2 excludes --init ridge:0.1: it is a map of its own"):
        replace(BASE, init="ridge:0.1", low_rank=2)
