"""Everything that decides a stitch, and nothing about files or devices."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

from src.core.digests import digest
from src.core.errors import UserError
from src.core.records import FINITE, FLAG, NATURAL, POSITIVE, TEXT, Maybe
from src.evaluation.identical import DATA, IDENTICAL, STEPS
from src.stitching.exclusions import check_options
from src.stitching.families import family_name
from src.stitching.inits import init_of
from src.stitching.masks import MASKS, SPELLINGS
from src.stitching.start import needs_moments
from src.stitching.targets import AT_STITCH, TARGETS, TrainingStage, stages_of
from src.training.recipe import ELEMENTWISE, Recipe

PRECISIONS = ("amp", "tf32")  # of training, where it is less than float32
TRAIN_ON = (DATA, IDENTICAL)
RATE, WHITENED_RATE = 1e-3, 2e-2  # learning rates that nobody asked for
_OF_TYPE = {"str": TEXT, "bool": FLAG, "int": NATURAL, "float": FINITE, "int | None": Maybe(POSITIVE)}
FORMAT, WHITENED_FORMAT = 1, 3  # of keys: a change of what a spec means makes other keys


# Fields that were there before others came. A field that is none of these stands in a key only where it is not at its
# default, so that results of before it came keep their keys; and a result without it is one with its default.
FIRST = (
    *("front_layer", "end_layer", "init", "mask", "low_rank", "orthogonal", "flatten", "resize", "target_type"),
    *("temperature", "l1", "cka_reg", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "seed"),
    *("save_frequency", "whiten", "amp", "debug"),
)


class Cut(NamedTuple):
    """Where two networks are cut for a stitch, and what becomes of the activations there."""

    source: str
    front_layer: str
    end_layer: str
    flatten: bool
    resize: bool


class TrainingInputs(NamedTuple):
    """What stitches are trained on: the data, or inputs that the front network cannot tell from these at a layer.

    images: so many of a fixed subset, unaugmented; 0 stands for all, augmented as usual.
    """

    kind: str
    images: int
    steps: int = 0
    front_layer: str = ""


@dataclass(frozen=True, slots=True)
class StitchSpec:
    """One stitch: where it is, what its matrix may be, where it starts and how it is trained.

    Fields are the options of stitch_nets.py by their names. Whole numbers in fields of floating-point numbers are
    converted. Raises UserError for options that exclude each other or are out of range.
    """

    # no fields of it: the network whose front it takes, and whether it takes none
    source = "front"
    constant = False

    front_layer: str
    end_layer: str
    init: str = "random"
    mask: str = "identity"
    low_rank: int | None = None
    orthogonal: bool = False
    flatten: bool = False
    resize: bool = False
    target_type: str = "hard"
    temperature: float = 1.0
    l1: float = 0.0
    cka_reg: float = 0.0
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = RATE
    weight_decay: float = 1e-4
    seed: int = 0
    save_frequency: int = 10
    whiten: bool = False
    amp: bool = False
    debug: bool = False
    stage_epochs: str = ""
    match_layers: str = ""
    early_stop: int = 0
    cosine: bool = False
    train_on: str = DATA
    iri_images: int = 0
    iri_steps: int = STEPS
    kernel: int = 0
    hidden: int = 0
    norm: bool = False
    train_end_norm: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        for name in FLOATS:
            if type(value := getattr(self, name)) is int:
                object.__setattr__(self, name, float(value))
        if self.mask in SPELLINGS:
            object.__setattr__(self, "mask", SPELLINGS[self.mask])
        init_of(self.init)
        for name, table in (("mask", MASKS), ("optimizer", ELEMENTWISE), ("train_on", TRAIN_ON)):
            if getattr(self, name) not in table:
                known = ", ".join(sorted(table))
                raise UserError(f"unknown {name.replace('_', ' ')} {getattr(self, name)!r}; choose from {known}")
        _ = self.recipe, self.stages
        check_options(self.values(), USUAL)

    @property
    def recipe(self) -> Recipe:
        """How it is trained, all stages as one."""
        return self.recipe_for(self.epochs)

    def recipe_for(self, epochs: int) -> Recipe:
        cosine = self.whiten or self.cosine
        return Recipe(epochs, self.batch_size, self.optimizer, self.lr, self.weight_decay, cosine=cosine)

    @property
    def stages(self) -> list[TrainingStage]:
        """What it is trained for, one after the other."""
        return stages_of(self.target_type, self.epochs, self.stage_epochs)

    @property
    def together(self) -> tuple[Any, ...]:
        """What stitches of the same images agree in that train side by side: what decides and computes the batches."""
        length = self.epochs, self.stage_epochs, self.early_stop
        return self.seed, *length, self.batch_size, self.amp, self.tf32, self.debug

    @property
    def inputs(self) -> TrainingInputs:
        """What it is trained on."""
        if self.train_on == DATA:
            return TrainingInputs(DATA, self.iri_images)
        return TrainingInputs(self.train_on, self.iri_images, self.iri_steps, self.front_layer)

    def trained_on(self, images: int) -> int:
        """How many of so many images it is trained on: all, or its fixed subset."""
        return min(self.inputs.images or images, images)

    @property
    def twin(self) -> "StitchSpec":
        """The same stitch of the data: itself, where it is trained on these."""
        return self if self.train_on == DATA else replace(self, train_on=DATA, iri_steps=USUAL["iri_steps"])

    @property
    def cut(self) -> Cut:
        """What decides the geometry: the network of the front, both layers, `flatten` and `resize`."""
        return Cut(self.source, self.front_layer, self.end_layer, self.flatten, self.resize)

    @property
    def needs_train_moments(self) -> bool:
        matches = any(TARGETS[stage.target].at == AT_STITCH for stage in self.stages)
        return needs_moments(self.init, self.mask) or self.whiten or matches or self.norm

    @property
    def family(self) -> str:
        """What the family of its maps is called beside others."""
        return family_name(self)

    def values(self) -> dict[str, Any]:
        """The fields by name: all are scalars, so that nothing is copied as `asdict` does."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def identity(self) -> dict[str, Any]:
        """The fields by name, without those that came later and are at their defaults: they say nothing."""
        return {name: value for name, value in self.values().items() if name not in LATER or value != LATER[name]}

    def key(self, **surroundings: Any) -> str:
        """A digest of the spec and of what it is about: weights, preprocessing, images.

        SHA-256 in hexadecimal; equal keys mean equal stitches on one machine with one set of libraries.
        `about` are built-in values, such as digests.
        """
        record = {
            "format": WHITENED_FORMAT if self.whiten else FORMAT,
            "spec": self.identity(),
            "surroundings": surroundings,
        }
        return digest(record)


