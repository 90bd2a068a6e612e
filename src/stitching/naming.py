"""What stitches are called beside each other."""

from collections.abc import Sequence
from typing import Any

from src.stitching.options import VARIED
from src.stitching.stitch_spec import StitchSpec


def spec_names(specs: Sequence[StitchSpec]) -> list[str]:
    """What stitches, and their files, are called beside each other: <front>-<end>[,<what differs>]."""
    differing = varied(specs)
    names = []
    for spec in specs:
        parts = [f"{spec.front_layer or 'output'}-{spec.end_layer or 'output'}"]
        settings = {name: setting_text(getattr(spec, name)).replace(",", "-") for name in differing}
        names.append(",".join(parts + [f"{name}={text}" for name, text in settings.items()]))
    return names


def varied(specs: Sequence[Any]) -> list[str]:
    """The options, beside layers, in which some stitches differ."""
    return [name for name in VARIED if len({getattr(spec, name) for spec in specs}) > 1]


def setting_text(value: Any) -> str:
    """An option's value in a word: 0.001, semi-match, full for no rank."""
    return "full" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
