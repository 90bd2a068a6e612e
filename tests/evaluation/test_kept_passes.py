"""A comparison that was interrupted, wherever it was, goes on from what is kept, and gives the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

import src.evaluation.kept_passes
import src.metrics.algebra.gram
from src.core.errors import UserError
from src.core.files import make_folder
from src.dataset import load_split
from src.evaluation import layer_grid
from src.evaluation.kept_passes import Keep, KeptPass
from src.evaluation.layer_grid import Comparison, compare_layers
from src.metrics import Cell
from src.metrics.engine.grid import Grid
from src.metrics.engine.kept import encoded, found_of, gathered, restore
from tests.fuzz.readers import grid_of_toys
from tests.fuzz.seeds import saved
from tests.toy import save_toy

NAMES = ["cka", "procrustes", "mutual_knn", "soft_match", "l2", "cca", "lr", "ps_inv", "corr"]
LAYERS = (["bn1", "conv2"], ["bn1", "fc1"])


class Stop(BaseException):
    """As a process that is killed: nobody cleans up."""


@pytest.fixture
def networks(toy: Path) -> tuple[Any, Any]:
    return save_toy(toy / "x.pt", 3, 5).eval(), save_toy(toy / "y.pt", 3, 6).eval()


def compare(networks: tuple[Any, Any], **options: Any) -> Comparison:
    names = options.pop("names", NAMES)
    options.setdefault("layers", LAYERS)
    sample = torch.zeros(2, 1, 8, 8)
    return compare_layers(networks, options.pop("layers"), sample, load_split("toy", "train"), names, **options)


def same(one: Comparison, other: Comparison) -> bool:
    for pair, cell in one.cells.items():
        known = other.cells[pair]
        assert cell.health == known.health and cell.unavailable == known.unavailable and cell.views == known.views
        for name in cell.values:
            torch.testing.assert_close(cell.values[name], known.values[name], rtol=0, atol=0)
        assert cell.values.keys() == known.values.keys()
    return one.cells.keys() == other.cells.keys()


@pytest.fixture
def eager(monkeypatch, tmp_path: Path) -> Keep:
    """States at every opportunity, whatever they cost."""
    monkeypatch.setattr(src.evaluation.kept_passes, "DEAR", 0)
    monkeypatch.setattr(src.metrics.algebra.gram, "BLOCK", 16)
    make_folder(tmp_path / "kept")
    return Keep(tmp_path / "kept", {"key": "k"})


@pytest.mark.parametrize("group", [None, 20])
@pytest.mark.parametrize("memory", [8e9, 60_000])
def test_wherever_it_stops_it_goes_on(group, memory, networks, eager, monkeypatch) -> None:
    options = {"group": group, "memory": memory, "batch_size": 8, "names": NAMES if memory > 1e6 else ["cka", "lr"]}
    calm = compare(networks, **options)
    steps, fed = [0], [0]
    original = {name: getattr(KeptPass, name) for name in ("keep_gathered", "keep_found")}
    update = Grid.update

    def counted(grid: Grid, *sides: Any) -> None:
        fed[0] += 1
        update(grid, *sides)

    def stopping(name: str, every: int) -> Any:
        def keep(kept: KeptPass, grid: Grid, **last: Any) -> None:
            original[name](kept, grid, **last)
            steps[0] += 1
            if steps[0] % every == 0:
                raise Stop

        return keep

    monkeypatch.setattr(Grid, "update", counted)
    for name in original:
        monkeypatch.setattr(KeptPass, name, stopping(name, 2))
    tries, found = 0, None
    while found is None:
        tries += 1
        try:
            found = compare(networks, keep=eager, **options)
        except Stop:
            assert tries < 500
    assert tries > 8 and same(found, calm)
    once = fed[0]
    assert same(compare(networks, **options), calm)
    assert once == fed[0] - once  # each batch once, in all tries together


def test_what_was_found_is_not_computed_again_and_a_finished_pass_is_read(networks, eager, monkeypatch) -> None:
    calm = compare(networks, keep=eager)
    assert sorted(path.name for path in eager.folder.iterdir()) == ["pass-1-found.pt"]
    monkeypatch.setattr(layer_grid, "feed", lambda *_, **__: pytest.fail("fed again"))
    assert same(compare(networks, keep=eager), calm)


def test_states_of_others_and_damaged_ones_count_as_none(networks, eager, monkeypatch) -> None:
    calm = compare(networks)
    compare(networks, keep=eager, names=["l2"])
    (path,) = eager.folder.iterdir()
    assert same(compare(networks, keep=eager), calm)
    for content in (b"torn", path.read_bytes()[:300]):
        path.write_bytes(content)
        path.with_name("pass-1-gathered.pt").write_bytes(content)
        assert same(compare(networks, keep=eager), calm)
    other = Keep(eager.folder, {"key": "another"})
    assert same(compare(networks, keep=other), calm)


def test_a_state_that_would_cost_more_than_a_fiftieth_is_not_written(networks, tmp_path, monkeypatch) -> None:
    written = []
    monkeypatch.setattr(KeptPass, "_write", lambda kept, path, record: written.append(path.name) or 1e9)
    monkeypatch.setattr(src.evaluation.kept_passes, "RATE", 1.0)  # a byte a second
    compare(networks, keep=Keep(tmp_path, {}), names=["l2"], batch_size=8)
    assert set(written) == {"pass-1-found.pt"}


def test_a_state_that_fits_in_part_leaves_the_grid_as_it_was() -> None:
    """Found by the fuzzer: rows that are fewer than layers."""
    grid = grid_of_toys()
    sides = [[torch.ones(4, *shape) for shape in shapes] for shapes in grid.plan.shapes]
    grid.update(*sides)
    record = gathered(grid)
    spoilt: list[dict[str, Any]] = [
        record | {"rows": record["rows"][:-1]},
        record | {"seen": -4},
        record | {"done": True},
        record | {"states": [record["states"][0] | {"filled": 99}, *record["states"][1:]]},
        record | {"states": [record["states"][0] | {"mean": torch.zeros(3)}, *record["states"][1:]]},
        record | {"facts": {"items": []}},
        record | {"unavailable": {"items": [["a", 3]]}},
    ]
    for bad in spoilt:
        fresh = grid_of_toys()
        before = saved(gathered(fresh))
        with pytest.raises((ValueError, TypeError)):
            restore(fresh, bad)
        assert saved(gathered(fresh)) == before
    fresh = grid_of_toys()
    restore(fresh, record)
    assert saved(gathered(fresh)) == saved(record)


@pytest.mark.parametrize(
    ("name", "value"), [("cka", {"r2": 1.0}), ("ps_inv", 0.5), ("ps_inv", {"w": 1}), ("none", 0.5)]
)
def test_a_value_that_its_metric_does_not_give_is_refused(name: str, value: Any) -> None:
    """A table in the place of a number ended in a traceback where the number was asked for."""
    cell = Cell({name: value}, {}, {name: "images"}, {})
    with pytest.raises(UserError, match="nothing that a comparison found"):
        found_of(encoded({("cell", 0, 0): cell}))
    assert found_of(encoded({("cell", 0, 0): Cell({"cka": 0.5}, {}, {"cka": "images"}, {})}))