USUAL = {field.name: field.default for field in fields(StitchSpec)}  # what leaves an option out
FLOATS = tuple(field.name for field in fields(StitchSpec) if field.type in (float, "float"))
# by name, fields that came later, and the default that they have in results of before
LATER = {name: value for name, value in USUAL.items() if name not in FIRST}


def usual_rate(*, whiten: bool) -> float:
    """The learning rate of a stitch for which none is asked."""
    return WHITENED_RATE if whiten else RATE


@dataclass(frozen=True, slots=True)
class ControlSpec(StitchSpec):
    """A stitch that another is held against: into the same layer of the end network, trained alike.

    `source` names the network whose front it takes, which may be the end network itself or one beside both;
    a `constant` one is a bias alone and takes nothing.
    """

    source: str = "front"  # pyright: ignore[reportIncompatibleVariableOverride]
    constant: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def of(cls, spec: StitchSpec, source: str, **changed: Any) -> "ControlSpec":
        options: dict[str, Any] = spec.values() | {"source": source} | changed
        return cls(**options)


@lru_cache(maxsize=1)
def spec_table() -> dict[str, Any]:
    """What a file says of a spec, a kind a field, as `records.check` takes it."""
    return {field.name: _OF_TYPE[getattr(field.type, "__name__", str(field.type))] for field in fields(StitchSpec)}
