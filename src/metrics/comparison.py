"""Any set of metrics in one pass over paired activations."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from src.metrics.canonical import require_images
from src.metrics.cka import cka_of_sums, debiased_cka_of_sums
from src.metrics.difference import Differences
from src.metrics.gram import Energies, GramSums, gram_sums_of_moments
from src.metrics.groups import GroupedFeatures, group_sizes
from src.metrics.health import Evidence, Health, dead_channels, doubts, evidence_of_moments
from src.metrics.moments import PairedMoments, channels_last_rows, flat_rows
from src.metrics.registry import METRICS, Metric
from src.metrics.span import by_span, moment_entries, span_bytes

# Sums of products of more features, or coordinates of more images, than this leave no room for anything else.
MOMENT_BYTES, SPAN_BYTES = 2e9, 7e9


class Comparison:
    """Feed batches of paired activations to `update`, then ask for `result` and `health`.

    names: keys of METRICS. view: "images", "channels" or None; it holds for the metrics that have a choice, None means
    each metric's usual one (`views` tells which was taken). n_images: how many will come in all. shape_x, shape_y:
    shapes of one image's activation, (c, h, w) or (c,).

    group: metrics of images with images (cka, cka_debiased, cka_rbf, mutual_knn in the view "images") are computed
    for consecutive groups of that many images and averaged, weighted by images; a rest of less than half a group joins
    the last one. All others are exact over all images, so grouping does not touch them; without it, those that no
    rotation changes are computed from inner products of images where images are fewer than features.

    memory: bytes of activations that may be kept at once for them; None: any number.

    Raise ValueError, before any work, for metrics that these shapes, so few images or the memory do not allow.
    """

    def __init__(
        self,
        names: Sequence[str],
        view: str | None = None,
        *,
        n_images: int,
        shape_x: Sequence[int],
        shape_y: Sequence[int],
        group: int | None = None,
        memory: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.metrics = [_metric(name) for name in dict.fromkeys(names)]
        self.shapes = tuple(shape_x), tuple(shape_y)
        self.n_images, self.group, self.seen = n_images, group, 0
        self.views = {metric.name: view_of(metric, view, *self.shapes) for metric in self.metrics}
        for metric in self.metrics:
            check_metric(metric, self.views[metric.name], n_images, *self.shapes, group)
        self._values: dict[str, Any] | None = None
        self._biases: dict[str, float | None] = {}
        self._build(device, memory)

    def _build(self, device: torch.device | str, memory: float | None) -> None:
        flat = math.prod(self.shapes[0]), math.prod(self.shapes[1])
        by_need = {need: self._of(need) for need in ("moments", "gram", "features", "difference")}
        spans = [m for m in by_need["moments"] if by_span(m, self.views[m.name], self.n_images, *flat, self.group)]
        by_need["moments"] = [metric for metric in by_need["moments"] if metric not in spans]
        by_need["features"] += spans
        gram_images = [metric for metric in by_need["gram"] if self.views[metric.name] == "images"]
        stored = by_need["features"] + (gram_images if self._prefer_store(by_need, flat) else [])
        if stored and memory is not None:
            self._require_room(stored, 4 * sum(flat), memory)
        self.grouped = GroupedFeatures(stored, self.n_images, flat, self.group, device) if stored else None
        self.differences = Differences(flat[1], device) if by_need["difference"] else None
        streamed_gram = [metric for metric in by_need["gram"] if metric not in stored]
        gram_views = {self.views[metric.name] for metric in streamed_gram}
        moment_views = gram_views | {self.views[metric.name] for metric in by_need["moments"]}
        channels = self.shapes[0][0], self.shapes[1][0]
        sizes = {view: flat if view == "images" else channels for view in sorted(moment_views)}
        self.moments = {view: PairedMoments(dx, dy, device) for view, (dx, dy) in sizes.items()}
        self.energies = {view: Energies(device) for view in sorted(gram_views)}

    def _require_room(self, stored: list[Metric], image_bytes: int, memory: float) -> None:
        needed = image_bytes * max(group_sizes(self.n_images, self.group))
        names = [metric.name for metric in stored]
        spans = [metric.name for metric in stored if metric.needs == "moments"]
        if needed > memory and spans:
            raise ValueError(
                f"{', '.join(spans)} would keep {needed / 1e9:.1f} GB of activations; allow it with --memory "
                f"{math.ceil(needed / 1e9)}, or use --view channels"
            )
        if needed > memory:
            fits = max(3, int(memory / image_bytes))
            if max(group_sizes(self.n_images, fits)) > fits:
                fits = fits * 2 // 3  # a rest of up to half a group joins the last one
            raise ValueError(
                f"{', '.join(names)} would keep {needed / 1e9:.1f} GB of activations; average over groups of images, "
                f"as with --group-at {fits}, or allow it with --memory "
                f"{math.ceil(needed / 1e9)}"
            )

    def _of(self, need: str) -> list[Metric]:
        return [metric for metric in self.metrics if metric.needs == need]

    def _prefer_store(self, by_need: dict[str, list[Metric]], flat: tuple[int, int]) -> bool:
        if self.group or by_need["features"]:
            return True
        if any(self.views[metric.name] == "images" for metric in by_need["moments"]):
            return False
        # Per image: float64 moments against float32 Gram rows (half of them), float64 at half the speed.
        return 4 * moment_entries(*flat) > self.n_images * sum(flat)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add one batch of activations of the same images: (n, c, h, w) or (n, c) each."""
        if (tuple(x.shape[1:]), tuple(y.shape[1:])) != self.shapes or len(x) != len(y):
            raise ValueError(f"expected activations of shapes {self.shapes}, got {tuple(x.shape)} and {tuple(y.shape)}")
        self.seen += len(x)
        if self.seen > self.n_images:
            raise ValueError(f"{self.seen} images came where {self.n_images} were announced")
        x, y = x.detach(), y.detach()
        flat = flat_rows(x), flat_rows(y)
        if self.grouped:
            self.grouped.update(*flat)
        if self.differences:
            self.differences.update(*flat)
        for view, moments in self.moments.items():
            rows = flat if view == "images" else (channels_last_rows(x), channels_last_rows(y))
            moments.update(*rows)
            if view in self.energies:
                self.energies[view].update(*rows)

    def result(self) -> dict[str, Any]:
        """Return {name: value}; a float, or a dict of numpy arrays and floats for ps_inv and corr.

        Raise ValueError, naming the metric, where images are missing or a value is undefined.
        """
        if self.seen != self.n_images:
            raise ValueError(f"{self.seen} images came where {self.n_images} were announced")
        if self._values is None:
            values: dict[str, Any] = self.grouped.values() if self.grouped else {}
            sums = {view: self._sums(view) for view in self.energies}
            for metric in self.metrics:
                if metric.name not in values:
                    values[metric.name] = self._value(metric, sums)
            self._values = {metric.name: values[metric.name] for metric in self.metrics}
        return dict(self._values)

    def _sums(self, view: str) -> GramSums:
        names = [metric.name for metric in self._of("gram") if self.views[metric.name] == view]
        try:
            sums = gram_sums_of_moments(self.moments[view], self.energies[view])
        except ValueError as error:
            raise ValueError(f"{', '.join(names)}: {error}") from error
        self._biases[view] = cka_of_sums(sums) - debiased_cka_of_sums(sums) if sums.n >= 4 else None
        return sums

    def _value(self, metric: Metric, sums: dict[str, GramSums]) -> Any:
        view = self.views[metric.name]
        source = {"difference": self.differences, "gram": sums.get(view), "moments": self.moments.get(view)}
        try:
            return metric.of_gathered(source[metric.needs])
        except ValueError as error:
            raise ValueError(f"{metric.name}: {error}") from error

    def health(self) -> dict[str, Health]:
        """Return for each view that was used what stands behind its numbers, with warnings in words."""
        self.result()
        return {view: self._health(view) for view in dict.fromkeys(self.views.values())}

    def _health(self, view: str) -> Health:
        grouped = self.grouped if view == "images" else None
        evidence = grouped.evidence if grouped else None
        if evidence is None and view in self.moments:
            evidence = evidence_of_moments(self.moments[view])
        if evidence is None:
            assert self.differences is not None
            evidence = Evidence(self.differences.live())
        channels = [shape[0] for shape in self.shapes]
        dead = [dead_channels(live, count) for live, count in zip(evidence.live, channels, strict=True)]
        positions = math.prod(self.shapes[0][1:]) if view == "channels" else 1
        health = Health(
            view,
            self.n_images,
            self.n_images * positions,
            (len(evidence.live[0]), len(evidence.live[1])),
            evidence.rank,
            evidence.rank_is_bound,
            (dead[0], dead[1]),
            self._biases.get(view, grouped.bias if grouped else None),
        )
        names = [name for name, used in self.views.items() if used == view]
        return replace(health, warnings=doubts(health, evidence, names, self.group))


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name}; known are {', '.join(sorted(METRICS))}")
    return METRICS[name]


