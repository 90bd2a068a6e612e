"""The sections of docs/findings.md, a line each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.findings import (
    architectures,
    mislead,
    more_is_better,
    part_ways,
    predict,
    ranks,
    recognition,
    starts,
    stitchable,
)
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows
from src.studies.frames import Frame


@dataclass(frozen=True, slots=True)
class Section:
    """A line of SECTIONS.

    number, name: on the page, and of its files. studies: the files that it needs. reduce: from their results to small
    frames, by the ends of their files' names. tables: from these to tables by name; picture: to its picture. minutes:
    what a section takes beside the estimates of its studies, when it is made for the first time.
    """

    number: int
    name: str
    studies: tuple[str, ...]
    reduce: Callable[[Runs], dict[str, Frame]]
    tables: Callable[[Mapping[str, Frame]], dict[str, Rows]]
    picture: Callable[[Mapping[str, Frame]], Figure]
    minutes: float = 0.0


BLOCKS, KINDS = ("architectures", "families"), ("fractions", "widths")
SECTIONS = {
    section.name: section
    for section in (
        Section(1, "stitchable", ("layers", "held"), stitchable.reduce, stitchable.tables, stitchable.picture),
        Section(2, "part-ways", ("layers", "objectives"), part_ways.reduce, part_ways.tables, part_ways.picture),
        Section(3, "starts", ("starts",), starts.reduce, starts.tables, starts.picture),
        Section(4, "ranks", ("ranks",), ranks.reduce, ranks.tables, ranks.picture, 3),
        Section(5, "predict", predict.STUDIES, predict.reduce, predict.tables, predict.picture, 6),
        Section(6, "architectures", BLOCKS, architectures.reduce, architectures.tables, architectures.picture),
        Section(7, "mislead", (), mislead.reduce, mislead.tables, mislead.picture, 30),
        Section(8, "data", KINDS, more_is_better.reduce, more_is_better.tables, more_is_better.picture),
        Section(9, "recognition", ("metrics",), recognition.reduce, recognition.tables, recognition.picture, 15),
    )
}
