"""What is timed: each case does the same work in the suite's way and in the plain way."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Generator, nn

import stitch_nets
from benchmarks import plain
from src.cutting.freeze import freeze
from src.cutting.parts import head
from src.dataset import DATASETS, load_split
from src.dataset.split import MemorySplit
from src.evaluation.evaluate import compare, evaluate
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.moments import least_squares
from src.models import build_model
from src.stitching import CutNetworks, Pair, StitchObjective, StitchSpec, cut_pair, initial_stitch
from src.stitching.moments import gather_moments
from src.training.loop import fit_one
from src.training.recipe import Recipe
from src.training.train_state import TrainState

TRAIN, VAL = 50_000, 10_000


@dataclass(frozen=True, slots=True)
class Case:
    """`suite` and `plain` do the same work on `images` images of `total` that the whole job has."""

    title: str
    images: int
    total: int
    suite: Callable[[], Any]
    plain: Callable[[], Any]


@cache
def data(count: int) -> MemorySplit:
    """The first images of CIFAR-10's training split, or noise of the same shape where there is no CIFAR-10."""
    if os.environ.get("DATASET_ROOT_PYTORCH") and Path(os.environ["DATASET_ROOT_PYTORCH"]).is_dir():
        split = load_split("cifar10", "train")
        assert isinstance(split, MemorySplit)
        return MemorySplit(split.spec, split.images[:count].clone(), split.labels[:count].clone())
    generator = Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return MemorySplit(DATASETS["cifar10"], images, torch.arange(count) % 10)


def val_data(count: int) -> MemorySplit:
    """As many images that `data` does not hold."""
    split = data(TRAIN)
    return MemorySplit(split.spec, split.images[-count:], split.labels[-count:])


def plain_batches(count: int, *, train: bool) -> torch.utils.data.DataLoader:
    return batches_of(data(count), train=train)


def batches_of(split: MemorySplit, *, train: bool) -> torch.utils.data.DataLoader:
    return plain.loader(split.images.permute(0, 2, 3, 1).numpy(), split.labels.numpy(), train=train)


