"""Stitches that are trained together against each on its own: the same parameters, whatever they are and learn."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.dataset import DATASETS
from src.dataset.split import MemorySplit
from src.models import build_model
from src.stitching import TARGETS, CutNetworks, StitchSpec
from src.stitching.families import widening_of
from src.stitching.inits import INIT_NAMES
from src.stitching.layer import StitchLayer
from src.stitching.masks import MASKS
from src.stitching.objective import StitchObjective
from src.stitching.run import Callbacks, StitchPlan, stitch
from src.stitching.stacked import CHUNK, LARGEST, can_stack, rows_at_once, stack
from src.stitching.start import initial_stitch
from src.stitching.states import resume_states
from src.training.stacked import Member, Stacked
from src.training.train_state import TrainState

STEPS, BATCH = 10, 4  # two epochs make twenty steps
BASE = StitchSpec("bn7", "bn7", epochs=2, batch_size=BATCH, save_frequency=1)
TOLERANCE = {"sgd": 1e-5, "adam": 1e-4}


def images_of(count: int = STEPS * BATCH, seed: int = 0, name: str = "cifar10") -> MemorySplit:
    spec, generator = DATASETS[name], torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, spec.size, spec.size), generator=generator, dtype=torch.uint8)
    return MemorySplit(spec, pixels, torch.randint(0, 10, (count,), generator=generator))


def network(seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("tiny10", channels=3, classes=10, size=32).eval()


def cuts_of(specs: Sequence[StitchSpec]) -> CutNetworks:
    return CutNetworks(network(0), network(1), list(specs), torch.zeros(2, 3, 32, 32))


def results_of(specs: Sequence[StitchSpec], stacked: int, **options: Any) -> list[Any]:
    return stitch(
        cuts_of(specs), images_of(), images_of(8, 1), StitchPlan(similarity=False, stacked=stacked, **options)
    )


def assert_alike(specs: Sequence[StitchSpec], *, chunk: int = 5, **options: Any) -> None:
    """Every stitch is moved by its training, and to the same place in company."""
    alone, together = (results_of(specs, stacked, **options) for stacked in (0, chunk))
    for spec, one, other in zip(specs, alone, together, strict=True):
        told = f"{spec.init} {spec.mask} {spec.low_rank} {spec.target_type} {spec.l1} {spec.whiten} {spec.seed}"
        for stage, expected in one["trans_m"].items():
            for name, values in expected.items():
                if isinstance(values, np.ndarray):
                    apart = np.abs(other["trans_m"][stage][name] - values).max()
                    assert apart <= TOLERANCE[spec.optimizer], f"{told}: {stage} {name} {apart}"
        before, after = (one["trans_m"][stage] for stage in ("before", "after"))
        assert any(not np.array_equal(before[name], after[name]) for name in after), told
        for column in one["trans_fit"]:
            assert list(other["trans_fit"][column]) == pytest.approx(
                list(one["trans_fit"][column]), rel=1e-3, abs=1e-5
            ), told
        for stage, scores in one["model_results"].items():
            assert other["model_results"][stage] == near(scores), f"{told}: {stage}"
        for stage, errors in one["match_errors"].items():
            assert other["match_errors"][stage] == near(errors), f"{told}: {stage}"
        assert other["hits"] == one["hits"], told
        assert one["trans_history"].keys() == other["trans_history"].keys()
        for iteration, kept in one["trans_history"].items():
            for name, values in kept.items():
                apart = np.abs(other["trans_history"][iteration][name] - values).max()
                assert apart <= TOLERANCE[spec.optimizer], told


def near(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value and pytest.approx(value, rel=1e-3, nan_ok=True) for key, value in values.items()}


SIZED = {"ridge": "ridge", "soft-match": "soft-match", "relative": "relative:9"}
MAPS: list[dict[str, Any]] = [
    *({"init": SIZED.get(init.partition(":")[0].partition("[")[0], init)} for init in INIT_NAMES),
    *({"mask": mask} for mask in MASKS if mask != "identity"),
    {"init": "ps_inv", "mask": "semi-match"},
    *({"low_rank": rank} for rank in (1, 4, 64)),
    {"init": "ps_inv", "low_rank": 3},
    {"l1": 0.1},
    {"l1": 0.1, "mask": "semi-match"},
    {"whiten": True},
    {"whiten": True, "low_rank": 2},
    {"whiten": True, "mask": "semi-match", "weight_decay": 1e-2},
    {"weight_decay": 1e-2},
    {"lr": 3e-3},
    {"cosine": True},
    {"front_layer": "bn8", "end_layer": "bn7"},
    {"front_layer": "bn5", "resize": True},
    {"front_layer": "conv1", "end_layer": "bn7", "resize": True},
]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_kind_of_map_learns_the_same(optimizer: str) -> None:
    assert_alike([replace(BASE, optimizer=optimizer, **options) for options in MAPS])


WIDER: list[dict[str, Any]] = [
    *({"kernel": 3, "lr": rate} for rate in (1e-4, 2e-4)),
    {"kernel": 3, "init": "ps_inv", "l1": 0.1},
    {"kernel": 3, "front_layer": "bn8", "weight_decay": 1e-2},
    {"kernel": 3, "seed": 1, "target_type": "match_later"},
    {"kernel": 3, "seed": 1, "target_type": "match_later", "lr": 1e-4},
    *({"kernel": size, "front_layer": "bn5", "end_layer": "bn5", "init": "ps_inv"} for size in (3, 5)),
    *({"kernel": 5, "front_layer": "conv1", "end_layer": "bn7", "resize": True, "lr": rate} for rate in (1e-4, 2e-4)),
    *({"hidden": units, "lr": rate} for units in (128, 200) for rate in (1e-4, 2e-4)),
    {"hidden": 128, "init": "ps_inv", "l1": 0.1},
    {"hidden": 128, "seed": 1, "target_type": "soft_2", "temperature": 2.0},
    {"hidden": 30, "front_layer": "bn8", "weight_decay": 1e-2},
    *({"hidden": 30, "front_layer": "fc", "end_layer": "fc", "lr": rate} for rate in (1e-3, 2e-3)),
    *({"hidden": 30, "front_layer": "bn8", "end_layer": "bn8", "flatten": True, "lr": rate} for rate in (1e-4, 2e-4)),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_wider_families_learn_the_same(optimizer: str) -> None:
    assert_alike([replace(BASE, optimizer=optimizer, **options) for options in WIDER])


def test_wider_families_are_the_same_in_any_company() -> None:
    """Each size of a kernel, and each number of units, has batches of its own."""
    for options in ({"kernel": 3}, {"hidden": 128}):
        specs = [replace(BASE, lr=rate, **options) for rate in (1e-4, 2e-4, 3e-4)]
        others = [replace(BASE, **{name: value + 2}) for name, value in options.items() for _ in range(2)]
        two, five = results_of(specs[:2], 8), results_of([*others, *specs], 8)[2:]
        for one, other in zip(two, five, strict=False):
            for name, values in one["trans_m"]["after"].items():
                np.testing.assert_array_equal(values, other["trans_m"]["after"][name])
        several = learners(cuts_of([*others, *specs]))
        stacked = stack([Member(state, 0) for state in several], [lambda images: None], chunk=8)
        assert isinstance(stacked, Stacked) and len(stacked.chunks) == 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_target_teaches_the_same(optimizer: str) -> None:
    # slowly: squares of wrong activations throw SGD far off
    base = replace(BASE, lr=1e-5 if optimizer == "sgd" else 1e-3)
    specs = [replace(base, optimizer=optimizer, target_type=target, seed=seed) for target in TARGETS for seed in (0, 1)]
    soft = [replace(base, optimizer=optimizer, target_type="soft_2", temperature=heat) for heat in (2.0, 3.0)]
    staged = [replace(base, target_type="match,hard", stage_epochs="1,1", seed=seed) for seed in (0, 1)]
    some = [replace(base, target_type="match_later", match_layers="bn8", seed=seed) for seed in (0, 1)]
    assert_alike([*specs, *soft, *staged, *some])


def test_without_labels_teachers_say_what_is_right() -> None:
    specs = [replace(BASE, target_type=target, lr=rate) for target in ("soft_2", "soft_12") for rate in (1e-3, 2e-3)]
    assert_alike(specs, labelled=False)


def test_seeds_bring_their_own_batches() -> None:
    assert_alike([replace(BASE, seed=seed, init="ps_inv") for seed in range(3)])


def test_seeds_of_which_each_asks_for_something_else() -> None:
    targets = {0: "hard", 1: "soft_12", 2: "match_later"}
    specs = [replace(BASE, seed=seed, target_type=name, lr=r) for seed, name in targets.items() for r in (1e-4, 2e-4)]
    assert_alike([*specs, *(replace(BASE, seed=seed, front_layer="bn8", lr=1e-4) for seed in targets)])


def test_flattened_layers_and_features() -> None:
    assert_alike([replace(BASE, front_layer="bn8", end_layer="bn8", flatten=True, lr=rate) for rate in (1e-3, 2e-3)])
    assert_alike([replace(BASE, front_layer="fc", end_layer="fc", lr=rate) for rate in (1e-3, 2e-3)])


def test_others_keep_a_step_of_their_own_beside_them() -> None:
    others = [{"orthogonal": True}, {"cka_reg": 0.1}, {"norm": True}, {"train_end_norm": True}]
    assert_alike([BASE, replace(BASE, lr=2e-3), *(replace(BASE, **options) for options in others)])
    for options in [*others, {}, {"kernel": 3}, {"hidden": 128}]:
        if "norm" in options:  # which needs moments to start
            continue
        (state,) = learners(cuts_of([replace(BASE, **options)]))
        assert can_stack(state.objective) != (options in others)  # pyright: ignore[reportArgumentType]


def test_mixed_precision_is_as_near_as_it_is() -> None:
    specs = [replace(BASE, amp=True, lr=rate, optimizer="sgd") for rate in (1e-3, 2e-3)]
    alone, together = (results_of(specs, stacked) for stacked in (0, 2))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(other["trans_m"]["after"]["w"] - one["trans_m"]["after"]["w"]).max() <= 1e-3


def test_one_that_diverges_touches_only_its_own_rows() -> None:
    specs = [replace(BASE, optimizer="sgd", lr=rate) for rate in (1e-3, 1e25, 2e-3)]
    (first, lost, third), (one, gone, other) = results_of(specs, 0), results_of(specs, 3)
    assert isinstance(lost, FloatingPointError) and isinstance(gone, FloatingPointError)
    assert str(lost) == str(gone)
    for expected, found in ((first, one), (third, other)):
        assert np.abs(found["trans_m"]["after"]["w"] - expected["trans_m"]["after"]["w"]).max() <= 1e-5


def test_one_that_has_learnt_enough_stops_alone() -> None:
    specs = [replace(BASE, early_stop=1, epochs=4, lr=rate, optimizer="sgd") for rate in (1e-3, 10.0, 2e-3)]
    alone, together = (results_of(specs, stacked) for stacked in (0, 3))
    assert [one["early_stop"] for one in alone] == [other["early_stop"] for other in together]
    assert len({one["early_stop"]["trained"] for one in alone}) > 1


def test_a_stitch_is_the_same_in_any_company() -> None:
    """A chunk has always as many rows, so that what comes of a row does not depend on who has the others."""
    specs = [replace(BASE, lr=rate) for rate in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)]
    two, five = results_of(specs[:2], 8), results_of(specs, 8)
    for one, other in zip(two, five, strict=False):
        np.testing.assert_array_equal(one["trans_m"]["after"]["w"], other["trans_m"]["after"]["w"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_interrupted_training_goes_on_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    """Each stitch has kept an optimizer of its own, for both seeds."""
    base = replace(BASE, epochs=3, optimizer=optimizer)
    specs = [replace(base, seed=seed, lr=rate) for seed in (0, 1) for rate in (1e-3, 2e-3)]
    names = [str(number) for number in range(len(specs))]
    told: list[int] = []

    def stop(spec: StitchSpec, history: Any) -> None:
        if spec == specs[-1] and len(history.epochs) == 2:
            raise KeyboardInterrupt

    def states() -> Any:
        return resume_states(tmp_path, names, {}, lambda done, epochs: told.append(done))

    with pytest.raises(KeyboardInterrupt):
        results_of(specs, 3, resume=states(), callbacks=Callbacks(on_epoch=stop))
    assert len(list(tmp_path.glob("*.resume.pt"))) == 2
    found, expected = results_of(specs, 3, resume=states()), results_of(specs, 3)
    assert told == [2, 2]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one["trans_m"]["after"]["w"], other["trans_m"]["after"]["w"])
        assert (
            one["trans_fit"].equals(other["trans_fit"]) and one["trans_history"].keys() == other["trans_history"].keys()
        )


def test_a_chunk_holds_what_fits() -> None:
    (geometry,) = {cuts.geometry(BASE.cut) for cuts in [cuts_of([BASE])]}
    assert rows_at_once(geometry, 128) == CHUNK
    assert rows_at_once(geometry, 10**9) == 1
    most, wide = (rows_at_once(geometry, 128, 10**9, width) for width in (0, 8 * geometry.outputs))
    assert most == LARGEST // (128 * geometry.outputs * 4) == 8 * wide


def learners(cuts: CutNetworks) -> list[TrainState]:
    task = images_of().spec.task
    made = []
    for spec in cuts.specs:
        layer = initial_stitch(cuts.geometry(spec.cut), None, seed=spec.seed, orthogonal=spec.orthogonal)
        if widening := widening_of(spec):
            geometry, size = cuts.geometry(spec.cut), getattr(spec, widening.field)
            layer = widening.build(layer.affine(), geometry, size, None, torch.Generator().manual_seed(0))
        if spec.train_end_norm:
            layer.norms = cuts.end_norms(spec.end_layer)
        made.append(TrainState(layer, StitchObjective(cuts, spec, layer, task), spec.recipe))
    return made


class Operators(TorchDispatchMode):
    """How often each operator runs within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def operators_of(count: int, optimizer: str, **options: Any) -> Counter[str]:
    """Of the second step of so many stitches, all in one chunk."""
    specs = [replace(BASE, optimizer=optimizer, **options) for _ in range(count)]
    cuts = cuts_of(specs[:1])
    states = [state for _ in specs for state in learners(cuts)]
    members = [Member(state, 0) for state in states]
    stacked = stack(members, [partial(cuts.share, specs[:1])], chunk=count)
    assert isinstance(stacked, Stacked) and len(stacked.chunks) == 1
    batch = next(images_of().batches(BATCH))
    stacked.begin(0, 2)
    stacked.step([batch], [cuts.share(specs[:1], batch[0])])
    with Operators() as operators:
        stacked.step([batch], [cuts.share(specs[:1], batch[0])])
    return operators.counts


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_type": "soft_12", "l1": 0.1},
        {"target_type": "match_later"},
        {"kernel": 3},
        {"hidden": 128, "l1": 0.1},
    ],
    ids=str,
)
def test_as_many_operators_for_64_stitches_as_for_one(optimizer: str, options: dict[str, Any]) -> None:
    one, many = (operators_of(count, optimizer, **options) for count in (1, 64))
    assert one == many
    assert not one["_local_scalar_dense"] and not one["nonzero"]
    assert sum(one.values()) < 400


def test_what_a_loop_takes_for_each_more_stitch() -> None:
    """So that the test above could fail: steps one by one take as many operators again for each."""
    specs = [BASE, replace(BASE, lr=2e-3)]
    counts = []
    for some in (specs[:1], specs):
        cuts = cuts_of(some)
        states, (images, labels) = learners(cuts), next(images_of().batches(BATCH))
        with Operators() as operators:
            shared = cuts.share(some, images)
            for state in states:
                state.objective(shared, images, labels)[0].backward()
        counts.append(sum(operators.counts.values()))
    assert counts[1] > 1.25 * counts[0]
    assert math.isfinite(counts[0]) and isinstance(states[0].trained, StitchLayer)
