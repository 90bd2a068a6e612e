"""Metrics of the user's own: what they are given, how they stand beside the others, and what never makes them run."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import compare_frank_m2
import compare_nets
import stitch_nets
from src import compare, results
from src.core.errors import UserError
from src.metrics import MEASURES, METRICS
from src.metrics.own import load_own, name_own
from src.studies.jobs import from_record, to_record
from src.studies.schema import Study
from src.studies.store import Store
from src.studies.work import WorkerTask, perform
from studies import __main__ as studies

MINE = """
import pathlib
import numpy as np

pathlib.Path("ran").touch()

def linear(x, y):
    print("a line that is no result")
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)

def apart(x, y):
    return np.abs(np.linalg.norm(x, axis=1) - np.linalg.norm(y, axis=1)).mean()

def breaks(x, y):
    return 1 / 0

def says(x, y):
    return "much"

def nan(x, y):
    return float("nan")

def depends(x, y):
    return float((x ** 2).sum())
"""
LINEAR, APART = "my.py:linear", "my.py:apart?better=lower"


@pytest.fixture(autouse=True)
def mine(toy: Path) -> Path:
    """A folder with networks and metrics."""
    (toy / "my.py").write_text(MINE)
    return toy


def arrays(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_it_stands_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Values, views, intervals, what chance gives and pictures: those of the metric that it is the formula of."""
    pytest.importorskip("matplotlib")
    words = ["a3.pt", "b3.pt", "conv2", "conv2", "toy", "cka", LINEAR, APART, "--intervals", "--permutations", "19"]
    compare_nets.main([*words, "--calibrate", "19", "--plot", "--run-name", "r"])
    printed = capsys.readouterr()
    (path,) = Path("results/r").glob("*.pkl")
    found = results.read(path)
    assert path.with_suffix(".png").is_file()
    assert found["values"][LINEAR] == pytest.approx(found["values"]["cka"], abs=1e-6)
    for key in ("intervals", "null", "calibrated"):
        assert {LINEAR, APART, "cka"} <= found[key].keys()
    assert found["calibrated"][LINEAR]["score"] == pytest.approx(found["calibrated"]["cka"]["score"], abs=1e-5)
    assert found["calibrated"][APART]["threshold"] > 0 and f"{APART} images" in printed.out
    assert set(found["own_metrics"]) == {LINEAR, APART} and len(found["own_metrics"][LINEAR]) == 64
    assert re.search(rf"{re.escape(APART)} +images +[\d.]+  lower", printed.out)
    table = [line for line in printed.out.splitlines() if re.match(r"(method|cka|my\.py\S*) +(view|images) ", line)]
    assert len({re.search("  (more alike|higher|lower)", line).start() for line in table}) == 1  # pyright: ignore
    assert "no result" not in printed.out and "no result" in printed.err
    compare_nets.main([*words[:4], "toy", "cka", LINEAR, "--view", "channels", "--run-name", "c"])
    values = results.read(next(Path("results/c").glob("*.pkl")))["values"]
    assert values[LINEAR] == pytest.approx(values["cka"], abs=1e-6)
    compare_nets.main(["a3.pt", "b5.pt", "bn1,conv2", "bn1", "toy", LINEAR, "cka", "-g", "24", "--run-name", "g"])
    frame = results.read(next(Path("results/g").glob("*.pkl")))["frame"].set_index(["method", "layer1"])["value"]
    assert frame[LINEAR].to_numpy() == pytest.approx(frame["cka"].to_numpy(), abs=1e-6)


def test_it_is_given_the_activations_as_they_are() -> None:
    x, maps = arrays(30, 5), np.maximum(arrays(30, 3, 2, 4), 0)
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, 3)
    given = []

    def look(first: np.ndarray, second: np.ndarray) -> float:
        given.append((first, second))
        first[:] = 0  # it is its own
        return 0.5

    assert compare(x, maps, look).values == {"look": 0.5}
    assert compare({"a": maps}, {"a": 2 * maps, "b": maps}, look, view="channels").values["look"].shape == (1, 2)
    assert given[0][1].dtype == np.float64 and np.array_equal(given[0][1], maps.reshape(30, -1))
    assert np.array_equal(given[1][1], 2 * rows) and np.array_equal(given[2][1], rows) and (maps >= 0).all()
    assert "look" not in METRICS and "look" not in MEASURES


def test_functions_say_which_way_is_more_alike() -> None:
    def far(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.abs(x - y).mean())

    far.better = "lower"  # pyright: ignore[reportFunctionMemberAccess]
    x = arrays(40, 5)
    found = compare(x, x + 0.1 * arrays(40, 5, seed=1), [far, "my.py:linear"], calibrate=39)
    assert found.calibrated["far"]["score"] > 0.5 and found.calibrated["far"]["p"] == pytest.approx(1 / 40)
    assert set(found.values) == {"far", LINEAR}
    bounds = compare(x, arrays(40, 4, seed=2), ["cka", "my.py:depends"], calibrate=9)
    assert "not calibrated: its value for equal representations depends on these" in " ".join(str(bounds).split())
    with pytest.raises(UserError, match="'cka' is the name of a metric already"):
        far.__name__ = "cka"
        compare(x, x, far)


