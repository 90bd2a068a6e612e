"""The results of a study as frames: its stitches, and its comparisons, with what tells them apart."""

import math
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from src import results
from src.core.errors import UserError
from src.evaluation.identical import DATA
from src.networks.source_spec import is_features
from src.results.frame import NETWORK
from src.results.titles import network_name, told_apart
from src.stitching import StitchSpec, usual_rate
from src.stitching.controls import CONTROLS
from src.stitching.naming import setting_text
from src.stitching.options import OPTIONS, said
from src.stitching.stitch_spec import PRECISIONS
from src.studies.jobs import Bundle, CompareSpec
from src.studies.plan import StudyPlan
from src.studies.store import Store

Frame = Any  # a frame of pandas; its stubs leave open what an operation gives
# what may tell stitches apart beside networks, layers and seeds, in the order of columns
AXES = tuple(field.name for field in fields(StitchSpec) if field.name not in ("front_layer", "end_layer", "seed"))
ROLES, ENDS, NETWORKS = ("front", "end"), ["front_network", "end_network"], ["network1", "network2"]
PROCESSOR = "the processor"  # of which results say nothing
LAYERS = ["front_layer", "end_layer"]
# what networks are, by which pairs of them may be grouped
FACTS = ("architecture", "train_fraction", "shuffle_labels", "adversarial")
# how tables of a study compare, beside metrics and layers
ASKED = ("on", "iri_images", "iri_steps", "view", "group_at", "split")
# columns of a comparison: the two networks by what the study calls them, and in words; what was found; what they are
COMPARED = ["spec1", "spec2", "network1", "network2", "method", "layer1", "layer2", *ASKED, "value"]
COMPARED += [f"{fact}{i}" for fact in FACTS for i in (1, 2)]


@dataclass(frozen=True, slots=True)
class StudyResults:
    """What a study has come to.

    stitches: a row each, as `results.table` has them, with `front_network` and `end_network` in words, `networks`, the
    pair, `name` of the file, and `relative`, accuracy after over that of the end network, or agreement where there is
    no accuracy. comparisons: a row each value: networks, network1, network2, method, layer1, layer2, ASKED, value.
    axes: the options that tell the stitches apart. devices: what made the results, by name.
    """

    stitches: Frame
    comparisons: Frame
    axes: list[str]
    devices: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The column that charts show: accuracy, or agreement where the labels are of other classes."""
        return "accuracy_after" if self.stitches["accuracy_after"].notna().any() else "agreement_after"

    @property
    def ways(self) -> list[str]:
        """The columns, of ASKED, by which comparisons of the same layers differ; `on` where not all were on images."""
        return _telling(self.comparisons, ASKED, ["on"] if (self.comparisons["on"] != DATA).any() else [])

    @property
    def controls(self) -> list[str]:
        named = [name for name in CONTROLS if self.stitches[f"accuracy_{name}"].notna().any()]
        return [f"accuracy_{name}" for name in named]


def plain(key: tuple) -> tuple:
    """What tells rows apart, with None for what is missing."""
    return tuple(None if isinstance(part, float) and math.isnan(part) else part for part in key)


def subsets(frame: Frame, names: Sequence[str]) -> list[tuple[tuple, Frame]]:
    """The rows of each combination of some columns, in the order in which they come; of none, all rows."""
    if not names:
        return [((), frame)]
    return [(plain(key), group) for key, group in frame.groupby(list(names), sort=False, dropna=False)]


def collect(plan: StudyPlan, store: Store) -> StudyResults:
    """All results of a plan that are there; raises UserError where there are none."""
    items = {item.name: (bundle, item.spec) for bundle in plan.bundles for item in bundle.items}
    frame: Frame = remember(store.folder) if store.folder.is_dir() else pd.DataFrame(columns=["path"])
    frame.insert(0, "name", [Path(path).stem for path in frame["path"]])
    frame = frame[frame["name"].isin(items.keys())]
    order = {name: number for number, name in enumerate(items)}
    frame = frame.sort_values("name", key=lambda names: names.map(order)).reset_index(drop=True)
    read = [
        (results.read(store.path(name)), bundle.pair, spec)
        for name, (bundle, spec) in items.items()
        if isinstance(spec, CompareSpec) and store.path(name).is_file()
    ]
    comparisons = [_comparison(*one) for one in read]
    both = pd.concat(comparisons, ignore_index=True) if comparisons else pd.DataFrame(columns=COMPARED)
    if frame.empty and both.empty:
        raise UserError(f"no results of this study in {store.folder} yet; run it first")
    devices = devices_of(frame) | {(result.get("device") or {}).get("name", PROCESSOR) for result, *_ in read}
    return replace(with_names(frame, both), devices=tuple(sorted(devices)))


def devices_of(frame: Frame) -> set[str]:
    """The devices that made the stitches of a frame of `results.table`, by name."""
    return set(frame["device"].fillna(PROCESSOR))


def remember(folder: Path) -> Frame:
    """The rows of all stitches in a folder, kept there for the next reader, who then has them at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that cannot be read counts as none
        return results.table(folder)


