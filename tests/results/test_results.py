"""Result files: they open anywhere, come back as they were, and run nothing when they are read."""

import pickle
import pickletools
import re
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from src import results
from src.results import read, run_folder, write
from tests.paths import ROOT
from tests.same import assert_same


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": ["bn1", "bn2"], "images": [10, 20], "cka": [0.5, np.nan], "flag": [True, False]}, index=["a", "b"]
    )


def result() -> dict[Any, Any]:
    """Every kind of value that a result may hold."""
    return {
        "params": {"front_layer": "bn3", "rank": None, "lr": 1e-3, "debug": False, "seed": 2**40, "nested": [(1, [2])]},
        "fit": pd.DataFrame([[0.5, 0.25], [0.75, 0.125]], columns=["loss", "accuracy"]),
        "table": frame(),
        "empty": pd.DataFrame(columns=["a", "b"]),
        "series": pd.Series([1.0, 2.0], name="q"),
        "index": pd.Index([3, 1, 2]),
        "matrix": np.arange(15, dtype=np.float32).reshape(5, 3, 1, 1),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "nothing": np.zeros((0, 3)),
        "zero_dimensions": np.array(3),
        "words": np.array(["one", "three"]),
        "objects": np.array(["one", 2, None], dtype=object),
        "loss": np.float64(0.25),
        "acc": np.float32(0.75),
        "yes": np.bool_(True),
        "history": {0: {"w": np.eye(2)}, 10: {"w": np.ones((2, 2))}},
        ("bn1", "bn2"): 0.5,
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"abc"),
        "long": "x" * 300,
        "not a number": float("inf"),
    }


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.pkl"
    write(path, result(), overwrite=False)
    found = read(path)
    assert found.pop("format") == results.FORMAT
    assert_same(found, result())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_others_are_read_as_pickle_reads_them(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    with pd.option_context("mode.string_storage", "python"):  # not pyarrow's buffers, where that is installed
        others = result() | {"ordered": OrderedDict(a=1), "again": [frame()] * 2}
        path.write_bytes(pickle.dumps(others, protocol))
        assert_same(read(path), pickle.loads(path.read_bytes()))


def test_tensors_come_back_without_their_gradients(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "plain": base,
        "part": base[1:, ::2],
        "turned": base.t(),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(3),
        "half": base.half(),
        "empty": torch.zeros(0, 2),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(tensors))
    found = read(path)
    for name, tensor in tensors.items():
        assert_same(found[name], tensor.detach().clone())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_order_of_bytes_is_minded(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    for order in "<>":
        path.write_bytes(pickle.dumps(np.arange(3, dtype=f"{order}i4"), protocol))
        assert read(path).tolist() == [0, 1, 2]


def test_sharing_is_kept(tmp_path: Path) -> None:
    shared = [np.ones(3)]
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"a": shared, "b": shared}))
    found = read(path)
    assert found["a"] is found["b"]


@pytest.mark.reference
def test_the_published_result_is_read_as_pickle_reads_it(reference: Path) -> None:
    path = reference / "published_bn3-bn3.pkl"
    found = read(path)
    with path.open("rb") as file:
        assert_same(found, pickle.load(file))
    assert found["trans_m"]["after"]["w"].shape == (32, 32, 1, 1)
    assert found["trans_history"][0]["transform.weight"].shape == (32, 32, 1, 1)


def test_a_result_opens_without_the_project(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    write(path, result(), overwrite=False)
    code = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    result = pickle.load(file)
print(result["table"].loc["b", "layer"], "src" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error::DeprecationWarning", "-c", code, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "bn2 False\n", done.stderr


def test_a_result_asks_for_nothing_that_only_some_versions_of_pandas_have(tmp_path: Path) -> None:
    original = {"table": frame(), "nested": [{"index": frame().set_index("layer")}]}
    write(tmp_path / "x.pkl", original, overwrite=False)
    strings = [argument for _, argument, _ in pickletools.genops((tmp_path / "x.pkl").read_bytes())]
    assert not {"StringArray", "StringDtype", "ArrowStringArray"} & {text for text in strings if isinstance(text, str)}
    pd.testing.assert_frame_equal(original["table"], frame())  # what was written is left as it was


def test_an_existing_result_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    write(path, {"a": 1}, overwrite=False)
    with pytest.raises(FileExistsError, match=f"{path} exists already; give --overwrite or another --run-name"):
        write(path, {"a": 2}, overwrite=False)
    assert read(path)["a"] == 1
    write(path, {"a": 2}, overwrite=True)
    assert read(path)["a"] == 2


def test_a_cut_result_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    write(path, result(), overwrite=False)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"^cannot read {path} as a result: it is cut, or no pickle$"):
            read(path)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, result(), overwrite=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_files_and_newer_formats_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no result file {path}"):
            read(path)
    path = tmp_path / "x.pkl"
    for newer in (2, "1", np.ones(2)):
        path.write_bytes(pickle.dumps({"format": newer}))
        with pytest.raises(ValueError, match=f"{path} has another format than 1, the one that this version reads"):
            read(path)


def test_a_named_run_has_its_folder(tmp_path: Path) -> None:
    assert run_folder(tmp_path / "results", "run1") == tmp_path / "results" / "run1"
    assert (tmp_path / "results" / "run1").is_dir()
    assert run_folder(tmp_path / "results", "run1").is_dir()


def test_runs_without_a_name_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "2026-01-02_03-04-05")
    folders = [run_folder(tmp_path, None) for _ in range(3)]
    assert [folder.name for folder in folders] == [f"2026-01-02_03-04-05{suffix}" for suffix in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)


def test_a_run_without_a_name_is_called_by_its_time(tmp_path: Path) -> None:
    before = time.strftime("%Y-%m-%d_%H-%M-%S")
    stamp = run_folder(tmp_path, None).name
    assert before <= stamp <= time.strftime("%Y-%m-%d_%H-%M-%S")


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out_dir, run_name in ((tmp_path / "file", None), (tmp_path / "file", "x"), (tmp_path, "file")):
        with pytest.raises(OSError, match="file"):
            run_folder(out_dir, run_name)


def test_provenance_names_the_commit_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stitch_nets.py", "a b.pt", "bn3"])
    origin = results.provenance()
    assert origin["runner_code"] == "python stitch_nets.py 'a b.pt' bn3"
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", origin["git"]["commit"])


def test_a_checkout_without_a_commit_has_none_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("git"):
        pytest.skip("there is no git")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert results.provenance()["git"] == {"branch": None, "commit": None}


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert results.provenance()["git"] == {"branch": None, "commit": None}
    monkeypatch.setenv("PATH", "/nonexistent")
    assert results.provenance()["git"] == {"branch": None, "commit": None}
