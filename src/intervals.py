"""Intervals that say how far a share counted on some images may be from that of all images."""

import math

Z95 = 1.959963984540054  # the normal quantile of 97.5%


def wilson(share: float, images: int, z: float = Z95) -> tuple[float, float]:
    """The 95% interval of a share of so many images, which stays within 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Brown, Cai and
    DasGupta 2001 recommend it. Raises ValueError where there are no images or the share is none.
    """
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"no interval of a share of {share} of {images} images")
    spread = z * z / images
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
