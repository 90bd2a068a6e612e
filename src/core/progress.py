"""Progress bars on stderr: rate and time left; none where stderr is no terminal."""

import sys

from tqdm import tqdm


def bar(total: int, title: str, *, unit: str, initial: int = 0) -> tqdm:
    """A bar of `total` steps, to be used as a `with` block and moved on with `.update(n)`."""
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        unit_scale=unit == "image",
        file=sys.stderr,
        disable=not title or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )
