"""A pass of a study that was killed goes on from the state of its trainings."""

import os
from pathlib import Path

import numpy as np
import pytest

import src.studies.work
import src.training.loop
from src import results
from src.studies.runner import Driver, Options
from src.studies.store import Store
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
    monkeypatch.setattr(src.training.loop, "DEAR", 0)
    original, epochs = src.training.loop._train_epoch, []

    def train_epoch(run, *arguments):
        epochs.append(run.epochs)
        if len(epochs) == 5:
            raise SystemExit  # no Exception: nobody cleans up
        return original(run, *arguments)

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
    monkeypatch.setattr(src.training.loop._Run, "save", lambda run, resume: saved.append(resume.file))
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


def test_a_pass_whose_process_died_is_tried_whole_again_as_long_as_it_gets_further(toy) -> None:
    store, sizes = Store(Path("results/s")), []

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
            return [Report(task, trace="it died", died=True) for task in done]

    plan = store.plan(study(LONG))
    failures = Driver(plan, store, Deadly(), Options(retries=0), lambda line: None).run()
    assert sizes[:6] == [4, 4, 4, 2, 2, 2] and {failure.count for failure in failures.values()} == {1}
