"""Files of activations in studies: beside networks and each other, what is kept, what is refused when planned."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare_nets
from src import results
from src.dataset.feature_files import read_features
from src.studies.frames import collect
from src.studies.jobs import from_record, to_record
from src.studies.plan import make_plan
from src.studies.schema import Study
from src.studies.store import Store
from studies.__main__ import main

WORKER = ["worker", "s.toml", "--shard", "1/1"]
BOTH = '[["features:a.safetensors", "features:a.safetensors"]]'
STUDY = f"""
networks = ["a3.pt", "b5.pt"]
dataset = "toy"
[[compare]]
pairs = [["a3.pt", "b5.pt"]]
layers = ["bn1", "conv2"]
metrics = ["cka", "procrustes", "mutual_knn"]
save = true
[[compare]]
pairs = {BOTH}
front_layers = ["1.bn1", "1.conv2"]
end_layers = ["2.bn1", "2.conv2"]
metrics = ["cka", "procrustes", "mutual_knn"]
[[compare]]
pairs = [["a3.pt", "features:a.safetensors"]]
front_layers = ["bn1", "conv2"]
end_layers = ["2.bn1", "2.conv2"]
metrics = ["cka", "procrustes", "mutual_knn"]
"""


@pytest.fixture(autouse=True)
def saved(toy: Path) -> Path:
    """A folder with two networks and the activations of both."""
    words = ["a3.pt", "b5.pt", "bn1,conv2", "bn1,conv2", "toy", "cka", "--no-save"]
    compare_nets.main([*words, "--save-activations", "a.safetensors"])
    return toy


def values(study: str = "s") -> list[list[float]]:
    """Of each result of a study, in the order of its plan."""
    store = Store(Path("results") / study)
    plan = store.plan(Study(Path(f"{study}.toml")))
    return [results.read(store.path(name))["frame"]["value"].tolist() for name in plan.names]


def test_numbers_are_the_same_through_networks_and_through_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_text(STUDY)
    main([*WORKER])
    of_networks, *others = values()
    assert others == [of_networks, of_networks]
    assert "note: a.safetensors is taken to be of the images of toy, in their order" in capsys.readouterr().err
    compare_nets.main(["a3.pt", "b5.pt", "bn1,conv2", "bn1,conv2", "toy", "cka", "procrustes", "mutual_knn"])
    (path,) = [path for path in Path("results").rglob("compare_nets*.pkl")]
    assert results.read(path)["frame"]["value"].tolist() == of_networks
    main([*WORKER])
    assert len(list(Path("results/s").glob("*.pkl"))) == 3
    main(["table", "s.toml"])
    main(["report", "s.toml"])
    table, page = Path("results/s/comparisons.csv").read_text(), Path("results/s/report.html").read_text()
    assert all(f"\n{networks}," in table for networks in ("a and a", "toy_w3 in0-gn0 and a"))
    assert "1.conv2" in page and "2 of 3 pairs have a value" not in page


def test_what_is_compared_is_kept_beside_the_result() -> None:
    """The file holds what the networks gave, so that a study of it gives the same numbers."""
    Path("s.toml").write_text(STUDY)
    main([*WORKER])
    (kept,) = Path("results/s").glob("*.safetensors")
    assert kept.with_suffix(".pkl").is_file()
    assert read_features(kept).layers.keys() == {"1.bn1", "1.conv2", "2.bn1", "2.conv2"}
    about = metadata(kept)
    assert about["split"] == "val" and about["key"] == results.read(kept.with_suffix(".pkl"))["key"] != kept.stem
    Path("t.toml").write_text(STUDY.replace("a.safetensors", str(kept)))
    main(["worker", "t.toml", "--shard", "1/1"])
    assert values("t") == values()


def metadata(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def test_to_keep_it_makes_another_result_and_the_key_stays() -> None:
    Path("s.toml").write_text(STUDY)
    Path("t.toml").write_text(STUDY.replace("save = true", ""))
    with_file, without = (make_plan(Study(Path(name))).bundles[0].items[0] for name in ("s.toml", "t.toml"))
    assert with_file.key == without.key == without.name != with_file.name
    bundle = make_plan(Study(Path("s.toml"))).bundles[0]
    assert from_record(json.loads(json.dumps(to_record(bundle)))).items == bundle.items


def test_ids_align_and_are_kept() -> None:
    x = np.random.default_rng(0).normal(size=(40, 6))
    order, ids = np.random.default_rng(1).permutation(40), np.array([f"image {number}" for number in range(40)])
    np.savez("x.npz", allow_pickle=False, layer=x, ids=ids)
    np.savez("y.npz", allow_pickle=False, layer=x[order], ids=ids[order])
    study = 'networks = ["features:?.npz"]\n[compare]\nlayers = "all"\nmetrics = "cka"\nsave = true\n'
    Path("s.toml").write_text(study)
    main([*WORKER])
    assert np.allclose(values(), 1, atol=1e-6) and len(values()) == 2
    compared = collect(make_plan(Study(Path("s.toml"))), Store(Path("results/s"))).comparisons
    assert compared[["train_fraction1", "shuffle_labels2"]].isna().all(axis=None)  # nobody says so
    kept = [read_features(path).ids for path in Path("results/s").glob("*.safetensors")]
    assert sorted(kept, key=repr) == sorted([tuple(ids), tuple(ids[order])], key=repr)


def test_a_changed_file_makes_other_results() -> None:
    Path("s.toml").write_text(f'pairs = {BOTH}\n[compare]\nlayers = "1.bn1"\nmetrics = "cka"\n')
    main([*WORKER])
    content = bytearray(Path("a.safetensors").read_bytes())
    content[-2000] ^= 1
    Path("a.safetensors").write_bytes(content)
    os.utime("a.safetensors", (1, 1))
    main([*WORKER])
    assert len(list(Path("results/s").glob("*.pkl"))) == 2


PLAIN = 'layers = "bn1"\nmetrics = "cka"'
OTHER = 'front_layers = "bn1"\nend_layers = "{}"\nmetrics = "cka"'


@pytest.mark.parametrize(
    ("study", "file", "message"),
    [
        ('[stitch]\nlayers = "1.bn1"\nepochs = 0', "a.safetensors", "has no layer '1.bn1'"),
        (
            '[stitch]\nfront_layers = "bn1"\nend_layers = "1.bn1"\nepochs = 0',
            "a.safetensors",
            r"s.toml:4: stitch: features:a.safetensors has no network that could be stitched; give this table pairs",
        ),
        (f"[compare]\n{PLAIN}", "a.safetensors", "s.toml:4: compare: .* has no layer 'bn1'"),
        (f"images = 8\n[compare]\n{PLAIN}", "a.safetensors", "s.toml:2: pairs: images excludes features:a.safetensors"),
        (f"[compare]\n{PLAIN}\nsave = 1", "a.safetensors", "s.toml:7: compare.save: 1 is none of True, False"),
        (f"[compare]\n{OTHER.format('few')}", "few.npy", "s.toml:4: compare: few.npy has 9 images, toy .val. 48"),
        (f"[compare]\n{OTHER.format('cube')}", "cube.npy", "s.toml:2: pairs: .* may be tokens or channels"),
        (f"[compare]\n{OTHER.format('bad')}", "bad.npy", "s.toml:2: pairs: bad.npy is damaged, or no .npy"),
        (f"[compare]\n{OTHER.format('none')}", "none.npy", "s.toml:2: pairs: no file or folder none.npy"),
    ],
)
def test_what_cannot_be_is_one_line_when_it_is_planned(
    study: str, file: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("few.npy", np.ones((9, 3)))
    np.save("cube.npy", np.ones((48, 3, 2)))
    Path("bad.npy").touch()
    Path("s.toml").write_text(f'dataset = "toy"\npairs = [["a3.pt", "features:{file}"]]\n\n{study}\n')
    with pytest.raises(SystemExit, match="2"):
        main([*WORKER])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert not list(Path("results").rglob("*.pkl"))
