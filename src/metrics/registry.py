"""The table of metrics: what each one means, needs and is blind to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from src.metrics.canonical import (
    bases_of_moments,
    mean_cca,
    mean_cca_of,
    pwcca,
    pwcca_of,
    r2_cca,
    r2_cca_of,
    svcca,
    svcca_of_moments,
)
from src.metrics.cka import cka_of_sums, debiased_cka_of_sums, debiased_linear_cka, linear_cka
from src.metrics.difference import l2, l2_of, l2_relative, l2_relative_of
from src.metrics.linear_maps import (
    correlations,
    correlations_of,
    linear_map,
    linear_map_of,
    linear_regression,
    linear_regression_of,
    procrustes_distance,
    procrustes_distance_of,
)
from src.metrics.neighbours import mutual_knn, mutual_knn_centred, rbf_cka, rbf_cka_centred

INFINITY = float("inf")
NOTHING: frozenset[str] = frozenset()
SHIFT_AND_SCALE = frozenset({"translation", "isotropic_scaling"})
RIGID = SHIFT_AND_SCALE | {"orthogonal"}
LINEAR = RIGID | {"invertible_linear"}


@dataclass(frozen=True, slots=True)
class Metric:
    """What a script, a test and a table need to know of a metric.

    views: how activations may become rows, the usual way first: "images" (n, c * h * w), "channels" (n * h * w, c).
    needs: what is gathered in the pass over the data: "moments" of the rows, "gram" sums, all the "features" of all
    images, or the "difference" of elements (the same in either view).
    of_gathered: that -> value. of_rows: two plain matrices -> value.
    front, end: transformations of the one side, or of the other, that leave the value as it is.
    outnumbered: whose features the rows must outnumber: "front", "both" or "".
    identical: the value for two equal representations. summary: the key of the one number, where a value is a dict.
    """

    name: str
    meaning: str
    needs: Literal["moments", "gram", "features", "difference"]
    of_gathered: Callable[[Any], Any]
    of_rows: Callable[..., Any]
    views: tuple[str, ...] = ("images", "channels")
    front: frozenset[str] = RIGID
    end: frozenset[str] = RIGID
    range: tuple[float, float] = (0.0, 1.0)
    identical: float = 1.0
    outnumbered: Literal["", "front", "both"] = ""
    same_shape: bool = False
    summary: str = ""

    @property
    def invariances(self) -> frozenset[str]:
        """Transformations of either side that leave the value as it is."""
        return self.front & self.end

    def view(self, asked: str | None) -> str:
        """Return the view asked for where the metric has a choice, else its only or usual one."""
        return asked if asked in self.views else self.views[0]

    def number(self, value: Any) -> float:
        """Return the one number of a value."""
        return float(value[self.summary] if self.summary else value)


def _cca(name: str, meaning: str, of_bases: Callable, of_rows: Callable, front: frozenset[str] = LINEAR) -> Metric:
    def of_moments(moments) -> float:
        return of_bases(bases_of_moments(moments))

    return Metric(name, meaning, "moments", of_moments, of_rows, front=front, end=LINEAR, outnumbered="both")


_ALL = (
    Metric("cka", "linear CKA, biased", "gram", cka_of_sums, linear_cka),
    Metric("cka_debiased", "linear CKA, debiased", "gram", debiased_cka_of_sums, debiased_linear_cka, range=(-1, 1)),
    Metric(
        "cka_rbf",
        "CKA with Gaussian kernels, bandwidth half the median distance",
        "features",
        lambda rows: rbf_cka_centred(*rows),
        rbf_cka,
        views=("images",),
    ),
    _cca("cca", "mean squared canonical correlation (R2_CCA)", r2_cca_of, r2_cca),
    _cca("cca_mean", "mean canonical correlation", mean_cca_of, mean_cca),
    _cca("pwcca", "canonical correlations weighted by what they carry of the front", pwcca_of, pwcca, SHIFT_AND_SCALE),
    Metric("svcca", "mean canonical correlation of 99% of the variance", "moments", svcca_of_moments, svcca),
    Metric(
        "l2",
        "mean squared difference",
        "difference",
        l2_of,
        l2,
        front=NOTHING,
        end=NOTHING,
        range=(0, INFINITY),
        identical=0,
        same_shape=True,
    ),
    Metric(
        "l2_relative",
        "squared difference relative to the end's variance",
        "difference",
        l2_relative_of,
        l2_relative,
        front=NOTHING,
        end=NOTHING,
        range=(0, INFINITY),
        identical=0,
        same_shape=True,
    ),
    Metric(
        "ps_inv",
        "least-squares map from front to end (w, b) and its R2",
        "moments",
        linear_map_of,
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
        linear_regression_of,
        linear_regression,
        front=LINEAR,
        outnumbered="front",
    ),
    Metric(
        "procrustes",
        "squared distance after the best rotation, both at norm 1",
        "moments",
        procrustes_distance_of,
        procrustes_distance,
        range=(0, 2),
        identical=0,
    ),
    Metric(
        "corr",
        "correlations of channels (end x front), and the mean best one",
        "moments",
        correlations_of,
        correlations,
        views=("channels",),
        front=SHIFT_AND_SCALE,
        end=SHIFT_AND_SCALE,
        range=(-1, 1),
        summary="mean_best",
    ),
    Metric(
        "mutual_knn",
        "shared share of each image's 10 nearest neighbours",
        "features",
        lambda rows: mutual_knn_centred(*rows),
        mutual_knn,
        views=("images",),
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
