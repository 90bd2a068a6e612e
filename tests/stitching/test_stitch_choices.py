"""Inits, masks, targets and the table of what excludes what: known answers."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.metrics import PairedMoments
from src.stitching import INITS, MASKS, TARGETS, Geometry, StitchLayer, check_options, check_sizes, initial_stitch
from src.stitching.exclusions import EXCLUDED
from src.stitching.stitch_spec import USUAL
from src.stitching.targets import Taught

WIDE = Geometry((3, 4, 4), (5, 4, 4))
SQUARE = Geometry((6,), (6,))


def moments_of(x: torch.Tensor, y: torch.Tensor) -> PairedMoments:
    moments = PairedMoments(x.shape[1], y.shape[1])
    moments.update(x, y)
    return moments


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_random_is_uniform_within_the_usual_bound_and_seeded() -> None:
    geometry = Geometry((100,), (50,))
    first, again, other = (INITS["random"].build(geometry, generator(seed), None) for seed in (0, 0, 1))
    assert torch.equal(first.w, again.w) and not torch.equal(first.w, other.w)
    assert first.w.abs().max() <= 0.1 and first.b.abs().max() <= 0.1
    assert abs(first.w.std().item() - 0.1 / math.sqrt(3)) < 0.002


def test_perm_eye_and_ones_zeros() -> None:
    perm = INITS["perm"].build(SQUARE, generator(), None)
    assert (perm.w.sum(0) == 1).all() and (perm.w.sum(1) == 1).all() and not torch.equal(perm.w, torch.eye(6))
    assert torch.equal(INITS["eye"].build(SQUARE, generator(), None).w, torch.eye(6))
    ones = INITS["ones-zeros"].build(WIDE, generator(), None)
    assert ones.w.shape == (5, 3) and (ones.w == 1).all() and (ones.b == 0).all()


def test_ps_inv_solves_least_squares_and_orthogonal_finds_a_planted_rotation() -> None:
    x = torch.randn(200, 3, generator=generator()) + 2
    y = torch.randn(200, 5, generator=generator(1)) + x @ torch.randn(3, 5, generator=generator(2))
    expected = np.linalg.lstsq(np.c_[x.double().numpy(), np.ones(200)], y.double().numpy(), rcond=None)[0]
    affine = INITS["ps_inv"].build(WIDE, generator(), moments_of(x, y))
    assert_close(affine.w.numpy(), expected[:3].T, atol=1e-8, rtol=1e-8)
    assert_close(affine.b.numpy(), expected[3], atol=1e-8, rtol=1e-8)

    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator(3), dtype=torch.float64))[0]
    x = torch.randn(200, 6, generator=generator(), dtype=torch.float64) + 1
    affine = INITS["orthogonal"].build(SQUARE, generator(), moments_of(x, x @ rotation.T + 0.5))
    assert_close(affine.w, rotation, atol=1e-8, rtol=1e-8)
    assert_close(affine.b, torch.full((6,), 0.5, dtype=torch.float64), atol=1e-8, rtol=1e-8)


def test_semi_match_finds_a_planted_permutation_and_survives_dead_channels() -> None:
    order = torch.randperm(6, generator=generator(5))
    x = torch.randn(300, 6, generator=generator())
    y = x[:, order] + 0.3 * torch.randn(300, 6, generator=generator(1))
    sign = torch.tensor([1, -1, 1, -1, 1, 1.0])
    planted = torch.eye(6)[order]
    assert torch.equal(MASKS["semi-match"].build(SQUARE, generator(), moments_of(x, y)), planted)
    assert torch.equal(MASKS["abs-semi-match"].build(SQUARE, generator(), moments_of(x, y * sign)), planted)
    assert not torch.equal(MASKS["semi-match"].build(SQUARE, generator(), moments_of(x, y * sign)), planted)
    y[:, 2] = 1.0
    x[:, order[0]] = 0.0
    mask = MASKS["semi-match"].build(SQUARE, generator(), moments_of(x, y))
    assert (mask.sum(1) == 1).all() and torch.equal(mask[[1, 3, 4, 5]], planted[[1, 3, 4, 5]])


@pytest.mark.parametrize("name", ["random-permutation", "random-permuation"])
def test_random_permutation_is_one_where_sizes_agree(name: str) -> None:
    mask = MASKS[name].build(SQUARE, generator(), None)
    assert (mask.sum(0) == 1).all() and (mask.sum(1) == 1).all() and not torch.equal(mask, torch.eye(6))
    assert torch.equal(mask, MASKS[name].build(SQUARE, generator(), None))
    tall = MASKS[name].build(WIDE, generator(), None)
    assert (tall.sum(1) == 1).all() and tall.sum(0).min() >= 1 and tall.shape == (5, 3)
    assert MASKS[name].build(Geometry((5,), (3,)), generator(), None).sum(0).max() == 1


LOGITS, FRONT, END = (torch.tensor([row]) for row in ([1.0, 0.0], [2.0, 0.0], [0.0, 4.0]))


def soft(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.at])
def test_targets_by_hand(name: str, temperature: float) -> None:
    teachers = {"front": FRONT, "end": END}
    loss = TARGETS[name].loss(Taught(SINGLE_LABEL, LOGITS, torch.tensor([1]), teachers, temperature=temperature)).item()
    temperature = temperature if TARGETS[name].softened or name == "hard" else 1.0
    logits, front, end = (t.numpy()[0].astype(np.float64) / temperature for t in (LOGITS, FRONT, END))

    def crossentropy(target: np.ndarray) -> float:
        return float(-(target * np.log(soft(logits))).sum())

    expected = {
        "hard": -math.log(soft(LOGITS.numpy()[0].astype(np.float64))[1]),
        "kl_2": crossentropy(soft(end)) + float((soft(end) * np.log(soft(end))).sum()),
        "soft_1": crossentropy(soft(front)),
        "soft_2": crossentropy(soft(end)),
        "soft_12": (crossentropy(soft(front)) + crossentropy(soft(end))) / 2,
        "soft_1_plus_2": crossentropy(soft((front + end) / 2)),
    }[name]
    assert abs(loss - expected) < 1e-6


def test_multi_label_targets_are_the_binary_counterparts() -> None:
    taught = Taught(MULTI_LABEL, LOGITS, END, {"front": FRONT, "end": END})
    loss = TARGETS["soft_12"].loss(taught).item()
    p, target = (1 / (1 + np.exp(-x.numpy()[0].astype(np.float64))) for x in (LOGITS, FRONT))
    other = 1 / (1 + np.exp(-END.numpy()[0].astype(np.float64)))
    binary = [-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean() for t in (target, other)]
    assert abs(loss - sum(binary) / 2) < 1e-6
    kl = (other * np.log(other / p) + (1 - other) * np.log((1 - other) / (1 - p))).mean()
    assert abs(TARGETS["kl_2"].loss(taught).item() - kl) < 1e-6


def test_errors_of_activations_by_hand() -> None:
    stitched, own = torch.randn(3, 2, 4, generator=generator()), torch.randn(3, 2, 4, generator=generator(1))
    later, own_later = torch.randn(3, 5, generator=generator(2)), torch.zeros(3, 5)
    taught = Taught(SINGLE_LABEL, LOGITS, torch.tensor([1]), {}, [(stitched, own)], variance=4.0)
    squared = ((stitched - own).numpy().astype(np.float64) ** 2).mean() / 4
    for name in ("match", "match_final"):
        assert TARGETS[name].loss(taught).item() == pytest.approx(squared, rel=1e-6)
    both = Taught(SINGLE_LABEL, LOGITS, torch.tensor([1]), {}, [(stitched, own), (later, own_later)])
    first = np.linalg.norm((stitched - own).numpy().ravel()) / np.linalg.norm(own.numpy().ravel())
    second = np.linalg.norm(later.numpy())  # a dead layer has no norm to divide by
    assert TARGETS["match_later"].loss(both).item() == pytest.approx((first + second) / 2, rel=1e-6)


ON = {"low_rank": 2, "mask": "semi-match", "l1": 1.0, "orthogonal": True, "flatten": True, "resize": True}
ON |= {"kernel": 3, "hidden": 64, "norm": True}
ON |= {"cosine": True, "whiten": True, "iri_steps": 9, "tf32": True, "amp": True}


@pytest.mark.parametrize("line", EXCLUDED, ids=lambda line: f"{line[0]}-{line[1]}")
def test_every_excluded_pair_is_refused_and_each_half_is_fine(line) -> None:
    first, second, reason = line
    halves = [dict([option]) if isinstance(option, tuple) else {option: ON[option]} for option in (first, second)]
    defaults = USUAL | {"target_type": "soft_2"}
    with pytest.raises(ValueError, match=f"excludes.*{reason}"):
        check_options(defaults | halves[0] | halves[1], USUAL)
    for half in halves:
        beside = {"train_on": "iri"} if "iri_steps" in half else {}
        check_options(defaults | half | beside, USUAL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 2.0}, "--temperature 2.0 excludes --target-type hard: it divides the logits of soft targets"),
        ({"temperature": 2.0, "target_type": "match,kl_2"}, "excludes --target-type match,kl_2"),
        ({"match_layers": "bn*", "target_type": "match"}, "--match-layers .* match_later alone"),
        ({"early_stop": 2, "target_type": "match,hard"}, "--early-stop 2 excludes --target-type match,hard: the next"),
    ],
)
def test_what_belongs_to_other_targets_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(USUAL | options, USUAL)
    for fine in (
        {"temperature": 2.0, "target_type": "match,soft_2"},
        {"match_layers": "a", "target_type": "match_later"},
    ):
        check_options(USUAL | fine, USUAL)


def test_sizes_are_checked_before_any_data() -> None:
    with pytest.raises(ValueError, match="rank 4 exceeds 3.*--low-rank"):
        check_sizes({"low_rank": 4, "init": "random"}, WIDE)
    for init in ("eye", "perm"):
        with pytest.raises(ValueError, match=f"--init {init} needs equal sizes.*3 channels.*5"):
            check_sizes({"init": init}, WIDE)
        check_sizes({"init": init}, SQUARE)
    check_sizes({"low_rank": 3, "init": "ps_inv"}, WIDE)


def residual(stitch: StitchLayer, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x @ stitch.matrix().detach().double().T + stitch.bias.detach().double() - y).square().sum())


@pytest.mark.parametrize("restriction", [{"mask": "semi-match"}, {"rank": 2}, {"orthogonal": True}, {}], ids=str)
def test_a_fitted_init_is_the_best_that_the_stitch_can_be(restriction: dict) -> None:
    """No small step within the restriction, nor another bias, comes closer to the end network's activation."""
    x = torch.randn(200, 6, generator=generator(), dtype=torch.float64) * torch.arange(1, 7) + 2
    y = x @ torch.randn(6, 6, generator=generator(1), dtype=torch.float64) + torch.randn(200, 6, generator=generator(2))
    moments = moments_of(x, y)
    stitch = initial_stitch(SQUARE, moments, init="ps_inv", **restriction)
    assert_close(stitch(x.float()).double().mean(0), y.mean(0), atol=1e-4, rtol=1e-4)
    best = residual(stitch, x, y)
    for seed in range(20):
        other = copy.deepcopy(stitch)
        with torch.no_grad():
            for parameter in other.parameters():
                step = torch.randn(parameter.shape, generator=generator(seed), dtype=parameter.dtype)
                parameter += 1e-3 * parameter.abs().mean() * step
        assert residual(other, x, y) > best * (1 - 1e-6)
    if restriction:  # and the drawn inits do not know the activations
        assert residual(initial_stitch(SQUARE, moments, init="random", **restriction), x, y) > best


@pytest.mark.parametrize("restriction", [{"mask": "semi-match"}, {"mask": "random-permutation"}, {"rank": 2}], ids=str)
def test_what_is_left_of_a_rotation_still_matches_the_means(restriction: dict) -> None:
    x = torch.randn(200, 6, generator=generator()) + 3
    y = torch.randn(200, 6, generator=generator(1)) + x.flip(1)
    stitch = initial_stitch(SQUARE, moments_of(x, y), init="orthogonal", **restriction)
    assert_close(stitch(x).mean(0), y.mean(0), atol=1e-4, rtol=1e-4)
