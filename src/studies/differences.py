"""Tests between groups of pairs of networks: whether one reaches more than another, beyond these networks alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.core.errors import UserError
from src.core.text import close_to
from src.results.text import columns_text, fill
from src.studies.frames import ENDS, FACTS, LAYERS, NETWORKS, Frame, StudyResults, subsets
from src.studies.means import FEW, MEASURES
from src.studies.table import heading, key_text, scale

# columns of a fact of the two networks: of stitches, and of comparisons
STITCHED, COMPARED = ("front_{}", "end_{}"), ("{}1", "{}2")
COLUMNS = [
    "measure",
    "group",
    "against",
    "n_group",
    "n_against",
    "networks",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
]


def groupings(results: StudyResults) -> list[str]:
    """What the stitches of a study can be grouped by: that in which they differ."""
    return [*results.axes, *_facts(results.stitches, STITCHED)]


def differences(results: StudyResults, by: str) -> Frame:
    """Mean of one group of pairs less that of another, for each measure, and whether that is more than chance.

    by: an axis of the study, or one of FACTS, of which a pair has front and end. Within each couple of layers, and each
    of the other axes, every group is held against the first. Seeds of a pair are averaged first. Error and degrees of
    freedom are those of a jackknife that leaves out one network with all its pairs, from both groups, so that the
    networks are the units; missing below FEW networks. Holm's correction is over the rows of a measure.
    Columns: the layers and other axes, then COLUMNS. Raises UserError for what the pairs cannot be grouped by.
    """
    known = groupings(results)
    if by not in known:
        raise _not_told_apart("stitches", by, known)
    frame = results.stitches.assign(_group=_groups(results.stitches, by))
    keys = [*LAYERS, *(axis for axis in results.axes if axis != by)]
    measures = [name for name in (*MEASURES, *results.controls) if frame[name].notna().any()]
    means = frame.groupby([*ENDS, *keys, "_group"], sort=False, dropna=False)[measures].mean().reset_index()
    rows = [
        {**dict(zip(keys, key, strict=True)), **row}
        for key, part in subsets(means, keys)
        for row in _rows(part, measures)
    ]
    if not rows:
        raise UserError(f"no layers have stitches of more than one {by}")
    return _with_holm(pd.DataFrame(rows, columns=[*keys, *COLUMNS]), "measure")


def comparison_differences(results: StudyResults, by: str) -> Frame:
    """The same of what compares networks, by a fact of both networks; columns: method, layer1, layer2, COLUMNS.

    Before COLUMNS those by which the study compares in several ways.
    """
    keys = ["method", "layer1", "layer2", *results.ways]
    frame = results.comparisons.rename(columns=dict(zip(NETWORKS, ENDS, strict=True)))
    frame = frame.assign(_group=_words(_of_both(frame, by, COMPARED)))
    rows = [
        {**dict(zip(keys, key, strict=True)), **row, "measure": key[0]}
        for key, part in subsets(frame, keys)
        for row in _rows(part, ["value"])
    ]
    columns = [*keys, *(name for name in COLUMNS if name != "measure")]
    return _with_holm(pd.DataFrame(rows, columns=columns), "method")


def difference_tables(results: StudyResults, by: str) -> dict[str, tuple[Frame, list[str]]]:
    """Tests of stitches and of comparisons: frames, and lines for a terminal, of the measure that charts show.

    Comparisons can be grouped by FACTS in which their networks differ, stitches by options, too. Raises UserError where
    neither can.
    """
    tables = {}
    if by in _facts(results.comparisons, COMPARED):
        frame = comparison_differences(results, by)
        tables["comparisons"] = frame, [fill(f"differences of methods by {by}"), *difference_lines(frame, [])]
    if len(results.stitches) and (by in groupings(results) or not tables):
        frame = differences(results, by)
        unit = " (points)" if scale(results.value) > 1 else ""
        title = f"{results.value}{unit}: differences between groups of pairs by {by}; the units are networks"
        tables = {"stitches": (frame, [fill(title), *difference_lines(frame, [results.value])])} | tables
    if not tables:
        raise _not_told_apart("comparisons", by, _facts(results.comparisons, COMPARED))
    return tables


def _not_told_apart(what: str, by: str, known: Sequence[str]) -> UserError:
    text = f"{what} are not told apart by {by!r}{close_to(by, known)}"
    return UserError(f"{text}; choose from {', '.join(known) or 'nothing'}")


def _facts(frame: Frame, columns: Sequence[str]) -> list[str]:
    """The facts of both networks in which pairs differ."""
    return [fact for fact in FACTS if len(set(_of_both(frame, fact, columns))) > 1]


def _of_both(frame: Frame, fact: str, columns: Sequence[str] = STITCHED) -> list[tuple[Any, Any]]:
    """A fact of the first and the second network of each row; columns: how these are called, with {} for the fact."""
    sides = [frame[column.format(fact)] for column in columns]
    return list(zip(*(side.astype(object).where(side.notna(), None) for side in sides), strict=True))


def _groups(frame: Frame, by: str) -> list[str]:
    """The group of each row, in words."""
    return _words(_of_both(frame, by)) if by in FACTS else [key_text(by, value) for value in frame[by]]


def _words(both: Sequence[tuple[Any, Any]]) -> list[str]:
    return [str(one) if one == other else f"{one} \N{RIGHTWARDS ARROW} {other}" for one, other in both]


def _rows(part: Frame, measures: Sequence[str]) -> Iterator[dict[str, Any]]:
    groups = list(dict.fromkeys(part["_group"]))
    for group in groups[1:]:
        ones, others = (part[part["_group"] == name] for name in (group, groups[0]))
        for measure in measures:
            here, there = ones.dropna(subset=[measure]), others.dropna(subset=[measure])
            if len(here) and len(there):
                counts = {"n_group": len(here), "n_against": len(there)}
                yield {
                    "measure": measure,
                    "group": group,
                    "against": groups[0],
                    **counts,
                    **_test(here, there, measure),
                }


def _test(ones: Frame, others: Frame, measure: str) -> dict[str, float]:
    """Difference of means, its 95% interval and two-sided p, each network left out with its pairs in turn (Tukey 1958).

    With no effect, and values that are the sum of an effect of either network and of both, p is below .05 in about as
    many cases: tests draw such samples.
    """
    difference = float(ones[measure].mean() - others[measure].mean())
    networks = dict.fromkeys(name for part in (ones, others) for end in ENDS for name in part[end])
    left_out = []
    for network in networks:
        kept = [part[(part[ENDS] != network).all(axis=1)] for part in (ones, others)]
        if all(map(len, kept)):
            left_out.append(float(kept[0][measure].mean() - kept[1][measure].mean()))
    tested = {"networks": len(networks), "difference": difference, "low": np.nan, "high": np.nan, "p": np.nan}
    count = len(left_out)
    if count < max(FEW, len(networks)):  # a network without which a group is empty cannot be left out
        return tested
    spread = np.array(left_out) - np.mean(left_out)
    error = float(np.sqrt((count - 1) / count * np.sum(spread**2)))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    ratio = abs(difference) / error if error else (np.inf if difference else 0.0)
    p = 2 * float(stats.t.sf(ratio, count - 1))
    return tested | {"low": difference - half, "high": difference + half, "p": p}


def _with_holm(frame: Frame, measure: str) -> Frame:
    """p corrected for the rows of a measure (Holm 1979): the least times as many as are left, and never falling."""
    frame["p_holm"] = np.nan
    for _, part in frame.groupby(measure, sort=False):
        known = part["p"].dropna().sort_values(kind="stable")
        times = np.arange(len(known), 0, -1)
        frame.loc[known.index, "p_holm"] = np.minimum(np.maximum.accumulate(known.to_numpy() * times), 1)
    return frame


def difference_lines(frame: Frame, measures: Sequence[str], shown: int = 40) -> list[str]:
    """The first rows of some measures for a terminal."""
    chosen = frame[frame["measure"].isin(measures)] if "measure" in frame else frame
    keys = [str(name) for name in chosen if name not in COLUMNS]
    rows = []
    for row in chosen.head(shown).to_dict(orient="records"):
        unit = scale(str(row.get("measure", "")))
        digits = 1 if unit > 1 else 3
        low, high = (f"{unit * row[end]:.{digits}f}" for end in ("low", "high"))
        rows.append(
            {heading(key): key_text(key, row[key]) for key in keys}
            | {"group": f"{row['group']} - {row['against']}", "networks": str(row["networks"])}
            | {"difference": f"{unit * row['difference']:.{digits}f}"}
            | {"95% interval": "" if np.isnan(row["p"]) else f"[{low}, {high}]"}
            | {name: "" if np.isnan(row[key]) else f"{row[key]:.4f}" for name, key in (("p", "p"), ("Holm", "p_holm"))}
        )
    if not rows:
        return []
    more = [f"and {len(chosen) - shown} more rows"] if len(chosen) > shown else []
    return [columns_text(rows, right=("networks", "difference", "95% interval", "p", "Holm")), *more]
