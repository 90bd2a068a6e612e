"""Studies on other engines, and their page in a browser: outside `make test`, where these are installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from src.networks.presentation import NetworksOnDataset
from src.studies import engines, images
from src.studies.engines import choose_workers
from src.studies.schema import Study
from src.studies.store import Store
from studies.__main__ import main
from tests.studies.test_kill import COUNT, folder, found, start

assert folder  # a fixture
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_workers_are_as_many_as_there_is_work_for() -> None:
    assert [choose_workers(4, 3, 0), choose_workers(None, 9, 2), choose_workers(1, 9, 8)] == [3, 2, 1]
    assert choose_workers(None, 1000, 0) == len(os.sched_getaffinity(0)) and choose_workers(None, 0, 0) == 1


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_an_engine_that_is_absent_is_named_with_its_remedy(name, folder, monkeypatch, capsys) -> None:
    def absent(module: str):
        raise ImportError(module)

    monkeypatch.setattr(getattr(engines, name).importlib, "import_module", absent, raising=True)
    with pytest.raises(ValueError, match=f"^{name} is not installed: pip install {name}$"):
        engines.ENGINES[name](1, folder=folder, options={})


def same_as_here(engine: str) -> None:
    """A study on an engine gives, byte for byte, what it gives on local processes."""
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("minutes = 0.001", "minutes = 0.15"))  # some passes of some stitches
    for name, more in (("local", ()), (engine, ("--engine", engine))):
        assert start("-o", name, *more).wait(300) == 0, Path("log").read_text()
    assert len({name for name, _ in found("local")}) == COUNT and found("local") == found(engine)


@pytest.mark.submitit
@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed")
def test_submitit_makes_the_same_bytes(folder) -> None:
    same_as_here("submitit")


@pytest.mark.ray
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_ray_makes_the_same_bytes(folder) -> None:
    same_as_here("ray")


@pytest.mark.ray
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_ray_makes_the_same_bytes_on_a_cluster_of_two_nodes(folder, monkeypatch) -> None:
    """Nodes of one core each, so that two passes at once are one on each."""
    cluster = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        most, over = [0], threading.Event()
        watching = threading.Thread(target=watch, args=(Path("ray/s/.leases"), most, over))
        watching.start()
        try:
            same_as_here("ray")
        finally:
            over.set()
            watching.join()
        assert most == [2]
    finally:
        cluster.shutdown()


def watch(leases: Path, most: list[int], over: threading.Event) -> None:
    """How many passes are held at once, at most."""
    while not over.wait(0.02):
        most[0] = max(most[0], len(list(leases.glob("*.lease"))))


def test_images_that_are_handed_over_are_not_read_again(toy, monkeypatch) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\n[stitch]\nlayers = "bn1"\nepochs = 1\nbatch_size = 16\n'
    Path("s.toml").write_text(text)
    command = ["worker", "s.toml", "--shard", "1/1", "--device", "cpu", "-o"]
    main([*command, "read"])
    (bundle,) = Store(Path("read/s")).plan(Study(Path("s.toml"))).bundles
    arrays = images.arrays_of(bundle)
    shutil.copytree("read", "handed", ignore=shutil.ignore_patterns("*.pkl"))  # planning reads, too
    for name in ("_READ", "_HANDED_OVER"):
        monkeypatch.setattr(images, name, {})
    for values, _ in arrays.values():
        values.flags.writeable = False  # as in ray's store
    images.hand_over(arrays)
    monkeypatch.setattr(NetworksOnDataset, "split", lambda *about, **options: pytest.fail("read again"))
    main([*command, "handed"])
    assert len({name for name, _ in found("handed")}) == 1 and found("handed") == found("read")


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no chromium")
def test_the_page_opens_sorts_and_shows_commands(folder) -> None:
    text = Path("s.toml").read_text().replace("[0, 1, 2]", "[0]").replace('"random"]', '"random"]\nlow_rank = [1, 4]')
    Path("s.toml").write_text(text.replace("minutes = 0.001", ""))
    main(["worker", "s.toml", "--shard", "1/1", "--device", "cpu"])
    main(["report", "s.toml"])
    page = Path("results/s/report.html")
    # what the page itself does when it is opened, and a click on a heading, on a single stitch, and on a mean
    script = """<script>
const rows = () => document.querySelectorAll("tr[data-row]").length;
const clicked = async mark => {
  mark.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}));
  await new Promise(done => setTimeout(done, 100));
  return rows();
};
(async () => {
  document.querySelectorAll("th")[3].click();
  const found = [rows(), await clicked(document.querySelector('a.mark[href^="#rows"]'))];
  const mean = document.querySelector('a.mark[href^="#point"]');
  found.push(await clicked(mean), await clicked(document.getElementById("all")));
  await clicked(mean);
  document.title = found.join();
})();
</script></body>"""
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text().replace("</body>", script))
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    command.append(clicked.resolve().as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (counts, *_) = re.findall(r"<title>(.*?)</title>", done.stdout)
    every, single, mean, again = map(int, counts.split(","))  # no error stopped it
    assert (every, single, again) == (16, 1, 16) and 1 < mean < 16
    assert len(re.findall(r"<tr data-row=", done.stdout)) == mean
    chosen = re.findall(r"<pre>python stitch_nets.py (.*?)</pre>", done.stdout)
    assert len(chosen) == mean and all("--low-rank" in command for command in chosen)
