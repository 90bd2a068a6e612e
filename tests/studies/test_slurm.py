"""What Slurm says, and does not say: refusals, dead jobs, queued ones. Its programs are stand-ins."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from src.studies.deaths import Death
from src.studies.engines import slurm
from studies.__main__ import main
from tests.studies import fake_slurm
from tests.studies.test_kill import COUNT, folder, found, start

assert folder  # a fixture
WITH_SUBMITIT = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Path:
    """Slurm's programs, in front of all others; sacct fails, as on many clusters."""
    monkeypatch.setenv("PATH", fake_slurm.on_path(fake_slurm.install(tmp_path / "slurm")))
    return tmp_path / "slurm"


def ends(watch: slurm.Watch, job: str, signs: list[object], pause: float = 0.06) -> list[str]:
    """What a watch says of a job, sign after sign."""
    said = []
    for sign in signs:
        death = watch.dead({job: sign}).get(job)
        said.append(death.words if death else "")
        time.sleep(pause)
    return said


def test_jobs_that_started_and_show_no_life_are_given_up_and_queued_ones_are_waited_for(cluster) -> None:
    fake_slurm.say(cluster, "squeue", "7_0 PENDING\n7_1 RUNNING\n7_2 RUNNING\n8 REQUEUED")
    watch = slurm.Watch(patience=0.5)
    states = slurm.states_of_jobs()
    assert states == {"7_0": "PENDING", "7_1": "RUNNING", "7_2": "RUNNING", "8": "REQUEUED"}
    dead: dict[str, Death] = {}
    start = time.monotonic()
    while not dead and time.monotonic() < start + 20:
        dead = watch.dead({"7_0": None, "7_1": "still", "7_2": time.monotonic(), "8": "still"})
        time.sleep(0.05)
    assert time.monotonic() - start >= 0.5
    assert {job: death.words for job, death in dead.items()} == {
        "7_1": "job 7_1 has started, and shown no life for 0.5 s"
    }
    assert dead["7_1"].counts and not dead["7_1"].of_work


def test_jobs_that_squeue_no_longer_knows_are_given_up(cluster) -> None:
    fake_slurm.say(cluster, "squeue", "8 RUNNING")
    assert ends(slurm.Watch(patience=0.05), "7", [1, 2, 3, 4])[:3] == [
        "",
        "",
        "job 7 is gone: squeue no longer knows it",
    ]


def test_where_squeue_fails_what_has_not_started_is_waited_for(cluster) -> None:
    fake_slurm.say(cluster, "squeue", "slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert slurm.states_of_jobs() is None
    watch = slurm.Watch(patience=0.05)
    assert ends(watch, "7", [None] * 5) == [""] * 5
    assert ends(watch, "7", ["log", "log"])[1] == "job 7 has started, and shown no life for 0.05 s"


@pytest.mark.parametrize(
    ("line", "words", "counts", "of_work"),
    [
        ("PREEMPTED|0:0", "job 7 ended as PREEMPTED", False, False),
        ("NODE_FAIL|0:0", "job 7 ended as NODE_FAIL", False, False),
        ("CANCELLED by 1000|0:15", "job 7 ended as CANCELLED", True, False),
        ("TIMEOUT|0:0", "job 7 ended as TIMEOUT", True, False),
        ("FAILED|0:9", "job 7 ended as FAILED: the process was killed by SIGKILL (signal 9)", True, False),
        ("FAILED|139:0", "job 7 ended as FAILED: the process was killed by SIGSEGV (signal 11)", True, True),
        ("FAILED|1:0", "job 7 ended as FAILED: the process ended with exit code 1", True, True),
        ("OUT_OF_MEMORY|0:125", "job 7 ended as OUT_OF_MEMORY: ask for more memory in [submitit], ", True, True),
    ],
)
def test_what_sacct_says_of_an_end(line: str, words: str, counts: bool, of_work: bool, cluster) -> None:
    assert slurm.ending_of("7") is None
    fake_slurm.say(cluster, "sacct", line)
    death = slurm.ending_of("7")
    assert death and death.words.startswith(words) and (death.counts, death.of_work) == (counts, of_work)


def test_a_refusal_is_sbatchs_own_words_in_a_line() -> None:
    text = "sbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission failed: no\n"
    assert slurm.refusal(RuntimeError(text)) == "invalid partition specified: gpux; Batch job submission failed: no"
    assert slurm.refusal(RuntimeError("odd\nlast\n")) == "last" and slurm.refusal(RuntimeError("")) == "RuntimeError"


@pytest.mark.submitit
@WITH_SUBMITIT
def test_what_sbatch_refuses_is_one_line(folder, cluster, capsys) -> None:
    fake_slurm.say(cluster, "sbatch", "sbatch: error: Batch job submission failed: Invalid account", code=1)
    with pytest.raises(SystemExit) as stop:
        main(["s.toml", "--engine", "submitit", "--device", "cpu"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.splitlines()[-1] == (
        "error: sbatch refuses: Batch job submission failed: Invalid account"
    )
    assert "Traceback" not in captured.err
    Path("s.toml").write_text(Path("s.toml").read_text() + "[submitit]\nslurm_partitoin = 'gpu'\n")
    with pytest.raises(SystemExit) as stop:
        main(["s.toml", "--engine", "submitit", "--device", "cpu"])
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith("error: [submitit]: ")


@pytest.mark.submitit
@WITH_SUBMITIT
def test_jobs_that_are_killed_or_stand_still_are_sent_again(folder, cluster) -> None:
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("minutes = 0.001", "minutes = 0.15"))  # some passes of some stitches
    assert start("-o", "local").wait(300) == 0, Path("log").read_text()
    driver = start("-o", "cluster", "--engine", "submitit", "--patience", "8")
    while len(sent := fake_slurm.jobs(cluster)) < 2:
        assert driver.poll() is None, Path("log").read_text()
        time.sleep(0.1)
    first, second, *_ = sent.values()
    os.killpg(first, signal.SIGKILL)
    os.killpg(second, signal.SIGSTOP)
    try:
        assert driver.wait(300) == 0, Path("log").read_text()
    finally:
        os.killpg(second, signal.SIGKILL) if Path(f"/proc/{second}").exists() else None
    log = Path("log").read_text()
    assert "is gone: squeue no longer knows it; its work goes on" in log, log
    assert "has started, and shown no life for 8 s; its work goes on" in log, log
    assert len((cluster / "cancelled").read_text().splitlines()) >= 1
    assert len({name for name, _ in found("local")}) == COUNT and found("local") == found("cluster")
