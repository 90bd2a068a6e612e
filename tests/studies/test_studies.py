"""Studies: what is planned under which keys, what is made of it, what fails, and who does what."""

import json
import os
import shlex
import socket
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import eval_stitch
import src.studies.work
import stitch_nets
from src import results
from src.core.errors import UserError
from src.stitching import StitchSpec
from src.studies.engines.local import Here
from src.studies.frames import command_of
from src.studies.jobs import from_record, to_record
from src.studies.leases import Leases
from src.studies.plan import make_plan
from src.studies.runner import Driver, Options
from src.studies.schema import Study
from src.studies.store import Store
from src.studies.work import Report
from studies.__main__ import main

STUDY = """\
networks = ["a3.pt", "b5.pt"]
seeds = [0, 1]
minutes = 10

[[stitch]]
layers = ["bn1", "conv2"]
init = ["ps_inv", "eye"]
low_rank = [2, "full"]
epochs = 1
batch_size = 16

[compare]
layers = ["bn1", "fc1"]
metrics = ["cka", "dist_corr"]
"""
SMALL = (
    STUDY.replace("[0, 1]", "[0]").replace('[2, "full"]', "2").replace("minutes = 10", "minutes = 0.01")
)  # 10 bundles
WORK = ["worker", "s.toml", "--shard", "1/1", "--device", "cpu"]


def study(text: str = STUDY) -> Study:
    Path("s.toml").write_text(text)
    return Study(Path("s.toml"))


def pickles() -> dict[str, dict]:
    return {path.stem: results.read(path) for path in Path("results/s").glob("*.pkl")}


def test_a_plan_has_every_combination_once_and_says_what_it_left_out(toy) -> None:
    plan = make_plan(study())
    specs = [item.spec for bundle in plan.bundles if not bundle.is_comparison for item in bundle.items]
    # 2 pairs x 4 couples of layers x 2 ranks x 2 seeds; no identity between 3 and 5 channels
    assert len(specs) == len(set(specs)) * 2 == 32 and {asdict(spec)["init"] for spec in specs} == {"ps_inv"}
    assert sum(plan.left_out.values()) == 32 and all("--init eye needs equal sizes" in why for why in plan.left_out)
    assert sum(bundle.is_comparison for bundle in plan.bundles) == 2
    assert len(set(plan.names)) == len(plan.names) == 34
    again = make_plan(study())
    assert again.names == plan.names
    records = json.loads(json.dumps([to_record(bundle) for bundle in plan.bundles]))
    assert [from_record(one) for one in records] == plan.bundles


def test_a_stitch_that_two_tables_declare_is_made_once(toy) -> None:
    table = '[[stitch]]\nlayers = "bn1"\ninit = "ps_inv"\nepochs = 1\nbatch_size = 16\n'
    assert make_plan(study(STUDY + table)).names == make_plan(study()).names


def test_keys_are_those_of_the_script_and_so_are_the_results(toy) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\ninit = "ps_inv"\nepochs = 1\nbatch_size = 16\n'
    ((item,),) = [bundle.items for bundle in make_plan(study(text)).bundles]
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "1", "-b", "16", "--run-name", "r"])
    alone = results.read("results/r/bn1-bn1.pkl")
    assert item.name == item.key == alone["key"]
    main(WORK)
    (ours,) = pickles().values()
    assert ours.keys() == alone.keys()
    for name in ("before", "after", "ps_inv"):
        np.testing.assert_array_equal(ours["trans_m"][name]["w"], alone["trans_m"][name]["w"])
    assert ours["model_results"] == alone["model_results"] and ours["cka_frank"] == alone["cka_frank"]
    eval_stitch.main([f"results/s/{item.name}.pkl", "after", "--run-name", "e"])
    assert len(results.table("results/s")) == 1


def test_what_the_key_does_not_know_makes_another_file(toy) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n{}[stitch]\nlayers = "bn1"\nepochs = 0\n'
    plain, held = (make_plan(study(text.format(more))) for more in ("", 'controls = "self"\n'))
    (one,), (other,) = ([item for bundle in plan.bundles for item in bundle.items] for plan in (plain, held))
    assert one.key == other.key == one.name != other.name


def test_a_run_goes_on_with_what_is_missing_and_a_changed_file_adds(toy, capsys) -> None:
    study()
    main(WORK)
    assert "34 of 34 results, 0 failed, 0 passes held" in capsys.readouterr().out
    first = {path: path.stat().st_mtime_ns for path in Path("results/s").glob("*.pkl")}
    assert len(first) == 34
    lost = sorted(first)[::3]
    for path in lost:
        path.unlink()
    main(WORK)
    again = {path: path.stat().st_mtime_ns for path in Path("results/s").glob("*.pkl")}
    assert again.keys() == first.keys()
    assert {path for path in again if again[path] != first[path]} == set(lost)
    study(STUDY.replace("[0, 1]", "[0, 1, 2]"))
    main(["s.toml", "--dry-run", "--workers", "2"])
    out = capsys.readouterr().out
    assert "16 stitches and 0 comparisons to do, 34 of 50 done" in out and "with 2 processes" in out
    assert "left out: " in out and " on disk in the end" in out
    main(["status", "s.toml"])
    assert "34 of 50 results" in capsys.readouterr().out


