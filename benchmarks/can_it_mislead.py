"""Does a stitch tell networks apart that use different cues? Embedded digits on coloured ground.

    python -m benchmarks.can_it_mislead [FOLDER]

Fronts that know colour, both cues, shape, or neither are stitched to an end that knows shape, on images in which the
colour of the ground and the shape of the digit agree. Trained networks, sets of images and results stay in FOLDER
(results/can_it_mislead), so that an interrupted run goes on. The table goes into docs/can_it_mislead.md.
"""

import argparse
import colorsys
import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compare_nets
import stitch_nets
import train_model
from benchmarks.pages import table_text, write
from src import results
from src.dataset import load_split
from src.evaluation.evaluate import evaluate
from src.results.saved_stitch import load_stitch

PAGE = Path(__file__).parents[1] / "docs" / "can_it_mislead.md"
CLASSES = 10
LAYERS = ("bn3", "bn5", "bn7")
COLOURS = np.array([colorsys.hsv_to_rgb(hue / CLASSES, 1, 0.8) for hue in range(CLASSES)])
VARIANTS = ("hard", "match_later", "iri")  # the last is match_later on identically represented inputs
SETS = ("agreeing", "independent", "conflicting")
FRONTS = {
    "colour": "the colour of the ground; digits at random",
    "both": "images in which both agree",
    "shape": "the digit; colours at random (another seed than the end's)",
    "noise": "ten patterns in noise, without any digit or colour",
    "untrained": "nothing; its BatchNorms settled on the images",
}


