"""Metrics held against random pairings of the images: what compare_nets.py --calibrate says of two networks."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import compare_nets
from src import results
from src.studies.frames import ENDS, Frame

METRICS = ("cka", "mutual_knn")
PAIRINGS, IMAGES = "200", "1000"


def scores(pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], layers: str, folder: Path) -> Frame:
    """Scores at equal layers: columns ENDS, layer, method, value. pairs: names and files of two networks."""
    parts = []
    for names, files in pairs:
        out = folder / " and ".join(names)
        if not list(out.rglob("*.pkl")):
            words = [*files, layers, layers, "cifar10", *METRICS, "--calibrate", PAIRINGS, "--images", IMAGES]
            with contextlib.redirect_stdout(io.StringIO()):
                compare_nets.main([*words, "-o", str(out)])
        (path,) = out.rglob("*.pkl")
        frame = results.read(path)["calibrated"]["frame"]
        same = frame[frame["layer1"] == frame["layer2"]]
        parts.append(same[["layer1", "method", "score"]].assign(**dict(zip(ENDS, names, strict=True))))
    return pd.concat(parts, ignore_index=True).rename(columns={"layer1": "layer", "score": "value"})