def test_one_that_diverges_is_tried_again_reported_and_left_alone(toy, capsys) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\nepochs = 3\nbatch_size = 16\noptimizer = "sgd"\n'
    study(text + "lr = [0.01, 1e38]\n")
    with pytest.raises(SystemExit) as stop:
        main([*WORK, "--retries", "1"])
    out = capsys.readouterr().out
    assert (
        stop.value.code == 1 and "1 of 2 results, 1 failed" in out and "failed 2 times: a3.pt bn1 -> b5.pt bn1" in out
    )
    (file,) = Path("results/s").glob("*.failed.json")
    record = json.loads(file.read_text())
    assert record["count"] == 2 and "FloatingPointError" in record["trace"]
    with pytest.raises(SystemExit):
        main([*WORK, "--retries", "1"])
    assert json.loads(file.read_text())["count"] == 2  # spent: left alone
    with pytest.raises(SystemExit):
        main([*WORK, "--retries", "2"])
    assert json.loads(file.read_text())["count"] == 3


def test_one_that_breaks_takes_no_other_along(toy, monkeypatch, capsys) -> None:
    study('pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\nepochs = 0\nseed = [0, 1, 2, 3, 4]\n')
    original, calls = src.studies.work.stitch, []

    def broken(cuts, *arguments):
        calls.append(len(cuts.specs))
        if any(spec.seed == 3 for spec in cuts.specs):
            raise RuntimeError("seed 3 breaks")
        return original(cuts, *arguments)

    monkeypatch.setattr(src.studies.work, "stitch", broken)
    with pytest.raises(SystemExit):
        main([*WORK, "--retries", "1"])
    captured = capsys.readouterr()
    assert "5 results failed together and are tried in halves: RuntimeError: seed 3 breaks" in captured.err
    assert sorted(result["params"]["seed"] for result in pickles().values()) == [0, 1, 2, 4]
    (failure,) = Store(Path("results/s")).failures().values()
    assert failure.count == 2 and failure.line == "RuntimeError: seed 3 breaks" and "seed 3)" in failure.about
    monkeypatch.setattr(src.studies.work, "stitch", original)
    main([*WORK, "--retries", "2"])
    assert len(pickles()) == 5 and not list(Path("results/s").glob("*.failed.json"))


def test_a_front_without_logits_is_said_once(toy, capsys) -> None:
    net = "nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())"
    Path("nets.py").write_text(f"from torch import nn\n\ndef enc():\n    return {net}\n")
    text = 'pairs = [["nets.py:enc#0", "a3.pt"]]\ndataset = "toy"\nseeds = [0, 1]\nminutes = 0.001\n[[stitch]]\n'
    study(text + 'front_layers = "0"\nend_layers = ["bn1", "conv2"]\nresize = true\nepochs = 1\nbatch_size = 16\n')
    main(WORK)
    note = "note: nets.py:enc#0 does not decide between the classes of a3.pt: its own row stays empty"
    assert capsys.readouterr().err.count(note) == 1
    assert {result["model_results"]["front"]["acc"] for result in pickles().values()} == {None}


def test_other_weights_than_planned_are_refused(toy) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\nepochs = 0\n'
    store = Store(Path("results/s"))
    plan = store.plan(study(text))
    Path("a3.pt").write_bytes(Path("b3.pt").read_bytes())
    failures = Driver(plan, store, Here(), Options(retries=0, device="cpu"), lambda line: None).run()
    assert "are others than those of the plan" in next(iter(failures.values())).line
    assert store.plan(study(text)).names != plan.names  # a fresh look finds the new file


def test_shards_divide_the_work(toy) -> None:
    study(SMALL)
    for number in (1, 2, 3):
        main(["worker", "s.toml", "--shard", f"{number}/3", "--device", "cpu"])
        assert len(pickles()) == [4, 7, 10][number - 1]
    for bad in ("0/3", "4/3", "one"):
        with pytest.raises(SystemExit):
            main(["worker", "s.toml", "--shard", bad])


def lease(folder: Path, **about: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "b.lease"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "runner": "r", "id": "x", "count": 0} | about))
    return path


def test_a_lease_expires_by_the_observers_clock_when_its_counter_stands_still(tmp_path) -> None:
    folder = tmp_path / "leases"
    watch = Leases(folder, patience=0.3)
    assert watch.is_free("b")
    for count in range(4):
        lease(folder, count=count)
        assert not watch.is_free("b")
        time.sleep(0.15)
    time.sleep(0.2)
    assert watch.is_free("b") and not list(folder.iterdir())


