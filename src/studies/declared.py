"""What the tables of a study file declare, before any network is opened: which pairs, which options, and how many."""

import glob
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.evaluation.identical import IMAGES
from src.networks.source_spec import PREFIX, is_features, parse_spec
from src.stitching import StitchSpec, usual_rate
from src.stitching.options import spec_of
from src.stitching.stitch_spec import IDENTICAL
from src.studies.schema import AXES, Study
from src.studies.toml import Place

MOST = 200_000  # results of a study
Pair = tuple[str, str]
_OPTIONS = re.compile(r"[?&][a-z]+=.*", re.DOTALL)  # what a network spec asks for, behind its file


@dataclass(slots=True)
class Declared:
    """A table of a study file: where it stands, what it says, and for each of its pairs what names it.

    axes: of a table of stitches, the values of each option that has some. couples: couples of layers in all pairs,
    once networks are open.
    """

    study: Study
    place: Place
    says: Any
    axes: dict[str, list[Any]] = field(default_factory=dict)
    pairs: Mapping[Pair, Place] = field(default_factory=dict)
    couples: int = 0

    @property
    def is_comparison(self) -> bool:
        return self.place[0] == "compare"

    @property
    def combinations(self) -> int:
        """Of options, for one couple of layers."""
        return math.prod(map(len, self.axes.values()))

    @property
    def factors(self) -> dict[str, int]:
        """What multiplies to its results, in words."""
        pairs, axes = len(self.pairs), {name: len(values) for name, values in self.axes.items()}
        if self.is_comparison:
            return {"pairs of networks": pairs}
        if self.couples and pairs > 1:
            return {f"couples of layers in {pairs} pairs of networks": self.couples} | axes
        return {"couples of layers": self.couples or 1, "pairs of networks": pairs} | axes

    @property
    def count(self) -> int:
        return math.prod(self.factors.values())

    def drafts(self) -> tuple[list[StitchSpec], Counter[str]]:
        """Every combination of its options, before layers are known; and why others were left out.

        Raises UserError, with the line of the table, where all were.
        """
        specs, left_out = [], Counter()
        for chosen in itertools.product(*self.axes.values()):
            options = dict(zip(self.axes, chosen, strict=True))
            options.setdefault("lr", usual_rate(whiten=bool(options.get("whiten"))))
            try:
                specs.append(spec_of(options))
            except UserError as error:
                left_out[str(error)] += 1
        if not specs:
            raise self.complaint(f"no stitch can be like that: {next(iter(left_out))}")
        return specs, left_out

    def complaint(self, text: str) -> UserError:
        return self.study.document.complaint(self.place, text)


def tables_of(study: Study) -> list[Declared]:
    """Every table of a study; raises UserError where they ask for more than MOST results, whatever their layers."""
    tables = []
    for kind in ("stitch", "compare"):
        for number, says in enumerate(getattr(study.says, kind)):
            table = Declared(study, (kind, number), says)
            if kind == "stitch":
                table.axes = {name: values for name in AXES if (values := getattr(says, name)) is not None}
                table.axes.setdefault("seed", study.says.seeds)
                if IDENTICAL in table.axes.get("train_on", ()):
                    table.axes.setdefault("iri_images", [IMAGES])
            _check_pairs(table)
            table.pairs = dict(pairs_of(table))
            tables.append(table)
    check_count(tables)
    return tables


def check_count(tables: list[Declared]) -> None:
    """Raise UserError about the largest table where all together declare more than MOST results."""
    total = sum(table.count for table in tables)
    if total > MOST:
        largest = max(tables, key=lambda table: table.count)
        raise largest.complaint(_too_many(largest.count, largest.factors, total, largest.is_comparison))


