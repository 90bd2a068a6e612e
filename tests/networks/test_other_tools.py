"""Files as thingsvision and nnsight leave them, written here in their layout, and compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compare_nets
from src import compare, results
from src.dataset.feature_files import digest_of_features, parts_of, read_features
from tests.networks.test_feature_files import IMAGES, activations

X, Y = activations()
NAMES = [f"{name}/{number:02}.jpg" for name in ("cat", "dog") for number in range(IMAGES // 2)]
MAPS = np.random.default_rng(3).normal(size=(IMAGES, 3, 4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def thingsvision(folder: str, features: np.ndarray, order: Any = slice(None)) -> None:
    """A folder with one layer and the order of the images, as save_features and ImageDataset make it."""
    Path(folder).mkdir()
    np.save(f"{folder}/features.npy", features[order])
    Path(f"{folder}/file_names.txt").write_text("".join(f"{name}\n" for name in np.array(NAMES)[order]))


def by_module(folder: str, ending: str, step: int, **layers: np.ndarray) -> None:
    """A folder a module, with so many images a file, as extract_features(output_dir=...) makes it; 0: one of all."""
    for module, features in layers.items():
        home = Path(folder) / module
        home.mkdir(parents=True)
        for start in range(0, IMAGES, step or IMAGES):
            stop = min(start + (step or IMAGES), IMAGES)
            name = f"features_{start}-{stop}" if step else "features"
            if ending == "npy":
                np.save(home / f"{name}.npy", features[start:stop])
            else:
                torch.save(torch.from_numpy(features[start:stop].copy()), home / f"{name}.pt")
    Path(folder, "file_names.txt").write_text("".join(f"{name}\n" for name in NAMES))


def test_a_folder_of_thingsvision_is_matched_by_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    thingsvision("one", X)
    thingsvision("two", X, np.random.default_rng(1).permutation(IMAGES))
    compare_nets.main(["features:one", "features:two", "features", "features", "none", "cka"])
    assert "matched by their ids" in capsys.readouterr().err
    (path,) = Path("results").rglob("*.pkl")
    assert results.read(path)["values"]["cka"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("ending", "step"), [("npy", 16), ("npy", 0), ("pt", 16), ("pt", 0), ("npy", IMAGES)])
def test_modules_in_folders_and_in_parts(ending: str, step: int) -> None:
    """Parts are one layer, whatever rows are asked for."""
    layers = {"features.8": MAPS, "classifier.1": Y}
    by_module("out", ending, step, **layers)
    file = read_features(Path("out"))
    assert set(file.layers) == set(layers) and file.ids == tuple(NAMES) and file.images == IMAGES
    rows = file.layers["features.8"].read
    for index in (slice(None), slice(10, 20), slice(39, 40), np.array([39, 0, 17, 16, 15]), slice(5, 5)):
        assert np.array_equal(rows(index), MAPS[index])
    found = compare("out", layers | {"ids": np.array(NAMES)}, ["cka", "mutual_knn"]).values
    for name, table in compare(layers, layers, ["cka", "mutual_knn"]).values.items():
        assert np.array_equal(found[name].loc[list(layers), list(layers)], table.loc[list(layers), list(layers)])
    assert len(parts_of(Path("out"))) == 1 + 2 * (-(-IMAGES // step) if step else 1)
    before, part = digest_of_features(Path("out")), sorted(Path("out/features.8").iterdir())[-1]
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    assert digest_of_features(Path("out")) != before


HIDDEN = np.random.default_rng(4).normal(size=(2, IMAGES, 7, 5)).astype(np.float32)  # layers, prompts, tokens, width


@pytest.mark.parametrize("how", ["dict", "list", "nested", "one", "bfloat16"])
def test_saved_proxies_of_nnsight(how: str) -> None:
    """Hidden states of a language model (prompts, tokens, width), as torch.save writes what a trace has saved."""
    first, second = (torch.from_numpy(values.copy()) for values in HIDDEN)
    layer, saved = {
        "dict": ("model.transformer.h.0", {"model.transformer.h.0": first, "model.transformer.h.1": second}),
        "list": ("0.0", [(first, None), (second, None)]),
        "nested": ("layers.0", {"layers": [first, second]}),
        "one": ("acts", first),
        "bfloat16": ("h", {"h": first.bfloat16()}),
    }[how]
    torch.save(saved, "acts.pt")
    np.save("flat.npy", HIDDEN[0].transpose(0, 2, 1).reshape(IMAGES, 35))
    words = [layer, "flat", "none", "cka", "--run-name", "r"]
    compare_nets.main(["features:acts.pt?layout=tokens", "features:flat.npy", *words])
    value = results.read(next(Path("results/r").glob("*.pkl")))["values"]["cka"]
    assert value == pytest.approx(1, abs=1e-6 if how != "bfloat16" else 1e-3)


def test_labels_and_ids_of_a_pt() -> None:
    torch.save({"h": torch.from_numpy(X), "labels": torch.arange(IMAGES), "ids": NAMES, "note": "mine"}, "a.pt")
    file = read_features(Path("a.pt"))
    assert file.ids == tuple(NAMES) and set(file.layers) == {"h"} and file.labels is not None


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def missing_part() -> None:
    by_module("x", "npy", 16, h=X)
    Path("x/h/features_16-32.npy").unlink()


def other_width() -> None:
    by_module("x", "npy", 20, h=X)
    np.save("x/h/features_20-40.npy", X[20:, :3])


def late_part() -> None:
    by_module("x", "npy", 20, h=X)
    Path("x/h/features_0-20.npy").unlink()


BAD: dict[str, tuple[Any, str, str]] = {
    "code in a pickle": (lambda: torch.save({"h": torch.ones(IMAGES, 2), "more": Evil()}, "x.pt"), "x.pt", "x.pt: "),
    "no tensors": (lambda: torch.save({"a": 1}, "x.pt"), "x.pt", "x.pt holds no layer"),
    "a sparse tensor": (lambda: torch.save(torch.eye(40).to_sparse(), "x.pt"), "x.pt", "x.pt"),
    "a cut file": (lambda: Path("x.pt").write_bytes(b"PK\x03\x04rest"), "x.pt", "x.pt: "),
    "a part is missing": (missing_part, "x", "parts of features are missing: features_0-16 ends at 16"),
    "the first part is missing": (late_part, "x", "parts of features are missing: nothing comes before 20"),
    "parts of other widths": (other_width, "x", "does not continue"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_one_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, spec, message = BAD[case]
    make()
    np.save("good.npy", X)
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main([f"features:{spec}", "features:good.npy", "all", "good", "none", "cka"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    print(line)
    assert message in line and not Path("ran").exists()
