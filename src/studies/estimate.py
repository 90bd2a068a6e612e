"""What stitches are likely to cost, in seconds and bytes: enough to cut the work, and to say what is ahead."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from src.metrics import METRICS
from src.stitching import Geometry, StitchSpec
from src.stitching.cka import can_share, cka_group

START = 3.0  # seconds until a bundle's first batch: networks and images are loaded, layers cut
TAIL = 0.5  # of the end network runs behind a stitch, as a mean over its layers
REACHED = 0.5  # of the front network runs up to a layer that inputs are to be alike at, likewise
STEP = 8e-4  # seconds that a stitch takes beside the networks, in each training step
GPU_STEP = 5e-5  # the same on a GPU, where it is one of a chunk and the step is launched as a whole
PAIRED = 6e3  # float operations that a metric takes for each pair of images, where it holds all against all
MAPS = 7  # matrices in a result
HEAD = 12_000  # bytes of a result beside its matrices


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds a forward pass takes an image, of both networks, and the images of both splits.

    products: float operations that large matrix products do in a second. step: seconds that a stitch takes beside them.
    """

    front: float
    end: float
    train: int
    val: int
    products: float
    step: float = STEP


def shared_seconds(spec: StitchSpec, costs: Costs) -> float:
    """What stitches that train together pay once: both networks on the images of all epochs, moments, and scores."""
    images = spec.trained_on(costs.train)
    training = spec.epochs * images * costs.front
    validation = min(1, _validations(spec)) * costs.val * costs.front  # what comes of it is kept
    moments = images * (costs.front + costs.end) if spec.needs_train_moments else 0.0
    return training + validation + moments + 2 * costs.val * (costs.front + costs.end)


def _validations(spec: StitchSpec) -> int:
    """Passes over validation images that are not the final scoring, which stands for the last."""
    return max(0, spec.epochs - 1)


def alike_seconds(costs: Costs, images: int, steps: int) -> float:
    """What so many inputs take that a layer of the front network cannot tell from images: forth and back, each step."""
    return 3 * REACHED * costs.front * images * steps


def own_seconds(spec: StitchSpec, costs: Costs, others: int, geometry: Geometry | None) -> float:
    """What a stitch pays for itself and `others`, its controls: the end network behind it, forth and back.

    geometry: where CKA is asked for.
    """
    tail, images = TAIL * costs.end, spec.trained_on(costs.train)
    steps = spec.epochs * (images // spec.batch_size) * costs.step
    training = spec.epochs * images * 3 * tail + steps
    scoring = costs.val * tail
    similarity = stitch_operations(spec, geometry, costs.val) / costs.products if geometry else 0.0
    return (1 + others) * training + (_validations(spec) + 3 + others) * scoring + similarity


def stitch_operations(spec: StitchSpec, geometry: Geometry, images: int) -> float:
    """What the CKA of a stitch multiplies alone: of the front's own activation, and of each of its maps, with end's."""
    front, end = (math.prod(shape) for shape in (geometry.front_shape, geometry.end_shape))
    maps = 3 if spec.epochs else 2
    stitched = min(geometry.inputs, geometry.outputs)
    if not geometry.is_flat:
        stitched *= min(math.prod(shape[1:]) for shape in (geometry.front_shape, geometry.end_shape))
    by_images = gram_operations(front + maps * stitched + end, images)
    if can_share(geometry, images):  # or by sums of products of features, once for all maps
        return min(by_images, images * (front + end) ** 2)
    return by_images * (cka_group(geometry, images) or images) / images


def gram_operations(features: int, images: int) -> float:
    """What the Gram matrices of images of some layers multiply, of `features` together."""
    return float(features) * images**2


def paired_operations(metrics: Iterable[str], view: str | None, images: int) -> float:
    """What metrics take for one pair of layers that hold all images against all: those of features, or of their rows.

    As measured from 250 to 1,000 images, a mean over metrics; decompositions grow faster beyond.
    """
    known = [METRICS[name] for name in metrics if name in METRICS]
    alike = [one for one in known if one.view(view) == "images" and one.needs not in ("gram", "difference")]
    return PAIRED * len(alike) * images**2


def own_bytes(spec: StitchSpec, geometry: Geometry, costs: Costs) -> int:
    """The size of a result file: its maps, and those that were kept in training."""
    steps = spec.trained_on(costs.train) // spec.batch_size
    kept = 2 + math.ceil(steps / spec.save_frequency) if spec.epochs else 1
    return HEAD + 4 * (MAPS + kept) * (geometry.inputs + 1) * geometry.outputs


def in_words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_in_words(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
