"""Comparing from Python: the numbers of compare_nets.py, whatever library arrays are of, and one line for bad ones."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import compare_nets
from src import compare, results
from tests.networks.test_feature_files import IMAGES, activations, ids_of

X, Y = activations()


class Foreign:
    """An array of a library that nobody here knows."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


def test_numbers_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """One pair of layers, with all that says how sure it is: to the last digit, and the same table."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    methods = ["cka", "procrustes", "ps_inv", "l2", "mutual_knn"]
    options = ["--intervals", "--permutations", "9", "--calibrate", "9", "--run-name", "r"]
    compare_nets.main(["features:x.npy", "features:y.npy", "x", "y", "none", *methods, *options])
    (path,) = Path("results/r").glob("*.pkl")
    kept, printed = results.read(path), capsys.readouterr().out
    found = compare(X, Y, methods, intervals=True, permutations=9, calibrate=9)
    for name in ("cka", "procrustes", "mutual_knn"):
        assert found.values[name] == kept["values"][name]
        assert found.calibrated[name] == kept["calibrated"][name]
    assert np.array_equal(found.values["ps_inv"]["w"], kept["values"]["ps_inv"]["w"])
    assert (found.intervals, found.null, found.refused) == (kept["intervals"], kept["null"], kept["refused"])
    assert found.health["images"]["rank"] == (6, 5) and "l2 needs activations of one shape" in found.refused["l2"]
    lines = str(found).splitlines()
    assert lines[0] == f"x and y ({IMAGES} images)" and lines[1:] == printed.splitlines()[1 : len(lines)]
    assert repr(found) == str(found)
    frame = found.frame().set_index("method")
    assert list(frame.columns[2:]) == ["value", "low", "high", "null_mean", "null_threshold", "threshold", "p", "score"]
    assert tuple(frame.loc["cka", ["low", "high"]]) == found.intervals["cka"]
    assert frame.loc["cka", "p"] == found.calibrated["cka"]["p"] and np.isnan(frame.loc["l2", "value"])


def test_several_layers_are_a_grid() -> None:
    found = compare({"a": X, "b": Y}, {"c": Y, "d": X, "e": 3 * X + 1}, ["cka", "l2"], intervals=True, calibrate=9)
    assert found.values["cka"].shape == (2, 3) and found.values["cka"].loc["a", "e"] == pytest.approx(1, abs=1e-6)
    assert found.values["cka"].loc["a", "c"] == pytest.approx(compare(X, Y).values["cka"])
    frame = found.frame()
    assert len(frame) == 12 and {"low", "high", "threshold", "p", "score"} <= set(frame.columns)
    assert len(found.refused) == 3 and isinstance(found.health, pd.DataFrame)
    assert "cka: linear CKA, biased; higher means more alike" in str(found)


def test_arrays_may_be_of_any_library() -> None:
    expected = compare(X, Y).values["cka"]
    x = torch.from_numpy(X)
    for same in (x, x.clone().requires_grad_(), x.double(), Foreign(X), X.tolist(), pd.DataFrame(X), X.astype(">f8")):
        assert compare(same, Foreign(Y)).values["cka"] == expected
    assert compare(x.bfloat16(), Y).values["cka"] == pytest.approx(expected, abs=1e-2)


def test_what_a_file_holds_an_array_may_hold(tmp_path: Path) -> None:
    """Ids align, whole files stand for arrays, and outputs with labels are decisions."""
    order = np.random.default_rng(1).permutation(IMAGES)
    first, second = {"layer": X, "ids": ids_of()}, {"layer": 2 * X[order], "ids": ids_of()[order]}
    found = compare(first, second)
    assert found.values["cka"] == pytest.approx(1, abs=1e-6)
    assert "note: the images of y are in another order; they are matched by their ids" in str(found)
    np.savez(tmp_path / "y.npz", allow_pickle=False, **second)
    assert (
        compare(first, tmp_path / "y.npz").values == found.values == compare(first, np.load(tmp_path / "y.npz")).values
    )
    assert compare(X, X[order]).values["cka"] < 0.9 and "note" not in str(compare(X, X[order]))
    assert "one file does not say which images" in str(compare(first, X))
    logits, labels = np.eye(4)[np.arange(IMAGES) % 4], np.arange(IMAGES) % 4
    decided = compare(
        {"layer": X, "output": logits, "labels": labels},
        {"layer": X, "output": np.roll(logits, 1, 1)},
        ["disagreement", "abs_acc_diff"],
    )
    assert decided.values == {"disagreement": 1.0, "abs_acc_diff": 1.0}


def test_names_of_layers_do_nothing_to_a_terminal() -> None:
    assert "\\x1b[2J" in str(compare({"\x1b[2J": X, "b": Y}, X)) and "\x1b" not in str(compare({"\x1b[2J": X}, X))


def test_layouts_and_views() -> None:
    maps = np.random.default_rng(2).normal(size=(IMAGES, 3, 4, 5))
    tokens = maps.reshape(IMAGES, 3, 20).transpose(0, 2, 1)
    assert compare(maps, tokens, layout=(None, "tokens")).values["cka"] == pytest.approx(1, abs=1e-6)
    last = maps.transpose(0, 2, 3, 1)
    assert compare(maps, last, "corr", layout=(None, "channels_last")).values["corr"]["mean_best"] == pytest.approx(1)
    by_channels = compare(maps, 2 * maps, "cka", view="channels")
    assert by_channels.values["cka"] == pytest.approx(1) and "channels" in str(by_channels)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:9]), {}, "y has 9 images, x 40; they are to be the same ones"),
        ((X, Y, "cke"), {}, "unknown metric 'cke'; known are"),
        ((X, Y, []), {}, "no metric is named"),
        ((X, Y), {"view": "rows"}, "unknown view 'rows'"),
        ((X, Y), {"layout": "last"}, "unknown layout 'last'"),
        ((X, Y), {"group_at": 10, "intervals": True}, "exclude group_at"),
        ((X, Y, "l2"), {}, "l2 needs activations of one shape"),
        ((X, X[:, :, None]), {}, 'may be tokens or channels; say it with layout="tokens"'),
        ((X, Y + 1j), {}, "y holds complex numbers"),
        ((X, np.where(Y > 1, np.nan, Y)), {}, "NaN or infinite values"),
        ((X, "nowhere.npy"), {}, "no file or folder nowhere.npy"),
        ((X, object()), {}, "y, y is a object of objects, not of numbers"),
        (
            ({"a": X, "ids": ids_of()}, {"a": Y, "ids": ids_of()[::-1][:39]}),
            {},
            "y: a has 40 images, ids 39|has 39 ids",
        ),
        (({"a": X, "ids": ids_of()}, {"a": X, "ids": np.arange(IMAGES)}), {}, "y has no image 'image 0', which x has"),
        ((X, Y), {"memory": 1e-9, "intervals": True}, "allow it with --memory"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        compare(*arguments, **options)
    assert re.search("|".join(map(re.escape, message.split("|"))), str(caught.value))
    assert len(str(caught.value).splitlines()) == 1
