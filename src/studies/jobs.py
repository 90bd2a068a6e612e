"""The unit of work of a study: all that is to be done between two networks on one data set, or a part of it."""

import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from src.core.digests import digest
from src.core.errors import UserError
from src.core.records import ANY, FINITE, FLAG, NATURAL, POSITIVE, SIZE, TEXT, Each, Kind, Maybe, Several, check
from src.evaluation.identical import DATA, STEPS
from src.metrics.own import load_own
from src.networks.source_spec import Named
from src.stitching import StitchSpec
from src.stitching.stitch_spec import spec_table


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """A grid of layers compared by some metrics; `save`: the activations are kept beside the result.

    on: the images of a split, or for each layer of the first network so many inputs (`iri_images`) that it cannot tell
    from them, made by so many steps.
    """

    front_layers: tuple[str, ...]
    end_layers: tuple[str, ...]
    metrics: tuple[str, ...]
    view: str | None = None
    group_at: int | None = None
    split: str = "val"
    save: bool = False
    on: str = DATA
    iri_images: int = 0
    iri_steps: int = STEPS

    def key(self, **surroundings: Any) -> str:
        """A digest of what decides the values: the spec, weights, preprocessing, images, files of the user's metrics.

        Raises FileNotFoundError or UserError where such a file does not run.
        """
        own = load_own(self.metrics)
        surroundings |= {"own_metrics": own} if own else {}
        later = {"on": DATA, "iri_images": 0, "iri_steps": STEPS}  # results on data keep the keys of before these came
        values = {
            name: value
            for name, value in asdict(self).items()
            if name != "save" and not (name in later and value == later[name])
        }
        return digest({"format": 1, "compare": values, "surroundings": surroundings})

    def names(self, **surroundings: Any) -> tuple[str, str]:
        """The stem of its file, and its key; a comparison that keeps activations is another file."""
        asked = {"asked": {"save": True}} if self.save else {}
        return self.key(**surroundings, **asked), self.key(**surroundings)


@dataclass(frozen=True, slots=True)
class Item:
    """One result to be made: the stem of its file, the key of what it is of, and its spec.

    The stem is the key, unless the study asks for more than the key knows, such as controls.
    """

    name: str
    key: str
    spec: StitchSpec | CompareSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """What all results of a study have in common."""

    study: str
    dataset: str | None = None
    evaluate_on: str | None = None
    image_size: int | None = None
    controls: tuple[str, ...] = ()
    ood: bool = False
    similarity: bool = True
    images: int | None = None
    batch_dependent: bool = False

    @property
    def extras(self) -> dict[str, Any]:
        """What is asked of a stitch beside itself, and not known to its key."""
        asked = {"controls": list(self.controls), "ood": self.ood, "similarity": self.similarity}
        usual = {"controls": [], "ood": False, "similarity": True}
        return {name: value for name, value in asked.items() if value != usual[name]}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Results of one pair of networks that one process makes together; `seconds` is an estimate.

    `name` tells it apart from other bundles, and stays when some of its results are there already. `named` says that
    the study's TOML names both networks, which no record of a bundle can say.
    """

    name: str
    pair: tuple[str, str]
    settings: Settings
    items: tuple[Item, ...]
    seconds: float = 0.0
    named: bool = False

    @classmethod
    def of(cls, pair: tuple[str, str], settings: Settings, items: Iterable[Item], seconds: float) -> "Bundle":
        items = tuple(items)
        return cls(digest([item.name for item in items])[:16], pair, settings, items, seconds)

    @property
    def networks(self) -> tuple[str | Named, str | Named]:
        """The specs of its pair, to be opened."""
        front, end = self.pair
        return (Named(front), Named(end)) if self.named else (front, end)

    @property
    def is_comparison(self) -> bool:
        return isinstance(self.items[0].spec, CompareSpec)

    def without(self, names: Collection[str]) -> "Bundle":
        """What is left of it when some results are there."""
        return replace(self, items=tuple(item for item in self.items if item.name not in names))

    def halves(self) -> "list[Bundle]":
        """Two bundles of it, so that one stitch that fails takes ever fewer others along.

        Twins stay together unless there is nothing else.
        """
        half = len(self.items) / 2
        twins = [item.spec.twin if isinstance(item.spec, StitchSpec) else item.spec for item in self.items]
        between = [place for place in range(1, len(twins)) if twins[place - 1] != twins[place]]
        middle = min(between or range(1, len(twins)), key=lambda place: abs(place - half), default=0)
        parts = self.items[:middle], self.items[middle:]
        made = [Bundle.of(self.pair, self.settings, part, self.seconds / 2) for part in parts]
        return [replace(one, named=self.named) for one in made]


_KEY = Kind("a digest", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)
_BUNDLE = {"pair": Several(TEXT, 2), "settings": Each(ANY), "seconds": FINITE, "items": Several(ANY, 10_000_000)}
_SETTINGS = {
    "study": TEXT,
    "dataset": Maybe(TEXT),
    "evaluate_on": Maybe(TEXT),
    "image_size": Maybe(SIZE),
    "controls": Several(TEXT),
    "ood": FLAG,
    "similarity": FLAG,
    "images": Maybe(POSITIVE),
    "batch_dependent": FLAG,
}
_COMPARE = {
    "front_layers": Several(TEXT),
    "end_layers": Several(TEXT),
    "metrics": Several(TEXT),
    "view": Maybe(TEXT),
    "group_at": Maybe(POSITIVE),
    "split": TEXT,
    "save": FLAG,
    "on": TEXT,
    "iri_images": NATURAL,
    "iri_steps": NATURAL,
}


def to_record(bundle: Bundle) -> dict[str, Any]:
    """Built-in values that `from_record` makes the bundle of."""
    items = [
        [item.name, item.key, item.spec.values() if isinstance(item.spec, StitchSpec) else asdict(item.spec)]
        for item in bundle.items
    ]
    settings = asdict(bundle.settings)
    return {"pair": list(bundle.pair), "settings": settings, "seconds": bundle.seconds, "items": items}


def from_record(record: dict[str, Any]) -> Bundle:
    """The bundle of a record; raises UserError for what is none, and for names that are no digests."""
    check(record, _BUNDLE, required=_BUNDLE)
    check(record["settings"], _SETTINGS, required=_SETTINGS)
    settings = Settings(**{field.name: record["settings"][field.name] for field in fields(Settings)})
    settings = replace(settings, controls=tuple(settings.controls))
    items = []
    for item in record["items"]:
        if not isinstance(item, list) or len(item) != 3:
            raise UserError("an item is no name, key and spec")
        name, key, spec = item
        for text in (name, key):
            check(text, _KEY, place="an item's name")  # the name of a file is made of it
        check(spec, Each(ANY))
        items.append(Item(name, key, _spec_of(spec)))
    if not items or len(record["pair"]) != 2:
        raise UserError("a bundle holds no work")
    return Bundle.of((record["pair"][0], record["pair"][1]), settings, items, float(record["seconds"]))


def _spec_of(record: dict[str, Any]) -> StitchSpec | CompareSpec:
    made, table = (CompareSpec, _COMPARE) if "metrics" in record else (StitchSpec, spec_table())
    check(record, table, required=table)
    if made is CompareSpec:
        record = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return made(**{key: record[key] for key in table})
