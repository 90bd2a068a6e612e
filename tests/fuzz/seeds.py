"""The whole files that spoilt ones are made of: a few of each kind, small, in a working folder."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stitch_nets
from src import results
from src.core.tensor_files import parse_tensors, write_tensors
from src.dataset import DATASETS
from src.evaluation.kept_passes import Keep
from src.metrics.engine.kept import gathered
from src.models import MODELS, Architecture
from src.results.frame import CACHE
from src.studies.store import Store
from tests.paths import ROOT
from tests.toy import SIZE, Toy, read_toy, save_toy

EVIL = "from pathlib import Path\nPath('executed').touch()\ndef make(**sizes):\n    Path('executed').touch()\n"
STUDY = """
networks = ["a3.pt", "b3.pt"]
dataset = "toy"
seeds = [0, 1]
controls = ["constant"]
[[stitch]]
layers = "bn1"
init = ["ps_inv", "random"]
epochs = 1
batch_size = 16
lr = [1e-3, 2e-3]
[[compare]]
layers = ["bn1", "conv2"]
metrics = ["cka", "l2"]
"""
BATCH = {
    "key": "ab",
    "images": torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8),
    "errors": torch.tensor([0.1, 0.2]),
}


def register() -> None:
    """Make the toy data set and the toy architecture known in this process."""
    DATASETS["toy"] = replace(
        DATASETS["digits"], name="toy", folder="Toy", labels=tuple("abcd"), size=SIZE, read=read_toy
    )
    MODELS["toy_w<width>"] = Architecture("Toy_w<width>", Toy)


def make(folder: Path) -> dict[str, list[bytes]]:
    """Files by kind, made in the working folder `folder`, which holds the networks that they name."""
    os.chdir(folder)
    Path("evil.py").write_text(EVIL)
    for name, width, seed in (("a3", 3, 0), ("b3", 3, 1)):
        save_toy(Path(f"{name}.pt"), width, seed)
    options = "-i ps_inv -e 1 -b 16 --controls constant,self --ood -o . --run-name run"
    with contextlib.redirect_stdout(sys.stderr):
        stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", *options.split()])
    seeds = {
        "result": [Path("run/bn1-bn1.pkl").read_bytes()],
        "rows": _rows(folder),
        "weights": _weights(),
        "resume": [_state_of_training()],
        "kept": _kept(folder),
        "safetensors": _safetensors(),
        "npz": [_arrays()],
        **_activations(),
        "study": [STUDY.encode()],
        "lease": [_json({"runner": "host-1-ab", "host": "host", "pid": 123, "id": "ab12", "count": 3})],
        "failure": [_json({"about": "a stitch", "count": 2, "trace": "Traceback\nUserError: no"})],
        "plan": [_plan(folder)],
        "identical": [saved(BATCH)],
        "timm": _library("timm"),
        "torchvision": _library("torchvision"),
        "transformers": _transformers(),
    }
    reference = Path(os.environ.get("REFERENCE_DIR", "nowhere"), "published_bn3-bn3.pkl")
    if reference.is_file():
        seeds["published"] = [reference.read_bytes()]
    shutil.rmtree("run")
    return {kind: found for kind, found in seeds.items() if found}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _rows(folder: Path) -> list[bytes]:
    """The rows that a table of results keeps beside them."""
    results.table(folder / "run")
    return [(folder / "run" / CACHE).read_bytes().splitlines()[0]]


def saved(value: Any, *, zipped: bool = True) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


def _weights() -> list[bytes]:
    whole = parse_tensors(Path("a3.pt").read_bytes())
    shipped = (ROOT / "model_weights/LeNet/MNIST/in0-gn0/2808.pt").read_bytes()
    return [saved(whole), saved(whole, zipped=False), saved(whole["state_dict"]), shipped]


def _state_of_training() -> bytes:
    from tests.fuzz.readers import train

    path = Path("state.pt")
    train(path)
    return path.read_bytes()


def _kept(folder: Path) -> list[bytes]:
    """The states of a comparison: what was gathered half-way, and what was found in the end."""
    from tests.fuzz.readers import grid_of_toys

    kept, grid = Keep(folder / "states", {"key": "k"}).of(1), grid_of_toys()
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        sides = [[torch.randn(4, *shape, generator=draw) for shape in shapes] for shapes in grid.plan.shapes]
        grid.update(*sides)
        if grid.seen == 8:
            write_tensors(kept.gathered, gathered(grid) | {"identity": {"key": "k"}})
    halfway = kept.gathered.read_bytes()
    grid.cells()
    kept.keep_found(grid, last=True)
    return [halfway, kept.found.read_bytes()]


def _safetensors() -> list[bytes]:
    if importlib.util.find_spec("safetensors") is None:
        return []
    from safetensors.torch import save

    state = parse_tensors(Path("a3.pt").read_bytes())["state_dict"]
    return [save(state)]


def _arrays() -> bytes:
    content = io.BytesIO()
    images = np.zeros((6, 8, 8, 3), np.uint8)
    parts = {
        f"{kind}_{split}": part for split in ("train", "val") for kind, part in (("x", images), ("y", np.arange(6) % 3))
    }
    np.savez(content, allow_pickle=False, **parts, classes=np.array(["a", "b", "c"]))
    return content.getvalue()


def _activations() -> dict[str, list[bytes]]:
    """Files of activations of each kind, with all that they may say beside layers."""
    draw = np.random.default_rng(0)
    arrays = {"layer": draw.normal(size=(12, 3, 2, 2)), "fc.1": draw.normal(size=(12, 5)).astype(np.float16)}
    arrays |= {"labels": np.arange(12) % 3, "output": draw.normal(size=(12, 3)), "ids": np.arange(12).astype("U3")}
    wholes: dict[str, list[bytes]] = {"activations npy": [], "activations npz": []}
    for array in (arrays["layer"].astype(">f4"), np.asfortranarray(arrays["fc.1"])):
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        wholes["activations npy"].append(content.getvalue())
    for write in (np.savez, np.savez_compressed):
        content = io.BytesIO()
        write(content, allow_pickle=False, **arrays)
        wholes["activations npz"].append(content.getvalue())
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "ids"}
    wholes["activations pt"] = [saved(tensors | {"ids": arrays["ids"].tolist()}), saved([tensors["layer"]] * 2)]
    if importlib.util.find_spec("safetensors") is not None:
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if name != "ids"}
        about = {"ids": json.dumps(arrays["ids"].tolist()), "split": "val"}
        wholes["activations safetensors"] = [save(tensors, about)]
    return wholes


def _plan(folder: Path) -> bytes:
    from src.studies.schema import Study

    Path("study.toml").write_text(STUDY)
    store = Store(folder / "kept")
    store.plan(Study(Path("study.toml")))
    (path,) = store.folder.glob(".plan-*")
    return path.read_bytes()


def _library(kind: str) -> list[bytes]:
    if importlib.util.find_spec(kind) is None:
        return []
    with torch.random.fork_rng():
        if kind == "timm":
            import timm

            return [saved(timm.create_model("test_vit", num_classes=4).state_dict())]
        import torchvision

        return [saved(torchvision.models.squeezenet1_1().state_dict())]


def _transformers() -> list[bytes]:
    """The folder of a tiny network, as a pickle of its files' contents."""
    if importlib.util.find_spec("transformers") is None:
        return []
    transformers_folder(Path("hf"))
    return [pickle.dumps({path.name: path.read_bytes() for path in sorted(Path("hf").iterdir())})]


def transformers_folder(folder: Path) -> None:
    """Write a tiny image classifier as transformers does."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = ViTConfig(**sizes, image_size=8, patch_size=4)
    config.num_labels = 4
    ViTForImageClassification(config).save_pretrained(folder)
    looks: dict[str, Any] = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    ViTImageProcessor(size={"height": 8, "width": 8}, **looks).save_pretrained(folder)
