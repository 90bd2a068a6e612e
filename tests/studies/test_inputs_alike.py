"""Comparisons of studies on inputs that the first network cannot tell from the images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import compare_nets
import src.evaluation.identical
import src.evaluation.kept_passes
import src.studies.work
from src import results
from src.core.digests import digest
from src.core.errors import UserError
from src.metrics import Grid
from src.studies.differences import comparison_differences
from src.studies.frames import collect
from src.studies.jobs import CompareSpec, from_record, to_record
from src.studies.maps import by_metrics, by_networks
from src.studies.means import grouped_comparisons
from src.studies.messages import summary
from src.studies.plan import make_plan
from src.studies.schema import Study
from src.studies.store import Store
from studies.__main__ import main
from tests.paths import ROOT

DIGITS = [f"{ROOT}/model_weights/Tiny10/Digits/{name}/440.pt" for name in ("in0-gn0", "in1-gn1")]
WORK = ["worker", "s.toml", "--shard", "1/1", "--device", "cpu"]
COMPARE = '\n[[compare]]\nlayers = ["bn5", "bn7"]\nmetrics = ["cka", "l2"]\n'
IRI = 'on = "iri"\niri_images = 32\niri_steps = 3\n'
STUDY = f'dataset = "digits"\nnetworks = {json.dumps(DIGITS)}\n{COMPARE}{COMPARE}{IRI}'
FOUND = ["method", "layer1", "layer2", "value"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(STUDY)
    return tmp_path


def made() -> dict[tuple[str, str], dict]:
    """The results of the study, by their first network and what they were measured on."""
    found = [results.read(path) for path in Path("results/s").glob("*.pkl")]
    return {(one["params"]["front_model"], one["params"].get("on", "data")): one for one in found}


def test_on_the_digits_it_gives_what_the_script_gives_and_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORK])
    found, words = made(), ["bn5,bn7", "bn5,bn7", "digits", "cka", "l2"]
    assert len(found) == 4 and "32 inputs alike at bn5, 3 steps each: about" in capsys.readouterr().err
    for on, options in (("data", []), ("iri", ["--on", "iri", "--iri-images", "32", "--iri-steps", "3"])):
        compare_nets.main([*DIGITS, *words, *options, "--run-name", on])
        (alone,) = (results.read(path) for path in Path(f"results/{on}").glob("*.pkl"))
        same = found[DIGITS[0], on]
        assert same["frame"].equals(alone["frame"]) and same.get("identical") == alone.get("identical")
    assert {one.name for one in Path("results/s/.iri").iterdir()} > {one.name for one in Path("results/.iri").iterdir()}
    study = collect(make_plan(Study(Path("s.toml"))), Store(Path("results/s")))
    rows = study.comparisons
    assert len(rows) == 4 * 2 * 4 and set(rows["on"]) == {"data", "iri"}
    for (front, on), result in found.items():
        name = "in0-gn0" if "in0-gn0" in front else "in1-gn1"
        ours = rows[rows["network1"].str.contains(name) & (rows["on"] == on)]
        assert ours[FOUND].reset_index(drop=True).equals(result["frame"][FOUND])
    for over, count in (("pairs", 2), ("seeds", 1)):
        means = grouped_comparisons(study, over)
        assert set(means["n"]) == {count} and len(means) == 4 * 2 * 2 * (3 - count)
        for on in ("data", "iri"):
            cka = means[(means["on"] == on) & (means["method"] == "cka") & (means["layer1"] == "bn5")]
            one = rows[(rows["on"] == on) & (rows["method"] == "cka") & (rows["layer1"] == "bn5")]
            assert cka["value"].sum() == pytest.approx(one["value"].sum() / count)
    main(["table", "s.toml"])
    main(["report", "s.toml"])
    assert set(pd.read_csv("results/s/comparisons.csv")["on"]) == {"data", "iri"}
    assert "& iri &" in Path("results/s/table.tex").read_text()
    assert "on iri: inputs that the layer of the first network" in Path("results/s/report.html").read_text()


def test_maps_and_tests_between_groups_keep_both_apart() -> None:
    main([*WORK])
    study = collect(make_plan(Study(Path("s.toml"))), Store(Path("results/s")))
    assert [chart["title"] for chart in by_metrics(study)["charts"]] == ["on data", "on iri"] * 2
    assert ("compared on", "data, iri") in summary(make_plan(Study(Path("s.toml"))), Store(Path("results/s")), study)
    rows = study.comparisons
    third = rows[rows["network1"] == rows["network1"].iloc[0]]
    third = third.assign(network1="another", networks="another and one", architecture1="other")
    three = replace(study, comparisons=pd.concat([rows, third], ignore_index=True))
    titles = [chart["title"].partition(":")[0] for chart in by_networks(three)["charts"]]
    assert "cka, bn5, on data" in titles and "cka, bn5, on iri" in titles
    tested = comparison_differences(three, "architecture")
    assert [str(name) for name in tested][:4] == ["method", "layer1", "layer2", "on"]
    assert {*tested["on"]} == {"data", "iri"} and set(tested["n_group"]) == {1}


def test_other_ways_to_compare_are_told_apart_too() -> None:
    """Of one metric and the same layers, looked at in two views, in groups, and at two splits."""
    ways = [
        'view = "images"',
        'view = "channels"',
        'view = "images"\ngroup_at = 20',
        'view = "images"\nsplit = "train"',
    ]
    Path("s.toml").write_text(
        STUDY.partition("\n")[0]
        + f"\nnetworks = {json.dumps(DIGITS)}\n"
        + "".join(COMPARE + f"{way}\n" for way in ways)
    )
    main([*WORK])
    study = collect(make_plan(Study(Path("s.toml"))), Store(Path("results/s")))
    assert study.ways == ["view", "group_at", "split"]
    means, rows = grouped_comparisons(study, "pairs"), study.comparisons
    assert len(means) == 4 * 2 * 4 and set(means["n"]) == {2}
    cells = means[(means["method"] == "cka") & (means["layer1"] == "bn5") & (means["layer2"] == "bn5")]
    assert cells["value"].nunique() == 4
    same = rows[(rows["method"] == "cka") & (rows["layer1"] == "bn5") & (rows["layer2"] == "bn5")]
    assert len(same) == 2 * 4 and 2 * cells["value"].sum() == pytest.approx(same["value"].sum())
    titles = [chart["title"] for chart in by_metrics(study)["charts"]][:4]
    assert titles[0] == "view images, group_at usual, split val" and len({*titles}) == 4
    main(["table", "s.toml"])
    assert {"view", "group_at", "split"} <= {*pd.read_csv("results/s/comparisons.csv")}


def test_without_such_inputs_tables_and_keys_are_as_they_were() -> None:
    Path("s.toml").write_text(STUDY.replace(IRI, ""))
    main([*WORK])
    study = collect(make_plan(Study(Path("s.toml"))), Store(Path("results/s")))
    assert len(made()) == 2 and "on" not in grouped_comparisons(study, "pairs") and not study.ways
    assert by_metrics(study)["charts"][0]["title"] == ""
    assert {"view", "split"} <= {*study.comparisons}
    assert all({"on", "iri_images", "iri_steps"}.isdisjoint(one["params"]) for one in made().values())
    spec = CompareSpec(("bn1",), ("fc1",), ("cka",))
    names = ("front_layers", "end_layers", "metrics", "view", "group_at", "split")
    values = {"format": 1, "compare": {name: getattr(spec, name) for name in names}, "surroundings": {"a": 1}}
    assert spec.key(a=1) == digest(values)
    others = [CompareSpec(*spec.front_layers, "x", "y", on="iri", iri_images=count) for count in (5, 6)]  # pyright: ignore
    assert len({one.key() for one in others}) == 2


def test_a_plan_says_what_it_is_compared_on_and_what_that_takes() -> None:
    plan = make_plan(Study(Path("s.toml")))
    specs = [bundle.items[0].spec for bundle in plan.bundles]
    assert [spec.on for spec in specs if isinstance(spec, CompareSpec)] == ["data", "iri"] * 2
    assert [from_record(json.loads(json.dumps(to_record(one)))) for one in plan.bundles] == plan.bundles
    usual = CompareSpec((), (), ())
    Path("s.toml").write_text(STUDY.replace("iri_images = 32\niri_steps = 3\n", ""))
    spec = make_plan(Study(Path("s.toml"))).bundles[1].items[0].spec
    assert isinstance(spec, CompareSpec) and (spec.iri_images, spec.iri_steps) == (5000, usual.iri_steps)
    long = IRI.replace("= 3\n", "= 20000\n")
    Path("s.toml").write_text(STUDY.replace(IRI, long) + COMPARE.replace("l2", "lr") + long)
    first, same, *_ = [(one.seconds, one.items[0].spec) for one in make_plan(Study(Path("s.toml"))).bundles[1:]]
    assert first[1] != same[1] and first[0] > 10 * same[0]  # the second finds what the first has made


def test_of_stitches_that_are_trained_on_the_same_inputs_the_first_is_to_pay_for_them() -> None:
    one, other = DIGITS
    table = '[stitch]\nlayers = "bn5"\ntarget_type = "match_later"\nepochs = 1\nbatch_size = 16\ntrain_on = "iri"\n'
    table = (table + IRI).replace('on = "iri"\niri', "iri").replace("= 3\n", "= 20000\n")
    Path("s.toml").write_text(f'dataset = "digits"\npairs = {json.dumps([[one, other], [one, one]])}\n{table}')
    found = {bundle.pair: bundle.seconds for bundle in make_plan(Study(Path("s.toml"))).bundles}
    assert found[one, other] > 10 * found[one, one]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("iri_steps = 3\n", 'iri_steps is of on = "iri"'),
        ("iri_images = 3\n", 'iri_images is of on = "iri"'),
        (IRI + "save = true\n", 'on = "iri" excludes save'),
        ('on = "noise"\n', "'noise' is none of data, iri"),
        (IRI + 'pairs = [["features:a.npz", "features:a.npz"]]\n', 'on = "iri": features:a.npz has no network'),
    ],
)
def test_what_it_excludes_is_said_when_it_is_planned(table: str, message: str) -> None:
    np.savez("a.npz", bn5=np.random.default_rng(0).normal(size=(20, 3)), bn7=np.ones((20, 3)))
    Path("s.toml").write_text(STUDY.replace(IRI, table))
    with pytest.raises(UserError, match=message):
        make_plan(Study(Path("s.toml")))


def test_sets_are_kept_in_the_folder_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another table of the same front, layer and images finds what is there, and so does a stitch trained on them."""
    on_train = f'[[compare]]\nlayers = "bn5"\nmetrics = "cka"\nsplit = "train"\n{IRI}'
    Path("s.toml").write_text(STUDY + on_train)
    main([*WORK])
    assert len(list(Path("results/s/.iri").iterdir())) == 2 * 3

    def fails(*_: object) -> None:
        raise AssertionError("they are there")

    monkeypatch.setattr(src.evaluation.identical, "_descend", fails)
    text = STUDY.replace('metrics = ["cka", "l2"]', 'metrics = "procrustes"').replace('["bn5", "bn7"]', '"bn5"')
    stitches = f'[[stitch]]\nlayers = "bn5"\nepochs = 1\nbatch_size = 16\ntrain_{IRI}'
    Path("s.toml").write_text("similarity = false\n" + text + on_train + stitches)
    main([*WORK])
    assert len(list(Path("results/s").glob("*.pkl"))) == 4 + 2 + 4 + 2


def test_one_that_was_killed_goes_on_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.replace(COMPARE + COMPARE, COMPARE).replace("networks =", "pairs = [").replace("\n\n[[", "]\n\n[[", 1)
    Path("s.toml").write_text(text)
    main([*WORK, "-o", "calm"])
    monkeypatch.setattr(src.studies.work, "EVERY", 0.0)
    monkeypatch.setattr(src.evaluation.kept_passes, "DEAR", 0)
    update, fed = Grid.update, []

    def counted(grid: Grid, *sides: Any) -> None:
        fed.append(grid.seen)
        if len(fed) == 2:  # of the second row; a batch holds all 32
            raise SystemExit
        update(grid, *sides)

    monkeypatch.setattr(Grid, "update", counted)
    with pytest.raises(SystemExit):
        main([*WORK])
    assert {path.parent.name for path in Path("results/s/.resume").rglob("*.pt")} == {"row-0"} and not made()
    main([*WORK])
    assert fed == [0, 0, 0]  # the first row is not fed again
    (ours,), (calm,) = made().values(), [results.read(path) for path in Path("calm/s").glob("*.pkl")]
    assert ours["frame"].equals(calm["frame"]) and ours["identical"] == calm["identical"]
