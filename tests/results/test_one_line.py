"""A line in a table is all that a control, a column, or a field of a stitch asks for; whoever shows it, follows."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from src import results
from src.dataset import load_split
from src.models import build_model
from src.networks.checkpoints import load
from src.results import stitch_text
from src.results.frame import SETTINGS
from src.results.plots.stitch import stitch_figure
from src.results.plots.stitches import stitches_figure
from src.stitching import ControlSpec, CutNetworks, StitchSpec
from src.stitching.controls import CONTROLS, Control, choose_controls
from src.stitching.run import StitchPlan, stitch
from src.stitching.stages import COMPARED, STAGES
from src.stitching.stitch_spec import FIRST, LATER
from src.studies.frames import AXES, with_names
from src.studies.frames import COMPARED as COLUMNS_OF_COMPARISONS
from src.studies.means import grouped
from tests.toy import CLASSES, SIZE

SPEC = StitchSpec("bn1", "bn1", epochs=1, batch_size=16, init="ps_inv")


def fresh(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("toy_w3", channels=1, classes=CLASSES, size=SIZE).eval()


def made(*specs: StitchSpec, **options: Any) -> list[dict[str, Any]]:
    front, end = load("a3.pt"), load("b3.pt")
    cuts = CutNetworks(front.network, end.network, list(specs), torch.zeros(2, 1, SIZE, SIZE))
    outcomes: list[Any] = stitch(
        cuts, load_split("toy", "train"), load_split("toy", "val"), StitchPlan(fresh=fresh, **options)
    )
    about = {"weights": {"front": front.facts(), "end": end.facts()}}
    names = {"front_model": "a3.pt", "end_model": "b3.pt", "dataset": "toy"}
    return [
        {"params": names | {name: getattr(spec, name) for name in SPEC.__slots__}, **about, **outcome}
        for spec, outcome in zip(specs, outcomes, strict=True)
    ]


def texts_of(figure: Any) -> set[str]:
    return {text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))}


def test_a_control_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Control("front's other layer", "nothing", "#123456", lambda spec, exact: [ControlSpec.of(spec, "end")])
    monkeypatch.setitem(CONTROLS, "turned", turned)
    assert "turned" in choose_controls("all")
    found = made(SPEC, replace(SPEC, seed=1), controls=["untrained", "turned"])
    assert all(0 <= result["controls"]["turned"]["acc"] <= 1 for result in found)
    for number, result in enumerate(found):
        results.write(Path("c", f"{number}.pkl"), result, overwrite=False)
    frame = results.table("c")
    assert list(frame["accuracy_turned"]) == [result["controls"]["turned"]["acc"] for result in found]
    assert "\nturned " in stitch_text.stitch_table(found[0])
    assert " turned" in stitch_text.stitches_table(found)
    one, several = stitch_figure(found[0]), stitches_figure(found)
    assert "turned" in texts_of(one) & texts_of(several)
    lines = [line for axes in several.axes for line in axes.lines if line.get_label() == "turned"]
    assert lines and all(line.get_color() == "#123456" for line in lines)


def test_a_control_that_sews_nothing_is_not_the_end(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTROLS, "none", Control("nothing", "nothing", "#123456", lambda spec, exact: []))
    (result,) = made(SPEC, controls=["none", "self"])
    assert result["controls"].keys() == {"self"} and result["controls"]["self"]["by_construction"]


def test_controls_and_stages_can_be_told_apart_and_say_what_they_are() -> None:
    for table in (CONTROLS, STAGES):
        assert len({record.colour for record in table.values()}) == len(table)
        assert all(record.about for record in table.values())
    assert sorted(control.role for control in CONTROLS.values() if control.role) == ["ceiling", "floor"]
    assert [name for name in STAGES if name not in COMPARED] == ["end"]
    for read in (lambda stage: stage.scores, lambda stage: stage.agreement, lambda stage: stage.suffix):
        assert len({read(stage) for stage in STAGES.values()}) == len(STAGES)


def test_a_column_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = stitch_text.Column(9, lambda result, row, figures: f"<{row}>")
    monkeypatch.setitem(stitch_text.COLUMNS, "which", column)
    (result,) = made(SPEC)
    lines = stitch_text.stitch_table(result).splitlines()
    assert lines[1].endswith("     which") and lines[2].endswith("  <front>") and "  <after>" in lines[5]


def test_every_field_of_a_stitch_tells_rows_apart() -> None:
    names = {field.name for field in fields(StitchSpec)}
    assert names <= set(SETTINGS)
    assert set(AXES) == names - {"front_layer", "end_layer", "seed"}


def test_stitches_that_differ_in_how_often_they_are_kept_are_no_seeds(toy: Path) -> None:
    """An interval over three of them would be one from a single stitch."""
    found = made(*(replace(SPEC, save_frequency=often) for often in (5, 10, 20)))
    for number, result in enumerate(found):
        results.write(Path("f", f"{number}.pkl"), result, overwrite=False)
    study = with_names(results.table("f"), pd.DataFrame(columns=COLUMNS_OF_COMPARISONS))
    assert study.axes == ["save_frequency"]
    table = grouped(study, "seeds")
    assert list(table["n"]) == [1, 1, 1] and table.filter(like="_low").isna().all(axis=None)


def test_a_field_that_comes_later_leaves_keys_and_results_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True)
    class Grown(StitchSpec):
        patience: int = 3

    monkeypatch.setitem(LATER, "patience", 3)
    grown = Grown("bn1", "bn1", epochs=1, batch_size=16, init="ps_inv")
    assert grown.key(weights="w") == SPEC.key(weights="w")
    assert replace(grown, patience=4).key(weights="w") != SPEC.key(weights="w")


def test_fields_that_were_there_first_stay_in_keys() -> None:
    assert set(FIRST) <= {field.name for field in fields(StitchSpec)}
    assert set(LATER) == {field.name for field in fields(StitchSpec)} - set(FIRST)
    assert SPEC.identity().keys() >= set(FIRST)
