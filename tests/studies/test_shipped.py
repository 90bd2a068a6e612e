"""The shipped studies, and the commands that docs/studies.md shows of them."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from src.stitching.controls import CONTROLS
from src.studies.engines import ENGINES
from src.studies.engines.local import Here
from src.studies.schema import COMPARE, STITCH, STUDY
from studies.__main__ import main, parser_of
from tests.paths import ROOT

PAGE = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m studies (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model_weights").symlink_to(ROOT / "model_weights")
    Path("studies").mkdir()
    for file in (ROOT / "studies").glob("*.toml"):
        Path("studies", file.name).write_text(file.read_text())
    return tmp_path


def test_the_page_shows_the_tour_and_its_commands_run(folder, monkeypatch, capsys) -> None:
    tour = Path("studies/tour.toml")
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tour.read_text().endswith(shown)
    tour.write_text(shown.replace("epochs = 1", "epochs = 0").replace("controls =", "# controls ="))  # in seconds
    monkeypatch.setitem(ENGINES, "local", lambda *_, **__: Here())
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        main(shlex.split(command))
    out = capsys.readouterr().out
    assert "30 stitches and 2 comparisons to do, 0 of 32 done" in out and "32 of 32 results, 0 failed" in out
    assert Path("results/tour/report.html").exists() and Path("results/tour/table.tex").exists()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "stitches"), [("paper", 1440), ("ranks", 1890), ("controls", 120), ("seeds", 60), ("data", 42)]
)
def test_the_others_can_be_planned(name, stitches, folder, capsys) -> None:
    main([f"studies/{name}.toml", "--dry-run"])
    assert f"{stitches:,} stitches and " in capsys.readouterr().out and not Path("results").exists()


def test_every_key_and_option_is_on_the_page() -> None:
    keys = {*STUDY, *COMPARE, *STITCH} - {"stitch", "compare"}
    by_name = {"batch_size", "orthogonal", "flatten", "resize", "weight_decay", "l1", "cka_reg", "temperature"}
    by_name |= {"whiten", "save_frequency", "optimizer", "amp", "tf32", "match_layers", "early_stop", "cosine"}
    by_name |= {"kernel", "hidden", "norm"}
    by_name |= {"train_end_norm"}  # "every option by its long name"
    named = set(re.findall(r"`\[?(\w+)\]?`", PAGE))
    assert keys - named == by_name
    options = {
        flag
        for command in ("run", "worker", "table")
        for action in parser_of(command)._actions
        for flag in action.option_strings
        if flag not in ("-h", "--help", "--traceback")
    }
    assert options <= {flag for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", PAGE)}


def test_a_pair_is_reported_with_all_controls_and_on_other_inputs(folder, monkeypatch, capsys) -> None:
    study = Path("studies/report_a_pair.toml")
    text = study.read_text()
    for usual, short in (
        ("seeds = [0, 1]", "seeds = [0]"),
        ('["bn3", "bn7"]', '["bn7"]'),
        ("epochs = 5", "epochs = 1"),
        ("epochs = 10", "epochs = 1"),
        ("iri_images = 200", "iri_images = 20"),
        ("iri_steps = 50", "iri_steps = 2"),
    ):
        assert usual in text
        text = text.replace(usual, short)
    study.write_text(text)
    monkeypatch.setitem(ENGINES, "local", lambda *_, **__: Here())
    main([str(study)])
    main(["table", str(study)])
    with Path("results/report_a_pair/table.csv").open() as file:
        head, *rows = csv.reader(file)
    assert {f"accuracy_{name}" for name in CONTROLS} < set(head) and len(rows) == 4
    assert {row[head.index("train_on")] for row in rows} == {"data", "iri"}
    for row in rows:
        shares = [row[head.index(f"accuracy_{name}")] for name in CONTROLS]
        assert all(0 <= float(share) <= 1 for share in shares if share)  # from a random start self is self_random
