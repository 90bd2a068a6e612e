"""Does a stitch tell networks apart that use different cues? Coloured digits, photographs in a coloured border.

    python -m benchmarks.can_it_mislead [FOLDER] [--images border]

Fronts that know colour, both cues, shape, or neither are stitched to an end that knows shape, on images in which the
colour and the shape agree. Trained networks, sets of images and results stay in FOLDER (results/can_it_mislead), so
that an interrupted run goes on. The table of digits goes into docs/can_it_mislead.md; that of photographs is made by
benchmarks.findings.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import compare_nets
import stitch_nets
import train_model
from benchmarks.cues import AGREEING, EXPERIMENTS, RUNS, SETS, Experiment, Front
from benchmarks.pages import table_text, write
from src import results
from src.evaluation.evaluate import evaluate
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset
from src.results.saved_stitch import load_stitch
from src.studies.frames import subsets

VARIANTS = ("hard", "match_later", "iri")  # the last is match_later on identically represented inputs
Figures = dict[tuple[str, str, str], float]  # by layer, metric and images


def quietly(main: Callable[[list[str]], None], words: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        main(words)


class Run:
    """One run of an experiment, in a folder that all share: what is there already is not made again."""

    def __init__(self, experiment: Experiment, folder: Path, asked: argparse.Namespace, number: int) -> None:
        self.experiment, self.folder, self.networks = experiment, folder, experiment.networks(number)
        self.stitch_epochs = asked.epochs or experiment.stitch_epochs
        self.inputs = ["--iri-images", str(asked.iri_images or experiment.iri_images)]
        self.steps = ["--iri-steps", str(asked.iri_steps)]
        self.network_epochs = asked.network_epochs
        folder.mkdir(parents=True, exist_ok=True)

    def dataset(self, kind: str) -> str:
        """The name of a data set of this kind, which is written where it is not there."""
        path = self.folder / f"{kind}.npz"
        if not path.exists():
            parts = {name: self.experiment.images_of(kind, name) for name in ("train", "val")}
            arrays: dict[str, Any] = {
                f"{letter}_{name}": part[i] for name, part in parts.items() for i, letter in enumerate("xy")
            }
            np.savez(path, **arrays)
        return f"arrays:{path}"

    def network(self, front: Front) -> str:
        """A network trained on images of a kind, its weight file."""
        out = self.folder / f"weights-{front.called}-{front.seed}"
        if not list(out.rglob("*.pt")):
            epochs = ["-e", str(self.network_epochs)] if self.network_epochs and front.trains else ["-e", front.epochs]
            how = ["-i", str(front.seed), "-g", str(front.seed), "-s", "1000000", "-o", str(out)]
            quietly(train_model.main, ["-m", "tiny10", "-d", self.dataset(front.kind), *how, *epochs, *front.how])
        return str(max(out.rglob("*.pt"), key=lambda file: int(file.stem)))

    def stitched(self, front: str, out: Path, end: str) -> dict[tuple[str, str], Path]:
        """The results of all variants of a front at all layers, by layer and variant."""
        found, layers = {}, self.experiment.layers
        for variant in VARIANTS:
            run = out / variant
            if len(list(run.glob("*.pkl"))) < len(layers):
                on = ["--train-on", "iri", *self.steps] if variant == "iri" else []
                target = ["--target-type", "match_later" if variant == "iri" else variant]
                how = ["-e", str(self.stitch_epochs), "-b", "50", "-lr", "1e-2", "--no-similarity", "--overwrite"]
                how += ["-i", self.experiment.start, *self.inputs, "-d", self.dataset(AGREEING)]
                words = [front, end, *2 * [",".join(layers)], "--pairs", "zip", *target, *on, *how]
                quietly(stitch_nets.main, [*words, "--run-name", variant, "-o", str(out)])
            for layer in layers:
                found[layer, variant] = next(run.glob(f"{layer}-{layer}*.pkl"))
        return found

    def similarity(self, front: str, out: Path, end: str) -> Figures:
        """Metrics at each layer on the agreeing images, and on what the front cannot tell from them."""
        values = {}
        for layer in self.experiment.layers:
            for on in ("data", "iri"):
                run = f"cka-{on}-{layer}"
                if not list((out / run).glob("*.pkl")):
                    words = [front, end, layer, layer, self.dataset(AGREEING), *self.experiment.metrics, "--on", on]
                    words += [*self.inputs, *self.steps] if on == "iri" else []
                    quietly(compare_nets.main, [*words, "-t", "train", "--run-name", run, "-o", str(out)])
                found = results.read(next((out / run).glob("*.pkl")))["values"]
                values |= {(layer, metric, on): found[metric] for metric in self.experiment.metrics}
        return values

    def accuracies(self, path: Path) -> dict[str, float]:
        """Of a trained stitch, on validation images in which the cues agree, have nothing to do, or conflict."""
        saved = load_stitch(path, "after")
        found = {}
        for kind in SETS:
            split = saved.on_data.elsewhere(self.dataset(kind)).split("val")
            found[kind] = evaluate(saved.network, split, batch_size=64)["acc"]
        return found

    def alone(self, path: str, kind: str) -> float:
        """The accuracy of a network on the validation images of a kind."""
        on_data = put_on_dataset([open_network(path)], self.dataset(kind))
        return evaluate(on_data.networks[0].network, on_data.split("val"), batch_size=64)["acc"]


def found(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run, front and layer: accuracies (0 to 1) by variant and images, similarities, and the error of iri."""
    rows = []
    for number, run in enumerate(runs):
        end = run.network(run.networks.end)
        for name, about in run.networks.fronts.items():
            front, out = run.network(about), run.folder / f"stitches-{name}-{about.seed}"
            stitches, alike = run.stitched(front, out, end), run.similarity(front, out, end)
            for layer in run.experiment.layers:
                row: dict[str, Any] = {"run": number, "front": name, "layer": layer}
                for variant in VARIANTS:
                    shares = run.accuracies(stitches[layer, variant])
                    row |= {f"{variant} {kind}": shares[kind] for kind in SETS}
                row |= {f"{metric} {on}": value for (at, metric, on), value in alike.items() if at == layer}
                row["error"] = results.read(stitches[layer, "iri"])["identical"]["relative_error"]["mean"]
                rows.append(row)
                print(*row.values(), sep=" | ", flush=True)
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame, metrics: Mapping[str, str]) -> list[list[str]]:
    """The same in words, from the least of all runs to the most; metrics: what the columns of each are called."""
    variants = [f"{variant} agree / indep. / conflict" for variant in ("hard", "match_later", "match_later on iri")]
    alike = [f"{word}{on}" for word in metrics.values() for on in ("", " on iri")]
    made = [["front", "layer", *variants, *alike, "rel. error of iri"]]
    for (front, layer), part in subsets(rows, ["front", "layer"]):
        shares = [" / ".join(span(100 * part[f"{variant} {kind}"]) for kind in SETS) for variant in VARIANTS]
        values = [span(part[f"{metric} {on}"], 2) for metric in metrics for on in ("data", "iri")]
        made.append([front, layer, *shares, *values, span(part["error"], 2)])
    return made


