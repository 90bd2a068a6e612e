"""A thousand spoilt files of a fixed seed, and those that once were more than one line."""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from src import results
from src.core.errors import UserError
from src.core.tensor_files import parse_tensors
from src.core.text import has_controls
from src.networks.opening import Named, open_network
from src.studies.declared import tables_of
from src.studies.schema import Study
from tests.fuzz import seeds
from tests.fuzz.cases import RESULTS, TRANSFORMERS, WEIGHTS, archive, held, tensor
from tests.paths import ROOT


def test_a_thousand_spoilt_files_are_read_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "1000", "0"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    assert done.stdout.strip().endswith(": 0 failures")


@pytest.mark.parametrize("line", ["minutes = 1" + "0" * 400, "minutes = 1" + "0" * 5000, "x = " + "[" * 5000])
def test_what_was_found_in_studies_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(line)
    with pytest.raises(UserError, match=r"s\.toml:1: ") as caught:
        Study(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("what", TRANSFORMERS)
def test_what_was_found_in_folders_of_transformers_is_refused(what: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    seeds.transformers_folder(tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    key, value = TRANSFORMERS[what]
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        open_network(Named(f"hf:{tmp_path / 'hf'}"))
    assert time.process_time() - start < 5 and not has_controls(str(caught.value))


def test_control_characters_in_studies_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('networks = ["\\u001b[2J*.pt", "b.pt"]\n[stitch]\nlayers = "a"\n')
    with pytest.raises(UserError, match=r"s\.toml:1: networks: no file matches \\x1b\[2J\*\.pt$"):
        tables_of(Study(path))


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


def test_tensors_of_odd_kinds_in_a_recipe_pass_unread(tmp_path: Path) -> None:
    """A nested tensor cannot be copied, so that what the file says of itself ended in a traceback."""
    content = torch.load(ROOT / "model_weights/Tiny10/Digits/in0-gn0/440.pt", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        content["recipe"] |= {"odd": [torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])]}
        torch.save(content, tmp_path / "x.pt")
        opened = open_network(Named(str(tmp_path / "x.pt")))
    assert "odd" not in opened.facts() and opened.model == "tiny10"
