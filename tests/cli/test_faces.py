"""The scripts on real faces: from training to comparison, with the official lists and with the published ones."""

import itertools
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import compare_nets
import eval_net
import eval_stitch
import stitch_nets
import train_model
from src import results
from tests.same import assert_same

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings("ignore:This DataLoader will create")]
PARTS = {"train": (0, 48), "valid": (1, 16), "test": (2, 32)}  # partition, and how many images of it
WEIGHTS = [f"snapshots/Toy_w3/CelebA/in{seed}-gn0/3.pt" for seed in (0, 1)]
STITCHED = "results/r/bn1-bn1.pkl"


def write_faces(root: Path, layout: str) -> None:
    """A small CelebA of real faces in one of the two layouts."""
    source = Path(os.environ["DATASET_ROOT_CELEBA"])
    root.mkdir()
    (root / "img_align_celeba").symlink_to(source / "img_align_celeba")
    count, header, *rows = (source / "list_attr_celeba.txt").read_text().splitlines()
    parts = dict(line.split() for line in (source / "list_eval_partition.txt").read_text().splitlines())
    attributes = {row.split()[0]: row.split()[1:] for row in rows}
    official, partition = [count, header], []
    for name, (part, number) in PARTS.items():
        chosen = [image for image in attributes if parts[image] == str(part)][:number]
        assert len(chosen) == number
        if layout == "published":
            table = pd.DataFrame([attributes[image] for image in chosen], columns=header.split())
            table.insert(0, "img", chosen)
            table.to_csv(root / f"{name}.csv")
        official += [" ".join([image, *attributes[image]]) for image in chosen]
        partition += [f"{image} {part}" for image in chosen]
    if layout == "official":
        (root / "list_attr_celeba.txt").write_text("\n".join(official) + "\n")
        (root / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


def run_all(folder: Path, num_workers: int) -> dict[str, Any]:
    """Every result of two trainings, a stitch and what is measured of them, without its provenance."""
    folder.mkdir()
    os.chdir(folder)  # the fixture `toy` restores the working folder
    shared = ["--run-name", "r", "--num-workers", str(num_workers)]
    for seed in ("0", "1"):
        command = ["-m", "toy_w3", "-d", "celeba", "-e", "1", "-b", "16", "-i", seed, "-lr", "0.01"]
        train_model.main([*command, "--validate-on", "valid", *shared])
    stitch_nets.main([*WEIGHTS, "bn1", "bn1", "-i", "ps_inv", "-e", "1", "-b", "16", *shared])
    compare_nets.main([*WEIGHTS, "bn1", "fc1", "celeba", "cka", "cka_debiased", *shared])
    eval_net.main([WEIGHTS[0], *shared])
    eval_stitch.main([STITCHED, "after", *shared])
    found = {path.name: results.read(path) for path in sorted(Path("results/r").iterdir())}
    for record, key in itertools.product(found.values(), ("git", "runner_code")):
        del record[key]
    for record in found.values():
        assert record["params"].pop("num_workers") == num_workers
    return found


def test_the_scripts_say_the_same_of_both_layouts_with_any_number_of_workers(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for layout, num_workers in (("official", 0), ("published", 2)):
        write_faces(toy / f"faces_{layout}", layout)
        monkeypatch.setenv("DATASET_ROOT_CELEBA", str(toy / f"faces_{layout}"))
        found[layout] = run_all(toy / layout, num_workers)
    assert len(found["official"]) == 6
    assert_same(found["official"], found["published"])
    stitched = found["official"][Path(STITCHED).name]
    decisions = PARTS["test"][1] * 40
    assert sum(stitched["hits"]["m2_frank"].values()) == decisions
    assert stitched["m2_sim"]["after"]["same_class_out"] * decisions % 1 == pytest.approx(0, abs=1e-3)
    evaluated = found["official"]["eval_stitch-bn1-bn1-after.pkl"]
    assert evaluated["acc"] == pytest.approx(stitched["model_results"]["trans"]["acc"], abs=1e-6)
    assert evaluated["loss"] == pytest.approx(stitched["model_results"]["trans"]["loss"], abs=1e-6)