def test_a_holder_that_lives_keeps_its_lease(tmp_path) -> None:
    holder, watch = (Leases(tmp_path / "leases", patience=0.2) for _ in range(2))
    with holder.held("b") as mine:
        assert mine
        for _ in range(6):
            assert not watch.is_free("b")
            time.sleep(0.1)
        with watch.held("b") as theirs:
            assert not theirs
    assert watch.is_free("b") and not list((tmp_path / "leases").iterdir())


def test_a_dead_holder_of_this_machine_needs_no_patience(tmp_path) -> None:
    child = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(child, 0)
    path = lease(tmp_path / "leases", host=socket.gethostname(), pid=child)
    assert Leases(path.parent).is_free("b") and not path.exists()


def test_who_was_thought_dead_does_not_touch_the_lease_of_the_next(tmp_path) -> None:
    slow = Leases(tmp_path / "leases", patience=0.2)
    with slow.held("b"):
        path = lease(tmp_path / "leases", id="next")
        time.sleep(0.2)
        assert json.loads(path.read_text())["id"] == "next"
    assert path.exists()


class Two:
    """An engine that runs nothing and keeps what it was given."""

    slots = 2

    def __init__(self) -> None:
        self.tasks: list = []
        self.given: list[str] = []

    @property
    def busy(self) -> int:
        return len(self.tasks)

    def start(self, tasks) -> None:
        self.tasks += tasks
        self.given += [task.bundle.name for task in tasks]
        assert len(self.tasks) <= 2

    def wait(self, seconds: float) -> list[Report]:
        done, self.tasks = self.tasks, []
        return [Report(task, trace="Traceback\nValueError: never") for task in done]

    def stop(self) -> None:
        self.tasks = []


def test_nothing_loops_where_everything_fails(toy) -> None:
    store, engine = Store(Path("results/s")), Two()
    plan = store.plan(study())
    failures = Driver(plan, store, engine, Options(retries=2), lambda line: None).run()
    assert failures.keys() == set(plan.names) and {failure.count for failure in failures.values()} == {3}
    # each is tried three times alone; whatever fails together is halved once
    assert len(engine.given) < 3 * len(plan.names) + 2 * len(plan.names)


def test_two_runners_share_the_work_by_leases(toy) -> None:
    """The second finds all that the first holds taken, does the rest, and waits."""
    store = Store(Path("results/s"))
    plan = store.plan(study(SMALL))
    taken = plan.bundles[0]
    given: list[str] = []

    class Spy(Here):
        def start(self, tasks) -> None:
            given.extend(task.bundle.name for task in tasks)
            super().start(tasks)

        def wait(self, seconds: float) -> list[Report]:
            if not self.busy:  # nothing but what the other holds is left: it is done now
                others.__exit__(None, None, None)
            return super().wait(0.01)

    first = Leases(store.folder / ".leases", patience=60)
    others = first.held(taken.name)
    assert others.__enter__()
    Driver(plan, store, Spy(), Options(device="cpu"), lambda line: None).run()
    assert given[-1] == taken.name and len(given) == len(plan.bundles) == len(pickles()) == 10
    rows = Path("results/s/.stitches.jsonl").read_text().splitlines()
    assert len(rows) == 10  # who stores a result keeps its row: nobody has read a table yet


def test_the_first_file_wins(toy) -> None:
    store = Store(Path("results/s"))
    store.folder.mkdir(parents=True)
    assert store.publish("n", {"a": 1}) and not store.publish("n", {"a": 2})
    assert results.read(store.path("n"))["a"] == 1


def test_stages_and_variants_are_axes_and_their_commands_make_the_same(toy) -> None:
    table = STUDY.replace('init = ["ps_inv", "eye"]\nlow_rank = [2, "full"]\nepochs = 1', "").replace("[0, 1]", "[0]")
    axes = 'target_type = ["match_final,hard", "match_later"]\nepochs = "1,1"\nmatch_layers = ["bn1", "relu"]\n'
    made = study(table.replace("batch_size", axes + "batch_size"))
    plan = make_plan(made)
    specs = [item.spec for bundle in plan.bundles for item in bundle.items if isinstance(item.spec, StitchSpec)]
    assert {(spec.target_type, spec.epochs, spec.stage_epochs) for spec in specs} == {("match_later", 2, "")}
    staged = study(table.replace("batch_size", axes.replace('match_layers = ["bn1", "relu"]\n', "") + "batch_size"))
    plan = make_plan(staged)
    kept = [(b, item, item.spec) for b in plan.bundles for item in b.items if isinstance(item.spec, StitchSpec)]
    assert {spec.stage_epochs for *_, spec in kept} == {"1,1", ""}
    main(WORK)
    bundle, item, spec = next(one for one in kept if one[2].stage_epochs)
    first, rest = command_of(bundle, spec)
    assert "--epochs 1,1" in rest and "--target-type match_final,hard" in rest
    stitch_nets.main([*shlex.split(f"{first} {rest}")[2:], "--run-name", "alone"])
    (alone,) = (results.read(path) for path in Path("results/alone").glob("*.pkl"))
    assert alone["key"] == item.key and alone["model_results"] == pickles()[item.name]["model_results"]


