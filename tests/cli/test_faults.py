"""Scripts that are killed, that run out of disk, and that meet in one folder: nothing is lost and nothing is half.

The number of kills is small here; `FAULT_KILLS=30 python -m pytest tests/cli/test_faults.py` makes the long run.
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

import stitch_nets
import train_model
from src import results
from src.core.tensor_files import parse_tensors
from tests.paths import ROOT
from tests.same import assert_same

KILLS = int(os.environ.get("FAULT_KILLS", "2"))
WEIGHTS = [str(ROOT / f"model_weights/Tiny10/Digits/in{seed}-gn{seed}/440.pt") for seed in (0, 1)]
STITCH = [*WEIGHTS, "bn7", "bn7", "-i", "ps_inv", "-e", "5", "--run-name", "run"]
TRAIN = ["-m", "lenet", "-d", "digits", "-b", "64", "-e", "8", "-s", "20", "-lr", "0.01", "--run-name", "run"]


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Processes that have imported the scripts, so that a kill meets their work and not their start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["stitch_nets", "train_model"])
        warm_up = context.Process(target=int)
        warm_up.start()
        warm_up.join()
        yield context


def work(script: str, argv: list[str], folder: Path) -> None:
    os.chdir(folder)
    with open(os.devnull, "w") as sys.stdout, open("stderr.txt", "w") as sys.stderr:
        {"stitch": stitch_nets, "train": train_model}[script].main(argv)


def start(processes: Any, script: str, argv: list[str], folder: Path) -> ForkServerProcess:
    process = processes.Process(target=work, args=(script, argv, folder))
    process.start()
    return process


def finish(process: ForkServerProcess, folder: Path) -> None:
    process.join()
    assert process.exitcode == 0, (folder / "stderr.txt").read_text()


def readable(folder: Path) -> dict[str, Any]:
    """The files of a run but for what differs from run to run, each of them whole."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pkl":
            record = results.read(path)
            for key in ("git", "runner_code", "params"):  # --resume is an argument
                del record[key]
            found[path.name] = record
        elif path.suffix == ".pt":
            parse_tensors(path.read_bytes())
            found[path.name] = path.read_bytes()
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize(("script", "argv"), [("stitch", STITCH), ("train", TRAIN)])
def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(
    tmp_path: Path, processes: Any, script: str, argv: list[str]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    finish(start(processes, script, argv, whole), whole)
    duration = time.monotonic() - began
    expected = readable(whole)
    instants, killed = random.Random(0), 0
    while killed < KILLS:
        folder = tmp_path / "killed"
        folder.mkdir()
        process = start(processes, script, argv, folder)
        wait = instants.uniform(0.05, 0.95) * duration
        process.join(wait)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed += 1
        else:  # it was done before; the first run was slower than this one
            assert process.exitcode == 0, (folder / "stderr.txt").read_text()
            duration = wait
        before = readable(folder)
        assert before.keys() <= expected.keys() | {"resume.pt", "bn7-bn7.resume.pt"}
        if not list(folder.glob("results/run/*.pkl")):
            finish(start(processes, script, [*argv, "--resume"], folder), folder)
            assert not list(folder.rglob(".*")), "a leftover"
        else:  # killed between the result and the removal of the resume file
            for path in folder.rglob("*resume.pt"):
                path.unlink()
        assert_same(readable(folder), expected)
        assert not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)


@pytest.mark.parametrize(("script", "argv"), [("stitch", STITCH), ("train", TRAIN)])
def test_a_terminated_run_says_so_and_leaves_no_lock(
    tmp_path: Path, processes: Any, script: str, argv: list[str]
) -> None:
    process = start(processes, script, argv, tmp_path)
    while process.is_alive() and not (list(tmp_path.rglob(".*.lock"))):
        time.sleep(0.01)
    time.sleep(0.1)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    *epochs, last = (tmp_path / "stderr.txt").read_text().splitlines()
    how = {"stitch": "--resume --run-name run", "train": "--resume"}[script]
    assert last == f"error: interrupted; {how} goes on from the last whole epoch" and not any(
        "Traceback" in line for line in epochs
    )
    assert not list(tmp_path.rglob(".*")), "a leftover"


@pytest.mark.parametrize("epochs", [0, 1], ids=["result", "resume file"])
def test_a_full_disk_leaves_the_old_result_and_is_named(tmp_path: Path, epochs: int) -> None:
    """In a name space of its own the script gets a disk of 1 MB, nearly full, with an older result on it."""
    command = [sys.executable, str(ROOT / "stitch_nets.py"), *STITCH[:6], "-e", str(epochs), "--run-name", "run"]
    script = r"""
        mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
        cd "$1"; shift
        "$@" >out.txt 2>err.txt || exit 78
        [ "$(wc -c <results/run/bn7-bn7.pkl)" -gt 20000 ] || exit 79
        sha256sum results/run/*; rm out.txt err.txt
        head -c 2000000 /dev/zero >filler 2>/dev/null
        truncate -s -8192 filler; sync  # a little room, less than the file needs
        "$@" --overwrite >/dev/null; echo "code $?"
        sha256sum results/run/*; ls -A results/run
    """
    unshare = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no name space of mounts may be made here")
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", str(tmp_path), *command], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no disk may be mounted here")
    before, code, after, *names = done.stdout.splitlines()
    failed = "results/run/bn7-bn7." + ("resume.pt" if epochs else "pkl")
    rest = "this file is lost, those before it are whole; the same command begins anew"
    assert done.stderr == f"error: No space left on device: {failed}; {rest}\n"
    assert code == "code 2"
    assert before == after
    assert names == ["bn7-bn7.pkl"]


def test_two_runs_in_one_folder_do_not_touch_each_other(tmp_path: Path, processes: Any) -> None:
    """Two layers at once under one name: two whole results. One layer twice: one result, one refusal."""
    layers = ("bn7", "bn8", "bn8")
    commands = [[*STITCH[:2], layer, layer, *STITCH[4:6], "-e", "1", "--run-name", "run"] for layer in layers]
    running = [start(processes, "stitch", command, tmp_path) for command in commands]
    for process in running:
        process.join()
    assert running[0].exitcode == 0
    assert sorted(process.exitcode or 0 for process in running[1:]) == [0, 2]
    names = sorted(path.name for path in (tmp_path / "results" / "run").iterdir())
    assert names == ["bn7-bn7.pkl", "bn8-bn8.pkl"]
    for layer in ("bn7", "bn8"):
        alone = tmp_path / layer
        alone.mkdir()
        command = next(command for command in commands if layer in command)
        finish(start(processes, "stitch", command, alone), alone)
        assert_same(readable(tmp_path)[f"{layer}-{layer}.pkl"], readable(alone)[f"{layer}-{layer}.pkl"])
