"""What a study file may say, checked key by key."""

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from src.core.errors import UserError
from src.core.options import CHECKS, FLAG, check_of, one_of, text
from src.dataset import SPLITS, canonical_dataset
from src.evaluation.identical import DATA, IDENTICAL
from src.metrics import MEASURES
from src.metrics.own import is_own, name_own
from src.stitching.controls import choose_controls
from src.stitching.options import OPTIONS
from src.stitching.stitch_spec import PRECISIONS
from src.studies.toml import Document

PAIRS = ("all", "once", "self")
LAYER_PAIRS = ("all", "zip")


def several(check: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """One value, or a list of them without repetition."""

    def check_all(value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UserError("an empty list")
        return list(dict.fromkeys(check(one) for one in values))

    return check_all


def layers(value: Any) -> str:
    """Names, patterns or all, as the scripts take them: in one text, with commas."""
    return ",".join(several(text)(value))


def metric(value: Any) -> str:
    """A measure that is known, or one of the user's own, which the study names so; it runs when it is planned."""
    return name_own(value) if isinstance(value, str) and is_own(value) else one_of(*MEASURES)(value)


def controls(value: Any) -> list[str]:
    return choose_controls(",".join(several(text)(value)))


def pairs(value: Any) -> str | list[tuple[str, str]]:
    if isinstance(value, list):
        found = [tuple(map(text, one)) for one in value if isinstance(one, list) and len(one) == 2]
        if not value or len(found) != len(value):
            raise UserError("a list of pairs has two networks in each: [[front, end], ...]")
        return list(dict.fromkeys(found))  # pyright: ignore[reportReturnType]
    return one_of(*PAIRS)(value)


_LAYERS = {"layers": (layers, None), "front_layers": (layers, None), "end_layers": (layers, None)}
# key -> (check, default); `...` where it has to be there
AXES = {option.field: (several(check_of(option)), None) for option in OPTIONS}
AXES |= {name: (several(FLAG), None) for name in PRECISIONS}
# of a table alone, where it says others than the study does
_NETWORKS = {"networks": (several(text), None), "pairs": (pairs, None)}
STITCH = _NETWORKS | _LAYERS | {"layer_pairs": (one_of(*LAYER_PAIRS), "all")} | AXES
COMPARE = (
    _NETWORKS
    | _LAYERS
    | {
        "metrics": (several(metric), ...),
        "view": (one_of("images", "channels"), None),
        "group_at": (CHECKS["positive"], None),
        "split": (one_of(*SPLITS), "val"),
        "save": (FLAG, False),
        "on": (one_of(DATA, IDENTICAL), DATA),
        "iri_images": (CHECKS["positive"], None),
        "iri_steps": (CHECKS["natural"], None),
    }
)
STUDY = {
    "networks": (several(text), []),
    "pairs": (pairs, "all"),
    "dataset": (lambda value: canonical_dataset(text(value)), None),
    "evaluate_on": (lambda value: canonical_dataset(text(value)), None),
    "image_size": (CHECKS["positive"], None),
    "images": (CHECKS["positive"], None),
    "batch_dependent": (FLAG, False),
    "controls": (controls, []),
    "ood": (FLAG, False),
    "similarity": (FLAG, True),
    "seeds": (several(CHECKS["seed"]), [0]),
    "minutes": (CHECKS["positive_float"], 15.0),
    "stitch": (STITCH, []),
    "compare": (COMPARE, []),
    "submitit": (lambda value: value, {}),
}
TABLES = {"stitch": STITCH, "compare": COMPARE}


class Study:
    """A checked study file: its `name`, its `document` and what it `says`, key by key as STUDY has them.

    Raises UserError as FILE:LINE: KEY: why, for the first complaint.
    """

    def __init__(self, path: Path) -> None:
        self.document = Document(path)
        self.name = path.stem
        self.says: Any = _check(self.document)
        for number, table in enumerate(self.says.stitch + self.says.compare):
            kind = "stitch" if number < len(self.says.stitch) else "compare"
            place = (kind, number - len(self.says.stitch) * (kind == "compare"))
            sides = [table.front_layers, table.end_layers]
            if (table.layers is None) == (None in sides) or (table.layers and any(sides)):
                raise self.document.complaint(place, "names either layers, or both front_layers and end_layers")
            asked = self.says.pairs if table.pairs is None else table.pairs
            if isinstance(asked, str) and not (table.networks or self.says.networks):
                raise self.document.complaint((), f"networks: is missing, for pairs = {asked!r}")
        if not self.says.stitch and not self.says.compare:
            raise self.document.complaint((), "nothing to do: neither [[stitch]] nor [[compare]]")


def _check(document: Document) -> Any:
    try:
        pydantic = importlib.import_module("pydantic")
    except ImportError:
        raise UserError("pydantic is not installed: pip install -r requirements-studies.txt") from None
    try:
        return _model(pydantic, "Study", STUDY)(**document.values)
    except pydantic.ValidationError as error:
        problems = error.errors()
        problems.sort(key=lambda problem: document.line(problem["loc"]))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise document.complaint(problems[0]["loc"], _reason(problems[0]) + more) from None


def _model(pydantic: Any, name: str, table: dict[str, Any]) -> Any:
    """A pydantic model of a table of keys; the checks say what they want in words of their own."""
    fields: dict[str, Any] = {}
    for key, (check, default) in table.items():
        if isinstance(check, dict):
            part = list[_model(pydantic, key, check)]
            fields[key] = Annotated[part, pydantic.BeforeValidator(_as_list)], default
        else:
            fields[key] = Annotated[Any, pydantic.AfterValidator(check)], default
    return pydantic.create_model(name, __config__={"extra": "forbid"}, **fields)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reason(problem: dict[str, Any]) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        *above, key = (part for part in problem["loc"] if isinstance(part, str))
        known: Sequence[str] = list(TABLES[above[0]] if above else STUDY)
        near = difflib.get_close_matches(key, known, 1)
        return "no such key" + (f"; {near[0]}?" if near else f"; known are {', '.join(known)}")
    known_kinds = {"missing": "is missing", "model_type": "is no table", "list_type": "is no table"}
    return known_kinds.get(problem["type"]) or str(problem["msg"]).lower()
