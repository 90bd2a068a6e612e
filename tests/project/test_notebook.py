"""The notebooks run, and the committed ones show what they promise."""

import json
import re
from pathlib import Path

import pytest

import stitch_nets
from src import load_results
from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOK = ROOT / "notebooks" / "explore_results.ipynb"
OWN = ROOT / "notebooks" / "your_own_arrays.ipynb"


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_refuses_to_join_unrelated_runs(toy: Path, committed: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("b3.pt", "b5.pt"):
        stitch_nets.main(["a3.pt", end, "bn1", "bn1", "-e", "0", "--run-name", end])
    cell = next(
        "".join(cell["source"]) for cell in committed["cells"] if "load_results(folder)" in "".join(cell["source"])
    )
    with pytest.raises(ValueError, match=r"several pairs of networks(.|\n)*b3.pt(.|\n)*b5.pt"):
        exec(cell, {"load_results": load_results, "folder": toy / "results"})


def executed(notebook: Path) -> list[dict]:
    """The outputs of all cells, of a fresh run."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    read = nbformat.read(notebook, as_version=4)
    for cell in read.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    folder = {"metadata": {"path": str(notebook.parent)}}
    nbclient.NotebookClient(read, timeout=300, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in read.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    return outputs


# the kernel's libraries warn of their own affairs
@pytest.mark.filterwarnings("default")
def test_it_runs_on_other_results(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for layer in ("bn1", "conv2", "fc1"):
        for init in ("ps_inv", "random"):
            command = ["a3.pt", "b5.pt", layer, layer, "-i", init, "-e", "1", "-b", "16", "--run-name", init]
            stitch_nets.main(command)
    monkeypatch.setenv("STITCH_RESULTS", str(toy / "results"))
    monkeypatch.setenv("STITCH_REPORT", str(toy / "results"))
    monkeypatch.setenv("IPYTHONDIR", str(toy / "ipython"))
    outputs = executed(NOTEBOOK)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    tables = [output["data"]["text/plain"] for output in outputs if "text/html" in output.get("data", {})]
    assert all(layer in tables[0] for layer in ("bn1", "conv2", "fc1"))


@pytest.mark.filterwarnings("default")
def test_that_of_own_arrays_runs_and_says_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of arrays are the same everywhere; networks that it trains itself are not."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [cell for cell in json.loads(OWN.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    kept = ["".join(texts_of(output)) for cell in cells for output in cell["outputs"]]
    made = ["".join(texts_of(output)) for output in executed(OWN)]
    assert len(made) == len(kept) and made[0].split()[:20] == kept[0].split()[:20]
    assert made[0].startswith("x and y (300 images)") and "matched by their ids" in made[3]
    assert made[4].startswith("Sequential, 1 -> Sequential, 1 (359 images)") and "penalty:" in made[4]
    assert made[-1].split()[:8] == kept[-1].split()[:8]


def texts_of(output: dict) -> list[str] | str:
    return output["text"] if "text" in output else output["data"]["text/plain"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_whole_small_and_of_no_machine(notebook: Path) -> None:
    committed = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3 * (notebook == NOTEBOOK)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert notebook.stat().st_size < 300_000
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    assert not re.findall(r"[\s\"'(=](/(?!/)[\w.-]+/[\w./-]+)", json.dumps(committed))
    assert not re.search(r"/(home|root|tmp|work|opt|Users)\b", json.dumps(committed))


def test_it_opens_pickles_safely(committed: dict) -> None:
    source = "".join("".join(cell["source"]) for cell in committed["cells"] if cell["cell_type"] == "code")
    assert "load_results(" in source and "pickle" not in source