def span(values: pd.Series, digits: int = 0) -> str:
    """From the least to the most, once where they are one as they are written."""
    return "-".join(dict.fromkeys(f"{value:.{digits}f}" for value in (values.min(), values.max())))


def networks(runs: Sequence[Run]) -> pd.DataFrame:
    """What each network of each run is right on alone (0 to 1), by the kinds of images."""
    rows = []
    for number, run in enumerate(runs):
        for name, about in {"end": run.networks.end, **run.networks.fronts}.items():
            path = run.network(about)
            rows.append({"run": number, "network": name, "trained on": about.about, "begins from": about.begins})
            rows[-1] |= {kind: run.alone(path, kind) for kind in SETS}
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", choices=EXPERIMENTS, default="digits", help="which experiment")
    parser.add_argument("--runs", type=int, choices=range(1, RUNS + 1), default=RUNS, help="each of other networks")
    parser.add_argument("--iri-images", type=int)
    parser.add_argument("--iri-steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, help="of each stitch")
    parser.add_argument("--network-epochs", type=int, help="of each network that is trained")
    parser.add_argument("--page", type=Path)
    asked: Any = parser.parse_args(argv)
    experiment = EXPERIMENTS[asked.images]
    start = time.monotonic()
    torch.manual_seed(0)
    folder = asked.folder or Path("results") / experiment.mark
    runs = [Run(experiment, folder, asked, number) for number in range(asked.runs)]
    made = table_text(table(found(runs), experiment.metrics))
    print(made)
    if experiment.page:
        write(asked.page or experiment.page, experiment.mark, made)
    print(f"{(time.monotonic() - start) / 60:.1f} min")


if __name__ == "__main__":
    main()
