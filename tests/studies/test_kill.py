"""Studies whose driver and workers are killed with SIGKILL, again and again, end as if nothing had been."""

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from src import results
from studies.__main__ import main
from tests.paths import ROOT

NETS = """
from torch import nn


def make(classes, channels):
    first = nn.Sequential(nn.Conv2d(channels, 4, 8, stride=4), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(150, classes))
"""
STUDY = """
networks = ["nets.py:make#1", "nets.py:make#2"]
dataset = "digits"
minutes = 0.001  # a pass a stitch
similarity = false

[stitch]
layers = ["0", "1"]
layer_pairs = "zip"
init = ["ps_inv", "random"]
seed = [0, 1, 2]
epochs = 1
"""
COUNT = 24


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("s.toml").write_text(STUDY)
    return tmp_path


def found(folder: str) -> dict[tuple[str, str], bytes]:
    """What each result says, by its keys, but for the command that made it and the commit, which may change."""
    return {
        (path.stem, key): pickle.dumps(value)
        for path in Path(folder, "s").glob("*.pkl")
        for key, value in results.read(path).items()
        if key not in ("runner_code", "git")
    }


def differing(one: dict[tuple[str, str], bytes], other: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], str]:
    """What two runs have not alike, in words."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {
        key: " against ".join(repr(pickle.loads(run[key]))[:400] for run in (one, other) if key in run) for key in keys
    }


def start(*options: str) -> subprocess.Popen:
    # by its folder, as one calls it from any other
    command = [sys.executable, str(ROOT / "studies"), "s.toml", "--workers", "2", "--device", "cpu", *options]
    with open("log", "ab") as log:
        # a shell in the background makes its children deaf to Ctrl-C
        hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=log, stdout=log, preexec_fn=hear
        )


def workers(driver: int) -> list[int]:
    children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(count: int, driver: subprocess.Popen) -> None:
    """Until so many results are there; fails where the driver ends before."""
    while len(list(Path("results/s").glob("*.pkl"))) < count:
        assert driver.poll() is None, Path("log").read_text()
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")
def test_kills_change_nothing(folder) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(["worker", "s.toml", "--shard", "1/1", "--device", "cpu", "-o", "calm"])
    finally:
        torch.set_num_threads(threads)
    calm = found("calm")
    assert len({name for name, _ in calm}) == COUNT
    chance = random.Random(7)
    driver = start("--patience", "5")
    for count in (2, 6):  # a worker, twice: its stitch is made by another
        wait_for(count, driver)
        time.sleep(chance.random() / 5)
        os.kill(chance.choice(workers(driver.pid)), signal.SIGKILL)
    wait_for(12, driver)
    time.sleep(chance.random() / 5)
    driver.kill()  # its workers end by themselves
    driver.wait()
    assert len({name for name, _ in found("results")}) < COUNT
    last = start("--patience", "5")
    assert last.wait(120) == 0, Path("log").read_text()
    assert differing(found("results"), calm) == {}
    left = [path.name for path in Path("results/s").rglob("*") if path.is_file() and path.suffix != ".pkl"]
    assert sorted(name.split("-")[0] for name in left) == [".plan", ".stitches.jsonl"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")
def test_ctrl_c_ends_the_workers_keeps_results_and_gives_leases_back(folder) -> None:
    driver = start()
    wait_for(1, driver)
    at_work = workers(driver.pid)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == 130
    assert at_work and not any(Path(f"/proc/{pid}").exists() for pid in at_work)
    kept = {name for name, _ in found("results")}
    assert 1 <= len(kept) < COUNT and not list(Path("results/s/.leases").glob("*.lease"))
    assert (
        Path("log").read_text().splitlines()[-1] == "error: interrupted; the same command goes on with what is missing"
    )
