"""What a stitch is trained for: gradients, stages, and when it has learnt enough."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stitch_nets
from src import results
from src.core.errors import UserError
from src.dataset import Split, hold_out, load_split
from src.networks.checkpoints import load
from src.stitching import TARGETS, CutNetworks, StitchObjective, StitchSpec, initial_stitch
from src.stitching.options import combinations
from src.stitching.run import StitchPlan, stitch
from src.stitching.states import resume_states
from src.training.loop import fit
from src.training.train_state import TrainState
from tests.same import assert_same

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, save_frequency=1)
LATER = ["bn1", "conv2", "relu", "pool", "fc1", "fc2"]  # what follows the cut and changes anything


def cut(specs: list[StitchSpec], *, end: str = "b5.pt") -> CutNetworks:
    return CutNetworks(load("a3.pt").network, load(end).network, specs, SAMPLE)


def run(specs: list[StitchSpec], train: Split | None = None, **options: Any) -> list[Any]:
    return stitch(cut(specs), train or load_split("toy", "train"), load_split("toy", "val"), StitchPlan(**options))


@pytest.mark.parametrize("options", [{}, {"l1": 0.1, "cka_reg": 0.1}], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_finite_differences(toy: Path, target: str, options: dict) -> None:
    spec = replace(BASE, target_type=target, **options)
    cuts, split = cut([spec]), load_split("toy", "train")
    layer = initial_stitch(cuts.geometry(spec.cut), None, seed=3)
    images, labels = next(split.batches(16))
    objective = StitchObjective(cuts, spec, layer, split.spec.task, variance=0.7)
    shared = cuts.share([spec], images)
    objective(shared, images, labels)[0].backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            direction = parameter.grad / parameter.grad.norm()  # pyright: ignore
            losses = []
            for step in (1e-3, -1e-3):
                parameter += step * direction
                losses.append(float(objective(shared, images, labels)[0]))
                parameter -= step * direction
            slope = (losses[0] - losses[1]) / 2e-3
            assert slope == pytest.approx(float(parameter.grad.norm()), rel=3e-2)  # pyright: ignore


def test_soft_label_matching_has_the_gradient_of_soft_2(toy: Path) -> None:
    maps = [found["trans_m"]["after"]["w"] for found in run([replace(BASE, target_type=t) for t in ("soft_2", "kl_2")])]
    np.testing.assert_allclose(*maps, atol=1e-5)


def test_what_is_matched_is_the_stitched_network_beside_the_end(toy: Path) -> None:
    """The losses, from whole networks with the activation exchanged by a hook."""
    spec = replace(BASE, target_type="match_later")
    cuts, split = cut([spec]), load_split("toy", "val")
    layer = initial_stitch(cuts.geometry(spec.cut), None, seed=3)
    images, labels = next(split.batches(16))
    end = load("b5.pt").network.eval()
    stitched = layer(cuts.outputs("front", ["bn1"], images)["bn1"]).detach()
    own, made = {}, {}
    for kept, exchange in ((own, None), (made, stitched)):
        handles = [end.bn1.register_forward_hook(lambda *_, exchange=exchange: exchange)]  # pyright: ignore
        for name in LATER[1:]:
            hook = lambda _m, _i, output, name=name, kept=kept: kept.update({name: output})  # noqa: E731
            handles.append(end.get_submodule(name).register_forward_hook(hook))
        handles.append(end.fc2.register_forward_hook(lambda _m, given, _o, kept=kept: kept.update(final=given[0])))  # pyright: ignore
        with torch.no_grad():
            end(images)
        for handle in handles:
            handle.remove()
    assert cuts.later("bn1") == LATER

    def loss(target: str, **options: Any) -> float:
        asked = replace(spec, target_type=target, **options)
        objective = StitchObjective(cuts, asked, layer, split.spec.task, variance=2.0)
        return objective(cuts.share([asked], images), images, labels)[0].item()

    ratios = {name: float(((made[name] - own[name]).norm() / own[name].norm()).detach()) for name in LATER[1:]}
    two = (ratios["conv2"] + ratios["fc1"]) / 2
    assert loss("match_later", match_layers="conv2,fc1") == pytest.approx(two, rel=1e-5)
    assert loss("match_later", match_layers="fc*,conv1") == pytest.approx((ratios["fc1"] + ratios["fc2"]) / 2, rel=1e-5)
    squares = float((made["final"] - own["final"]).square().mean()) / 2
    assert loss("match_final") == pytest.approx(squares, rel=1e-5)


def test_match_goes_to_least_squares_and_results_say_how_far_all_are(toy: Path) -> None:
    spec = replace(BASE, target_type="match", epochs=200, lr=0.02, batch_size=48, weight_decay=0.0, whiten=True)
    plain = load_split("toy", "train")
    plain.spec = replace(plain.spec, augment=lambda images, generator: images)
    matched, trained = run([spec, replace(spec, target_type="hard", epochs=2)], plain)
    maps = (matched["trans_m"][stage]["w"] for stage in ("after", "ls_train"))
    np.testing.assert_allclose(*maps, atol=0.05)
    assert matched["l2_relative_frank"] == pytest.approx(matched["l2_relative_ls_train"], rel=1e-2)
    for found in (matched, trained):
        errors = found["match_errors"]
        assert errors["after"]["match"] == found["l2_relative_frank"] and set(errors) == set(found["trans_m"]) & set(
            errors
        )
    assert matched["match_errors"]["after"]["match"] < trained["match_errors"]["after"]["match"]
    split, end = load_split("toy", "val"), load("b5.pt").network.eval()
    images, _ = next(split.batches(1000))
    cuts = cut([spec])
    given: list[torch.Tensor] = []
    end.fc2.register_forward_hook(lambda _m, inputs, _o: given.append(inputs[0].double()))  # pyright: ignore
    w, b = (torch.as_tensor(trained["trans_m"]["after"][key]) for key in ("w", "b"))
    with torch.no_grad():
        x = cuts.outputs("front", ["bn1"], images)["bn1"]
        end(images)
        stitched = nn.functional.conv2d(x, w, b)
        end.bn1.register_forward_hook(lambda *_: stitched)  # pyright: ignore
        end(images)
    error = (given[1] - given[0]).square().mean() / given[0].var(0, correction=0).mean()
    assert trained["match_errors"]["after"]["match_final"] == pytest.approx(float(error), rel=1e-4)


class Carried(Split):
    """A split whose generators go on, in a second training, where they were at the end of the first."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.spec, split.labels, split.device)
        self.split, self.seen, self.states = split, None, None

    def take(self, index: Any) -> Split:
        raise NotImplementedError

    _contents = _read = take  # pyright: ignore

    def batches(self, batch_size: int, **options: Any) -> Iterator[Any]:  # pyright: ignore
        given = options["order"], options["augment"]
        if self.seen and self.seen[0] is not given[0]:
            for generator, old in zip(given, self.seen, strict=True):
                generator.set_state(old.get_state())
        self.seen = given
        return self.split.batches(batch_size, **options)


