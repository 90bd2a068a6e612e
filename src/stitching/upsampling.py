"""Moments of activations that are interpolated up to a larger layer, from as many rows as they have themselves.

Interpolation is linear, alike for all channels and one axis after the other: x becomes P x with P = Q R, Q of
orthonormal columns. So the sums over all positions of (P x)(P x)^T and of (P x) y^T are those of (R x)(R x)^T and of
(R x)(Q^T y)^T over the few positions of x. They are taken in float64 about a fixed point near the means (P leaves
constants as they are) and centred at the end.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import float64_device
from src.metrics.algebra.moments import PairedMoments, Sums
from src.stitching.cut_networks import Shared
from src.stitching.geometry import Geometry
from src.stitching.stitch_spec import Cut

Side = tuple[str, str]  # a network and its layer
WORTHWHILE = 2  # times as many positions in the end as in the front


def is_upsampled(geometry: Geometry) -> bool:
    """Whether the front activation is interpolated to enough positions for this way to be the cheaper one."""
    tokens = geometry.front_layout.kind == "tokens" or geometry.end_layout.kind == "tokens"
    if tokens or geometry.is_flat or len(geometry.end_shape) != 3:
        return False
    (h, w), (height, width) = geometry.front_shape[1:], geometry.end_shape[1:]
    return height >= h and width >= w and height * width >= WORTHWHILE * h * w


def _sides(cut: Cut) -> tuple[Side, Side]:
    return (cut.source, cut.front_layer), ("end", cut.end_layer)


class _Axis:
    """Interpolation along one axis, (large, small), and its factors."""

    def __init__(self, small: int, large: int, device: torch.device) -> None:
        basis = torch.eye(small, dtype=torch.float64).view(1, small, small, 1)
        moved = F.interpolate(basis, size=(large, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T
        q, r = torch.linalg.qr(moved)
        self.q, self.r, self.weights = q.to(device), r.to(device), moved.sum(0).to(device)


class Upsampling:
    """Interpolation of a front activation to more positions, in few numbers."""

    def __init__(self, geometry: Geometry, device: torch.device) -> None:
        sizes = zip(geometry.front_shape[1:], geometry.end_shape[1:], strict=True)
        axes = [_Axis(small, large, float64_device(device)) for small, large in sizes]
        self.first, self.second = (axis.r.float().to(device) for axis in axes)

    def root(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> R x, which has as many positions as x and the inner products of what x becomes."""
        return self.first @ x @ self.second.T


def _along_both(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(n, c, h, w) -> rows (n * h' * w', c) of first (h', h) and second (w', w) applied to its axes."""
    x = (x @ second.T).transpose(2, 3) @ first.T  # (n, c, w', h')
    return x.transpose(0, 1).reshape(x.shape[1], -1).T


class Upsampled:
    """Feed it the outputs of layers by name, of each network by its own; `finish` gives the moments of every pair."""

    def __init__(self, geometries: dict[Cut, Geometry], device: torch.device) -> None:
        self.geometries, self.device = geometries, float64_device(device)
        self.axes: dict[tuple[int, int], _Axis] = {}
        self.centres: dict[Side, Tensor] = {}
        self.images = 0
        self.totals: dict[tuple, Tensor] = {}

    def add(self, outputs: Shared) -> None:
        done: dict[tuple, Tensor] = {}
        for cut, geometry in self.geometries.items():
            front, end = _sides(cut)
            for side in (front, end):
                if side not in done:
                    done[side] = self._shifted(side, outputs)
            x, y = done[front], done[end]
            across = [
                self._axis(*sizes) for sizes in zip(geometry.front_shape[1:], geometry.end_shape[1:], strict=True)
            ]
            size, small = geometry.end_shape[1:], geometry.front_shape[1:]
            if (front, "up", size) not in done:
                done[front, "up", size] = rows = _along_both(x, across[0].r, across[1].r)
                self._add(("products", front, size), rows.T @ rows)
                self._add(("total", front, size), torch.einsum("nchw,h,w->c", x, across[0].weights, across[1].weights))
            if (end, "down", small) not in done:
                done[end, "down", small] = _along_both(y, across[0].q.T, across[1].q.T)
            self._add(("cross", cut), done[front, "up", size].T @ done[end, "down", small])
        self.images += len(x)

    def _shifted(self, side: Side, outputs: Shared) -> Tensor:
        """A layer's output in float64 about a fixed point near its means: those of the first batch."""
        x = outputs[side[0]][side[1]].to(self.device).double()
        if side not in self.centres:
            self.centres[side] = x.mean((0, 2, 3))
        return x - self.centres[side][:, None, None]

    def _axis(self, small: int, large: int) -> _Axis:
        if (small, large) not in self.axes:
            self.axes[small, large] = _Axis(small, large, self.device)
        return self.axes[small, large]

    def _add(self, key: tuple, value: Tensor) -> None:
        self.totals[key] = self.totals[key] + value if key in self.totals else value

    def finish(self, ends: dict[str, Sums]) -> Iterable[tuple[Cut, PairedMoments]]:
        """The moments of each pair, given the sums of the end layers. Raises UserError for NaN and infinite values."""
        for cut, geometry in self.geometries.items():
            size, y = geometry.end_shape[1:], ends[cut.end_layer]
            front, end = _sides(cut)
            n = self.images * size[0] * size[1]
            total = self.totals["total", front, size]
            x = Sums(geometry.inputs, self.device)
            x.n = n
            x.all_means.copy_(self.centres[front] + total / n)
            x.all_products.copy_(self.totals["products", front, size] - torch.outer(total, total) / n)
            if not torch.isfinite(x.products.trace()):
                raise UserError("activations hold NaN or infinite values (or overflow float64 when squared)")
            moments = PairedMoments.of(x, y)
            moments.all_xy.copy_(self.totals["cross", cut] - torch.outer(total, y.mean - self.centres[end]))
            yield cut, moments
