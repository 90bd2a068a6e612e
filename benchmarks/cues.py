"""Images in which a colour and a shape go together or part, and the networks that look at one of the two."""

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.dataset import load_split
from src.dataset.subset import take_images
from tests.paths import ROOT

CLASSES = 10
COLOURS = np.array([colorsys.hsv_to_rgb(hue / CLASSES, 1, 0.8) for hue in range(CLASSES)])
AGREEING, INDEPENDENT, CONFLICTING = SETS = ("agreeing", "independent", "conflicting")
COLOUR, SHAPE, NOISE = "colour", "shape", "noise"  # what a network is trained on, the other at random
UNTRAINED = "untrained"
BORDER = 3  # pixels
SHIPPED = (0, 1, 2, 3, 4, 10)  # seeds of networks of CIFAR-10, two a run
RUNS = len(SHIPPED) // 2
PHOTOGRAPHS = {"train": 5_000, "val": 2_000}
Images = tuple[np.ndarray, np.ndarray]


def _drawing(split: str) -> np.random.Generator:
    return np.random.default_rng(["train", "val"].index(split))


def cues(kind: str, shapes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colour of each image whose shape is known, and its label, as the kind says."""
    free, other = rng.integers(CLASSES, size=len(shapes)), rng.integers(1, CLASSES, size=len(shapes))
    colours = {AGREEING: shapes, CONFLICTING: (shapes + other) % CLASSES}.get(kind, free)
    return colours, free if kind == COLOUR else shapes


def coloured(grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """White digits (n, h, w) in 0..255 on ground of a colour of each, (n, h, w, 3) uint8."""
    ink = grey[..., None] / 255
    return np.round(255 * (ink + (1 - ink) * COLOURS[colour][:, None, None])).astype(np.uint8)


def bordered(images: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Photographs (n, h, w, 3) uint8 whose outermost BORDER pixels have a colour of each."""
    painted = np.broadcast_to(np.round(255 * COLOURS[colour])[:, None, None], images.shape).astype(np.uint8)
    inside = slice(BORDER, -BORDER)
    painted[:, inside, inside] = images[:, inside, inside]
    return painted


def digits(kind: str, split: str) -> Images:
    """Embedded digits on coloured ground, and their labels; of noise patterns in place of digits."""
    loaded = load_split("digits", split).with_preprocessing(None)
    grey, labels = (values.numpy() for values in next(loaded.batches(len(loaded))))
    rng = _drawing(split)
    colours, answers = cues(kind, labels, rng)
    if kind == NOISE:
        patterns = np.random.default_rng(7).integers(0, 256, (CLASSES, *grey.shape[2:], 3))
        noise = rng.integers(0, 256, (len(labels), *patterns.shape[1:]))
        return np.round(0.3 * patterns[labels] + 0.7 * noise).astype(np.uint8), labels
    return coloured(grey[:, 0], colours), answers


def photographs(kind: str, split: str) -> Images:
    """Photographs of the user's CIFAR-10 in a coloured border, and their labels."""
    loaded = take_images(load_split("cifar10", split).with_preprocessing(None), PHOTOGRAPHS[split])
    pixels, labels = (values.numpy() for values in next(loaded.batches(len(loaded))))
    colours, answers = cues(kind, labels, _drawing(split))
    return bordered(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), colours), answers


@dataclass(frozen=True, slots=True)
class Front:
    """A network of an experiment.

    about: what it was trained on, in words. kind: its images. epochs, how: words of train_model.py. begins: from which
    weights, in words.
    """

    about: str
    kind: str
    seed: int
    epochs: str = "20"
    how: tuple[str, ...] = ()
    begins: str = "random"
    trains: bool = True

    @property
    def called(self) -> str:
        """In the names of folders."""
        return self.kind if self.trains else UNTRAINED


class Networks(NamedTuple):
    """Those of one run of an experiment: an end that knows the shape, and fronts by what they know."""

    end: Front
    fronts: Mapping[str, Front]


@dataclass(frozen=True, slots=True)
class Experiment:
    """Images of kinds, networks that look at one cue or another, and how they are sewn.

    images_of: images and labels of a kind and split. mark: of the table in the page, and the folder below results/.
    networks: those of a run; each run has seeds of its own. start, stitch_epochs, iri_images: of stitches.
    metrics: {name: what the table calls it}.
    """

    mark: str
    page: Path | None
    images_of: Callable[[str, str], Images]
    networks: Callable[[int], Networks]
    start: str = "random"
    stitch_epochs: int = 40
    iri_images: int = 300
    layers: tuple[str, ...] = ("bn3", "bn5", "bn7")
    metrics: Mapping[str, str] = field(default_factory=lambda: {"cka": "CKA"})


def settled(seed: int) -> Front:
    """A network that knows nothing: at its rate the statistics of BatchNorms settle, and nothing else."""
    words = "nothing; its BatchNorms settled on the images"
    return Front(words, AGREEING, seed, "2", ("-lr", "1e-12"), trains=False)


def shipped(number: int) -> Front:
    """A shipped network of CIFAR-10 that has got used to borders of any colour."""
    seed = SHIPPED[number]
    start = ROOT / "model_weights" / "Tiny10" / "CIFAR10" / f"in{seed}-gn{seed}" / "110000.pt"
    how = ("--init-weights", str(start), "-lr", "0.01")
    return Front("the photograph; colours at random", SHAPE, seed, "5", how, f"in{seed}")


def of_digits(run: int) -> Networks:
    """All but the end differ from it in their seed, too."""
    end, seed = 2 * run, 2 * run + 1
    fronts = {
        "colour": Front("the colour of the ground; digits at random", COLOUR, seed),
        "both": Front("images in which both agree", AGREEING, seed),
        "shape": Front("the digit; colours at random (another seed than the end's)", SHAPE, seed),
        "noise": Front("ten patterns in noise, without any digit or colour", NOISE, seed),
        UNTRAINED: settled(seed),
    }
    return Networks(Front("the digit; colours at random", SHAPE, end), fronts)


def of_photographs(run: int) -> Networks:
    seed = 2 * run + 1
    fronts = {
        "colour": Front("the colour of the border; photographs at random", COLOUR, seed, "10"),
        "both": Front("images in which both agree", AGREEING, seed, "10"),
        "shape": shipped(2 * run + 1),
        UNTRAINED: settled(seed),
    }
    return Networks(shipped(2 * run), fronts)


EXPERIMENTS = {
    "digits": Experiment("can_it_mislead", ROOT / "docs" / "can_it_mislead.md", digits, of_digits),
    "border": Experiment(
        "border",
        None,
        photographs,
        of_photographs,
        stitch_epochs=20,
        iri_images=1000,
        metrics={"cka": "CKA", "mutual_knn": "neighbours"},
    ),
}
