"""What stitches are called beside each other."""

from collections.abc import Sequence
from typing import Any

from src.stitching.families import WIDENINGS, family_name
from src.stitching.options import VARIED
from src.stitching.stitch_spec import LATER, StitchSpec

FAMILY = "family"
_FILE = str.maketrans({",": "-", ":": "-", " ": ""})  # what the name of a file cannot hold, or uses otherwise


def spec_names(specs: Sequence[StitchSpec]) -> list[str]:
    """What stitches, and their files, are called beside each other: <front>-<end>[,<what differs>]."""
    differing = varied(specs)
    names = []
    for spec in specs:
        parts = [f"{spec.front_layer or 'output'}-{spec.end_layer or 'output'}"]
        settings = {name: setting_of(spec, name).translate(_FILE) for name in differing}
        names.append(",".join(parts + [f"{name}={text}" for name, text in settings.items()]))
    return names


def varied(specs: Sequence[Any]) -> list[str]:
    """The options, beside layers, in which some stitches differ; those that make a family are one, `family`."""
    names = dict.fromkeys(FAMILY if name in (*WIDENINGS, FAMILY) else name for name in (*VARIED, FAMILY))
    return [name for name in names if len({setting_of(spec, name) for spec in specs}) > 1]


def setting_of(spec: Any, name: str) -> str:
    """An option of a spec, or of what has fields of one, in a word."""
    if name == FAMILY:
        return family_name(spec)
    return setting_text(getattr(spec, name, LATER.get(name)))  # which results of before do not say


def setting_text(value: Any) -> str:
    """An option's value in a word: 0.001, semi-match, full for no rank."""
    return "full" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
