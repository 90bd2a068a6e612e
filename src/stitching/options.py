"""The options of a stitch: what they are called, and what they take."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from src.core.errors import UserError
from src.core.options import Option
from src.evaluation.identical import IMAGES
from src.stitching.families import widening_of
from src.stitching.geometry import Geometry
from src.stitching.inits import INIT_NAMES, init_of
from src.stitching.masks import MASKS
from src.stitching.stitch_spec import (
    DATA,
    IDENTICAL,
    LATER,
    PRECISIONS,
    RATE,
    TRAIN_ON,
    USUAL,
    WHITENED_RATE,
    StitchSpec,
    usual_rate,
)
from src.stitching.targets import BETWEEN_VARIANTS, TARGETS, staged, teachers_of
from src.training.recipe import ELEMENTWISE

_MASKS = tuple(sorted(MASKS))
_TARGETS = tuple(sorted(TARGETS))
_RATE = "learning rate, x0.1 at 1/3 and 2/3 of the epochs; with --whiten it falls to 0 along a cosine"
_RATES = f"{RATE:g}, with --whiten {WHITENED_RATE:g}"
_INIT = f"the map before training: {', '.join(INIT_NAMES)}"
_CKA = "weight in the loss of CKA with the end network's own"
_TARGET = "true labels (hard), what the networks say, or end's activations; stages with commas"
_EPOCHS = "passes over the training images, of each stage with commas; 0 leaves the init as it is"
OPTIONS = (
    Option("batch_size", ("-b", "--batch-size"), "images", "images a batch", "positive", "N"),
    Option("init", ("-i", "--init"), "stitch", _INIT, "text", "INIT", many=True, check=init_of),
    Option("mask", ("-m", "--mask"), "stitch", "which weights there are", "name", "MASK", _MASKS, many=True),
    Option(
        "low_rank",
        ("-r", "--low-rank"),
        "stitch",
        "a product of two factors of this rank",
        "rank",
        "RANK",
        many=True,
        default="full rank",
    ),
    Option("kernel", ("--kernel",), "stitch", "a kernel of K x K positions", "positive", "K", many=True, default="1"),
    Option(
        "hidden",
        ("--hidden",),
        "stitch",
        "N hidden units with a ReLU at each position",
        "positive",
        "N",
        many=True,
        default="none",
    ),
    Option("norm", ("--norm",), "stitch", "batch normalisation before and after, folded into the map"),
    Option("orthogonal", ("--orthogonal",), "stitch", "keep the matrix orthogonal"),
    Option("flatten", ("-f", "--flatten"), "stitch", "map all features, not channels alike at all positions"),
    Option("resize", ("--resize",), "stitch", "interpolate to the end layer's height and width, or grid of tokens"),
    Option(
        "epochs",
        ("-e", "--epochs"),
        "training",
        _EPOCHS,
        "naturals",
        "N",
    ),
    Option("lr", ("-lr", "--lr"), "training", _RATE, "positive_float", "RATE", many=True, default=_RATES),
    Option("weight_decay", ("-wd", "--weight-decay"), "training", "pull towards 0", "natural_float", "X"),
    Option("l1", ("--l1",), "training", "weight of the mean |W| in the loss", "natural_float", "X"),
    Option("cka_reg", ("--cka-reg",), "training", _CKA, "finite_float", "X"),
    Option("temperature", ("--temperature",), "training", "divides the logits of soft targets", "positive_float", "T"),
    Option("whiten", ("--whiten",), "training", "train in coordinates in which the activations are white"),
    Option("seed", ("--seed",), "training", "of init, order of images, augmentation", "seed", "N", many=True),
    Option(
        "save_frequency",
        ("-s", "--save-frequency"),
        "training",
        "keep the map every N x EPOCHS iterations",
        "positive",
        "N",
    ),
    Option("optimizer", ("--optimizer",), "training", "how to descend", "name", None, ELEMENTWISE),
    Option(
        "target_type",
        ("--target-type",),
        "training",
        _TARGET,
        "names",
        None,
        _TARGETS,
        many=True,
        separator=BETWEEN_VARIANTS,
    ),
    Option(
        "match_layers",
        ("--match-layers",),
        "training",
        "layers of end that match_later compares, those at and behind the stitch",
        "text",
        "LAYERS",
        default="all",
    ),
    Option(
        "early_stop",
        ("--early-stop",),
        "training",
        "hold a tenth of the training images out, stop after N epochs that bring no gain on it, and keep the best map",
        "natural",
        "N",
        default="never",
    ),
    Option(
        "train_on",
        ("--train-on",),
        "training",
        "the training images, or inputs that the front cannot tell from them (identically represented)",
        "name",
        "WHAT",
        TRAIN_ON,
        many=True,
    ),
    Option(
        "iri_images",
        ("--iri-images",),
        "training",
        "train on a fixed subset, unaugmented; of iri, and of data beside it, there is always one",
        "positive",
        "N",
        default=f"with iri all on a GPU, else {IMAGES}",
    ),
    Option("iri_steps", ("--iri-steps",), "training", "steps that make such inputs", "natural", "N"),
    Option(
        "train_end_norm",
        ("--train-end-norm",),
        "training",
        "let the BatchNorm statistics of end follow what the stitch hands on, which is no longer the same network",
    ),
    Option("cosine", ("--cosine",), "training", "the rate falls to 0 along half a cosine instead"),
)
TARGET_TYPE = USUAL["target_type"]
# what may differ between the stitches of one command, beside their layers
VARIED = tuple(option.field for option in OPTIONS if option.many)


def combinations(options: Mapping[str, Any], iri_images: Callable[[], int] = lambda: IMAGES) -> list[StitchSpec]:
    """Every combination of options of which some have lists of values, before layers are known.

    iri_images: how many images are taken where inputs are made of them and nobody says. Raises UserError for a
    combination that would be refused alone.
    """
    values = {name: options[name] for name in (*(option.field for option in OPTIONS), *PRECISIONS, "debug")}
    values["lr"] = values["lr"] or usual_rate(whiten=values["whiten"])
    values |= {name: usual for name, usual in LATER.items() if name in values and values[name] is None}
    if IDENTICAL in values["train_on"]:
        values["iri_images"] = values["iri_images"] or iri_images()
    elif values["iri_steps"] != USUAL["iri_steps"]:
        raise UserError(f"--iri-steps {values['iri_steps']} is of --train-on {IDENTICAL}")
    lists = [values[name] if isinstance(values[name], list) else [values[name]] for name in VARIED]
    chosen = (dict(zip(VARIED, some, strict=True)) for some in itertools.product(*lists))
    specs = (spec_of(values | some) for some in chosen)
    return list(dict.fromkeys(specs))  # a mask has two spellings


def blind_labels(specs: Sequence[StitchSpec]) -> list[str]:
    """A line where stitches learn true labels from inputs of which the front sees another part than the label's."""
    blind = [spec for spec in specs if spec.train_on == IDENTICAL]
    taught = teachers_of(spec.target_type for spec in blind)
    named = [name for name, teachers in taught.items() if not teachers]
    if not named:
        return []
    return [
        f"--train-on {IDENTICAL} with --target-type {named[0]}: a label says nothing about what the front is blind to; "
        "match, match_later, match_final, soft_2 and kl_2 are meant"
    ]


