"""Activations into a file: a safetensors of both networks' layers, written batch by batch, whole or not at all."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from src.core.files import atomic_write
from src.cutting.channel_axis import find_outputs, layouts_of
from src.cutting.freeze import freeze
from src.cutting.parts import heads
from src.dataset import Split
from src.evaluation.layer_grid import layer_label
from src.evaluation.passes import feed


def save_activations(
    path: Path,
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[Sequence[str], Sequence[str]],
    sample: Tensor,
    split: Split,
    *,
    about: dict[str, Any],
    overwrite: bool = False,
    batch_size: int | None = None,
    layouts: tuple[str | None, str | None] = (None, None),
) -> None:
    """Write what layers of two networks give for all images of a split: `1.LAYER`, `2.LAYER`, float32, images first.

    Maps are (n, c, h, w), tokens (n, c, tokens, 1), features (n, c): what comparisons flatten.
    `labels` are the split's.
    about: built-in values that the file's metadata hold beside `ids`, one an image, and the layouts.
    Raises FileExistsError where the file is there and `overwrite` is false.
    """
    outputs_of = [find_outputs(*given) for given in zip(networks, layers, (sample, sample), layouts, strict=True)]
    parts = [
        freeze(heads(network, list(names), layouts_of(outputs))).to(split.device)
        for network, names, outputs in zip(networks, layers, outputs_of, strict=True)
    ]
    kinds = {name: str(outputs[layer].layout) for name, layer, outputs in _named(layers, outputs_of)}
    shapes = {name: outputs[layer].canonical for name, layer, outputs in _named(layers, outputs_of)}
    labels = split.labels.cpu().numpy().astype("<i8" if split.labels.dim() == 1 else "<f4")
    head, places, end = _header(shapes, labels, _metadata(split, about | {"layouts": kinds}))
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(head)
        file.truncate(len(head) + end)
        done = 0

        def write(*sides: Sequence[Tensor]) -> None:
            nonlocal done
            tensors = [tensor for side in sides for tensor in side]
            for (place, row), tensor in zip(places, tensors, strict=True):
                file.seek(len(head) + place + done * row)
                file.write(np.ascontiguousarray(tensor.float().cpu().numpy(), dtype="<f4").tobytes())
            done += len(tensors[0])

        feed(parts, split, write, batch_size=batch_size, title="saving activations")
        file.seek(len(head) + end - labels.nbytes)
        file.write(labels.tobytes())


def _metadata(split: Split, about: dict[str, Any]) -> dict[str, str]:
    """Texts, as the format wants them: what is none as JSON."""
    ids = getattr(split, "ids", None) or [f"{split.spec.name}-{number}" for number in range(len(split))]
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in (about | {"ids": ids}).items()
    }


def _header(
    shapes: dict[str, tuple[int, ...]], labels: np.ndarray, metadata: dict[str, str]
) -> tuple[bytes, list[tuple[int, int]], int]:
    """What the file begins with; where each layer begins behind it, with the bytes of an image; and where all ends."""
    header: dict[str, Any] = {"__metadata__": metadata}
    places, start = [], 0
    for name, shape in shapes.items():
        row = 4 * math.prod(shape)
        places.append((start, row))
        header[name] = {
            "dtype": "F32",
            "shape": (len(labels), *shape),
            "data_offsets": (start, start + len(labels) * row),
        }
        start += len(labels) * row
    kind = "I64" if labels.dtype.kind == "i" else "F32"
    header["labels"] = {"dtype": kind, "shape": labels.shape, "data_offsets": (start, start + labels.nbytes)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places, start + labels.nbytes


def _named(layers: tuple[Sequence[str], Sequence[str]], outputs_of: Sequence[Any]) -> list[tuple[str, str, Any]]:
    return [
        (f"{number}.{layer_label(layer)}", layer, outputs)
        for number, (side, outputs) in enumerate(zip(layers, outputs_of, strict=True), start=1)
        for layer in side
    ]
