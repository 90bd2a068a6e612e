"""docs/findings.md is made of what is kept in docs/findings, and has every section of the table."""

import re
from pathlib import Path

import pytest

from benchmarks.findings import __main__ as findings
from benchmarks.findings.runs import STUDIES, at_full_length
from benchmarks.findings.sections import SECTIONS
from benchmarks.findings.values import short_name
from src.studies.schema import Study
from tests.paths import ROOT

PAGE = findings.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_section_and_no_other() -> None:
    headings = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)}
    assert headings == {section.number for section in SECTIONS.values()}
    made = set(re.findall(r"<!-- made: (\S+) -->", PAGE))
    for section in SECTIONS.values():
        assert f"](findings-{section.name}.png)" in PAGE and (ROOT / f"docs/findings-{section.name}.png").exists()
        assert f"python -m benchmarks.findings {section.name}\n" in PAGE
        made -= set(section.tables(findings.frames_of(section, findings.KEPT)))
    assert not made


def test_redrawing_makes_the_committed_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Of the kept rows alone: neither a study nor an image is needed."""
    page = tmp_path / "findings.md"
    page.write_text(re.sub(r"(<!-- made: \S+ -->\n).*?(?=<!-- /made -->)", r"\1\n", PAGE, flags=re.DOTALL))
    monkeypatch.setattr(findings, "PAGE", page)
    monkeypatch.setattr(findings, "DOCS", tmp_path)
    monkeypatch.delenv("DATASET_ROOT_PYTORCH", raising=False)
    findings.main(["--redraw"])
    assert page.read_text() == PAGE
    assert {path.name for path in tmp_path.glob("*.png")} == {f"findings-{name}.png" for name in SECTIONS}


def test_kept_rows_are_few_and_of_no_machine() -> None:
    files = list(findings.KEPT.glob("*.csv"))
    assert {re.sub(r"(-[a-z]+)?\.csv", "", file.name) for file in files} <= {*SECTIONS, "part"}
    for file in files:
        text = file.read_text()
        assert len(text) < 200_000 and not re.search(r"/(home|root|tmp|work)\b", text), file


def test_an_unknown_section_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        findings.main(["nothing", "--redraw"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: no section nothing; choose from ")


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_at_full_length_a_study_has_all_images_and_the_papers_epochs(file: Path, tmp_path: Path) -> None:
    short, full = file.read_text(), at_full_length(file.read_text())
    changed = tmp_path / file.name
    changed.write_text(full)
    says = Study(changed).says
    assert says.images is None and re.search(r"^images = \d+$", short, re.MULTILINE)
    for table in says.stitch:
        assert table.epochs in ([0], [30], ["10,20"]) and table.batch_size is None


def test_networks_are_called_by_their_seed() -> None:
    assert short_name("tiny10 in10-gn10") == "tiny10 in10" and short_name("tiny10 in0-gn0-f0.1") == "tiny10 in0-f0.1"
    assert short_name("tiny10 in0-gn1") == "tiny10 in0-gn1" and short_name("features of x") == "features of x"
