"""The results of a study as frames: its stitches, and its comparisons, with what tells them apart."""

import math
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from src import metrics, results
from src.core.errors import UserError
from src.results.frame import NETWORK
from src.results.titles import network_name
from src.stitching import StitchSpec, usual_rate
from src.stitching.controls import CONTROLS
from src.stitching.naming import setting_text
from src.stitching.options import OPTIONS
from src.studies.jobs import Bundle, CompareSpec
from src.studies.plan import StudyPlan
from src.studies.store import Store

Frame = Any  # a frame of pandas; its stubs leave open what an operation gives
Values = np.ndarray[Any, Any]
# what may tell stitches apart beside networks, layers and seeds, in the order of columns
AXES = tuple(field.name for field in fields(StitchSpec) if field.name not in ("front_layer", "end_layer", "seed"))
MEASURES = ("accuracy_before", "accuracy_after", "accuracy_ps_inv", "agreement_after", "cka_after", "l2_relative_after")
UNBOUNDED = ("l2_relative_after",)  # all others lie between 0 and 1
FEW = 3  # below it Student's t says nothing: of two values the interval is 13 times as wide as they are apart
ROLES, ENDS, NETWORKS = ("front", "end"), ["front_network", "end_network"], ["network1", "network2"]
LAYERS = ["front_layer", "end_layer"]
OVER = ("pairs", "seeds")
# columns of a comparison: the two networks by what the study calls them, and in words; then what was found
COMPARED = ["spec1", "spec2", "network1", "network2", "method", "layer1", "layer2", "value"]


@dataclass(frozen=True, slots=True)
class StudyResults:
    """What a study has come to.

    stitches: a row each, as `results.table` has them, with `front_network` and `end_network` in words, `networks`, the
    pair, `name` of the file, and `relative`, accuracy after over that of the end network, or agreement where there is
    no accuracy. comparisons: a row each value: networks, network1, network2, method, layer1, layer2, value. axes: the
    options that tell the stitches apart.
    """

    stitches: Frame
    comparisons: Frame
    axes: list[str]

    @property
    def value(self) -> str:
        """The column that charts show: accuracy, or agreement where the labels are of other classes."""
        return "accuracy_after" if self.stitches["accuracy_after"].notna().any() else "agreement_after"

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
    compared = {name: bundle for name, (bundle, spec) in items.items() if isinstance(spec, CompareSpec)}
    comparisons = [
        _comparison(results.read(store.path(name)), bundle.pair)
        for name, bundle in compared.items()
        if store.path(name).is_file()
    ]
    both = pd.concat(comparisons, ignore_index=True) if comparisons else pd.DataFrame(columns=COMPARED)
    if frame.empty and both.empty:
        raise UserError(f"no results of this study in {store.folder} yet; run it first")
    return with_names(frame, both)


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
    axes: list[str] = []
    kinds = 1
    for axis in AXES:
        if axis in frame and (now := len(frame[[*axes, axis]].drop_duplicates())) > kinds:
            axes, kinds = [*axes, axis], now
    return axes


def _called(frame: Frame, role: str) -> Iterator[tuple[str, str]]:
    """The networks of a role: what the study calls them, and what they are in words."""
    columns = [f"{role}_{fact}" for fact in ("model", *NETWORK)]
    for spec, *values in frame[columns].drop_duplicates().itertuples(index=False):
        known: dict[str, Any] = dict(zip(NETWORK.values(), values, strict=True))
        for key, value in known.items():  # a column with gaps has floats
            known[key] = None if pd.isna(value) else int(value) if key.endswith("_seed") else value
        yield spec, network_name(known)


def _told_apart(called: Mapping[str, str]) -> dict[str, str]:
    """Networks in words, numbered where several are called alike."""
    taken: Counter[str] = Counter()
    names = {}
    for spec, text in called.items():
        taken[text] += 1
        names[spec] = text if taken[text] == 1 else f"{text} ({taken[text]})"
    return names


def _pairs(ones: Sequence[str], others: Sequence[str], between: str) -> list[str]:
    return [f"{one}{between}{other}" for one, other in zip(ones, others, strict=True)]


def _comparison(result: dict[str, Any], pair: tuple[str, str]) -> Frame:
    facts = {}
    for i, (spec, network) in enumerate(zip(pair, result["networks"], strict=True), start=1):
        facts |= {f"spec{i}": spec, f"network{i}": network_name(network)}
    return result["frame"].assign(**facts)[COMPARED]


