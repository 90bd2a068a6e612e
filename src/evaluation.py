"""How well networks do their task, and how far two of them agree; every mean is over images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.activations import Head, feed
from src.dataset import Split
from src.metrics import Comparison
from src.progress import bar
from src.stitching import Pair, StitchLayer
from src.task import Task

BATCH_SIZE = 256  # small enough for a processor's cache


@torch.inference_mode()
def collect_logits(
    forward: Callable[[Tensor], dict[str, Tensor]], split: Split, *, batch_size: int = BATCH_SIZE, title: str = ""
) -> dict[str, Tensor]:
    """Logits (images, classes) of several networks from one pass over a split, on its device.

    `forward` maps images to the logits of each network by name; the networks are to be in eval mode.
    """
    parts: dict[str, list[Tensor]] = {}
    with bar(len(split), title, unit="image") as progress:
        for images, _ in split.batches(batch_size):
            for name, logits in forward(images).items():
                parts.setdefault(name, []).append(logits.float())
            progress.update(len(images))
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def evaluate(network: nn.Module, split: Split, *, batch_size: int = BATCH_SIZE, title: str = "") -> dict[str, float]:
    """Loss (nats) and accuracy (0 to 1) of a network, in eval mode; its own mode is left as it was."""
    was_training = network.training
    network.eval()
    try:
        logits = collect_logits(lambda images: {"": network(images)}, split, batch_size=batch_size, title=title)
    finally:
        network.train(was_training)
    return score(logits[""], split.labels, split.spec.task)


def score(logits: Tensor, labels: Tensor, task: Task) -> dict[str, float]:
    """Loss and accuracy of logits (images, classes)."""
    return {
        "loss": task.loss(logits.double(), labels).item(),
        "acc": task.correct(logits, labels).double().mean().item(),
    }


def hits(first: Tensor, second: Tensor, labels: Tensor, task: Task) -> dict[str, int]:
    """Decisions that both get right (rr), only the first (rw), only the second (wr), or neither (ww)."""
    a, b = task.correct(first, labels), task.correct(second, labels)
    counts = {"rr": a & b, "rw": a & ~b, "wr": ~a & b, "ww": ~a & ~b}
    return {name: int(which.sum()) for name, which in counts.items()}


def agreement(logits: Tensor, target: Tensor, labels: Tensor, task: Task) -> dict[str, Any]:
    """How far logits (images, classes) agree with those of a target network.

    `crossentropy` to the target's probabilities, averaged over images and classes (0 only where both are certain);
    `same_class_out`, the share of equal decisions, 0 to 1; `rel_acc`, accuracy divided by the target's.
    """
    same = task.predictions(logits) == task.predictions(target)
    accuracy, best = (task.correct(values, labels).double().mean().item() for values in (logits, target))
    return {
        "crossentropy": task.crossentropy(logits.double(), task.probabilities(target.double())).item(),
        "same_class_out": same.double().mean().item(),
        "rel_acc": accuracy / best if best else float("nan"),
    }


def compare_stitches(
    pair: Pair, stitches: Mapping[str, StitchLayer], split: Split, *, batch_size: int = BATCH_SIZE
) -> tuple[dict[str, Tensor], dict[str, dict[str, float | None]]]:
    """Logits of both networks and of each stitch between them, and each stitch's similarity to the end network.

    The logits are keyed `front`, `end` and by the names of the stitches; so are the similarities, the front network's
    own (before any stitch) among them: `cka` and `l2` between that activation and the end network's.
    """

    def logits(images: Tensor) -> dict[str, Tensor]:
        front, end = pair.front_head(images), pair.end_head(images)
        result = {"front": pair.front_tail(front, images), "end": pair.end_tail(end, images)}
        return result | {name: pair.end_tail(stitch(front), images) for name, stitch in stitches.items()}

    similarities = {"front": similarity(pair, None, split, batch_size=batch_size)}
    for name, stitch in stitches.items():
        similarities[name] = similarity(pair, stitch, split, batch_size=batch_size)
    return collect_logits(logits, split, batch_size=batch_size, title="evaluating"), similarities


def similarity(
    pair: Pair, stitch: StitchLayer | None, split: Split, *, batch_size: int = BATCH_SIZE
) -> dict[str, float | None]:
    """Biased linear CKA and mean squared difference of the (stitched) front activation and the end network's own.

    `l2` is None for activations of different shapes; what is undefined, as the CKA of a constant, is NaN.
    """

    def front(images: Tensor) -> Tensor:
        activation = pair.front_head(images)
        return activation if stitch is None else stitch(activation)

    geometry = pair.geometry
    shapes = geometry.front_shape if stitch is None else geometry.end_shape, geometry.end_shape
    names = ["cka", "l2"] if shapes[0] == shapes[1] else ["cka"]
    comparison = compare((front, pair.end_head), shapes, split, names, batch_size=batch_size)
    try:
        values = comparison.result()
    except ValueError:
        values = dict.fromkeys(names, float("nan"))
    return {"cka": values["cka"], "l2": values.get("l2")}


def compare(
    heads: tuple[Head, Head],
    shapes: tuple[Sequence[int], Sequence[int]],
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Comparison:
    """Show one pass over a split to a comparison by the named metrics; `shapes` are those of one image's outputs."""
    comparison = Comparison(
        names,
        view,
        n_images=len(split),
        shape_x=shapes[0],
        shape_y=shapes[1],
        group=group,
        device=split.device,
    )
    feed(heads, split, comparison.update, batch_size=batch_size, title="comparing")
    return comparison
