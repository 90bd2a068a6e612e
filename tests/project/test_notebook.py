"""The notebook runs on any results, and the committed one shows what it promises."""

import json
import re
from pathlib import Path

import pytest

import stitch_nets
from src import results
from tests.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "explore_results.ipynb"


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_refuses_to_join_unrelated_runs(toy: Path, committed: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("b3.pt", "b5.pt"):
        stitch_nets.main(["a3.pt", end, "bn1", "bn1", "-e", "0", "--run-name", end])
    cell = next("".join(cell["source"]) for cell in committed["cells"] if "results.table(" in "".join(cell["source"]))
    with pytest.raises(ValueError, match=r"several pairs of networks(.|\n)*b3.pt(.|\n)*b5.pt"):
        exec(cell, {"results": results, "folder": toy / "results"})


# the kernel's libraries warn of their own affairs
@pytest.mark.filterwarnings("default")
def test_it_runs_on_other_results(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    for layer in ("bn1", "conv2", "fc1"):
        for init in ("ps_inv", "random"):
            command = ["a3.pt", "b5.pt", layer, layer, "-i", init, "-e", "1", "-b", "16", "--run-name", init]
            stitch_nets.main(command)
    monkeypatch.setenv("STITCH_RESULTS", str(toy / "results"))
    monkeypatch.setenv("IPYTHONDIR", str(toy / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    tables = [output["data"]["text/plain"] for output in outputs if "text/html" in output.get("data", {})]
    assert all(layer in tables[0] for layer in ("bn1", "conv2", "fc1"))
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_committed_outputs_are_whole_small_and_of_no_machine(committed: dict) -> None:
    code = [cell for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 300_000
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    assert not re.findall(r"[\s\"'(=](/(?!/)[\w.-]+/[\w./-]+)", json.dumps(committed))
    assert not re.search(r"/(home|root|tmp|work|opt|Users)\b", json.dumps(committed))


def test_it_opens_pickles_safely(committed: dict) -> None:
    source = "".join("".join(cell["source"]) for cell in committed["cells"] if cell["cell_type"] == "code")
    assert "results.read(" in source and "pickle" not in source