def grouped(found: StudyResults, over: str) -> Frame:
    """Means of what the stitches reach, with 95% intervals, over pairs of networks or over seeds.

    over "seeds": a row for each pair, layers and options. "pairs": one for each layers and options; seeds of one pair
    are averaged first, so that the interval is that over networks. Columns: what tells rows apart, `n`, and for each
    measure m: m, m_low, m_high; Student's t, missing below FEW seeds or networks, see `interval`.
    """
    frame = found.stitches
    keys = [*(["networks"] if over == "seeds" else []), "front_layer", "end_layer", *found.axes]
    measures = [name for name in (*MEASURES, *found.controls) if frame[name].notna().any()]
    if over == "pairs":
        frame = _means(frame, [*ENDS, *keys], measures)
    mean, half = _spread(frame, keys, measures, over)
    columns = {"n": mean["n"]}
    for name in measures:
        low, high = interval(mean[name], half[name], bounded=name not in UNBOUNDED)
        columns |= {name: mean[name], f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(columns).reset_index()


def grouped_comparisons(found: StudyResults, over: str) -> Frame:
    """Means of what compares networks, as `grouped`: over pairs of networks, or, where over is "seeds", of each pair.

    Columns: `networks` of each pair, method, layer1, layer2, n, value, value_low, value_high.
    """
    keys = [*(["networks"] if over == "seeds" else []), "method", "layer1", "layer2"]
    frame = found.comparisons.rename(columns=dict(zip(NETWORKS, ENDS, strict=True)))
    mean, half = _spread(_means(frame, list(dict.fromkeys([*ENDS, *keys])), ["value"]), keys, ["value"], over)
    bounded = [metrics.MEASURES[name].range == (0, 1) for name in mean.index.get_level_values("method")]
    low, high = interval(mean["value"], half["value"], bounded=np.array(bounded))
    return mean[["n", "value"]].assign(value_low=low, value_high=high).reset_index()


def interval(mean: Frame, half: Frame, *, bounded: bool | Values) -> tuple[Frame, Frame]:
    """The ends of intervals, from means and half their width: mean - half and mean + half.

    bounded: of what lies between 0 and 1 they are taken on the logit scale, by the delta method (Korn and Graubard
    1998), so that they stay there: in samples as those of `_over_networks` with means of 80% to 95% such intervals hold
    the true mean 90% to 96% of the time, the others 74% to 94%, and often end above 100%. Values that are all 0, or
    all 1, have no width.
    """
    share = np.where(bounded, mean, np.nan)
    inside = (share > 0) & (share < 1)
    share = np.where(inside, share, 0.5)
    centre, reach = special.logit(share), half / (share * (1 - share))
    low, high = (np.where(inside, special.expit(centre + side * reach), mean + side * half) for side in (-1, 1))
    return low, high


def _spread(frame: Frame, keys: Sequence[str], measures: Sequence[str], over: str) -> tuple[Frame, Frame]:
    """Means with their number `n`, and half the width of their intervals, by what tells groups apart."""
    groups = frame.groupby(list(keys), sort=False, dropna=False)
    mean, width = groups[list(measures)].mean(), _over_networks if over == "pairs" else _over_rows
    half = np.array([width(group, measures) for _, group in groups]).reshape(-1, len(measures))
    return mean.assign(n=groups.size()), pd.DataFrame(half, mean.index, list(measures))


def _over_rows(group: Frame, measures: Sequence[str]) -> Values:
    """Half the width of the intervals of means of independent rows."""
    count, spread = group[measures].count().to_numpy(), group[measures].std().to_numpy()
    return _quantile(count) * spread / np.sqrt(count)


def _over_networks(group: Frame, measures: Sequence[str]) -> Values:
    """The same of rows that are pairs of networks, of which those that share a network are not independent.

    By a jackknife that leaves out each network with all its pairs (Tukey 1958). With 3 to 10 networks in all pairs,
    and values that are the sum of an effect of the front, one of the end and one of both, 1,500 samples each, such
    intervals hold the true mean 94.5% to 98.6% of the time; those of independent pairs 93% to 47%.
    """
    values = group[measures].to_numpy(float)
    there, values = ~np.isnan(values), np.nan_to_num(values)
    parts = []
    for network in dict.fromkeys([*group[ENDS[0]], *group[ENDS[1]]]):
        own = ((group[ENDS[0]] == network) | (group[ENDS[1]] == network)).to_numpy()
        left = np.where(there[own].any(0), there[~own].sum(0), 0)
        parts.append(np.where(left > 0, values[~own].sum(0) / np.maximum(left, 1), np.nan))
    means = np.array(parts)
    count = (~np.isnan(means)).sum(0)
    centre = np.nansum(means, 0) / np.maximum(count, 1)
    error = np.sqrt(np.maximum(count - 1, 0) / np.maximum(count, 1) * np.nansum((means - centre) ** 2, 0))
    return _quantile(np.minimum(count, there.sum(0))) * error


def _quantile(count: Values) -> Values:
    return stats.t.ppf(0.975, np.where(count >= FEW, count - 1, np.nan))


def _means(frame: Frame, keys: Sequence[str], measures: Sequence[str]) -> Frame:
    return frame.groupby(list(keys), sort=False, dropna=False)[list(measures)].mean().reset_index()


def command_of(bundle: Bundle, spec: StitchSpec | CompareSpec) -> tuple[str, str]:
    """The command line that makes a stitch alone: what its pair of networks has in common with others, and the rest."""
    assert isinstance(spec, StitchSpec)
    settings = bundle.settings
    usual = StitchSpec("", "", lr=usual_rate(whiten=spec.whiten))
    words = [spec.front_layer, spec.end_layer]
    for option in OPTIONS:
        value = getattr(spec, option.field)
        if value != getattr(usual, option.field):
            words += [option.flags[-1], *([] if option.kind == "flag" else [_text(value)])]
    words += ["--amp"] * spec.amp
    for name in ("dataset", "evaluate_on", "image_size"):
        if (value := asdict(settings)[name]) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--controls", ",".join(settings.controls)] if settings.controls else []
    words += ["--ood"] * settings.ood + ["--no-similarity"] * (not settings.similarity)
    return shlex.join(["python", "stitch_nets.py", *bundle.pair]), shlex.join(words)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else setting_text(value)
