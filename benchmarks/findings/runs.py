"""The studies behind the findings: run, estimated, and collected from one folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import studies.__main__ as studies
from src.studies.frames import StudyResults, collect
from src.studies.messages import seconds_left
from src.studies.plan import StudyPlan
from src.studies.schema import Study
from src.studies.store import Store

STUDIES = Path(__file__).parents[2] / "studies" / "findings"
# what makes the short studies those of the paper: all images, its epochs, and the published batches and rates
_SHORT = re.compile(r"^(images|batch_size|lr) = [\d.]+\n", re.MULTILINE)
_EPOCHS = {"epochs = 4": "epochs = 30", "epochs = 20": "epochs = 30", 'epochs = "2,2"': 'epochs = "10,20"'}


def at_full_length(text: str) -> str:
    """A study as the paper has it; rates that are compared stay."""
    text = _SHORT.sub("", text)
    for short, full in _EPOCHS.items():
        text = re.sub(rf"^{re.escape(short)}$", full, text, flags=re.MULTILINE)
    return text


@dataclass(frozen=True, slots=True)
class Runs:
    """A folder of studies; `full`: all images and the paper's epochs, in a folder of their own."""

    folder: Path
    full: bool = False
    workers: int | None = None

    def file(self, name: str) -> Path:
        """The study's file; at full length it is written first."""
        file = STUDIES / f"{name}.toml"
        if not self.full:
            return file
        changed = self.folder / "studies" / file.name
        text = at_full_length(file.read_text(encoding="utf-8"))
        if not changed.exists() or changed.read_text(encoding="utf-8") != text:
            changed.parent.mkdir(parents=True, exist_ok=True)
            changed.write_text(text, encoding="utf-8")
        return changed

    def run(self, name: str) -> None:
        """Do what of a study is not there yet; raises SystemExit where something failed."""
        words = ["--workers", str(self.workers)] if self.workers else []
        studies.main([str(self.file(name)), "-o", str(self.folder), *words])

    def planned(self, name: str) -> tuple[StudyPlan, Store]:
        study = Study(self.file(name))
        store = Store(self.folder / study.name)
        return store.plan(study, keep=False), store

    def seconds(self, name: str) -> tuple[float, int, int]:
        """What is left of a study: seconds, by its own estimate, and how many results of how many."""
        plan, store = self.planned(name)
        left = set(plan.names) - store.done()
        return seconds_left(plan, store, self.workers or 2), len(left), len(plan.names)

    def results(self, name: str) -> StudyResults:
        """What a study has come to."""
        return collect(*self.planned(name))

    def missing(self, names: Sequence[str]) -> list[str]:
        """The studies that are not whole."""
        found = []
        for name in names:
            plan, store = self.planned(name)
            if set(plan.names) - store.done():
                found.append(name)
        return found
