"""A pass of a study that was killed goes on from the state of its trainings."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import src.evaluation.kept_passes
import src.studies.runner
import src.studies.work
import src.training.loop
import src.training.run_state
from src import results
from src.metrics.engine.grid import Grid
from src.studies.deaths import Death, death_of, held_by, memory_limit, pause_after, reaped
from src.studies.engines.local import Here
from src.studies.messages import failure_lines
from src.studies.runner import Driver, Options
from src.studies.schema import Study
from src.studies.store import Failure, Store
from src.studies.work import Report
from studies.__main__ import main
from tests.studies.test_studies import WORK, Two, pickles, study

LONG = """
pairs = [["a3.pt", "b5.pt"]]

[stitch]
layers = "bn1"
seed = [0, 1]
lr = [0.01, 0.02]
epochs = 3
batch_size = 16
"""


def test_a_pass_that_was_killed_goes_on_where_it_was(toy, monkeypatch) -> None:
    """Two trainings of two stitches each; the process ends in the second epoch of the second training."""
    study(LONG)
    main([*WORK, "-o", "calm"])
    monkeypatch.setattr(src.studies.work, "EVERY", 1e-9)
    monkeypatch.setattr(src.training.run_state, "DEAR", 0)
    original, epochs = src.training.loop._train_epoch, []

    def train_epoch(runs, *arguments):
        epochs.append(runs[0].epochs)
        if len(epochs) == 5:
            raise SystemExit  # no Exception: nobody cleans up
        return original(runs, *arguments)

    monkeypatch.setattr(src.training.loop, "_train_epoch", train_epoch)
    with pytest.raises(SystemExit):
        main(WORK)
    assert len(list(Path("results/s/.resume").glob("*/*.pt"))) == 2 and not pickles()
    main(WORK)
    assert epochs == [0, 1, 2, 0, 1] + [1, 2]
    assert not Path("results/s/.resume").exists() and not Path("results/s/.leases").exists()
    calm = {path.stem: results.read(path) for path in Path("calm/s").glob("*.pkl")}
    assert pickles().keys() == calm.keys() and len(calm) == 4
    for name, result in pickles().items():
        assert result["model_results"] == calm[name]["model_results"]
        assert result["trans_fit"].equals(calm[name]["trans_fit"])
        np.testing.assert_array_equal(result["trans_m"]["after"]["w"], calm[name]["trans_m"]["after"]["w"])


def test_short_trainings_keep_no_state_and_failed_ones_leave_none(toy, monkeypatch) -> None:
    study(LONG)
    saved = []
    monkeypatch.setattr(src.training.run_state.Run, "save", lambda run, resume: saved.append(resume.file))
    main(WORK)
    assert not saved and len(pickles()) == 4
    store = Store(Path("results/s"))
    (bundle,) = store.plan(study(LONG)).bundles
    store.states(bundle.name).mkdir(parents=True)
    (store.states(bundle.name) / "x.pt").write_bytes(b"torn")
    store.path(bundle.items[0].name).unlink()
    monkeypatch.setattr(src.studies.work, "stitch", lambda *arguments: 1 / 0)
    with pytest.raises(SystemExit):
        main([*WORK, "--retries", "0"])
    assert not Path("results/s/.resume").exists()


KILLED = Death("the process was killed by SIGKILL (signal 9)", 9)


def test_a_pass_whose_process_died_is_tried_whole_again_as_long_as_it_gets_further(toy, monkeypatch) -> None:
    store, sizes = Store(Path("results/s")), []
    monkeypatch.setattr(src.studies.runner, "pause_after", lambda deaths: 0.0)

    class Deadly(Two):
        """Each process dies; the first two had learnt something."""

        def wait(self, seconds: float) -> list[Report]:
            done, self.tasks = self.tasks, []
            for task in done:
                sizes.append(len(task.bundle.items))
                if len(sizes) < 3:
                    state = store.states(task.bundle.name) / "x.pt"
                    state.parent.mkdir(parents=True, exist_ok=True)
                    state.write_bytes(b"")
                    os.utime(state, ns=(0, len(sizes)))
            return [Report(task, death=KILLED) for task in done]

    plan = store.plan(study(LONG))
    failures = Driver(plan, store, Deadly(), Options(retries=0, deaths=2), lambda line: None).run()
    assert sizes[:6] == [4, 4, 4, 2, 2, 2]
    assert {(failure.count, failure.deaths, failure.signal) for failure in failures.values()} == {(0, 3, 9)}


def test_deaths_from_outside_use_up_no_attempts_and_pauses_grow(toy, monkeypatch) -> None:
    """A comparison whose process is killed nineteen times is made in the end; of work that failed once two are left."""
    study(LONG.replace("[stitch]", "[compare]").split("seed")[0] + 'metrics = "cka"\n')
    store, deaths, pauses = Store(Path("results/s")), [], []
    plan = store.plan(Study(Path("s.toml")))
    monkeypatch.setattr(src.studies.runner, "pause_after", lambda deaths: pauses.append(pause_after(deaths)) or 0.0)

    class Preempted(Here):
        def wait(self, seconds: float) -> list[Report]:
            if self.busy and len(deaths) < 19:
                deaths.append(self._tasks.pop())
                return [Report(deaths[-1], death=KILLED)]
            return super().wait(0.0)

    said: list[str] = []
    options = Options(retries=0, device="cpu")
    assert Driver(plan, store, Preempted(), options, said.append).run() == {}
    assert len(pickles()) == 1 and len(deaths) == 19 and not list(store.folder.glob("*.failed.json"))
    assert pauses == [0.0, *(min(60.0, 2.0**number) for number in range(18))]
    assert said[1] == f"{KILLED.words}; its work goes on, again in 0 s" and pause_after(3) == 4


def test_a_machine_that_is_taken_back_never_counts(toy, monkeypatch) -> None:
    study(LONG.replace("[0, 1]", "0").replace("[0.01, 0.02]", "0.01"))
    store, deaths = Store(Path("results/s")), []

    class Cluster(Here):
        def wait(self, seconds: float) -> list[Report]:
            if self.busy and len(deaths) < 50:
                deaths.append(self._tasks.pop())
                return [Report(deaths[-1], death=Death("job 7 ended as PREEMPTED", counts=False))]
            return super().wait(0.0)

    plan = store.plan(Study(Path("s.toml")))
    assert Driver(plan, store, Cluster(), Options(retries=0, deaths=0, device="cpu"), lambda line: None).run() == {}
    assert len(deaths) == 50 and len(pickles()) == 1


@pytest.mark.parametrize("what", [death_of(-11), death_of(1), death_of(-9, 9e9, 0.0, 10e9)])
def test_a_program_that_ends_itself_or_takes_all_memory_has_failed(what, toy) -> None:
    study(LONG.replace("[0, 1]", "0").replace("[0.01, 0.02]", "0.01"))
    store = Store(Path("results/s"))

    class Crashing(Two):
        def wait(self, seconds: float) -> list[Report]:
            done, self.tasks = self.tasks, []
            return [Report(task, death=what) for task in done]

    plan = store.plan(Study(Path("s.toml")))
    (failure,) = Driver(plan, store, Crashing(), Options(retries=1), lambda line: None).run().values()
    assert (failure.count, failure.deaths) == (2, 0) and failure.line == what.words
    assert failure_lines([failure])[0].startswith("failed 2 times: a3.pt bn1 -> b5.pt bn1")


def test_memory_is_suspected_where_the_signal_is_9_and_the_peak_near_the_limit() -> None:
    assert "memory" not in death_of(-9, 7e9, 0.0, 10e9).words and not death_of(-9, 7e9, 0.0, 10e9).of_work
    assert "memory" not in death_of(-15, 9e9, 0.0, 10e9).words
    beside = death_of(-9, 5e9, 4e9, 10e9)
    assert "(5.0 GB held, 9.0 GB with its neighbours, of 10.0 GB in all)" in beside.words and beside.of_work
    assert memory_limit() > 1e8 and death_of(-9).words == "the process was killed by SIGKILL (signal 9)"
    child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
    assert held_by(child) > 0 or not Path("/proc").is_dir()
    os.kill(child, 15)
    code, peak = reaped(child) or (0, 0.0)
    assert code == -15 and 1e5 < peak < memory_limit() and reaped(child) is None  # a fork holds what its parent does


def test_failure_notes_of_before_are_read(toy) -> None:
    store = Store(Path("results/s"))
    store.folder.mkdir(parents=True)
    (store.folder / "x.failed.json").write_text('{"about": "a", "count": 2, "trace": "ValueError: no"}')
    assert store.failures()["x"].deaths == 0
    store.died("x", KILLED, "a")
    store.fail("x", "ValueError: again", "a")
    assert store.failures()["x"] == Failure(3, "ValueError: again", "a", deaths=1)
    assert failure_lines(list(store.failures().values())) == [
        "failed 3 times, stopped from outside 1 time: a: ValueError: again"
    ]


def test_a_comparison_that_was_killed_goes_on_where_it_was(toy, monkeypatch) -> None:
    """The process ends at the third batch; the next one is fed the rest alone."""
    study('pairs = [["a3.pt", "b5.pt"]]\n[compare]\nlayers = ["bn1", "fc1"]\nmetrics = ["cka", "lr", "mutual_knn"]\n')
    monkeypatch.setattr(src.studies.work, "compare_rows", partial(src.studies.work.compare_rows, batch_size=8))
    main([*WORK, "-o", "calm"])
    monkeypatch.setattr(src.studies.work, "EVERY", 0.0)
    monkeypatch.setattr(src.evaluation.kept_passes, "DEAR", 0)
    update, fed = Grid.update, []

    def counted(grid: Grid, *sides) -> None:
        fed.append(grid.seen)
        if len(fed) == 3:
            raise SystemExit  # no Exception: nobody cleans up
        update(grid, *sides)

    monkeypatch.setattr(Grid, "update", counted)
    with pytest.raises(SystemExit):
        main(WORK)
    assert len(list(Path("results/s/.resume").glob("*/pass-1-gathered.pt"))) == 1 and not pickles()
    main(WORK)
    assert fed == [0, 8, 16, 16, 24, 32, 40] and not Path("results/s/.resume").exists()
    (ours,), (calm,) = pickles().values(), [results.read(path) for path in Path("calm/s").glob("*.pkl")]
    assert ours["frame"].equals(calm["frame"]) and len(ours["frame"]) == 12
