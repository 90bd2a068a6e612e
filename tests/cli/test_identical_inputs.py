"""compare_nets.py on inputs that the first network cannot tell from the images."""

from pathlib import Path

import pytest

import compare_nets
from src import results

PAIR = ("a3.pt", "b3.pt")
IRI = ("--on", "iri", "--iri-images", "32", "--iri-steps", "3")


def compare(*words: str) -> None:
    compare_nets.main([*PAIR, *words])


def test_each_row_of_a_grid_has_inputs_of_its_own(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare("bn1,conv2", "bn1,fc1", "toy", "cka", "jsd", "lr", *IRI, "--run-name", "grid")
    out = capsys.readouterr().out
    assert "on 32 inputs that the first network's bn1 cannot tell" in " ".join(out.split())
    (path,) = Path("results/grid").glob("*.pkl")
    grid = results.read(path)
    frame = grid["frame"].set_index(["method", "layer1", "layer2"])["value"]
    for front in ("bn1", "conv2"):
        for end in ("bn1", "fc1"):
            compare(front, end, "toy", "cka", "jsd", "lr", *IRI, "--run-name", f"{front}-{end}")
            (path,) = Path(f"results/{front}-{end}").glob("*.pkl")
            single = results.read(path)
            for name, value in single["values"].items():
                assert frame[name, front, end] == pytest.approx(value)
            assert single["identical"][front] == grid["identical"][front]
    assert frame["jsd", "bn1", "fc1"] != frame["jsd", "conv2", "fc1"]  # decisions about other inputs
    assert len(list(Path("results/.iri").iterdir())) == 2
    compare("bn1", "bn1", "toy", "cka", "--run-name", "data")
    (path,) = Path("results/data").glob("*.pkl")
    assert results.read(path)["values"]["cka"] != frame["cka", "bn1", "bn1"]
    compare("bn1", "bn1", "toy", "cka", *IRI, "--run-name", "sure", "--intervals", "--permutations", "5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "iri", "--calibrate"], "--on iri excludes --calibrate"),
        (["--on", "iri", "--versus", "b5.pt", "bn1"], "--on iri excludes --versus"),
        (["--iri-steps", "5"], "--iri-steps is of --on iri"),
    ],
)
def test_what_it_excludes(toy: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        compare("bn1", "bn1", "toy", "cka", *words)
    assert message in capsys.readouterr().err and not Path("results").exists()
