"""What stitches are held against: each control is what it says, and changes nothing about the stitch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import stitch_nets
from src import results
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.cutting.structure import share_structure
from src.dataset import MarkedSplit, load_split
from src.dataset.preprocessing import Preprocessing, for_half
from src.dataset.split import MemorySplit
from src.models import build_model
from src.networks.checkpoints import load
from src.results.stitch_text import verdict_lines
from src.stitching import ConstantStitch, ControlSpec, CutNetworks, Geometry, StitchSpec
from src.stitching.controls import (
    CONTROLS,
    choose_controls,
    is_one,
    possible_controls,
    recalibrate_batchnorm,
    sewn_for,
    shuffled,
)
from src.stitching.label_front import LabelFront
from src.stitching.outcome import _void
from src.stitching.run import Callbacks, StitchPlan, stitch
from tests.paths import ROOT
from tests.same import assert_same
from tests.toy import CLASSES, SIZE

SAMPLE = torch.zeros(2, 1, SIZE, SIZE)
BASE = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, save_frequency=1)
KINDS: list[dict[str, Any]] = [
    {"init": "ps_inv"},
    {"whiten": True, "cka_reg": 0.1},
    {"low_rank": 2, "target_type": "soft_12"},
    {"flatten": True, "l1": 0.1},
    {"mask": "semi-match", "init": "ps_inv", "front_layer": "pool", "end_layer": "conv2", "resize": True},
    {"front_layer": "fc1", "end_layer": "fc1", "orthogonal": True},
]


def fresh(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("toy_w3", channels=1, classes=CLASSES, size=SIZE).eval()


def sewn(cuts: CutNetworks, plan: StitchPlan | None = None) -> list[Any]:
    return stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), plan)


def run(specs: list[StitchSpec], *controls: str, **options: Any) -> list[Any]:
    networks = [load(file).network for file in ("a3.pt", "b3.pt")]
    plan = StitchPlan(controls=controls, fresh=fresh, **options)
    return sewn(CutNetworks(networks[0], networks[1], specs, SAMPLE), plan)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ",".join(kind))
def test_a_stitch_is_the_same_among_its_controls(toy: Path, kind: dict[str, Any]) -> None:
    spec = replace(BASE, **kind)
    (alone,), (held,) = run([spec]), run([spec], *CONTROLS)
    expected = set(CONTROLS) - ({"self_random"} if not is_one(spec) and spec.init == "random" else set())
    assert held["controls"].keys() == expected
    for key in (
        "trans_m",
        "trans_history",
        "trans_fit",
        "model_results",
        "m2_sim",
        "hits",
        "fits",
        "penalty",
        "health",
    ):
        if key != "penalty" or "reason" not in held[key]:  # untrained networks may do better than the toy
            assert_same(alone[key], held[key])
    for control, figures in held["controls"].items():
        assert 0 <= figures["acc"] <= 1 and 0 <= figures["same_class_out"] <= 1, control
    assert len(held["controls"]["untrained"]["each"]) == 3


def test_every_seed_has_controls_of_its_own_and_layers_share_them(toy: Path) -> None:
    specs = [replace(BASE, seed=seed, init=init) for seed in (0, 1) for init in ("random", "ps_inv")]
    together = run(specs, "untrained", "shuffled")
    for spec, found in zip(specs, together, strict=True):
        assert_same(run([spec], "untrained", "shuffled")[0]["controls"], found["controls"])
    assert together[0]["controls"] != together[2]["controls"]


def test_a_network_stitched_to_itself_by_least_squares_loses_nothing(toy: Path) -> None:
    network = load("b3.pt").network
    controls = run([replace(BASE, init="ps_inv")], "self", "self_random")[0]["controls"]
    assert (
        controls["self"]["by_construction"] and controls["self"]["rel_acc"] == 1 == controls["self"]["same_class_out"]
    )
    assert "by_construction" not in controls["self_random"]
    # the construction, checked: what is left out is the identity
    (found,) = sewn(CutNetworks(network, network, [replace(BASE, init="ps_inv", epochs=0)], SAMPLE))
    w = torch.as_tensor(found["trans_m"]["before"]["w"]).flatten(1)
    assert_close(w, torch.eye(3), atol=1e-4, rtol=0)


def test_a_fit_with_fewer_rows_than_features_is_no_identity(toy: Path) -> None:
    flat = replace(BASE, init="ps_inv", flatten=True, epochs=0)  # 192 features, 48 images
    (held,) = run([flat], "self")
    network = load("b3.pt").network
    (found,) = sewn(CutNetworks(network, network, [flat], SAMPLE))
    assert "by_construction" not in held["controls"]["self"]
    assert held["controls"]["self"]["loss"] == pytest.approx(found["model_results"]["trans"]["loss"])
    assert found["l2_relative_frank"] > 0.1
    assert sewn_for(replace(flat, init="eye"), ["self"], exact=False)["self"] == []


def test_self_is_sewn_where_it_is_not_one_and_random_only_where_that_is_another() -> None:
    names = ["self", "self_random"]
    assert sewn_for(replace(BASE, init="ps_inv"), names)["self"] == []
    masked = sewn_for(replace(BASE, init="ps_inv", mask="semi-match"), names)
    assert masked["self"][0].init == "ps_inv" and masked["self_random"][0].init == "random"
    assert sewn_for(BASE, names).keys() == {"self"}
    assert sewn_for(replace(BASE, front_layer="pool"), ["self"])["self"][0].front_layer == "bn1"


@pytest.mark.parametrize("end_layer", ["bn1", "relu", "fc1"])
def test_a_constant_is_one_answer_for_all_images_or_the_skip_alone(toy: Path, end_layer: str) -> None:
    spec = ControlSpec.of(replace(BASE, front_layer=end_layer, end_layer=end_layer), "front", constant=True)
    network = load("b3.pt").network
    cuts = CutNetworks(network, network, [spec], SAMPLE)
    layer = ConstantStitch(torch.tensor([0.5, -1.0, 2.0]), cuts.geometry(spec.cut))
    images = next(load_split("toy", "val").batches(8))[0]
    found = cuts.logits(spec, layer, {}, images)
    whole = layer().expand(8, *cuts.geometry(spec.cut).end_shape).contiguous()
    assert_close(found, cuts.end_tail(end_layer)(whole, images))
    assert len(found) == 8 and (found - found[:1]).abs().max() < 1e-6  # no skip leads around these layers
    assert not layer.matrix().any() and not layer.weight.requires_grad


def test_a_constant_keeps_what_leads_around_it(toy: Path) -> None:
    network = load("b3.pt").network
    spec = ControlSpec.of(replace(BASE, front_layer="conv2", end_layer="conv2"), "front", constant=True)
    cuts = CutNetworks(network, network, [spec], SAMPLE)
    layer = ConstantStitch(torch.zeros(3), cuts.geometry(spec.cut))
    images = next(load_split("toy", "val").batches(8))[0]
    found = cuts.logits(spec, layer, {}, images)
    assert (found - found[:1]).abs().max() > 1e-3
    assert_close(found, cuts.end_tail("conv2")(torch.zeros(8, 3, SIZE, SIZE), images))


def test_flat_constants_have_a_value_for_each_position() -> None:
    layer = ConstantStitch(torch.arange(12.0), Geometry((2, 2, 2), (3, 2, 2), flatten=True))
    assert_close(layer(), torch.arange(12.0).view(1, 3, 2, 2))


def test_a_shuffled_front_sees_the_partner(toy: Path) -> None:
    split, network = load_split("toy", "train"), load("a3.pt").network
    both = shuffled(split, 3)
    assert sorted(both.partners.tolist()) == list(range(len(split))) != both.partners.tolist()
    plain = next(split.batches(len(split)))[0]
    images, labels = next(both.batches(len(split)))
    assert_close(labels, split.labels)
    with torch.no_grad():
        for half, expected in ((0, plain), (1, plain[both.partners])):
            assert_close(for_half(network, half)(images), network(expected), rtol=0, atol=0)
    assert both.digest() != split.digest() and both.digest() == shuffled(split, 3).digest()
    generators = [torch.Generator().manual_seed(5) for _ in range(4)]
    augmented = next(both.batches(16, order=generators[0], augment=generators[1]))[0]
    alone = next(split.batches(16, order=generators[2], augment=generators[3]))[0]
    assert_close(augmented[:, :1], alone, rtol=0, atol=0)


def test_the_control_of_labels_is_told_the_class_and_nothing_of_the_image(toy: Path) -> None:
    split, front = load_split("toy", "train"), LabelFront(CLASSES)
    both = MarkedSplit(shuffled(split, 3), 100)
    generators = [torch.Generator().manual_seed(5) for _ in range(4)]
    images, labels = next(both.batches(16, order=generators[0], augment=generators[1]))
    plain, expected = next(shuffled(split, 3).batches(16, order=generators[2], augment=generators[3]))
    assert_close(images[:, :-2], plain, rtol=0, atol=0)
    assert_close(labels, expected, rtol=0, atol=0)
    made = front.outputs({"bn1": (3, 8, 8)}, images)["bn1"]
    assert made.shape == (16, 3, 8, 8)
    spread = made - made.mean((2, 3), keepdim=True)
    assert float(spread.std()) == pytest.approx(0.1, rel=0.05)
    for label in range(CLASSES):
        centres = made[labels == label].mean((2, 3))
        assert float((centres - centres.mean(0)).abs().max()) < 0.06  # of one class alike at all positions
        assert float(centres.mean(0).min()) > 0 and float(centres.mean(0).max()) < 1
    again = front.outputs({"bn1": (3, 8, 8)}, images.flip(0))["bn1"].flip(0)
    assert_close(again, made, rtol=0, atol=0)  # it belongs to the image, not to its place in the batch
    other = next(MarkedSplit(split, 0).batches(48))[0]
    assert not torch.equal(front.outputs({"bn1": (3, 8, 8)}, other)["bn1"][0], made[0])
    assert both.take(torch.tensor([5, 2])).digest() != both.digest()


def test_labels_alone_make_a_stitch_that_is_right() -> None:
    front, end = (load(str(ROOT / f"model_weights/Tiny10/Digits/in{n}-gn{n}/440.pt")).network for n in (0, 1))
    spec = StitchSpec("bn7", "bn7", init="ps_inv", epochs=2, early_stop=2)
    cuts = CutNetworks(front, end, [spec], torch.zeros(2, 1, 32, 32))
    train, val = (load_split("digits", name) for name in ("train", "val"))
    found: Any = stitch(cuts, train, val, StitchPlan(controls=["constant", "shuffled", "labels"]))[0]
    assert found["controls"]["labels"]["acc"] > 0.95 > 0.3 > found["controls"]["shuffled"]["acc"]


def test_labels_of_another_kind_refuse_that_control() -> None:
    for labelled, task, why in (
        (False, SINGLE_LABEL, "labels of other classes"),
        (True, MULTI_LABEL, "several labels"),
    ):
        with pytest.raises(ValueError, match=f"labels is a class an image, and this data set has {why}.*leave it out"):
            possible_controls(["labels"], labelled=labelled, task=task)
        kept, notes = possible_controls(list(CONTROLS), labelled=labelled, task=task)
        assert "labels" not in kept and len(kept) == len(CONTROLS) - 1 and "left out" in notes[0]


def test_untrained_fronts_that_beat_the_end_make_the_verdicts_void(toy: Path) -> None:
    (found,) = run([replace(BASE, front_layer="fc1", end_layer="fc1")], "untrained", "self", "self_random")
    end = found["model_results"]["end"]["acc"]
    assert "reason" not in found["penalty"] or found["controls"]["untrained"]["acc"] > end
    controls = {"untrained": {"acc": end + 0.01}}
    assert "untrained fronts reach" in _void(controls, end) and not _void({"untrained": {"acc": end}}, end)
    void = {"value": None, "low": None, "high": None, "reason": _void(controls, end)}
    text = "\n".join(verdict_lines({"penalty": void, "score": void}))
    assert text.startswith("penalty and score: void, untrained fronts reach") and "points" not in text


def test_a_front_whose_images_are_others_carries_nothing(toy: Path) -> None:
    (found,) = run([replace(BASE, init="ps_inv", front_layer="fc1", end_layer="fc1", epochs=0)], "shuffled", "constant")
    assert found["model_results"]["before"]["loss"] < found["controls"]["shuffled"]["loss"]


def test_statistics_of_untrained_networks_are_those_of_the_images(toy: Path) -> None:
    split, network = load_split("toy", "train"), fresh(1)
    expected = share_structure(network)
    recalibrate_batchnorm([network], ["bn1"], split)
    images = next(split.batches(len(split)))[0]
    with torch.no_grad():
        x = expected.get_submodule("conv1")(images)
    norm = network.get_submodule("bn1")
    assert_close(norm.running_mean, x.mean((0, 2, 3)))
    assert_close(norm.running_var, x.var((0, 2, 3)))
    assert norm.momentum == 0.1 and not norm.training  # what was given keeps its mode
    recalibrate_batchnorm([nn.Sequential(nn.Flatten())], ["0"], split)  # nothing to settle


def test_batches_that_differ_are_averaged_over(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.stitching.controls.BATCH", 20)
    split, network = load_split("toy", "train"), fresh(1)
    conv = network.get_submodule("conv1")
    recalibrate_batchnorm([network], ["bn1"], split)
    order = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = [conv(images) for images, _ in split.batches(20, order=order, drop_last=True)]
    assert len(parts) == 2
    assert_close(network.get_submodule("bn1").running_var, torch.stack([x.var((0, 2, 3)) for x in parts]).mean(0))


def test_images_that_come_class_by_class_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.stitching.controls.BATCH", 16)
    images = (torch.arange(64) // 16 * 80).to(torch.uint8).view(64, 1, 1, 1).expand(64, 1, 4, 4).contiguous()
    split = MemorySplit(load_split("digits", "val").spec, images, torch.arange(64) // 16)
    split = split.with_preprocessing(Preprocessing(4, (0.0,), (1 / 255,)))
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    recalibrate_batchnorm([network], ["1"], split)
    norm = network.get_submodule("1")
    spread = float(network.get_parameter("0.weight").detach()) ** 2 * float(images.double().var())
    assert float(norm.get_buffer("running_var")) == pytest.approx(spread, rel=0.1)  # in the order of the split it is 0


def test_the_given_networks_stay_as_they_were(toy: Path) -> None:
    network = load("a3.pt").network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cuts = CutNetworks(network, load("b3.pt").network, [replace(BASE, epochs=1)], SAMPLE)
    sewn(cuts, StitchPlan(controls=list(CONTROLS), fresh=fresh))
    assert_same(before, dict(network.state_dict()))


def test_without_labels_there_is_agreement_and_no_probe(toy: Path) -> None:
    (found,) = run([replace(BASE, target_type="soft_2")], *CONTROLS, labelled=False)
    assert "probe" not in found["controls"] and found["controls"]["untrained"]["acc"] is None
    assert found["penalty"] is None and found["score"] is None
    assert found["intervals"]["after"].keys() == {"same_class_out"}


def test_a_control_that_diverges_has_no_row(toy: Path) -> None:
    told: list[str] = []

    def broken(seed: int) -> nn.Module:
        network = fresh(seed)
        nn.init.constant_(network.get_submodule("conv1").weight, float("nan"))  # pyright: ignore
        return network

    cuts = CutNetworks(load("a3.pt").network, load("b3.pt").network, [BASE], SAMPLE)
    plan = StitchPlan(controls=["constant", "untrained"], fresh=broken, callbacks=Callbacks(told.append))
    (found,) = sewn(cuts, plan)
    assert found["controls"].keys() == {"constant"}
    expected = [f"warning: the control untrained {number} has no value: the loss is nan" for number in range(3)]
    assert [text.split(" in epoch")[0] for text in told] == expected


def test_of_several_stitches_is_said_whose_control_diverged(toy: Path) -> None:
    told: list[str] = []
    specs = [replace(BASE, epochs=1, lr=1e30, front_layer=layer, target_type="soft_2") for layer in ("bn1", "conv2")]
    run(specs, "self", "shuffled", callbacks=Callbacks(told.append))
    warned = [text.split(" has no value")[0] for text in told if text.startswith("warning: the control")]
    assert warned == [
        "warning: the control self of bn1-bn1, conv2-bn1",  # one stitch, which both are held against
        "warning: the control shuffled of bn1-bn1",
        "warning: the control shuffled of conv2-bn1",
    ]


def test_of_groups_is_said_what_makes_them(toy: Path) -> None:
    told: list[str] = []
    specs = [replace(BASE, epochs=0, seed=seed, front_layer=layer) for seed in (0, 1) for layer in ("bn1", "conv2")]
    run(specs, "constant", callbacks=Callbacks(told.append))
    run(specs[:2], "constant", memory=1.0, callbacks=Callbacks(told.append))
    run(specs, "constant", memory=1.0, callbacks=Callbacks(told.append))
    memory = "to stay below 1e-09 GB of moments"
    assert [text for text in told if "groups" in text] == [
        "4 stitches in 2 groups, each seed with controls of its own",
        f"2 stitches in 2 groups, {memory}",
        f"4 stitches in 4 groups, {memory}, and each seed with controls of its own",
    ]


def test_names_of_controls() -> None:
    assert choose_controls("all") == list(CONTROLS)
    assert choose_controls("probe, constant") == ["constant", "probe"]
    for text in ("", "all,probe", "upside_down"):
        with pytest.raises(ValueError, match="unknown control"):
            choose_controls(text)


def test_a_front_that_cannot_be_made_anew_is_refused(toy: Path) -> None:
    with pytest.raises(ValueError, match="leave out this control"):
        sewn(CutNetworks(fresh(0), fresh(1), [BASE], SAMPLE), StitchPlan(controls=["untrained"]))


def stitch_command(*more: str) -> list[str]:
    return ["a3.pt", "b3.pt", "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", "r", *more]


def test_the_script_prints_and_keeps_controls(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    stitch_nets.main(stitch_command("-i", "ps_inv", "--controls", "all", "--plot"))
    printed = capsys.readouterr().out
    for row in ("constant", "untrained", "shuffled", "self=", "self_random", "probe", "penalty:", "score:"):
        assert f"\n{row}" in printed
    assert max(map(len, printed.splitlines())) <= 80
    found = results.read(toy / "results/r/bn1-bn1.pkl")
    assert list(found["controls"]) == list(CONTROLS) and found["params"]["controls"] == list(CONTROLS)
    (row,) = results.table(toy / "results").to_dict("records")
    assert row["accuracy_untrained"] == found["controls"]["untrained"]["acc"]
    assert row["penalty_low"] == found["penalty"]["low"] and (toy / "results/r/bn1-bn1.png").exists()


def test_the_script_prints_controls_of_many(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    stitch_nets.main(
        [
            "a3.pt",
            "b3.pt",
            "bn1,conv2",
            "bn1,conv2",
            "--pairs",
            "zip",
            "-e",
            "1",
            "-b",
            "16",
            "-i",
            "ps_inv",
            "--controls",
            "all",
            "--run-name",
            "m",
            "--plot",
        ]
    )
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("\nbn1 ") == 4 and "penalty constant shuffled self_random" in printed


class Stopped(Exception):
    pass


def test_a_run_with_controls_goes_on_with_the_same(
    toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = stitch_command("-e", "3", "--controls", "all")
    (whole,) = stitch_nets.run(stitch_nets.parse_args([*command, "-o", "whole"]))

    def stop(history: Any, *_: Any, **__: Any) -> None:
        if len(history.epochs) == 2:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("src.cli.output.tell_epoch", stop)
        with pytest.raises(Stopped):
            stitch_nets.run(stitch_nets.parse_args(command))
    with pytest.raises(SystemExit, match="2"):
        stitch_nets.main(stitch_command("-e", "3", "--controls", "probe", "--resume"))
    assert "it was started with controls" in capsys.readouterr().err
    (resumed,) = stitch_nets.run(stitch_nets.parse_args([*command, "--resume"]))
    for key in ("controls", "intervals", "penalty", "score", "trans_m"):
        assert_same(whole[key], resumed[key])


def test_unknown_controls_are_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        stitch_nets.main(stitch_command("--controls", "mirror"))
    assert "unknown control 'mirror'; choose all, or from constant" in capsys.readouterr().err