def coloured(grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """White digits (n, h, w) in 0..255 on ground of a colour of each, (n, h, w, 3) uint8."""
    ink = grey[..., None] / 255
    return np.round(255 * (ink + (1 - ink) * COLOURS[colour][:, None, None])).astype(np.uint8)


def images_of(kind: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split in which colour and shape go together as the kind says."""
    digits = load_split("digits", split).with_preprocessing(None)
    grey, labels = (values.numpy() for values in next(digits.batches(len(digits))))
    rng = np.random.default_rng(["train", "val"].index(split))
    free, other = rng.integers(CLASSES, size=len(labels)), rng.integers(1, CLASSES, size=len(labels))
    if kind == "noise":
        patterns = np.random.default_rng(7).integers(0, 256, (CLASSES, *grey.shape[2:], 3))
        noise = rng.integers(0, 256, (len(labels), *patterns.shape[1:]))
        return np.round(0.3 * patterns[labels] + 0.7 * noise).astype(np.uint8), labels
    colours = {"agreeing": labels, "conflicting": (labels + other) % CLASSES}.get(kind, free)
    return coloured(grey[:, 0], colours), free if kind == "colour" else labels


def dataset(folder: Path, kind: str) -> str:
    """The name of a data set of this kind, which is written where it is not there."""
    path = folder / f"{kind}.npz"
    if not path.exists():
        parts = {name: images_of(kind, name) for name in ("train", "val")}
        arrays: dict[str, Any] = {
            f"{letter}_{name}": part[i] for name, part in parts.items() for i, letter in enumerate("xy")
        }
        np.savez(path, **arrays)
    return f"arrays:{path}"


def quietly(main: Callable[[list[str]], None], words: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        main(words)


def network(folder: Path, kind: str, seed: int, epochs: int) -> str:
    """A network trained on images of a kind, its weight file; of `untrained` only the statistics are settled."""
    name = dataset(folder, "agreeing" if kind == "untrained" else kind)
    out = folder / f"weights-{kind}-{seed}"
    if not list(out.rglob("*.pt")):
        how = ["-i", str(seed), "-g", str(seed), "-s", "1000000", "-o", str(out)]
        how += ["-e", "2", "-lr", "1e-12"] if kind == "untrained" else ["-e", str(epochs)]
        quietly(train_model.main, ["-m", "tiny10", "-d", name, *how])
    return str(max(out.rglob("*.pt"), key=lambda file: int(file.stem)))


def stitched(folder: Path, front: str, name: str, end: str, asked: argparse.Namespace) -> dict[tuple[str, str], Path]:
    """The results of all variants of a front at all layers, by layer and variant."""
    out, found = folder / f"stitches-{name}", {}
    for variant in VARIANTS:
        run = out / variant
        if len(list(run.glob("*.pkl"))) < len(LAYERS):
            where = ",".join(LAYERS)
            on = ["--train-on", "iri", "--iri-steps", str(asked.iri_steps)] if variant == "iri" else []
            target = ["--target-type", "match_later" if variant == "iri" else variant]
            how = ["-i", "random", "-e", str(asked.epochs), "-b", "50", "-lr", "1e-2", "--no-similarity", "--overwrite"]
            how += ["--iri-images", str(asked.iri_images), "-d", dataset(folder, "agreeing")]
            words = [front, end, where, where, "--pairs", "zip", *target, *on, *how]
            quietly(stitch_nets.main, [*words, "--run-name", variant, "-o", str(out)])
        for layer in LAYERS:
            found[layer, variant] = next(run.glob(f"{layer}-{layer}*.pkl"))
    return found


def similarity(
    folder: Path, front: str, name: str, end: str, asked: argparse.Namespace
) -> dict[tuple[str, str], float]:
    """CKA at each layer on the agreeing images, and on what the front cannot tell from them."""
    values = {}
    for layer in LAYERS:
        for on in ("data", "iri"):
            run = f"cka-{on}-{layer}"
            out = folder / f"stitches-{name}"
            more = ["--iri-images", str(asked.iri_images), "--iri-steps", str(asked.iri_steps)] if on == "iri" else []
            if not list((out / run).glob("*.pkl")):
                words = [front, end, layer, layer, dataset(folder, "agreeing"), "cka", "--on", on, *more, "-t", "train"]
                quietly(compare_nets.main, [*words, "--run-name", run, "-o", str(out)])
            values[layer, on] = results.read(next((out / run).glob("*.pkl")))["values"]["cka"]
    return values


def accuracies(path: Path, folder: Path) -> dict[str, float]:
    """Of a trained stitch, on validation images in which colour and shape agree, have nothing to do, or conflict."""
    saved = load_stitch(path, "after")
    found = {}
    for kind in SETS:
        split = saved.on_data.elsewhere(dataset(folder, kind)).split("val")
        found[kind] = evaluate(saved.network, split, batch_size=64)["acc"]
    return found


def rows(folder: Path, asked: argparse.Namespace) -> list[list[str]]:
    end = network(folder, "shape", 0, asked.network_epochs)
    found = []
    for name in FRONTS:
        front = network(folder, {"both": "agreeing"}.get(name, name), 1, asked.network_epochs)
        stitches = stitched(folder, front, name, end, asked)
        alike = similarity(folder, front, name, end, asked)
        for layer in LAYERS:
            figures = [accuracies(stitches[layer, variant], folder) for variant in VARIANTS]
            shares = [" / ".join(f"{100 * one[kind]:.1f}" for kind in SETS) for one in figures]
            error = results.read(stitches[layer, "iri"])["identical"]["relative_error"]["mean"]
            cka = [f"{alike[layer, on]:.3f}" for on in ("data", "iri")]
            found.append([name, layer, *shares, *cka, f"{error:.2f}"])
            print(*found[-1], sep=" | ", flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/can_it_mislead"))
    parser.add_argument("--iri-images", type=int, default=300)
    parser.add_argument("--iri-steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=40, help="of each stitch")
    parser.add_argument("--network-epochs", type=int, default=20)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked: Any = parser.parse_args(argv)
    asked.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    torch.manual_seed(0)
    variants = [f"{variant} agree / indep. / conflict" for variant in ("hard", "match_later", "match_later on iri")]
    head = ["front", "layer", *variants, "CKA", "CKA on iri", "rel. error of iri"]
    write(asked.page, "can_it_mislead", table_text([head, *rows(asked.folder, asked)]))
    print(f"{(time.monotonic() - start) / 60:.1f} min")


if __name__ == "__main__":
    main()