def network(model: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(model, channels=3, classes=10, size=32).eval()


def pair(model: str, layer: str) -> Pair:
    return cut_pair(network(model, 0), network(model, 1), layer, layer, torch.zeros(2, 3, 32, 32))


def stitch_epoch(model: str, layer: str, count: int, *, amp: bool = False) -> Case:
    """The plain way multiplies in float32 in any case."""

    def suite() -> None:
        spec = StitchSpec(layer, layer, epochs=1, amp=amp)
        cuts = CutNetworks(network(model, 0), network(model, 1), [spec], torch.zeros(2, 3, 32, 32))
        stitch, split = initial_stitch(cuts.geometry(spec.cut), None), data(count)
        train_state = TrainState(stitch, StitchObjective(cuts, spec, stitch, split.spec.task), spec.recipe)
        nothing = {"loss": 0.0, "acc": 0.0}
        fit_one(train_state, split, seed=0, validate=lambda: nothing, share=lambda images: cuts.share([spec], images))

    def baseline() -> None:
        channels = pair(model, layer).geometry.inputs
        stitched = plain.HookedStitch(network(model, 0), network(model, 1), layer, channels)
        stitched.train_epoch(plain_batches(count, train=True))

    return Case(f"stitch epoch, {model} {layer}" + ", --amp" * amp, count, TRAIN, suite, baseline)


def init_least_squares(model: str, layer: str, count: int) -> Case:
    def suite() -> np.ndarray:
        spec = StitchSpec(layer, layer, init="ps_inv")
        cuts = CutNetworks(network(model, 0), network(model, 1), [spec], torch.zeros(2, 3, 32, 32))
        moments = gather_moments(cuts, [spec], data(count), title="", on_message=print)[spec.cut]
        return least_squares(moments).w.numpy()

    def baseline() -> np.ndarray:
        batches = plain_batches(count, train=False)
        x, y = (plain.activations(network(model, seed), layer, batches) for seed in (0, 1))
        return plain.least_squares(x, y)

    return Case(f"ps_inv init, {model} {layer}", count, TRAIN, suite, baseline)


def compare_nets(model: str, layer: str, count: int) -> Case:
    def suite() -> dict[str, float]:
        heads = [freeze(head(network(model, seed), layer)) for seed in (0, 1)]
        shape = tuple(heads[0](torch.zeros(1, 3, 32, 32)).shape[1:])
        return compare((heads[0], heads[1]), (shape, shape), data(count), ["cka", "l2"]).values

    def baseline() -> tuple[float, float]:
        batches = plain_batches(count, train=False)
        x, y = (plain.activations(network(model, seed), layer, batches) for seed in (0, 1))
        return plain.cka(x, y), plain.l2(x, y)

    return Case(f"compare cka l2, {model} {layer}, {count}", count, count, suite, baseline)


def eval_net(model: str, count: int) -> Case:
    def suite() -> float:
        return evaluate(network(model, 0), data(count))["acc"]

    return Case(
        f"evaluate, {model}",
        count,
        VAL,
        suite,
        lambda: plain.evaluate(network(model, 0), plain_batches(count, train=False)),
    )


def train_epoch(model: str, count: int) -> Case:
    def suite() -> None:
        trained, split = network(model, 0), data(count)
        trained.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def objective(_: None, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = trained(images)
            return split.spec.task.loss(logits, labels), split.spec.task.correct(logits, labels)

        recipe = Recipe(epochs=1, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=1e-4)
        fit_one(TrainState(trained, objective, recipe), split, seed=0, validate=lambda: {"loss": 0.0, "acc": 0.0})

    def baseline() -> None:
        plain.train_epoch(network(model, 0), plain_batches(count, train=True))

    return Case(f"training epoch, {model}", count, TRAIN, suite, baseline)


def cka_of_stored(count: int, features: int) -> Case:
    """The products behind a CKA, on activations that are there already."""
    x, y = (torch.randn(count, features, generator=Generator().manual_seed(seed)) for seed in (0, 1))
    return Case(
        f"cka alone, {count} x {features}",
        count,
        count,
        lambda: gram_sums([x], [y]),
        lambda: plain.cka(x.numpy(), y.numpy()),
    )


def whole_run(model: str, layer: str, train: int, val: int) -> Case:
    """stitch_nets.py from its arguments to its result file, one epoch, on a part of CIFAR-10."""

    def read(root: Path | None, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        part = data(train) if split == "train" else val_data(val)
        return part.images, part.labels

    def suite() -> None:
        spec = replace(DATASETS["cifar10"], name="bench", folder="Bench", root=None, read=read)
        with (
            mock.patch.dict(DATASETS, bench=spec),
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            files = [str(Path(folder) / f"{seed}.pt") for seed in (0, 1)]
            for seed, file in enumerate(files):
                torch.save(network(model, seed).state_dict(), file)
            models = ["--model1", model, "--model2", model, "-d", "bench"]
            stitch_nets.main([*files, layer, layer, *models, "-i", "ps_inv", "-e", "1", "-o", folder])

    def baseline() -> None:
        batches = {"train": plain_batches(train, train=True), "fit": plain_batches(train, train=False)}
        batches["val"] = batches_of(val_data(val), train=False)
        channels = pair(model, layer).geometry.inputs
        plain.whole_run(network(model, 0), network(model, 1), layer, channels, batches)

    return Case(f"whole stitch run, {model} {layer}", train, TRAIN, suite, baseline)


CASES: dict[str, Callable[[], Case]] = {
    "stitch-bn3": lambda: stitch_epoch("tiny10", "bn3", 10_240),
    "stitch-amp": lambda: stitch_epoch("tiny10", "bn3", 10_240, amp=True),
    "stitch-bn7": lambda: stitch_epoch("tiny10", "bn7", 10_240),
    "stitch-resnet": lambda: stitch_epoch("resnet20_w1", "layer2.0.add", 2_560),
    "init-bn3": lambda: init_least_squares("tiny10", "bn3", 10_000),
    "init-bn1": lambda: init_least_squares("tiny10", "bn1", 5_000),
    "whole": lambda: whole_run("tiny10", "bn3", 10_240, 2_000),
    "cka": lambda: cka_of_stored(6_000, 14_400),
    "compare-bn1": lambda: compare_nets("tiny10", "bn1", 5_000),
    "evaluate": lambda: eval_net("tiny10", 10_000),
    "train": lambda: train_epoch("tiny10", 5_120),
}
