"""The numbers of a device against the processor's: `pytest --device cuda` asks whether they hold on a GPU.

Without the option the device is the processor, which then runs the same code twice.
"""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import compare_frank_m2
import compare_nets
import eval_net
import eval_stitch
import stitch_nets
import train_model
from src.core.config import choose_device
from src.core.precision import full_precision
from src.cutting.freeze import freeze
from src.cutting.parts import head, tail
from src.dataset import load_split
from src.evaluation.layer_grid import compare_layers
from src.evaluation.scores import AgreementCounter, tally
from src.metrics import FUNCTIONAL, METRICS
from src.metrics.algebra.moments import PairedMoments, least_squares, procrustes, reduced_rank_regression, squared_error
from src.models import MODELS, build_model
from src.results import read
from src.stitching import INITS, CutNetworks, StitchSpec
from src.stitching.run import StitchPlan, stitch
from tests import tolerances
from tests.cells import cell_of
from tests.paths import ROOT

CPU = torch.device("cpu")
SPLITS = (("train", 384), ("val", 180))  # a few steps; more only let rounding errors grow


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return choose_device(str(request.config.getoption("--device")))


def activations(images: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(images, 5, 3, 3, generator=generator)
    mix = torch.randn(5, 5, generator=generator)
    y = torch.einsum("dc,nchw->ndhw", mix, x) + 0.5 * torch.randn(images, 5, 3, 3, generator=generator)
    return x + 2, y


def close(found: Tensor, expected: Tensor, share: float) -> None:
    """Equal up to a share of the largest value."""
    assert_close(found.cpu(), expected, rtol=0, atol=share * float(expected.abs().max()))


@pytest.mark.parametrize("view", ["images", "channels"])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric(name: str, view: str, device: torch.device) -> None:
    x, y = activations()
    cells = [cell_of([name], x.to(where), y.to(where), view, device=where) for where in (CPU, device)]
    assert cells[0].unavailable == cells[1].unavailable
    numbers = [METRICS[name].number(cell.values[name]) for cell in cells if name in cell.values]
    if numbers:
        assert_close(numbers[1], numbers[0], rtol=tolerances.METRIC, atol=tolerances.METRIC)


def test_moments_and_the_maps_that_follow(device: torch.device) -> None:
    x, y = (values.movedim(1, -1).flatten(0, -2) for values in activations())
    both = []
    for where in (CPU, device):
        moments = PairedMoments(5, 5, where)
        moments.update(x.to(where), y.to(where))
        both.append(moments)
    mask = torch.eye(5) + torch.eye(5).roll(1, 0)
    for fit in (least_squares, procrustes, lambda m: reduced_rank_regression(m, 2), lambda m: least_squares(m, mask)):
        maps = [fit(moments) for moments in both]
        assert_close(maps[1].w.cpu(), maps[0].w.cpu(), rtol=tolerances.MOMENTS, atol=tolerances.MOMENTS)
        assert_close(maps[1].b.cpu(), maps[0].b.cpu(), rtol=tolerances.MOMENTS, atol=tolerances.MOMENTS)
        errors = [squared_error(moments, one) for moments, one in zip(both, maps, strict=True)]
        assert_close(errors[1], errors[0], rtol=tolerances.MOMENTS, atol=tolerances.MOMENTS)


@pytest.mark.parametrize("name", [name.replace("<width>", "32" if "vit" in name else "1") for name in MODELS])
@torch.inference_mode()
def test_heads_and_tails(name: str, device: torch.device) -> None:
    size = 64 if "inception" in name else 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(name, channels=3, classes=10, size=size).eval()
        images = torch.randn(2, 3, size, size)
    layers = [layer for layer, module in network.named_modules() if layer and not any(module.children())]
    layer = layers[len(layers) // 2]
    front, end = freeze(head(network, layer)), freeze(tail(network, layer))
    expected = front(images)
    logits = end(expected, images)
    with full_precision():
        front, end = front.to(device), end.to(device)
        found = front(images.to(device))
        close(found, expected, tolerances.NETWORK)
        close(end(found, images.to(device)), logits, tolerances.NETWORK)


def untrained(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("tiny10", channels=1, classes=10, size=32).eval()


def test_batches_and_scores(device: torch.device) -> None:
    found = []
    for where in (CPU, device):
        split, network = load_split("digits", "val", device=where), untrained(0).to(where)
        counts = AgreementCounter(split.spec.task, target="a")

        def forward(images: Tensor, network: torch.nn.Module = network) -> dict[str, Tensor]:
            return {"a": network(images), "b": network(-images)}

        tally(forward, split, counts, batch_size=64)
        order, augment = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        images, labels = next(split.batches(64, order=order, augment=augment))
        found.append((images.cpu(), labels.cpu(), counts.scores("a"), counts.agreement("b")))
    close(found[1][0], found[0][0], tolerances.NETWORK)
    assert torch.equal(found[1][1], found[0][1])
    assert found[1][2]["loss"] == pytest.approx(found[0][2]["loss"], rel=1e-4)
    assert found[1][3]["crossentropy"] == pytest.approx(found[0][3]["crossentropy"], rel=1e-4)


def test_layers_and_decisions_are_compared_alike(device: torch.device) -> None:
    """As `compare_nets.py` does it: the networks lie where they were made, and the images on the device."""
    names = [*METRICS, *FUNCTIONAL]
    networks, blank = (untrained(0), untrained(1)), torch.zeros(2, 1, 32, 32)
    found = []
    for where in (CPU, device):
        split = load_split("digits", "val", device=where)
        comparison = compare_layers(networks, (["bn7", "bn8"], ["bn8"]), blank, split, names)
        found.append({name: comparison.table(name) for name in comparison.names})
    assert all(np.isfinite(found[0][name][1]).all() for name in names)
    near = {"rel": tolerances.COMPARED, "abs": tolerances.COMPARED, "nan_ok": True}
    for name in names:
        assert found[1][name] == pytest.approx(found[0][name], **near), name


@pytest.mark.parametrize("kind", [{}, {"low_rank": 4}, {"mask": "semi-match"}, {"orthogonal": True}], ids=str)
def test_a_stitch_is_fitted_and_trained_alike(kind: dict, device: torch.device) -> None:
    unrestricted = {"ridge": "ridge", "soft-match": "soft-match", "relative": "relative:9"}
    inits = [unrestricted.get(init, init) for init in INITS if not (kind and init in unrestricted)]  # refused, as is
    inits = [init for init in inits if not (init == "ones-zeros" and "orthogonal" in kind)]
    specs = [StitchSpec("bn3", "bn3", init=init, epochs=1, **kind) for init in inits]
    found = []
    for where in (CPU, device):
        cuts = CutNetworks(
            untrained(0).to(where), untrained(1).to(where), specs, torch.zeros(2, 1, 32, 32, device=where)
        )
        train, val = (load_split("digits", name, device=where).take(torch.arange(n)) for name, n in SPLITS)
        found.append(stitch(cuts, train, val))
    for spec, expected, result in zip(specs, *found, strict=True):
        assert isinstance(expected, dict) and isinstance(result, dict), spec
        for stage, share in (("before", 1e-4), ("ps_inv", 1e-4), ("after", tolerances.TRAINED_MAP)):
            maps = [torch.as_tensor(one["trans_m"][stage]["w"]) for one in (expected, result)]
            close(maps[1], maps[0], share)
        accuracies = [one["model_results"]["trans"]["acc"] for one in (expected, result)]
        assert accuracies[1] == pytest.approx(accuracies[0], abs=tolerances.TRAINED_ACCURACY)
        assert result["cka_frank"] == pytest.approx(expected["cka_frank"], abs=1e-2)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stitches_learn_together_what_each_learns_alone(optimizer: str, device: torch.device) -> None:
    """Of several kinds, in a recorded step where there are any; and a stitch is the same in another company."""
    kinds = [{}, {"low_rank": 1}, {"low_rank": 3}, {"mask": "semi-match"}, {"whiten": True}, {"target_type": "soft_12"}]
    kinds += [{"target_type": "match_later"}, {"l1": 0.1}, {"seed": 1}]
    base = StitchSpec("bn7", "bn7", epochs=2, optimizer=optimizer, lr=1e-4)
    specs = [replace(base, **kind, lr=rate) for kind in kinds for rate in (1e-4, 2e-4)]
    train, val = (load_split("digits", name, device=device).take(torch.arange(n)) for name, n in SPLITS)

    def results_of(some: list[StitchSpec], stacked: int) -> list[torch.Tensor]:
        blank = torch.zeros(2, 1, 32, 32, device=device)
        cuts = CutNetworks(untrained(0).to(device), untrained(1).to(device), some, blank)
        found = stitch(cuts, train, val, StitchPlan(similarity=False, stacked=stacked))
        assert all(isinstance(one, dict) for one in found)
        return [torch.as_tensor(one["trans_m"]["after"]["w"]) for one in found]  # pyright: ignore

    alone, together, fewer = results_of(specs, 0), results_of(specs, 4), results_of(specs[:2], 4)
    for one, other in zip(alone, together, strict=True):
        close(other, one, tolerances.TRAINED_MAP)
    assert all(torch.equal(one, other) for one, other in zip(together, fewer, strict=False))


def test_the_scripts_themselves(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with much that it can do, for nobody else starts them on a device; and the numbers of a stitch."""
    monkeypatch.chdir(tmp_path)
    a, b = (f"{ROOT}/model_weights/Tiny10/Digits/in{seed}-gn{seed}/440.pt" for seed in (0, 1))
    on = ["--device", str(device), "--overwrite"]
    accuracies: dict[str, list[float]] = {}
    for where in {"cpu", str(device)}:
        options = shlex.split(f"-i ps_inv -e 1 -lr 0.01 --controls all --ood --run-name {where} --device {where}")
        stitch_nets.main([a, b, "bn7", "bn7", *options])
        result = read(f"results/{where}/bn7-bn7.pkl")
        rows = result["model_results"] | {name: result["controls"][name] for name in ("constant", "self")}
        accuracies[where] = [rows[name]["acc"] for name in sorted(rows)]
    assert accuracies[str(device)] == pytest.approx(accuracies["cpu"], abs=tolerances.TRAINED_ACCURACY)
    stitched = f"results/{device}/bn7-bn7.pkl"
    eval_stitch.main([stitched, "after", *on])
    compare_frank_m2.main([stitched, "after", "cka", "l2", "disagreement", *on])
    compare_nets.main([a, b, "bn7", "bn7", "digits", "cka", "jsd", "--intervals", "--permutations", "3", *on])
    eval_net.main([a, *on])
    train_model.main([*shlex.split("-m vit_w32 -d digits -lr 0.001 -opt muon --cosine -e 1 -i 3 -g 4"), *on])
    train_model.main([*shlex.split("-m lenet -d digits -e 1 -lr 0.01 --train-fraction 0.5 --shuffle-labels 0.5"), *on])
