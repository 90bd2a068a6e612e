"""What a study does where there are GPUs, without one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.core import config
from src.core.config import decoders_of, gpu_numbers
from src.stitching import StitchSpec
from src.studies import network_cache
from src.studies.engines.submitit import Jobs
from src.studies.jobs import Bundle, Item, Settings
from src.studies.plan import make_plan
from src.studies.work import WorkerTask
from studies.__main__ import main
from tests.studies.test_studies import STUDY, study

CUDA = torch.device("cuda")


def task(name: str, device: str = "auto") -> WorkerTask:
    items = [Item(name, name, StitchSpec("a", "b"))]
    return WorkerTask(Bundle.of(("a", "b"), Settings("s"), items, 1.0), Path("s"), "runner", 60.0, device)


def jobs_on(gpus: list[int]) -> Any:
    jobs = Jobs.__new__(Jobs)
    jobs._gpus, jobs._jobs = gpus, []
    return jobs


def test_without_slurm_each_job_has_the_gpu_that_is_freest() -> None:
    jobs = jobs_on([0, 2])
    placed = jobs._placed([task(name) for name in "abc"])
    assert [one.device for one in placed] == ["cuda:0", "cuda:2", "cuda:0"]
    jobs._jobs = [(None, placed[0]), (None, placed[2])]
    assert [one.device for one in jobs._placed([task("d"), task("e")])] == ["cuda:2", "cuda:2"]


def test_who_asks_for_another_device_gets_it() -> None:
    assert [one.device for one in jobs_on([0])._placed([task("a", "cpu"), task("b", "cuda:5")])] == ["cpu", "cuda:5"]
    assert [one.device for one in jobs_on([])._placed([task("a")])] == ["auto"]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [(None, 0, []), (None, 2, [0, 1]), ("2,3", 2, [2, 3]), ("GPU-12", 1, [0]), ("", 0, [])],
)
def test_gpus_have_the_numbers_that_others_know_them_by(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, expected: list[int]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpu_numbers() == expected


def test_decoders_are_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 12)
    assert [decoders_of(workers) for workers in (1, 3, 5, 40)] == [8, 4, 2, 1]


def test_bundles_of_gpus_are_whole_pairs_and_the_longest_come_first(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    where = []
    monkeypatch.setattr(network_cache, "_timed", lambda network, image, device: where.append(device) or 0.1)
    monkeypatch.setattr(network_cache, "_products", lambda device: where.append(device) or 1e12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    text = STUDY.replace("minutes = 10", "minutes = 1000")
    cut, whole = make_plan(study(text)), make_plan(study(text), device=CUDA)
    assert set(where) == {CUDA, torch.device("cpu")} and sorted(cut.names) == sorted(whole.names)
    pairs = [bundle.pair for bundle in whole.bundles if not bundle.is_comparison]
    assert len(pairs) == len(set(pairs)) < len([bundle for bundle in cut.bundles if not bundle.is_comparison])
    seconds = [bundle.seconds for bundle in whole.bundles]
    assert seconds == sorted(seconds, reverse=True)


def test_a_study_that_asks_for_tf32_ends_in_a_line_on_a_processor(toy, capsys: pytest.CaptureFixture[str]) -> None:
    study(STUDY.replace("epochs = 1", "epochs = 1\ntf32 = true"))
    with pytest.raises(SystemExit) as ended:
        main(["s.toml", "--device", "cpu"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --tf32 is of GPUs of NVIDIA, and this is cpu; leave it out\n"
    assert main(["s.toml", "--device", "cpu", "--engine", "submitit", "--dry-run"]) is None