def view_of(metric: Metric, asked: str | None, shape_x: tuple[int, ...], shape_y: tuple[int, ...]) -> str:
    """Return the view of a metric for activations of these shapes, given the one asked for, if any."""
    # Where an image has a single position, channels and images are the same rows.
    single = math.prod(shape_x[1:]) == math.prod(shape_y[1:]) == 1
    return "images" if single else metric.view(asked)


def check_metric(
    metric: Metric, view: str, n: int, shape_x: tuple[int, ...], shape_y: tuple[int, ...], group: int | None
) -> None:
    """Raise ValueError for a metric that these shapes, or so few images, do not allow."""
    if metric.same_shape and shape_x != shape_y:
        raise ValueError(f"{metric.name} needs activations of one shape, got {shape_x} and {shape_y}")
    alike = shape_x[1:] == shape_y[1:]
    if view == "channels" and not alike:
        enough = not metric.outnumbered or n > math.prod(shape_x) + 1 and n > math.prod(shape_y) + 1
        remedy = "; use --view images" if "images" in metric.views and enough else ""
        raise ValueError(f"{metric.name} by channels needs equal positions, got {shape_x} and {shape_y}{remedy}")
    dx, dy = (math.prod(s) if view == "images" else s[0] for s in (shape_x, shape_y))
    rows = n * (1 if view == "images" else math.prod(shape_x[1:]))
    if metric.outnumbered:
        features = max(dx, dy) if metric.outnumbered == "both" else dx
        require_images(rows, features, metric.name, "use more images" + " or --view channels" * alike)
    if metric.needs != "moments":
        return
    asked = metric, view, n, dx, dy
    span = by_span(*asked, group)
    needed, limit = (span_bytes(n), SPAN_BYTES) if span else (8 * moment_entries(dx, dy), MOMENT_BYTES)
    if needed > limit:
        raise ValueError(
            f"{metric.name} of {n} images with {dx} and {dy} features would take {needed / 1e9:.1f} GB of sums of "
            "products; use --view channels" + " or leave out --group-at" * (not span and by_span(*asked, None))
        )
