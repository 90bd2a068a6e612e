"""The state of a study: a folder with a file for each result, for each failure and for the plan, and nothing else."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from src import results
from src.core.digests import digest
from src.core.errors import UserError
from src.core.files import atomic_write, make_folder, remove_leftovers
from src.core.records import LINES, NATURAL, TEXT, check, read_json
from src.metrics.own import is_own
from src.networks.architectures import files_of
from src.networks.feature_networks import features_files
from src.networks.source_spec import is_features
from src.studies.deaths import Death
from src.studies.declared import metrics_of, texts_of
from src.studies.jobs import to_record
from src.studies.plan import StudyPlan, make_plan, plan_from_file
from src.studies.schema import Study

MAX_NOTE = 10_000_000  # bytes
RESULT, FAILED, STATES, LEASES = ".pkl", ".failed.json", ".resume", ".leases"


_NOTE = {"count": NATURAL, "deaths": NATURAL, "signal": NATURAL, "trace": LINES, "about": TEXT}


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with a result: how often it failed, and how often its process ended without its doing.

    trace: what went wrong the last time; signal: by which a process was ended then. about: which result it was to be.
    """

    count: int
    trace: str
    about: str
    deaths: int = 0
    signal: int = 0

    @classmethod
    def from_file(cls, path: Path) -> "Failure":
        """Raises OSError, or UserError for what is no such note."""
        record = read_json(path, MAX_NOTE)
        check(record, _NOTE, required=("count", "trace", "about"))
        return cls(**{field: record[field] for field in cls.__slots__ if field in record})

    @property
    def line(self) -> str:
        return self.trace.strip().splitlines()[-1] if self.trace.strip() else "no reason given"


@dataclass(frozen=True, slots=True)
class Store:
    """Results and failures by name, in the folder of one study."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{RESULT}"

    def done(self) -> set[str]:
        """The names of all results that are there."""
        return self._stems(RESULT)

    def failures(self) -> dict[str, Failure]:
        """What failed and did not come through later."""
        found = {}
        for name in self._stems(FAILED) - self.done():
            with suppress(OSError, UserError):  # just removed, or torn by somebody's editor
                found[name] = Failure.from_file(self.folder / f"{name}{FAILED}")
        return found

    def _stems(self, ending: str) -> set[str]:
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries]
            return {name.removesuffix(ending) for name in names if name.endswith(ending) and name[0] != "."}
        return set()

    def publish(self, name: str, result: dict[str, Any]) -> bool:
        """Write a result, unless another process was first; returns whether this one is kept."""
        try:
            results.write(self.path(name), result, overwrite=False)
        except FileExistsError:
            return False
        results.keep_row(self.path(name), result)
        (self.folder / f"{name}{FAILED}").unlink(missing_ok=True)
        return True

    def fail(self, name: str, trace: str, about: str) -> None:
        """Note that an attempt at a result failed."""
        before = self._noted(name)
        self._note(name, Failure(before.count + 1, trace, about, before.deaths))

    def died(self, name: str, death: Death, about: str) -> None:
        """Note that the process of a result ended, through no fault of the result."""
        before = self._noted(name)
        self._note(name, Failure(before.count, death.words, about, before.deaths + 1, death.signal))

    def _noted(self, name: str) -> Failure:
        with suppress(OSError, UserError):
            return Failure.from_file(self.folder / f"{name}{FAILED}")
        return Failure(0, "", "")

    def _note(self, name: str, failure: Failure) -> None:
        with atomic_write(self.folder / f"{name}{FAILED}") as file:
            file.write(json.dumps(asdict(failure), sort_keys=True, indent=2).encode())

    @property
    def leases(self) -> Path:
        return self.folder / LEASES

    def states(self, bundle: str) -> Path:
        """Where a bundle keeps the states of its trainings until it is done."""
        return self.folder / STATES / bundle

    def forget_states(self, bundle: str) -> None:
        """Remove what a bundle that is done, or failed, has kept; after a failure it begins anew."""
        shutil.rmtree(self.states(bundle), ignore_errors=True)
        with suppress(OSError):  # others are in it, or it is none
            (self.folder / STATES).rmdir()

    def tidy(self) -> None:
        """Remove what killed processes left, once all is done; temporary files that somebody still writes stay."""
        for folder in (STATES, LEASES):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        done = self.done()
        for name in self._stems(FAILED) & done:
            (self.folder / f"{name}{FAILED}").unlink(missing_ok=True)
        for file in self.folder.glob(".*.tmp"):
            remove_leftovers(file.with_name(file.name[1:].rsplit(".", 2)[0]))

    def plan(
        self,
        study: Study,
        on_message: Any = lambda line: None,
        *,
        keep: bool = True,
        device: torch.device | None = None,
    ) -> StudyPlan:
        """The plan of a study: the one kept in the folder, where file and networks are as they were; else a new one.

        Runners that share the folder share the plan that was kept first, so that all cut the work alike, as the
        `device` of that one has it.
        """
        path = self.folder / f".plan-{fingerprint(study)}.json"
        if (known := _read_plan(path)) is not None:
            return _named_by(study, known, path)
        plan = make_plan(study, on_message, device)
        if not keep:
            return _named_by(study, plan, path)
        make_folder(self.folder)
        record = {"bundles": [to_record(bundle) for bundle in plan.bundles], "left_out": plan.left_out}
        try:
            with atomic_write(path, overwrite=False) as file:
                file.write(json.dumps(record | {"size": plan.size}, separators=(",", ":")).encode())
        except FileExistsError:  # another runner was first
            plan = _read_plan(path) or plan
        return _named_by(study, plan, path)


def _named_by(study: Study, plan: StudyPlan, path: Path) -> StudyPlan:
    """A plan whose networks and metrics are all named by the study, so that they may be used as the user's.

    Raises UserError, with the first that is not.
    """
    named = {*texts_of(study), *metrics_of(study)}
    asked = [text for bundle in plan.bundles for text in bundle.pair]
    asked += [name for bundle in plan.bundles for item in bundle.items for name in getattr(item.spec, "metrics", ())]
    for text in asked:
        if text not in named:
            raise UserError(f"{path} asks for {text}, which {study.document.path} does not name; remove that plan")
    return replace(plan, bundles=[replace(bundle, named=True) for bundle in plan.bundles])


def _read_plan(path: Path) -> StudyPlan | None:
    try:
        return plan_from_file(path)
    except (OSError, UserError):
        return None  # none, or of another version


def fingerprint(study: Study) -> str:
    """What a plan depends on, as far as a glance tells: the study's text, and the networks' files."""
    stamps = []
    own = (name.partition("?")[0] for name in metrics_of(study) if is_own(name))
    for text in (*texts_of(study), *own):
        files = features_files(text) if is_features(text) else files_of(text)
        found = [file.stat() for file in files if file.is_file()]
        stamps.append([text, [[status.st_size, status.st_mtime_ns] for status in found]])
    return digest(["plan 6", study.document.text, stamps])[:16]