def _check_pairs(table: Declared) -> None:
    """The same for the pairs of networks alone, before they are made."""
    networks, pairs = len(networks_of(table)), _asked_pairs(table)[1]
    counts = {"all": networks * (networks - 1), "once": networks * (networks - 1) // 2, "self": networks}
    count = len(pairs) if isinstance(pairs, list) else counts[pairs]
    if count > MOST:
        each = {"networks": networks, "others of each": networks - 1}
        what = each if pairs == "all" else {"pairs of networks": count}
        raise table.complaint(_too_many(count, what, count, table.is_comparison))


def _too_many(count: int, factors: Mapping[str, int], total: int, compared: bool) -> str:
    product = " x ".join(f"{number} {name}" for name, number in factors.items() if number > 1)
    others = f", {total} results with the other tables" if total > count else ""
    what = "comparisons" if compared else "stitches"
    return f"{count} {what} ({product}){others}, and {MOST} are the most; split the study, or leave values out"


def _asked_networks(table: Declared) -> tuple[Place, list[str]]:
    """The networks of a table, its own or the study's, and where they stand."""
    if table.says.networks is not None:
        return (*table.place, "networks"), table.says.networks
    return ("networks",), table.study.says.networks


def _asked_pairs(table: Declared) -> tuple[Place, Any]:
    """The pairs of a table: its own, those of its own networks, or the study's; and where they stand."""
    if table.says.pairs is not None:
        return (*table.place, "pairs"), table.says.pairs
    pairs = table.study.says.pairs
    if table.says.networks is not None and isinstance(pairs, list):
        return (*table.place, "networks"), "all"
    return ("pairs",), pairs


def networks_of(table: Declared) -> dict[str, Place]:
    """The networks that a table names, patterns resolved, in order; with the place of what named each."""
    place, texts = _asked_networks(table)
    networks: dict[str, Place] = {}
    for number, text in enumerate(texts):
        found = _matching(text)
        if not found:
            raise table.study.document.complaint((*place, number), f"no file matches {text}")
        for one in found:
            networks.setdefault(one, (*place, number))
    return networks


def _matching(text: str) -> list[str]:
    """The specs that a text stands for: it, or one a file where it is a pattern as of the shell, and `**`."""
    kind, text = (PREFIX, text.removeprefix(PREFIX)) if is_features(text) else ("", text)
    options = _OPTIONS.search(text)
    file, rest = (text[: options.start()], options[0]) if options else (text, "")
    if not glob.has_magic(file) or any(Path(one).exists() for one in (text, file)) or not (kind or _is_file(file)):
        return [kind + text]
    return [kind + found + rest for found in sorted(glob.glob(file, recursive=True))]


def _is_file(text: str) -> bool:
    try:
        return parse_spec(text).source == "file"
    except UserError:  # of what follows a ?, which stands for a letter here
        return True


def pairs_of(table: Declared) -> Iterator[tuple[Pair, Place]]:
    """Ordered pairs of networks, each with the place of what asks for it."""
    place, pairs = _asked_pairs(table)
    if isinstance(pairs, list):
        yield from ((pair, (*place, number)) for number, pair in enumerate(pairs))
        return
    networks = networks_of(table)
    if pairs == "self":
        yield from (((one, one), where) for one, where in networks.items())
        return
    if len(networks) < 2:
        where = _asked_networks(table)[0]
        raise table.study.document.complaint(where, f'pairs = "{pairs}" needs two networks or more; "self" needs one')
    order = {one: number for number, one in enumerate(networks)}
    ordered = itertools.combinations if pairs == "once" else itertools.permutations
    for one, other in ordered(networks, 2):
        yield (one, other), networks[max(one, other, key=order.__getitem__)]


def texts_of(study: Study) -> list[str]:
    """Every network spec of a study, patterns resolved."""
    texts = [text for table in tables_of(study) for pair in table.pairs for text in pair]
    return list(dict.fromkeys(texts))


def metrics_of(study: Study) -> list[str]:
    """Every metric that a study names."""
    return list(dict.fromkeys(name for table in study.says.compare for name in table.metrics))
