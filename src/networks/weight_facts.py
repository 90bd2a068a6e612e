"""What a weight file says of itself, checked when it is read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from src.core.errors import UserError
from src.core.records import DIGEST, NATURAL, NETWORK, TEXT, Maybe, Several, check, check_key, short

FORMAT = 1
_RECIPE = {key: NETWORK[key] for key in ("train_fraction", "shuffle_labels", "adversarial")}
_TABLE = {
    **{key: NETWORK[key] for key in ("model", "dataset", "init_seed", "gradient_seed", "iteration", "preprocessing")},
    "format": NATURAL,
    "labels": Maybe(Several(TEXT)),
    "source_sha256": Maybe(DIGEST),
}


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What a weight file says of itself; None for what is unsaid."""

    model: str | None = None
    dataset: str | None = None
    init_seed: int | None = None
    gradient_seed: int | None = None
    iteration: int | None = None
    recipe: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None
    labels: list[str] | None = None

    @classmethod
    def from_file(cls, path: Path, record: dict[str, Any]) -> "WeightFacts":
        """Of the record of a file; raises UserError for another format, and for what no network can be."""
        if type(record["format"]) is not int or record["format"] != FORMAT:
            raise UserError(f"{path} has the format {short(record['format'])}, and this version reads {FORMAT}")
        try:
            check(record, _TABLE)
            recipe = record.get("recipe") if isinstance(record.get("recipe"), dict) else None
            check(recipe or {}, _RECIPE)
            for key in recipe or {}:
                check_key(key, str, "recipe")
        except UserError as error:
            raise UserError(f"{path} says of itself what no network can be: {error}") from None
        recipe = recipe and {key: value for key, value in recipe.items() if _is_plain(value)}
        known = {name: record.get(name) for name in cls.__slots__ if name != "recipe"}
        return cls(**known, recipe=recipe)

    def facts(self) -> dict[str, Any]:
        """All of it, with what of the recipe tells networks apart where it is said."""
        told = {key: value for key, value in (self.recipe or {}).items() if key in _RECIPE and value is not None}
        return asdict(self) | {"recipe": self.recipe} | told


def _is_plain(value: Any) -> bool:
    """Whether it is of built-in values, as every recipe of ours; what a later version adds beside these is not read."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_state(path: Path, state: Any) -> dict[str, Tensor]:
    """The state dict of a weight file; UserError where it is none of plain tensors by name."""
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    for name in state:
        check_key(name, str, f"{path}: its state dict")
    return dict(state)
