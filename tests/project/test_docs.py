"""What README and docs say of options, registries, result keys and each other is so."""

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

import stitch_nets
from docs import site_hooks, tables
from src import results
from src.dataset import DATASETS
from src.dataset.lookup import KINDS
from src.models import MODELS
from src.networks.sources import SOURCES
from src.stitching.inits import INITS
from src.stitching.masks import MASKS
from src.stitching.options import VARIED
from src.stitching.targets import TARGETS
from src.studies.engines import ENGINES
from tests.pages import TEXTS, names_tables, section
from tests.paths import ROOT

REGISTRIES: dict[str, Collection[str]] = {
    "DATASETS": {*DATASETS, *KINDS},
    "ENGINES": ENGINES,
    "INITS": INITS,
    "MASKS": MASKS,
    "MODELS": MODELS,
    "SOURCES": SOURCES,
    "TARGETS": TARGETS,
}


def test_readme_is_a_first_page() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 250


@pytest.mark.parametrize("page", TEXTS)
def test_tables_are_those_of_the_parsers_and_registries(page: str) -> None:
    assert tables.renewed(TEXTS[page]) == TEXTS[page], "python -m docs.tables writes them anew"


def test_every_script_has_its_options_on_a_page() -> None:
    for script in tables.SCRIPTS:
        (page,) = [name for name, text in TEXTS.items() if f"<!-- table: options {script} -->" in text]
        shown = TEXTS[page] + TEXTS["docs/results.md"]
        for _, actions in tables.groups_of(script):
            for action in actions:
                assert tables.row_of(action)[0] in shown, (script, action.dest)
        assert page.removeprefix("docs/") in TEXTS["README.md"], "README leads to it"


@pytest.mark.parametrize("what", REGISTRIES)
def test_tables_of_names_hold_their_registry(what: str) -> None:
    words = {word for first, *_ in names_tables()[what] for word in re.findall(r"`([^`]+)`", first)}
    if what in ("DATASETS", "SOURCES"):
        words = {word.split(":")[0] for word in words if ":" in word or "#" in word or what == "DATASETS"}
        words = {{"FILE.py": "python", "tiny10#5": "own"}.get(word, word) for word in words}
    assert words == set(REGISTRIES[what])


def test_data_sets_have_the_classes_and_sizes_that_the_table_says() -> None:
    for first, images, task, *_ in names_tables()["DATASETS"]:
        for name in re.findall(r"`(\w+)`", first):
            spec = DATASETS[name]
            assert str(spec.classes) in task.replace(",", " ").split() or f"{spec.classes:,}" in task
            assert name == "imagenet" or f"{spec.channels} x {spec.size} x {spec.size}" in images


def words_of_table(text: str) -> set[str]:
    """The words of printed tables of stitches: heads of columns, labels of rows, and what a line below is about."""
    heads = re.findall(r"^(?: {11}|front end).*$", text, re.MULTILINE)
    labels = re.findall(r"^([a-z]\w*)[*=]* +[\d.]+%? ", text, re.MULTILINE)
    abouts = re.findall(r"^([a-z]\w*)[*=]?: ", text, re.MULTILINE)
    words = {word for head in heads for word in head.split() if not word.startswith("95%")}
    return words | set(labels) | set(abouts)


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str):
                yield key
            if key != "params":  # the options of the script
                yield from keys_of(inner)
    if isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


@pytest.fixture
def printed(toy: Path) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Results and tables of small stitches, alone and beside others, with all that can be asked of them."""
    much = ["-b", "16", "-e", "1", "--controls", "all", "--ood", "-d", "toy"]
    single = ["a3.pt", "b3.pt", "bn1", "bn1", "-i", "ps_inv", *much]
    ranked = ["a3.pt", "b5.pt", "bn1", "bn1", "-r", "2", "-m", "identity", *much, "--run-name", "ranked"]
    several = ["a3.pt", "b3.pt", "bn1", "bn1,conv2", "-i", "ps_inv,random", *much]
    text = ""
    for words in (single, ranked, several):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            stitch_nets.main(words)
        text += out.getvalue()
    yield [results.read(path) for path in sorted(toy.glob("results/**/*.pkl"))], text


def test_the_glossary_has_every_key_and_every_word_of_the_tables(printed) -> None:
    found, text = printed
    said = section("docs/results.md", "What a stitch's result holds") + section("docs/results.md", "Glossary")
    layers = {"bn1", "conv2", "relu", "pool", "flatten", "fc1", "fc2", "add", "add_1", "tanh"}
    keys = {key for result in found for key in keys_of(result)} - layers
    words = words_of_table(text) - layers - {*VARIED, "result", "results"}
    assert len(keys) > 60 and words >= {"accuracy", "ls_train", "self_random", "score", "AUROC", "channels"}
    assert sorted(keys - words_in_code(said)) == []
    explained = [section("docs/results.md", title) for title in ("Who is meant", "Words of the printed tables")]
    heads = "".join(re.findall(r"^\|([^|]*)\|", "".join(explained), re.MULTILINE))
    assert sorted(words - words_in_code(heads)) == []


def words_in_code(text: str) -> set[str]:
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[\w.]+", code)}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*TEXTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_on_the_site_and_the_first_page_or_the_menu_leads_to_it() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in TEXTS:
        assert page == "README.md" or re.search(rf"- {page.removeprefix('docs/')}$", menu, re.MULTILINE), page


def test_the_site_is_built_and_asks_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "stitching.html" in index and "docs/" not in re.findall(r'href="([^"]*)"', index)


@pytest.mark.parametrize(
    "asking",
    [
        '<script src="https://unpkg.com/x"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">',
        '<img alt="" src="//elsewhere/x.png">',
        "@font-face { src: url(https://elsewhere/x.woff2) }",
    ],
)
def test_what_asks_a_network_is_seen(asking: str) -> None:
    assert site_hooks.ASKING.search(asking)
    assert not site_hooks.ASKING.search('<a href="https://arxiv.org"><script src="assets/x.js"></script>')