def test_stages_are_two_trainings_with_generators_carried_on(toy: Path) -> None:
    spec = replace(BASE, target_type="match_final,hard", epochs=5, stage_epochs="2,3", seed=4)
    split = load_split("toy", "train")
    (found,) = run([spec])
    cuts = cut([spec])
    layer, variance = initial_stitch(cuts.geometry(spec.cut), None, seed=4), final_variance(split)
    carried = Carried(split)
    for stage in (0, 1):
        objective = StitchObjective(cuts, spec, layer, split.spec.task, stage=stage, variance=variance)
        state = TrainState(layer, objective, spec.recipe_for(spec.stages[stage].epochs))
        fit(
            [state], carried, seed=4, share=lambda x, s=stage: cuts.share([spec], x, stage=s), validate=lambda _: [None]
        )
    np.testing.assert_array_equal(layer.arrays()["w"], found["trans_m"]["after"]["w"])
    assert len(found["trans_fit"]) == 5
    (one,) = run([replace(spec, target_type="hard", stage_epochs="")])
    assert not np.array_equal(one["trans_m"]["after"]["w"], found["trans_m"]["after"]["w"])


def final_variance(split: Split) -> float:
    end, given = load("b5.pt").network.eval(), []
    end.fc2.register_forward_hook(lambda _m, inputs, _o: given.append(inputs[0].double()))  # pyright: ignore
    with torch.no_grad():
        for images, _ in split.batches(64):
            end(images)
    return float(torch.cat(given).var(0, correction=0).mean())


def test_early_stopping_keeps_the_best_of_what_was_held_out(toy: Path) -> None:
    spec = replace(BASE, init="ps_inv", target_type="match", epochs=6, lr=0.3, early_stop=2, l1=0.1)
    (found,) = run([spec])
    stop = found["early_stop"]
    assert stop == {"epoch": 0, "trained": 2, "held_out": 4} and len(found["trans_fit"]) == 2
    assert_same(found["trans_m"]["after"], found["trans_m"]["before"])  # a rate that only spoils
    better = replace(spec, init="random", lr=0.05, early_stop=6, l1=0.0)
    (found,) = run([better])
    train, held_out = hold_out(load_split("toy", "train"), 0.1, seed=0)
    assert len(train) == 44 and found["early_stop"]["epoch"] > 0
    together = run([spec, better, replace(better, early_stop=0)])
    assert_same(together[1], found)