LADDER = "affine, norm, kernel 3 (of maps), and hidden units, twice as many as inputs"


def ladder(spec: StitchSpec, geometry: Geometry) -> list[StitchSpec]:
    """The same stitch of each family, by the number of what is trained.

    Raises UserError where a family is asked for already, or options restrict the matrix.
    """
    if widening_of(spec):
        raise UserError(f"--family-ladder is of all families; leave out --{spec.family.split()[0]}")
    maps = geometry.is_convolution and geometry.end_layout.is_plain
    return [
        spec,
        replace(spec, norm=True),
        *([replace(spec, kernel=3)] if maps else []),
        replace(spec, hidden=2 * geometry.inputs),
    ]


def said(spec: StitchSpec, field: str) -> Any:
    """What a command line says for a field of a spec."""
    return spec.stage_epochs or spec.epochs if field == "epochs" else getattr(spec, field)


def spec_of(options: Mapping[str, Any]) -> StitchSpec:
    """A spec of options, before layers are known, where `epochs` may be those of each stage, with commas.

    Steps that make other inputs are none of a stitch that is trained on the data.
    """
    target_type = options.get("target_type", TARGET_TYPE)
    lengths = staged(target_type, options["epochs"]) if "epochs" in options else {}
    known: dict[str, Any] = dict(options) | lengths
    if known.get("kernel") == 1:  # an affine map of channels
        known["kernel"] = 0
    if known.get("train_on", DATA) == DATA:
        known.pop("iri_steps", None)
    return StitchSpec("", "", **known)
