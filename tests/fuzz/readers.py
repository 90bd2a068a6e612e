"""What the suite does with a file of each kind, from reading it to the last use of what it says."""

import contextlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import compare_frank_m2
import eval_stitch
from src import compare, results
from src.core.errors import UserError
from src.core.text import has_controls
from src.dataset import dataset_of, load_split
from src.evaluation.identical import read_batch
from src.evaluation.kept_passes import Keep
from src.metrics.engine.grid import Grid
from src.metrics.engine.plan import plan_grid
from src.models import build_model
from src.networks.opening import Named, open_network
from src.results.titles import network_names, stitch_title
from src.studies.declared import tables_of
from src.studies.leases import Leases
from src.studies.plan import plan_from_file
from src.studies.schema import Study
from src.studies.store import Store
from src.training.loop import fit_one
from src.training.recipe import Recipe
from src.training.run_state import Resume
from src.training.train_state import TrainState


def read_result(path: Path) -> None:
    found = results.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.table(path.parent)
    path.with_name(".stitches.jsonl").unlink(missing_ok=True)
    if isinstance(found, dict) and {"params", "trans_m"} <= found.keys():
        with contextlib.suppress(KeyError):  # of layers, which scripts ask for
            stitch_title(found)
    elif isinstance(found, dict) and "networks" in found and "frame" in found:
        network_names(found["networks"])
    script = (eval_stitch, compare_frank_m2)[path.stat().st_size % 2]
    methods = ["l2"] if script is compare_frank_m2 else []
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            script.main([str(path), "after", *methods, "--no-save", "-b", "16"])
    except SystemExit as error:
        lines = [line for line in quiet.getvalue().splitlines() if line.startswith("error: ")]
        assert error.code == 2 and len(lines) == 1, quiet.getvalue()
        raise UserError(lines[0]) from None
    assert "\x1b" not in quiet.getvalue()


def read_rows(path: Path) -> None:
    """As rows of a result that is there, and of one that was not read yet."""
    result = path.with_name("case.pkl")
    results.write(result, {"params": {}}, overwrite=False)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        _, _, row = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        size = result.stat()
        more = json.dumps([result.name, [size.st_size, size.st_mtime_ns], row])
        path.write_bytes(path.read_bytes() + b"\n" + more.encode() + b"\n")
    results.table(path.parent).to_string()


def read_published(path: Path) -> None:
    """Its networks are not there."""
    results.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.table(path.parent)
    path.with_name(".stitches.jsonl").unlink(missing_ok=True)


def open_weights(path: Path, spec: str = "{}") -> None:
    network = open_network(Named(spec.format(path)))
    network.facts()
    assert len(network.seeds) < 500
    if network.sample.numel() < 100_000:
        with torch.no_grad():
            network.network(network.sample)


def train(path: Path) -> None:
    network = build_model("toy_w3", channels=1, classes=4, size=8)

    def objective(images: torch.Tensor, _: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(images.float())
        return torch.nn.functional.cross_entropy(logits, labels), logits.argmax(1) == labels

    state = TrainState(network, objective, Recipe(2, 16, "adam", 1e-3, 1e-4), snapshot_every=2)
    resume = Resume(path, {"seed": 0, "model": "toy_w3"})
    how = {"seed": 0, "validate": lambda: {"loss": 1.0, "acc": 0.5}, "title": ""}
    fit_one(state, load_split("toy", "train"), share=lambda images: images, resume=resume, **how)


def read_study(path: Path) -> None:
    for table in tables_of(Study(path)):
        if not table.is_comparison:
            table.drafts()


def read_lease(path: Path) -> None:
    leases = Leases(path.parent)
    leases.is_free(path.stem)
    leases.release_all()


def read_failure(path: Path) -> None:
    for failure in Store(path.parent).failures().values():
        assert failure.line and failure.count >= 0


def read_plan(path: Path) -> None:
    for bundle in plan_from_file(path).bundles:
        for item in bundle.items:
            assert set(item.name) <= set("0123456789abcdef")


def read_inputs(path: Path) -> None:
    """Inputs that a front cannot tell from the data: the numbers of spoilt ones are as plain as those of whole ones."""
    images, errors = read_batch(path, "ab", torch.Size([2, 1, 8, 8]))
    assert images.dtype == torch.uint8 and images.shape == (2, 1, 8, 8) and errors.isfinite().all()


def read_arrays(path: Path) -> None:
    spec = dataset_of(f"arrays:{path}")
    for split in spec.splits:
        spec.read(None, split)


def compare_activations(path: Path) -> None:
    """Held against themselves; a value is a number, also where the numbers of the file are odd."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        found = compare(path, path, ["cka", "l2", "disagreement", "abs_acc_diff"])
    assert not any(map(has_controls, str(found).splitlines())) and found.frame()["value"].dtype == float


def open_folder(path: Path) -> None:
    folder = path.parent / "hf"
    folder.mkdir(exist_ok=True)
    for name, content in pickle.loads(path.read_bytes()).items():
        (folder / os.path.basename(name)).write_bytes(content)
    open_weights(folder, "hf:{}")


def grid_of_toys() -> Grid:
    """A grid of two layers on either side, of twelve images in two groups."""
    names, shapes = ["cka", "l2", "cca", "mutual_knn"], [(3, 2, 2), (4,)]
    return Grid(plan_grid(names, n_images=12, shapes_x=shapes, shapes_y=shapes, group=6))


def go_on(path: Path) -> None:
    """As both files of a pass; a spoilt one counts as none, so that nothing is refused."""
    kept, grid = Keep(path.parent, {"key": "k"}).of(1), grid_of_toys()
    content = path.read_bytes()
    for file in (kept.gathered, kept.found):
        file.write_bytes(content)
    kept.begin(grid)
    for cell in grid.known_cells.values():
        for name in cell.values:
            cell.number(name)


# what a file of each kind is called, and what is done with it
READERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "result": ("case.pkl", read_result),
    "published": ("case.pkl", read_published),
    "rows": (".stitches.jsonl", read_rows),
    "weights": ("Toy_w3/Toy/in0-gn0/1.pt", open_weights),
    "resume": ("case.pt", train),
    "safetensors": ("Toy_w3/Toy/in0-gn0/1.safetensors", open_weights),
    "npz": ("case.npz", read_arrays),
    **{f"activations {kind}": (f"case.{kind}", compare_activations) for kind in ("npy", "npz", "safetensors", "pt")},
    "study": ("case.toml", read_study),
    "lease": ("case.lease", read_lease),
    "kept": ("case.pt", go_on),
    "failure": ("case.failed.json", read_failure),
    "plan": ("case.json", read_plan),
    "identical": ("case.pt", read_inputs),
    "timm": ("case.pt", lambda path: open_weights(path, "timm:test_vit@{}")),
    "torchvision": ("case.pt", lambda path: open_weights(path, "torchvision:squeezenet1_1@{}")),
    "transformers": ("case.folder", open_folder),
}