def test_what_is_trained_on_is_an_axis_and_its_twins_are_alike(toy) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\nepochs = 1\nbatch_size = 16\n'
    made = study(text + 'train_on = ["data", "iri"]\niri_images = 32\niri_steps = 3\ntarget_type = "match_later"\n')
    specs = [item.spec for bundle in make_plan(made).bundles for item in bundle.items]
    assert {(spec.train_on, spec.iri_images, spec.iri_steps) for spec in specs if isinstance(spec, StitchSpec)} == {
        ("data", 32, 200),
        ("iri", 32, 3),
    }
    main(WORK)
    found = {result["params"]["train_on"]: result for result in pickles().values()}
    assert found["iri"]["identical"]["images"] == 32 and "identical" not in found["data"]
    words = "a3.pt b5.pt bn1 bn1 -e 1 -b 16 --target-type match_later --train-on data,iri --iri-images 32 --iri-steps 3"
    stitch_nets.main([*words.split(), "--run-name", "r"])
    for path in Path("results/r").glob("*.pkl"):
        alone = results.read(path)
        same = found[alone["params"]["train_on"]]
        assert same["key"] == alone["key"] and same["model_results"] == alone["model_results"]


TWINS = """pairs = [["a3.pt", "b5.pt"]]
minutes = 0.001
seeds = [0, 1, 2]
[stitch]
layers = "bn1"
epochs = 1
batch_size = 16
lr = [0.01, 0.1]
iri_images = 32
"""


def test_twins_are_in_one_bundle_however_it_is_cut(toy) -> None:
    """Each limit of a bundle cuts between stitches; those of the data and of other inputs are never apart."""
    both = TWINS + 'iri_steps = 3\ntrain_on = ["data", "iri"]\n'
    table = TWINS.replace("[stitch]", "[[stitch]]").partition("[[stitch]]")[2]
    apart = both.replace("[stitch]", "[[stitch]]").replace('["data", "iri"]', '"iri"') + "[[stitch]]" + table
    for text in (both, apart):
        plan = make_plan(study(text))
        bundles = [[item.spec for item in bundle.items] for bundle in plan.bundles]
        assert len(bundles) > 3 and sum(map(len, bundles)) == 12
        for specs in bundles:
            twins = {spec.twin for spec in specs if isinstance(spec, StitchSpec) and spec.train_on == "iri"}
            assert twins <= set(specs)
    (bundle,) = make_plan(study(both.replace("0.001", "10"))).bundles
    for _ in range(4):
        one, other_half = bundle.halves()
        assert {*one.items, *other_half.items} == {*bundle.items}
        assert len(one.items) % 2 == 0 or len(bundle.items) == 2
        bundle = max(one, other_half, key=lambda half: len(half.items))


def test_a_stitch_that_comes_later_is_held_against_its_twin_that_is_there(toy) -> None:
    study(TWINS.replace("[0, 1, 2]", "[0]"))
    main(WORK)
    before = {name: Path(f"results/s/{name}.pkl").read_bytes() for name in pickles()}
    assert len(before) == 2
    study(TWINS.replace("[0, 1, 2]", "[0]") + 'iri_steps = 3\ntrain_on = ["data", "iri"]\n')
    main(WORK)
    found = pickles()
    assert len(found) == 4 and all(Path(f"results/s/{name}.pkl").read_bytes() == before[name] for name in before)
    assert all("minus_data" in result["identical"] for name, result in found.items() if name not in before)


def test_what_sizes_and_networks_exclude_is_left_out_of_a_plan(toy) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = ["bn1", "fc1"]\nlayer_pairs = "zip"\ninit = "ps_inv"\n'
    text += "epochs = 0\n"
    plan = make_plan(study(text + "hidden = [4, 6]\n"))
    assert len(plan.names) == 2 and any("--hidden 4 cannot start" in why for why in plan.left_out)
    with pytest.raises(UserError, match="nothing is left to do: --train-end-norm: Toy has no BatchNorm behind bn1"):
        make_plan(study(text + "train_end_norm = true\n"))
    plan = make_plan(study(text + 'kernel = [1, 3]\ntarget_type = "match_final"\n'))
    assert any("--kernel 3 is of maps" in why for why in plan.left_out) and len(plan.names) == 3
