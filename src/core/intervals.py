"""Intervals that say how far a share counted on some images may be from that of all images."""

import math
from collections.abc import Callable

import numpy as np

from src.core.errors import UserError

Z95 = 1.959963984540054  # the normal quantile of 97.5%
DRAWS = 2000  # of a bootstrap


def wilson(share: float, images: int, z: float = Z95) -> tuple[float, float]:
    """The 95% interval of a share of so many images, which stays within 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Brown, Cai and
    DasGupta 2001 recommend it. Raises UserError where there are no images or the share is none.
    """
    if images < 1 or not 0 <= share <= 1:
        raise UserError(f"no interval of a share of {share} of {images} images")
    spread = z * z / images
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def is_chance(share: float, chance: float, images: int) -> bool:
    """Whether a share of right decisions on so many images is no better than `chance`, by three standard errors."""
    return share <= chance + 3 * math.sqrt(chance * (1 - chance) / images)


def paired_difference(rr: int, rw: int, wr: int, ww: int) -> tuple[float, float]:
    """The 95% interval of the share that the first gets right minus the share that the second does.

    Of so many images both (rr), only the first (rw), only the second (wr) and neither (ww) were right. Source: Newcombe
    1998, "Improved confidence intervals for the difference between binomial proportions based on paired data", the
    tenth method: Wilson's intervals of both shares, joined by their correlation. Raises UserError without images.
    """
    n = rr + rw + wr + ww
    first, second = (rr + rw) / max(1, n), (rr + wr) / max(1, n)
    agreement = rr * ww - rw * wr
    if agreement > 0:
        agreement = max(0.0, agreement - n / 2)
    scale = math.sqrt((rr + rw) * (wr + ww) * (rr + wr) * (rw + ww))
    return _difference(first, second, n, agreement / scale if scale else 0.0)


def _difference(first: float, second: float, images: int, correlation: float) -> tuple[float, float]:
    (low1, high1), (low2, high2) = wilson(first, images), wilson(second, images)

    def spread(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    difference = first - second
    return difference - spread(first - low1, high2 - second), difference + spread(high1 - first, second - low2)


def of_shares(*shares: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean share of right decisions over images, or of that of the first less the second.

    shares: (images,), 0 to 1 each. By a bootstrap over images. Where these do not differ, it would say that no others
    do: then it is Wilson's interval, or Newcombe's, as if each image were one decision.
    """
    rows = np.stack(shares, 1)
    apart = rows[:, 0] - rows[:, 1:].sum(1)
    if (apart != apart[0]).any():
        return percentiles(bootstrap(rows, lambda means: means[:, 0] - means[:, 1:].sum(1)))
    n, first, *others = len(rows), *rows.mean(0).clip(0, 1).tolist()
    if not others:
        return wilson(first, n)
    (second,) = others
    scale = n * math.sqrt(first * (1 - first) * second * (1 - second))
    correlation = max(0.0, 1 - 0.5 / scale) if scale else 0.0  # 1 but for Newcombe's correction for continuity
    return _difference(first, second, n, correlation)


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0) -> np.ndarray:
    """Values of a statistic of the mean row, (DRAWS,), under images drawn anew with replacement.

    rows: (images, columns), what several networks make of each image, so that an image stays with all of them.
    `statistic` maps means (DRAWS, columns) to values (DRAWS,). Equal rows are drawn together, by their number.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), size=DRAWS)
    return statistic(drawn @ distinct / len(rows))


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
