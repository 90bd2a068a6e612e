"""No surprises for the machine: what scripts write, whom they call, and what they leave running."""

import os
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

A, B = (str(ROOT / f"model_weights/Tiny10/Digits/in{seed}-gn{seed}/440.pt") for seed in (0, 1))
COMMANDS = [
    ["train_model", "-m", "lenet", "-d", "digits", "-e", "1", "-lr", "0.01"],
    ["stitch_nets", A, B, "bn7", "bn7", "-i", "ps_inv", "-e", "1", "--run-name", "run"],
    ["eval_net", A],
    ["layer_info", "tiny10"],
    ["eval_stitch", "results/run/bn7-bn7.pkl", "after"],
    ["compare_nets", A, B, "bn1,bn7", "bn7", "digits", "cka", "l2_relative"],
    ["compare_frank_m2", "results/run/bn7-bn7.pkl", "after", "cka"],
]

# Prints what each script opens for writing, changes or calls, and the processes that it leaves.
WATCHED = """
import importlib, multiprocessing, os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.symlink": 1}
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and (args[2] or 0) & WRITES:
        print("wrote", os.path.abspath(os.fsdecode(args[0])), file=sys.__stdout__)
    elif event in CHANGES and isinstance(args[CHANGES[event]], (str, os.PathLike)):
        print("wrote", os.path.abspath(args[CHANGES[event]]), file=sys.__stdout__)
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        print("called", event, *args[1:], file=sys.__stdout__)
script, *arguments = sys.argv[1:]
sys.addaudithook(watch)
sys.stdout = open(os.devnull, "w")
importlib.import_module(script).main(arguments)
print("left", len(multiprocessing.active_children()), file=sys.__stdout__)
"""


def test_scripts_write_where_they_say_call_no_one_and_leave_nothing_running(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("work", "home", "temporary")}
    for place in places.values():
        place.mkdir()
    surroundings = os.environ | {
        "HOME": str(places["home"]),
        "TMPDIR": str(places["temporary"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    surroundings.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it where this test runs beside others
    events = []
    for command in COMMANDS:
        run = subprocess.run(
            [sys.executable, "-c", WATCHED, *command],
            cwd=places["work"],
            env=surroundings,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, f"{command}: {run.stderr}"
        assert "left 0" in run.stdout.splitlines()
        events += [line.split(" ", 1) for line in run.stdout.splitlines()]

    written = {Path(path) for kind, path in events if kind == "wrote"} - {Path(os.devnull)}
    allowed = [places["work"] / folder for folder in ("results", "snapshots")]
    strange = {path for path in written if not any(path.is_relative_to(folder) for folder in allowed)}
    # Python tries where it can write, and torch makes helpers of its own, which are gone at the end (see below).
    assert all(path.is_relative_to(tmp_path) for path in strange), strange
    assert all(any(path.is_relative_to(folder) for path in written) for folder in allowed)  # the watch sees writing
    assert [event for event in events if event[0] == "called"] == []
    # Also what a library writes from C++, unseen by the watch.
    assert {path.name for path in places["work"].iterdir()} == {"results", "snapshots"}
    assert list(places["home"].iterdir()) == []
    assert [path for path in places["temporary"].rglob("*") if not path.is_dir()] == []
