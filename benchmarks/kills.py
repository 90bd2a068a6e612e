"""Kill a study again and again, and see that all comes out as if nothing had been: python -m benchmarks.kills

200 stitches and 40 comparisons of five small networks on the digits are made twice by two workers: in peace, and while
every few seconds a worker, and every tenth time the driver, gets a SIGKILL. Driver and all are started anew until
everything is there. It is told what differs from the calm results, byte by byte, what is left over, and what time was
lost.
"""

import argparse
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from src import results

ROOT = Path(__file__).resolve().parents[1]
NETS = """
from torch import nn


def make(classes, channels):
    first = nn.Sequential(nn.Conv2d(channels, 4, 8, stride=4), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(150, classes))
"""
STUDY = """
networks = ["nets.py:make#1", "nets.py:make#2", "nets.py:make#3", "nets.py:make#4", "nets.py:make#5"]
dataset = "digits"
minutes = {minutes}

[[stitch]]
layers = ["0", "1"]
layer_pairs = "zip"
seed = [0, 1, 2, 3, 4]
epochs = {epochs}

[[compare]]
layers = ["0", "0.0", "0.1", "1"]
metrics = ["cka", "lr", "procrustes", "mutual_knn", "soft_match"]

[[compare]]
layers = "all"
split = "train"
metrics = ["cka", "cca"]
"""
COUNT = 240
KEPT = (".plan", ".stitches.jsonl")  # what a finished study keeps beside its results
CHANGING = ("runner_code", "git")  # of a result: the command that made it, and the commit


def contents(folder: Path) -> dict[tuple[str, str], bytes]:
    """What each result says, by its keys."""
    return {
        (path.stem, key): pickle.dumps(value)
        for path in folder.glob("*.pkl")
        for key, value in results.read(path).items()
        if key not in CHANGING
    }


def start(home: Path, out: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "studies"), "kills.toml", "--workers", "2", "--device", "cpu", "-o", out]
    with open(home / f"{out}.log", "ab") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, "--patience", "10"], cwd=home, env=environment, stdout=log, stderr=log)


def workers(driver: int) -> list[int]:
    """The processes at work of a driver."""
    try:
        children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except OSError:
        return []


def killed_run(home: Path, most: int, pause: tuple[float, float], chance: random.Random) -> tuple[dict[str, int], int]:
    """Run until all is there, with so many kills on the way at most; returns them by kind, and the drivers started."""
    kills, drivers, driver = {"worker": 0, "driver": 0}, 1, start(home, "killed")
    while driver.poll() is None:
        time.sleep(chance.uniform(*pause))
        if driver.poll() is not None or sum(kills.values()) >= most:
            driver.wait()
            break
        at_work = workers(driver.pid)
        if chance.random() < 0.1 or not at_work:
            driver.kill()
            driver.wait()
            kills["driver"] += 1
            driver, drivers = start(home, "killed"), drivers + 1
        else:
            os.kill(chance.choice(at_work), signal.SIGKILL)
            kills["worker"] += 1
        if sum(kills.values()) % 25 == 0:
            print(
                f"{sum(kills.values())} kills, {len(list((home / 'killed/kills').glob('*.pkl')))} results", flush=True
            )
    while driver.returncode != 0 and drivers < 1000:
        driver, drivers = start(home, "killed"), drivers + 1
        driver.wait()
    return kills, drivers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, metavar="N")
    parser.add_argument("--every", type=float, nargs=2, default=(1.0, 8.0), metavar="S", help="seconds between two")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of each stitch")
    parser.add_argument("--minutes", type=float, default=0.3, metavar="N", help="that a pass should take")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        (home / "nets.py").write_text(NETS)
        (home / "kills.toml").write_text(STUDY.format(epochs=args.epochs, minutes=args.minutes))
        begin = time.monotonic()
        if start(home, "calm").wait():
            print((home / "calm.log").read_text()[-2000:])
            return 1
        calm = time.monotonic() - begin
        print(f"calm: {calm:.0f} s", flush=True)
        begin = time.monotonic()
        kills, drivers = killed_run(home, args.kills, tuple(args.every), random.Random(args.seed))
        took = time.monotonic() - begin
        one, other = contents(home / "calm/kills"), contents(home / "killed/kills")
        names = {name for name, _ in other}
        differing = sorted(key for key in {**one, **other} if one.get(key) != other.get(key))
        files = [path for path in (home / "killed/kills").rglob("*") if path.is_file() and path.suffix != ".pkl"]
        left = [path.name for path in files if not path.name.startswith(KEPT)]
        log = (home / "killed.log").read_text()
    print(
        f"killed: {took:.0f} s, {kills['worker']} kills of workers and {kills['driver']} of drivers ({drivers} started)"
    )
    print(f"{len(names)} of {COUNT} results, {len(differing)} values that differ: {differing[:5]}; left over: {left}")
    print(f"lost: {took - calm:.0f} s, {(took - calm) / max(1, sum(kills.values())):.1f} s a kill")
    print(f"failures: {log.count('.failed.json') + log.count('failed together')}; Traceback: {log.count('Traceback')}")
    return int(len(names) != COUNT or bool(differing) or bool(left))


if __name__ == "__main__":
    sys.exit(main())
