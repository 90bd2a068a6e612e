"""How a layer's output is laid out, and its canonical form, in which everything behind the cut gets it.

maps (n, c, h, w) and features (n, c) are canonical as they are. channels_last (n, h, w, c) becomes (n, c, h, w); tokens
(n, t, c) become (n, c, t, 1), and a line (n, c, l), maps of one axis, becomes (n, c, l, 1).
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

Shape = tuple[int, ...]
# axes of an output of each kind, and which of them holds the channels
RANKS = {"features": 2, "line": 3, "tokens": 3, "maps": 4, "channels_last": 4}
CHANNELS_AT = {"features": 1, "line": 1, "tokens": 2, "maps": 1, "channels_last": 3}
ASKABLE = ("maps", "channels_last", "tokens", "features")  # behind the ? of a network spec; a line counts as maps
MOST_PREFIX = 16  # tokens that may stand before a square of patches that nobody has told us of


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a layer's output; `guessed` says that nothing in the network tells it.

    `grid` is the rows and columns in which tokens lie in the image, line by line; the `prefix` before them, class and
    register tokens, lies nowhere. A grid of None: no token has a place.
    """

    kind: str = "maps"
    guessed: bool = False
    grid: tuple[int, int] | None = None
    prefix: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the output is canonical as it is."""
        return self.kind in ("maps", "features")

    @property
    def is_scattered(self) -> bool:
        """Whether these are tokens that lie nowhere in the image."""
        return self.kind == "tokens" and self.grid is None

    def canonical(self, x: Tensor) -> Tensor:
        """The layer's own output in canonical form, a view of it."""
        return to_canonical(x, self.kind)

    def original(self, x: Tensor) -> Tensor:
        """What is canonical as the network itself lays it out."""
        return to_original(x, self.kind)

    def shape(self, own: Shape) -> Shape:
        """The canonical shape of one image's output, given its own."""
        at = CHANNELS_AT[self.kind] - 1
        rest = own[:at] + own[at + 1 :]
        return own[at], *rest, *([1] if RANKS[self.kind] == 3 else [])

    def __str__(self) -> str:
        text = {"channels_last": "last", "line": "maps"}.get(self.kind, self.kind)
        if self.grid:
            text += f" {self.prefix}+{self.grid[0]}x{self.grid[1]}"
        return text + "?" * self.guessed


def to_canonical(x: Tensor, kind: str) -> Tensor:
    """An output of this kind in canonical form, a view of it."""
    if kind == "channels_last":
        return x.movedim(3, 1)
    if kind == "tokens":
        return x.transpose(1, 2).unsqueeze(3)
    return x.unsqueeze(3) if kind == "line" else x


def to_original(x: Tensor, kind: str) -> Tensor:
    """The reverse of `to_canonical`, in the order in memory in which the network itself would have made it."""
    if kind == "channels_last":
        return x.movedim(1, 3).contiguous()
    if kind == "tokens":
        return x.squeeze(3).transpose(1, 2).contiguous()
    return x.squeeze(3).contiguous() if kind == "line" else x


def with_grid(layout: Layout, tokens: int, grid: tuple[int, int] | None) -> Layout:
    """The layout with the places of its tokens: in this grid if they fill one, else in the largest square."""
    if layout.kind != "tokens":
        return layout
    if grid and math.prod(grid) <= tokens <= math.prod(grid) + MOST_PREFIX:
        return replace(layout, grid=grid, prefix=tokens - math.prod(grid))
    side = math.isqrt(tokens)
    prefix = tokens - side * side
    return replace(layout, grid=(side, side), prefix=prefix) if prefix <= MOST_PREFIX else layout
