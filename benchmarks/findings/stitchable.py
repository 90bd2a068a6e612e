"""From which layer on a stitch is evidence of anything: the claim of stitchability beside its controls."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.drawing import line, panels
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, means, named, plain, relative
from src.studies.frames import Frame

STAGES = ("before", "after")
CEILINGS = ("self", "self_random")
FLOORS = ("labels", "probe", "untrained", "shuffled", "constant")
AGAINST = ("untrained", "labels")


def reduce(runs: Runs) -> dict[str, Frame]:
    """Accuracies relative to the end's, of thirty pairs, and with their controls of six."""
    frames = {}
    for key, study, controls in (("", "layers", ()), ("held", "held", (*CEILINGS, *FLOORS))):
        columns = {name: f"accuracy_{name}" for name in (*STAGES, *controls)}
        found = runs.results(study).stitches
        frames[key] = named(relative(found, columns.values()), {"layer": "front_layer", **columns})
    return frames


def summary(frames: Mapping[str, Frame]) -> Frame:
    """A row a layer: means with intervals, those of controls beside those of the same six pairs."""
    held = frames["held"]
    held = held.assign(**{f"less_{name}": held["after"] - held[name] for name in AGAINST})
    controls = [*CEILINGS, *FLOORS, *(f"less_{name}" for name in AGAINST)]
    ours = means(frames[""], ["layer"], STAGES)
    return pd.merge(ours, means(held, ["layer"], controls), on="layer", how="left", suffixes=("", "_held"))


def verdict(row: Mapping) -> str:
    """Which control a trained stitch does not surpass, by the interval of the difference."""
    reached = [name for name in AGAINST if not row[f"less_{name}_low"] > 0]
    return "; ".join(f"`{name}` reaches it" for name in reached) or "more than both"


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    head = ["layer", *STAGES, *CEILINGS, *FLOORS, *(f"after less {name}" for name in AGAINST), "after is"]
    rows = [head]
    for row in summary(frames).to_dict(orient="records"):
        shown = [cell(row, name) for name in STAGES]
        shown += [plain(row[name]) for name in (*CEILINGS, *FLOORS)]
        shown += [cell(row, f"less_{name}", signed=True) for name in AGAINST]
        rows.append([f"`{row['layer']}`", *shown, verdict(row)])
    return {"stitchable": rows}


def picture(frames: Mapping[str, Frame]) -> Figure:
    rows = summary(frames)
    layers = in_order(rows["layer"])
    numbers = {name: number for number, name in enumerate(("after", "before", *CEILINGS, *FLOORS))}

    def lines(names: tuple[str, ...]) -> list:
        return [line(name, rows, "layer", layers, name, numbers[name]) for name in names]

    shown = {
        "What a stitch can reach": lines(("after", "before", *CEILINGS)),
        "What it must surpass": lines(("after", *FLOORS)),
    }
    return panels(
        shown,
        layers,
        title="Stitches of six Tiny10 on CIFAR-10, beside their controls",
        x="stitched layer",
        y="accuracy / accuracy of end (%)",
        note="after, before: means of 30 ordered pairs; controls: of 6; bars: 95% intervals over networks",
    )
