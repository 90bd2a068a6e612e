"""The Python of README and docs runs as it stands, one block of a page after the other."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.pages import TEXTS
from tests.paths import ROOT

PAGES = [page for page, text in TEXTS.items() if re.search(r"^from src import", text, re.MULTILINE)]


def test_there_are_such_pages() -> None:
    assert PAGES == ["README.md", "docs/activations.md"]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_weights").symlink_to(ROOT / "model_weights")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
            exec(compile(block, page, "exec"), known)
    assert "cka " in out.getvalue() and "penalty" in out.getvalue()
