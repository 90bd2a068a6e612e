"""A thousand spoilt files of a fixed seed, and those that once were more than one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import results
from src.core.errors import UserError
from src.core.tensor_files import parse_tensors
from tests.fuzz.cases import RESULTS, WEIGHTS, archive, held, tensor
from tests.paths import ROOT


def test_a_thousand_spoilt_files_are_read_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "1000", "0"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    assert done.stdout.strip().endswith(": 0 failures")


def test_the_sound_neighbour_of_a_case_is_read() -> None:
    assert parse_tensors(archive(held(tensor(4, 4, 1))))["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_was_found_in_weight_files_is_refused(name: str) -> None:
    start = time.process_time()
    with pytest.raises(UserError):
        parse_tensors(WEIGHTS[name])
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", RESULTS)
def test_what_was_found_in_results_is_refused(name: str, tmp_path: Path) -> None:
    path, start = tmp_path / "x.pkl", time.process_time()
    path.write_bytes(RESULTS[name])
    with pytest.raises(UserError):
        results.read(path)
    assert time.process_time() - start < 5