def test_images_that_are_held_out_are_other_ones_by_seed_and_of_all_classes() -> None:
    split = load_split("digits", "train")
    train, held_out = hold_out(split, 0.1, seed=0)
    assert len(train) + len(held_out) == len(split) and abs(len(held_out) - len(split) / 10) < 6
    assert held_out.labels.unique().tolist() == list(range(10))
    few = split.take(torch.arange(25))
    counts = few.labels.bincount()
    kept, one_each = hold_out(few, 0.01, seed=0)
    assert one_each.labels.bincount().max() == 1 and len(one_each) == int((counts > 1).sum())
    assert len(kept) + len(one_each) == 25
    assert hold_out(split, 0.1, seed=0)[1].digest() == held_out.digest() != hold_out(split, 0.1, seed=1)[1].digest()


def test_final_features_need_one_last_linear_layer(toy: Path) -> None:
    spec = replace(BASE, target_type="match_final")
    for layer, message in (("fc2", "Toy has no single last linear layer behind fc2"),):
        with pytest.raises(UserError, match=message):
            cut([replace(spec, front_layer=layer, end_layer=layer)], end="b3.pt")
    at_it = replace(spec, front_layer="fc1", end_layer="fc1")
    assert cut([at_it], end="b3.pt").matched(at_it, "match_final") == [".fc2"]
    with pytest.raises(UserError, match="--match-layers conv1 names no layer at or behind bn1"):
        cut([replace(BASE, target_type="match_later", match_layers="conv1")])


def test_variants_and_stages_of_a_command() -> None:
    options = vars(stitch_nets.parse_args(["a", "b", "c", "d", "--target-type", "match_final,hard+hard", "-e", "2,3"]))
    staged, plain = combinations(options)
    assert (staged.target_type, staged.stage_epochs, staged.epochs) == ("match_final,hard", "2,3", 5)
    assert (plain.target_type, plain.stage_epochs, plain.epochs) == ("hard", "", 5)


def test_the_state_of_a_run_of_before_is_that_of_today(tmp_path: Path) -> None:
    """What came later and is not asked for stands in no state, so that yesterday's goes on."""
    resume = resume_states(tmp_path, ["bn1-bn1"], {"dataset": "toy"})([StitchSpec("bn1", "bn1")])
    assert not {"stage_epochs", "train_on", "kernel", "cosine"} & resume.identity.keys()
    assert resume.identity["target_type"] == "hard" and resume.identity["dataset"] == "toy"


# the script

PAIR = ("a3.pt", "b3.pt", "bn1", "bn1", "-b", "16", "-d", "toy")


def test_variants_have_files_and_rows_of_their_own(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stitch_nets.main(
        [*PAIR, "--target-type", "match_final,hard+match", "-e", "1,2", "--run-name", "r", "--controls", "all"]
    )
    assert "match_final,hard" in capsys.readouterr().out
    files = sorted(path.name for path in Path("results/r").glob("*.pkl"))
    assert files == ["bn1-bn1,target_type=match.pkl", "bn1-bn1,target_type=match_final-hard.pkl"]
    params = results.read(Path("results/r") / files[1])["params"]
    assert (params["epochs"], params["stage_epochs"]) == (3, "1,2")


@pytest.mark.parametrize(
    "extra", [["--target-type", "match,hard", "-e", "2,2"], ["--early-stop", "2", "-e", "4"]], ids=str
)
def test_a_run_killed_between_stages_is_resumed_to_the_same(
    toy: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    import src.stitching.validation as stitching

    command = [*PAIR, *extra, "-lr", "0.05"]
    stitch_nets.main([*command, "--run-name", "whole"])
    original, count = stitching.tally, 0
    for stop in (2, 3):
        count = 0

        def interrupted(*given: Any, stop: int = stop, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return original(*given, **options)

        monkeypatch.setattr(stitching, "tally", interrupted)
        with pytest.raises(SystemExit):
            stitch_nets.main([*command, "--run-name", "cut", "--overwrite"])
        monkeypatch.setattr(stitching, "tally", original)
        stitch_nets.main([*command, "--run-name", "cut", "--resume"])
        one, other = (results.read(Path(f"results/{run}/bn1-bn1.pkl")) for run in ("whole", "cut"))
        for key in ("trans_fit", "trans_history", "trans_m", "model_results"):
            assert_same(one[key], other[key])
        assert one.get("early_stop") == other.get("early_stop")
