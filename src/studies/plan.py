"""From a study file to bundles of work: which networks, layers and specs, what cannot be, and what it costs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from src.core.errors import UserError
from src.core.files import is_failing
from src.core.progress import bar
from src.core.records import ANY, NATURAL, Each, Several, check, read_json
from src.networks.feature_networks import FeaturePair
from src.networks.source_spec import Named
from src.studies.declared import Declared, Pair, check_count, tables_of
from src.studies.feature_work import FeatureWork
from src.studies.jobs import Bundle, Settings, from_record
from src.studies.network_cache import NetworkCache
from src.studies.pair_work import PairWork
from src.studies.schema import Study
from src.studies.toml import Place

MIN_BUNDLES = (
    8  # bundles at least, where the work is not too short for it: so that several processes have something to do
)
MAX_PLAN = 2_000_000_000  # bytes
_TABLE = {"bundles": Several(Each(ANY), 10_000_000), "left_out": Each(NATURAL), "size": NATURAL}
SHORT = 60.0  # seconds below which a bundle is not cut


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """All that a study is: its bundles, the bytes that their results will take, and {why: how many} were left out."""

    bundles: list[Bundle]
    left_out: dict[str, int]
    size: int = 0

    @property
    def names(self) -> list[str]:
        return [item.name for bundle in self.bundles for item in bundle.items]


def plan_from_file(path: Path) -> StudyPlan:
    """A plan that is kept in a study's folder; raises OSError, or UserError for what is none."""
    record = read_json(path, MAX_PLAN)
    check(record, _TABLE, required=_TABLE)
    return StudyPlan([from_record(one) for one in record["bundles"]], record["left_out"], record["size"])


def make_plan(
    study: Study, on_message: Callable[[str], None] = lambda line: None, device: torch.device | None = None
) -> StudyPlan:
    """Every result that a study declares, once, in bundles; nothing is trained.

    Bundles are priced by what their work takes on the `device` that will do it (None: the processor). Those of GPUs are
    whole pairs of networks where the study's `minutes` and the number of GPUs allow it, for stitches of a pair are
    trained together, and the longest come first.
    What options or sizes of layers exclude is left out and counted. Raises UserError, with the line of the file, for
    networks and layers that there are not, and where all stitches of a table are left out.
    """
    left_out: Counter[str] = Counter()
    tables = tables_of(study)
    works = _opened(study, tables, NetworkCache(on_message, device or torch.device("cpu")), left_out)
    check_count(tables)
    drafts = {table.place: table.drafts() for table in tables if not table.is_comparison}
    known: set[str] = set()
    with bar(sum(table.count for table in tables), "planning", unit="result") as steps:
        for work in works:
            for table in (table for table in tables if work.pair in table.pairs):
                with _At(table):
                    if table.is_comparison:
                        work.add_comparison(table)
                        steps.update()
                    else:
                        work.add_stitches(table, drafts[table.place], steps)
            work.forget(known)
    total = sum(work.seconds for work in works)
    on_gpus = device is not None and device.type == "cuda"
    least = max(1, torch.cuda.device_count()) if on_gpus else MIN_BUNDLES
    limit = min(60 * study.says.minutes, max(SHORT, total / least))
    bundles = [bundle for work in works for bundle in work.bundles(limit)]
    if on_gpus:
        bundles.sort(key=lambda bundle: -bundle.seconds)
    if not bundles:
        reasons = "; ".join(left_out) or "no pair of networks"
        raise study.document.complaint(("stitch",), f"nothing is left to do: {reasons}")
    return StudyPlan(bundles, dict(left_out), sum(one.size for work in works for one in work.items))


def _opened(study: Study, tables: list[Declared], cache: NetworkCache, left_out: Counter[str]) -> list[PairWork]:
    """The networks of all pairs on their data, where the couples of layers that tables ask for are counted."""
    says = study.says
    known: dict[str, Any] = {
        field.name: getattr(says, field.name) for field in fields(Settings) if field.name != "study"
    }
    known["controls"] = tuple(says.controls)
    settings = Settings(study.name, **known)
    places: dict[Pair, Place] = {}
    for table in tables:
        places |= {pair: place for pair, place in table.pairs.items() if pair not in places}
    works = []
    for pair, place in places.items():
        try:
            on_data = cache.pair((Named(pair[0]), Named(pair[1])), says.dataset, says.image_size)
            kind = FeatureWork if isinstance(on_data, FeaturePair) else PairWork
            work = kind(pair, settings, on_data, cache, left_out)  # pyright: ignore[reportArgumentType]
        except (UserError, OSError) as error:
            if is_failing(error):
                raise
            raise study.document.complaint(place, str(error)) from None
        for table in (table for table in tables if pair in table.pairs):
            with _At(table):
                table.couples += len(work.couples(table))
        works.append(work)
    return works


class _At:
    """Give an error of the block the line of a table."""

    def __init__(self, table: Declared) -> None:
        self.table = table

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            raise self.table.complaint(str(error)) from None
