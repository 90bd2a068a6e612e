"""The table of metrics: what each one means, needs and is blind to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.matrix_rows import paired
from src.metrics.alignment import aligned_bytes, aligned_cosine, rsa, rsa_bytes, soft_match
from src.metrics.canonical import mean_cca, pwcca, pwcca_ties, r2_cca, svcca
from src.metrics.cka import cka_of_groups, cka_of_units, debiased_cka_of_groups, permuted_cka
from src.metrics.difference import differences_of, l2, l2_relative
from src.metrics.functional import FUNCTIONAL, Functional
from src.metrics.linear_maps import (
    angular_shape,
    correlations,
    linear_map,
    linear_regression,
    moments_of,
    procrustes_distance,
)
from src.metrics.neighbours import (
    Permuted,
    cosines_of_similarities,
    distance_correlation,
    jaccard,
    mutual_knn,
    overlaps_of_neighbours,
    permuted_jaccard,
    permuted_knn,
    permuted_ranks,
    rank_similarity,
    ranks_of_neighbours,
    rbf_cka,
    second_order_cosine,
    shares_of_neighbours,
)

INFINITY = float("inf")
NOTHING: frozenset[str] = frozenset()
SHIFT_AND_SCALE = frozenset({"translation", "isotropic_scaling"})
RIGID = SHIFT_AND_SCALE | {"orthogonal"}
TURN_AND_SCALE = frozenset({"orthogonal", "isotropic_scaling"})
LINEAR = RIGID | {"invertible_linear"}


@dataclass(frozen=True, slots=True)
class Metric:
    """What a script, a test and a table need to know of a metric.

    views: how activations may become rows, the usual way first: "images" (n, c * h * w), "channels" (n * h * w, c).
    needs: what is gathered in the pass over the data: "moments" of the rows, "gram" sums, all the "features" of all
    images, these as plain "matrices", or the "difference" of elements (the same in either view).
    of_gathered: that -> value. note: moments -> what is to be said of the value, or "".
    front, end: transformations of the one side, or of the other, that leave the value as it is.
    outnumbered: whose features the rows must outnumber: "front", "both" or "".
    cost: images, features of either side -> bytes that it takes beside the rows, where these are many.
    each: where the value is a mean over images' neighbours, that of each, (n,), given both layers and how many
        neighbours, if not the usual number.
    permuted: a shorter way to the values of many pairs of layers where the second's images are in another order:
        layers of both sides -> (an order -> values (first, second)).
    identical: the value for two equal representations; where it depends on these, a function of the rows (n, d).
    higher_is_better: whether larger values mean more alike. row_space: whether the sums of products may be those of
        coordinates in the space that the rows span; then no rotation may change the value, nor may it be a map.
    summary: the key of the one number, where a value is a dict.
    """

    name: str
    meaning: str
    needs: Literal["moments", "gram", "features", "matrices", "difference"]
    of_gathered: Callable[[Any], Any]
    views: tuple[str, ...] = ("images", "channels")
    front: frozenset[str] = RIGID
    end: frozenset[str] = RIGID
    range: tuple[float, float] = (0.0, 1.0)
    identical: float | Callable[[Tensor], float] = 1.0
    higher_is_better: bool = True
    row_space: bool = False
    outnumbered: Literal["", "front", "both"] = ""
    same_shape: bool = False
    summary: str = ""
    note: Callable[[Any], str] | None = None
    cost: Callable[[int, int, int], float] | None = None
    each: Callable[..., Tensor] | None = None
    permuted: Permuted | None = None

    @property
    def invariances(self) -> frozenset[str]:
        """Transformations of either side that leave the value as it is."""
        return self.front & self.end

    def __post_init__(self) -> None:
        if self.row_space and (self.needs != "moments" or "orthogonal" not in self.invariances or self.summary):
            raise UserError(f"{self.name} is no number of sums of products that every rotation keeps")

    @property
    def more_alike(self) -> Literal["higher", "lower"]:
        """Which values mean more alike, in words."""
        return "higher" if self.higher_is_better else "lower"

    def of_equal(self, rows: Tensor) -> float:
        """The value for two representations that are both these rows."""
        return self.identical(rows) if callable(self.identical) else self.identical

    def view(self, asked: str | None) -> str:
        """Return the view asked for where the metric has a choice, else its only or usual one."""
        return asked if asked in self.views else self.views[0]

    def number(self, value: Any) -> float:
        """Return the one number of a value."""
        return float(value[self.summary] if self.summary else value)

    def of_rows(self, x: Tensor, y: Tensor) -> Any:
        """Return the value for two plain matrices, x: (rows, dx) and y: (rows, dy)."""
        return self.of_gathered(_GATHER[self.needs](*paired(x.detach(), y.detach())))


_GATHER: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "moments": moments_of,
    "difference": differences_of,
    "gram": lambda x, y: [gram_sums([Layer.of(x).rows], [Layer.of(y).rows])[0, 0]],
    "features": lambda x, y: (Layer.of(x), Layer.of(y)),
    "matrices": lambda x, y: (x, y),
}


def _cca(name: str, meaning: str, of_moments: Callable, **more: Any) -> Metric:
    return Metric(
        name, meaning, "moments", of_moments, **({"front": LINEAR, "end": LINEAR, "outnumbered": "both"} | more)
    )


def _of_layers(name: str, meaning: str, of: Callable, kept: frozenset[str] = RIGID, **more: Any) -> Metric:
    return Metric(name, meaning, "features", lambda pair: of(*pair), ("images",), kept, kept, **more)


def _difference(name: str, meaning: str, of_differences: Callable, **more: Any) -> Metric:
    free = {
        "front": NOTHING,
        "end": NOTHING,
        "range": (0, INFINITY),
        "identical": 0,
        "higher_is_better": False,
        "same_shape": True,
    }
    return Metric(name, meaning, "difference", of_differences, **free, **more)


_ALL = (
    Metric("cka", "linear CKA, biased", "gram", cka_of_groups, permuted=permuted_cka),
    Metric(
        "cka_debiased",
        "linear CKA, debiased",
        "gram",
        debiased_cka_of_groups,
        range=(-1, 1),
        permuted=partial(permuted_cka, debiased=True),
    ),
    _of_layers(
        "cka_units",
        "linear CKA, debiased for few images and few units, which are drawn independently",
        cka_of_units,
        kept=SHIFT_AND_SCALE,
        range=(-INFINITY, INFINITY),
        identical=lambda rows: cka_of_units(*(Layer.of(rows) for _ in range(2))),
    ),
    _of_layers("cka_rbf", "CKA with Gaussian kernels, bandwidth half the median distance", rbf_cka),
    _of_layers("dist_corr", "distance correlation", distance_correlation),
    _cca("cca", "mean squared canonical correlation (R2_CCA)", r2_cca),
    _cca("cca_mean", "mean canonical correlation", mean_cca),
    _cca(
        "pwcca",
        "canonical correlations weighted by what they carry of the front",
        pwcca,
        front=SHIFT_AND_SCALE,
        note=pwcca_ties,
    ),
    Metric("svcca", "mean canonical correlation of 99% of the variance", "moments", svcca, row_space=True),
    _difference("l2", "mean squared difference", l2),
    _difference(  # by channel, as what is said of stitches
        "l2_relative", "squared difference relative to the end's variance", l2_relative, views=("channels", "images")
    ),
    Metric(
        "ps_inv",
        "least-squares map from front to end (w, b) and its R2",
        "moments",
        linear_map,
        views=("channels", "images"),
        front=LINEAR,
        outnumbered="front",
        summary="r2",
    ),
    Metric(
        "lr",
        "R2 of the linear regression of end on front",
        "moments",
        linear_regression,
        front=LINEAR,
        outnumbered="front",
    ),
    Metric(
        "procrustes",
        "squared distance after the best rotation, both at norm 1",
        "moments",
        procrustes_distance,
        range=(0, 2),
        identical=0,
        higher_is_better=False,
        row_space=True,
    ),
    Metric(
        "corr",
        "correlations of channels (end x front), and the mean best one",
        "moments",
        correlations,
        views=("channels",),
        front=SHIFT_AND_SCALE,
        end=SHIFT_AND_SCALE,
        range=(-1, 1),
        summary="mean_best",
    ),
    Metric(
        "soft_match",
        "correlation of channels matched in shares",
        "moments",
        soft_match,
        views=("channels",),
        front=SHIFT_AND_SCALE,
        end=SHIFT_AND_SCALE,
        range=(-1, 1),
    ),
    Metric(
        "ang_shape",
        "angle after the best rotation",
        "moments",
        angular_shape,
        range=(0, math.pi / 2),
        identical=0,
        higher_is_better=False,
        row_space=True,
    ),
    _of_layers(
        "aligned_cos",
        "mean cosine of images after the best rotation, uncentred",
        aligned_cosine,
        kept=TURN_AND_SCALE,
        range=(-1, 1),
        cost=aligned_bytes,
    ),
    _of_layers(
        "rsa",
        "Spearman correlation of the similarities of images",
        rsa,
        kept=frozenset({"isotropic_scaling"}),
        range=(-1, 1),
        cost=rsa_bytes,
    ),
    _of_layers(
        "mutual_knn",
        "shared share of each image's 10 nearest neighbours",
        mutual_knn,
        each=shares_of_neighbours,
        permuted=permuted_knn,
    ),
    _of_layers(
        "jaccard",
        "shared over all 10 nearest neighbours by cosine, uncentred",
        jaccard,
        kept=TURN_AND_SCALE,
        each=overlaps_of_neighbours,
        permuted=permuted_jaccard,
    ),
    _of_layers(
        "rank_sim",
        "ranks of the shared neighbours by cosine",
        rank_similarity,
        kept=TURN_AND_SCALE,
        each=ranks_of_neighbours,
        permuted=permuted_ranks,
    ),
    _of_layers(
        "second_cos",
        "cosine of the similarities to all neighbours by cosine",
        second_order_cosine,
        kept=TURN_AND_SCALE,
        each=cosines_of_similarities,
        range=(-1, 1),
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
# All that can be asked for by name: measures of layers, and of what networks decide.
MEASURES: dict[str, Metric | Functional] = {**METRICS, **FUNCTIONAL}