def test_stitches_are_compared_by_it() -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "0", "--run-name", "s"])
    compare_frank_m2.main(["results/s/bn1-bn1.pkl", "after", "cka", LINEAR, "--run-name", "m"])
    found = results.read(next(Path("results/m").glob("*.pkl")))
    assert found["values"][LINEAR] == pytest.approx(found["values"]["cka"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my.py:nobody", "my.py has no function 'nobody'"),
        ("yours.py:linear", "no Python file yours.py"),
        ("my.py:linear?worse=lower", "is no FILE.py:FUNCTION"),
        ("my.py:linear?better=up", "is no FILE.py:FUNCTION"),
        ("my.py:", "is no FILE.py:FUNCTION"),
        ("my.py:breaks", "my.py:breaks: failed: ZeroDivisionError: division by zero"),
        ("my.py:says", "my.py:says: gave a str, not a number"),
        ("my.py:nan", "my.py:nan: gave nan, not a number"),
        ("broken.py:f", "broken.py cannot be run: SyntaxError"),
    ],
)
def test_a_bad_one_is_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("def f(:\n")
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "toy", name])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and not list(Path().rglob("*.pkl"))


def test_beside_others_a_bad_one_has_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    compare_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "toy", "cka", "my.py:breaks", "--intervals"])
    assert "my.py:breaks: no value: failed: ZeroDivisionError: division by zero" in capsys.readouterr().out


STUDY = f"""
networks = ["a3.pt", "b3.pt"]
dataset = "toy"
[compare]
layers = ["bn1", "conv2"]
metrics = ["cka", "{LINEAR}", "{APART}"]
"""


def test_studies_compare_by_it(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_text(STUDY)
    worker = ["worker", "s.toml", "--shard", "1/1"]
    studies.main(worker)
    files = sorted(Path("results/s").glob("*.pkl"))
    assert len(files) == 2
    for file in files:
        values = results.read(file)["frame"].pivot(index=["layer1", "layer2"], columns="method", values="value")
        assert values[LINEAR].to_numpy() == pytest.approx(values["cka"].to_numpy(), abs=1e-6)
    (bundle, *_) = Store(mine / "results/s").plan(Study(Path("s.toml"))).bundles
    for name in (LINEAR, APART):
        del METRICS[name], MEASURES[name]  # as in a process of an engine, which has read no study
    assert not perform(WorkerTask(bundle, mine / "elsewhere", "me", 60.0, "cpu")).trace
    assert (mine / f"elsewhere/{bundle.items[0].name}.pkl").is_file()
    capsys.readouterr()
    studies.main(["report", "s.toml"])
    assert f"{APART}" in Path("results/s/report.html").read_text()
    Path("my.py").write_text(MINE + "# another\n")
    os.utime("my.py", (0, 0))
    studies.main(worker)
    assert len(list(Path("results/s").glob("*.pkl"))) == 4  # a changed file makes other results
    Path("t.toml").write_text(STUDY.replace(LINEAR, "my.py:nobody"))
    with pytest.raises(SystemExit, match="2"):
        studies.main(["worker", "t.toml", "--shard", "1/1"])
    assert "t.toml:4: compare: my.py has no function 'nobody'" in capsys.readouterr().err


def test_nothing_runs_that_only_a_file_names(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan, a bundle's record, a result and a state of a comparison."""
    Path("s.toml").write_text(STUDY.replace(f', "{LINEAR}", "{APART}"', ""))
    studies.main(["worker", "s.toml", "--shard", "1/1"])
    (kept,) = Path("results/s").glob(".plan-*.json")
    for file in Path("results/s").glob("*.pkl"):
        result = results.read(file)
        result["frame"] = pd.concat([result["frame"], result["frame"].assign(method=LINEAR)])
        results.write(file, result, overwrite=True)
    studies.main(["table", "s.toml"])
    plan = kept.read_text()
    kept.write_text(plan.replace('"cka"', json.dumps(LINEAR)))
    for verb in ("worker s.toml --shard 1/1", "status s.toml", "report s.toml"):
        with pytest.raises(SystemExit, match="2"):
            studies.main([*verb.split()])
        assert f"{kept} asks for {LINEAR}, which s.toml does not name" in capsys.readouterr().err
    kept.write_text(plan)
    (bundle, *_) = Store(mine / "results/s").plan(Study(Path("s.toml"))).bundles
    record = json.loads(json.dumps(to_record(bundle)).replace('"cka"', json.dumps(LINEAR)))
    report = perform(WorkerTask(from_record(record), mine / "elsewhere", "me", 60.0, "cpu"))
    assert f"nobody named the metric '{LINEAR}'" in report.trace and not Path("ran").exists()
    with pytest.raises(UserError, match="nobody named"):
        load_own([LINEAR])
    name_own(LINEAR)
    assert not Path("ran").exists()  # to name it is not to run it


def test_rows_may_be_on_any_device() -> None:
    name_own(LINEAR)
    x = torch.from_numpy(arrays(20, 3)).requires_grad_()
    assert METRICS[LINEAR].of_rows(x, x) == pytest.approx(1) and METRICS[LINEAR].of_equal(x.detach()) == pytest.approx(
        1
    )