def with_names(stitches: Frame, comparisons: Frame) -> StudyResults:
    """Add what readers ask for to rows of `results.table`, and of COMPARED."""
    frame, compared = stitches.copy(), comparisons.copy()
    called = {spec: text for role in ROLES for spec, text in _called(frame, role)}
    for i in (1, 2):
        called |= zip(compared[f"spec{i}"], compared[f"network{i}"], strict=True)
    names = _told_apart(called)
    for role in ROLES:
        frame[f"{role}_network"] = [names[spec] for spec in frame[f"{role}_model"]]
    frame["networks"] = _pairs(frame["front_network"], frame["end_network"], " \N{RIGHTWARDS ARROW} ")
    for i in (1, 2):
        compared[f"network{i}"] = [names[spec] for spec in compared.pop(f"spec{i}")]
    compared.insert(0, "networks", _pairs(compared["network1"], compared["network2"], " and "))
    ends = frame["accuracy_end"].where(frame["accuracy_end"] > 0)
    frame["relative"] = (frame["accuracy_after"] / ends).fillna(frame["agreement_after"])
    return StudyResults(frame, compared, _axes(frame))


def _axes(frame: Frame) -> list[str]:
    """The options in which rows differ, without those that follow from the ones before."""
    return _telling(frame, AXES, [])


def _telling(frame: Frame, columns: Sequence[str], told: list[str]) -> list[str]:
    """The columns that tell rows apart which those before, `told` first, do not."""
    kinds = len(frame[told].drop_duplicates()) if told else 1
    for column in columns:
        if column in frame and (now := len(frame[[*told, column]].drop_duplicates())) > kinds:
            told, kinds = [*told, column], now
    return told


def _called(frame: Frame, role: str) -> Iterator[tuple[str, str]]:
    """The networks of a role: what the study calls them, and what they are in words."""
    columns = [f"{role}_{fact}" for fact in ("model", *NETWORK)]
    for spec, *values in frame[columns].drop_duplicates().itertuples(index=False):
        known: dict[str, Any] = dict(zip(NETWORK.values(), values, strict=True))
        for key, value in known.items():  # a column with gaps has floats
            known[key] = None if pd.isna(value) else int(value) if key.endswith("_seed") else value
        yield spec, network_name(known)


def _told_apart(called: Mapping[str, str]) -> dict[str, str]:
    """Networks in words, with the ends of what the study calls them where several are called alike."""
    return dict(zip(called, told_apart(list(called.values()), list(called)), strict=True))


def _pairs(ones: Sequence[str], others: Sequence[str], between: str) -> list[str]:
    return [f"{one}{between}{other}" for one, other in zip(ones, others, strict=True)]


def _comparison(result: dict[str, Any], pair: tuple[str, str], spec: CompareSpec) -> Frame:
    """The values of the metrics that the study asks for, whatever else a file says."""
    frame, facts = result["frame"], {name: getattr(spec, name) for name in ASKED}
    for i, (called, network) in enumerate(zip(pair, result["networks"], strict=True), start=1):
        facts |= {f"spec{i}": called, f"network{i}": network_name(network)}
        facts |= {f"{fact}{i}": network.get(NETWORK[fact]) for fact in FACTS}
        if is_features(called):  # nobody says how the network of a file was trained
            facts |= dict.fromkeys(f"{fact}{i}" for fact in FACTS if fact != "architecture")
    return frame[frame["method"].isin(spec.metrics)].assign(**facts)[COMPARED]


def command_of(bundle: Bundle, spec: StitchSpec | CompareSpec) -> tuple[str, str]:
    """The command line that makes a stitch alone: what its pair of networks has in common with others, and the rest."""
    assert isinstance(spec, StitchSpec)
    settings = bundle.settings
    usual = StitchSpec("", "", lr=usual_rate(whiten=spec.whiten))
    words = [spec.front_layer, spec.end_layer]
    for option in OPTIONS:
        value = said(spec, option.field)
        if value != said(usual, option.field):
            words += [option.flags[-1], *([] if option.kind == "flag" else [_text(value)])]
    words += [f"--{name}" for name in PRECISIONS if getattr(spec, name)]
    for name in ("dataset", "evaluate_on", "image_size", "images"):
        if (value := asdict(settings)[name]) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--controls", ",".join(settings.controls)] if settings.controls else []
    words += ["--batch-dependent"] * settings.batch_dependent
    words += ["--ood"] * settings.ood + ["--no-similarity"] * (not settings.similarity)
    return shlex.join(["python", "stitch_nets.py", *bundle.pair]), shlex.join(words)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else setting_text(value)
