"""What one reads of a study: rows, means and intervals, CSV, LaTeX, the page."""

import csv
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

import stitch_nets
from src import results
from src.results.frame import _row
from src.results.plots.curves import control_style
from src.stitching.controls import CONTROLS
from src.studies.curves import by_layer
from src.studies.drawing import MOST_MARKS, drawing
from src.studies.frames import COMPARED, with_names
from src.studies.maps import by_networks
from src.studies.means import grouped, interval
from src.studies.page import table_data, write_page
from src.studies.table import escaped, to_latex, write_tables
from studies.__main__ import main

STUDY = """\
networks = ["a3.pt", "b3.pt", "b5.pt"]
seeds = [0, 1]
controls = ["untrained", "self", "constant"]

[[stitch]]
layers = ["bn1", "conv2"]
init = "ps_inv"
low_rank = [1, "full"]
epochs = 1
batch_size = 16

[compare]
layers = ["bn1", "fc1"]
metrics = ["cka", "dist_corr"]
"""
NONE = pd.DataFrame(columns=COMPARED)


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def linked(page: str) -> list[int]:
    """The rows of the table that marks of a page's charts lead to."""
    points = data_of(page)["points"]
    rows = re.findall(r'<a class="mark" href="#rows=(\d+)"', page)
    rows += [row for point in re.findall(r'href="#point=(\d+)"', page) for row in points[int(point)].split(",")]
    return [int(row) for row in rows]


def test_a_study_becomes_tables_and_a_page(toy, capsys) -> None:
    Path("s.toml").write_text(STUDY)
    main(["worker", "s.toml", "--shard", "1/1", "--device", "cpu"])
    capsys.readouterr()
    main(["table", "s.toml"])
    out = capsys.readouterr().out
    rows = list(csv.DictReader(Path("results/s/table.csv").read_text().splitlines()))
    assert len(rows) == 4 * 2 and {row["n"] for row in rows} == {"6"}  # over 6 pairs of networks, seeds in one
    assert re.search(r"^bn1 +conv2 +full +6 +\d+\.\d \[\d+\.\d, \d+\.\d\]$", out, re.MULTILINE)
    assert "accuracy_untrained_low" in rows[0]
    every = pd.read_csv("results/s/stitches.csv")
    assert len(every) == 6 * 4 * 2 * 2
    some = every[(every.front_layer == "bn1") & (every.end_layer == "conv2") & (every.low_rank == 1)]
    means = some.groupby("networks")["accuracy_after"].mean()
    (row,) = [row for row in rows if (row["front_layer"], row["end_layer"], row["low_rank"]) == ("bn1", "conv2", "1.0")]
    without = [means[[network not in pair for pair in means.index]].mean() for network in ("in0", "in1", "in2")]
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * np.square(np.array(without) - np.mean(without)).sum())
    mean = means.mean()
    reach = half / (mean * (1 - mean))  # the slope of the logit
    assert np.allclose(
        [float(row[f"accuracy_after{end}"]) for end in ("", "_low", "_high")],
        [mean, *special.expit(special.logit(mean) + np.array([-reach, reach]))],
    )
    main(["table", "s.toml", "--over", "seeds"])
    assert {row["n"] for row in csv.DictReader(Path("results/s/table-seeds.csv").read_text().splitlines())} == {"2"}
    assert len(list(csv.DictReader(Path("results/s/table.csv").read_text().splitlines()))) == 8  # as it was
    assert len(pd.read_csv("results/s/comparisons.csv")) == 6 * 2 * 4
    latex = Path("results/s/table.tex").read_text()
    assert latex.count("Means over 6 pairs of the networks ") == 2 and all(f"in{number}" in latex for number in "012")
    assert re.search(r"^cka & bn1 & fc1 & 6 & 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", latex, re.MULTILINE)

    main(["report", "s.toml"])
    page = Path("results/s/report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["By layer", "By rank", "Layer by layer", "Comparisons", "Network by network", "Every stitch"]
    assert all(f">{label}</text>" in page for label in ("untrained", "self", "constant", "chance", "end"))
    assert all(f">{number}</text>" in page for number in (0, 100)) and ">accuracy (%)</text>" in page
    data = data_of(page)
    assert len(data["rows"]) == len(every) and data["heads"][:3] == ["networks", "front layer", "end layer"]
    assert {"ps_inv (%)", "end (%)", "self (%)", "agrees (%)"} <= set(data["heads"])
    assert set(linked(page)) == set(range(len(every)))  # each stitch can be reached from a chart
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids) and set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', page)) <= set(ids)
    main(["report", "s.toml"])
    assert Path("results/s/report.html").read_text() == page


def test_the_command_of_a_row_makes_its_stitch(toy) -> None:
    Path("s.toml").write_text(
        STUDY.replace("[0, 1]", "[7]") + '[[stitch]]\nlayers = "fc1"\nwhiten = true\nepochs = 0\n'
    )
    main(["worker", "s.toml", "--shard", "1/1", "--device", "cpu"])
    main(["report", "s.toml"])
    data = data_of(Path("results/s/report.html").read_text())
    frame = pd.DataFrame(results.table("results/s")).set_index("key")
    for number in (0, 7, len(data["rows"]) - 1):
        *_, start, end = data["rows"][number]
        words = shlex.split(f"{data['commands'][start]} {data['ends'][end]}")
        assert words[:2] == ["python", "stitch_nets.py"]
        (result,) = stitch_nets.run(stitch_nets.parse_args([*words[2:], "--no-save"]))
        assert result["model_results"]["trans"]["acc"] == frame.loc[result["key"], "accuracy_after"]
        assert result["controls"]["untrained"]["acc"] == frame.loc[result["key"], "accuracy_untrained"]


def test_nothing_to_read_is_said(toy, capsys) -> None:
    Path("s.toml").write_text(STUDY)
    for command in ("table", "report"):
        with pytest.raises(SystemExit) as stop:
            main([command, "s.toml"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == "error: no results of this study in results/s yet; run it first\n"


def fake(count: int) -> Any:
    """Rows as `results.table` has them: 20 pairs of networks, layers, ranks, seeds."""
    random, empty, rows = np.random.default_rng(0), _row({}, Path()), []
    for number in range(count):
        pair, layer, rank, seed = number % 20, number // 20 % 10, number // 200 % 5, number // 1000
        row = empty | {"front_model": f"a{pair}.pt", "end_model": f"b{pair}.pt", "front_layer": f"bn{layer}"}
        row |= {"end_layer": f"bn{layer}", "low_rank": 2**rank, "seed": seed, "init": "ps_inv", "dataset": "digits"}
        for role, gradient in (("front", pair), ("end", pair + 100)):
            row |= {f"{role}_architecture": "tiny10", f"{role}_init_seed": 0, f"{role}_gradient_seed": gradient}
        row |= {
            name: random.random() for name in empty if name.startswith(("accuracy", "agree", "cka_after", "penalty"))
        }
        rows.append(row | {"name": f"{number:064x}"})
    return pd.DataFrame(rows)


def test_ten_thousand_results_stay_small(tmp_path) -> None:
    found = with_names(fake(10_000), NONE)
    assert found.axes == ["low_rank"] and found.stitches["networks"].nunique() == 20
    places = write_tables(found, "pairs", tmp_path)
    assert places["the same in LaTeX"].read_text().count("bn9 & bn9 & ") == 5
    commands = {
        name: (f"python stitch_nets.py a{number % 20}.pt b{number % 20}.pt", f"bn1 bn1 --low-rank {number % 5}")
        for number, name in enumerate(found.stitches["name"])
    }
    page = tmp_path / "p.html"
    write_page(page, found, name="p", text="", summary=[], failures=[], commands=commands, pictures={})
    assert page.stat().st_size < 5e6
    text = page.read_text()
    assert len(data_of(text)["rows"]) == 10_000 and text.count("2,000 of 10,000 dots are shown, drawn by lot") == 2
    assert 2 * MOST_MARKS / 2 < text.count(", seed ") <= 2 * MOST_MARKS


def test_a_map_of_many_networks_is_a_picture_and_says_so(tmp_path) -> None:
    frame = fake(2500).assign(front_layer="bn3", end_layer="bn3", low_rank=None, seed=0)
    for role, numbers in (("front", np.arange(2500) % 50), ("end", np.arange(2500) // 50)):
        frame[f"{role}_model"], frame[f"{role}_gradient_seed"] = [f"n{number}.pt" for number in numbers], numbers
    with drawing():
        section = by_networks(with_names(frame, NONE))
    assert "maps of more than 2,000 cells are pictures, without links" in section["note"]
    assert "<image" in section["charts"][0]["svg"] and "mark" not in section["charts"][0]["svg"]


def test_intervals_need_three_values_and_gaps_are_gaps() -> None:
    frame = fake(200).assign(low_rank=None)
    frame.loc[0, "accuracy_after"] = np.nan
    two = grouped(with_names(frame[frame["front_model"].isin(["a0.pt", "a1.pt"])], NONE), "pairs")
    assert two["accuracy_after_low"].isna().all() and two["accuracy_before"].notna().all()
    assert two.loc[0, "accuracy_after"] == frame.loc[1, "accuracy_after"]
    text = to_latex(two, "<&>")
    assert not re.search(r"\d \[", text) and r"\toprule" in text and text.count(r" \\") == 11
    assert r"\caption{<\&>}" in text
    assert re.search(r"\d \[\d", to_latex(grouped(with_names(frame, NONE), "pairs"), ""))


def test_intervals_of_shares_stay_between_none_and_all() -> None:
    mean, half = np.array([0.99, 0.5, 1.0, 0.0, np.nan, 0.9]), np.array([0.05, 0.01, 0.0, 0.0, 0.1, np.nan])
    low, high = interval(mean, half, bounded=True)
    assert 0 < low[0] < 0.99 < high[0] < 1
    assert low[0] == pytest.approx(1 / (1 + np.exp(-(np.log(99) - 0.05 / 0.0099))))
    assert np.allclose([low[1], high[1]], [0.49, 0.51], atol=1e-5)  # far from the ends as ever
    assert [*low[2:4], *high[2:4]] == [1, 0, 1, 0] and np.isnan([*low[4:], *high[4:]]).all()
    low, high = interval(mean, half, bounded=False)
    assert np.allclose([low[0], high[0]], [0.94, 1.04])


def test_a_control_stands_beside_the_stitches_that_it_is_of() -> None:
    """Two inits with other controls each: a panel each, whose lines grey does not mix up."""
    frame = fake(80).assign(low_rank=None, init=["eye", "perm"] * 40)
    frame["front_layer"] = frame["end_layer"] = [f"bn{number // 2 % 2}" for number in range(80)]
    found = with_names(frame, NONE)
    means = frame.groupby(["init", "front_layer"])["accuracy_untrained"].mean()
    with drawing():
        (chart,) = by_layer(found)["charts"]
    texts = re.findall(r"<title>untrained, (bn\d): ([\d.]+)%</title>", chart["svg"])
    assert texts == [(layer, f"{100 * means[init, layer]:.2f}") for init in ("eye", "perm") for layer in ("bn0", "bn1")]
    assert ">init eye</text>" in chart["svg"] and ">init perm</text>" in chart["svg"]
    looks = [(series["line"], series["marker"]) for series in map(control_style, CONTROLS)]
    assert len(set(looks)) == len(CONTROLS)


def test_networks_are_told_apart_by_how_they_were_trained() -> None:
    """Two seeds, one of them also from a tenth of the images, and two states of one training."""
    how = {"a": (0, 1.0), "b": (2, 1.0), "c": (10, 0.1), "d": (10, None)}
    names = {"a": "t in0-gn0", "b": "t in2-gn0", "c": "t in10-gn0-f0.1", "d": "t in10-gn0"}
    random, rows, compared = np.random.default_rng(0), [], []
    for one, other in itertools.permutations(how, 2):
        row = _row({}, Path()) | {
            "front_layer": "bn5",
            "end_layer": "bn5",
            "seed": 0,
            "accuracy_after": random.random(),
        }
        for role, network in (("front", one), ("end", other)):
            facts = {"model": network, "architecture": "t", "init_seed": how[network][0], "gradient_seed": 0}
            facts |= {"train_fraction": how[network][1]}
            row |= {f"{role}_{fact}": value for fact, value in facts.items()}
        rows.append(row)
        found = {"method": "cka", "layer1": "bn5", "layer2": "bn5", "on": "data", "value": random.random()}
        compared.append({"spec1": one, "spec2": other, "network1": names[one], "network2": names[other]} | found)
    found = with_names(pd.DataFrame(rows), pd.DataFrame(compared))
    assert list(found.stitches["front_network"].unique()) == list(names.values())
    with drawing():
        stitched, cka = by_networks(found)["charts"]
    values = 100 * found.stitches.set_index(["front_network", "end_network"])["accuracy_after"]
    assert stitched["title"] == f"bn5: median {values.median():.2f}%"
    labels = [names[network].removeprefix("t ") for network in "abdc"]
    heads = re.findall(r">(in[^<]*)</text>", stitched["svg"])
    assert heads == 2 * labels
    marks = re.findall(r'href="#rows=(\d+)"><title>(.*?)</title>', stitched["svg"])
    assert len(marks) == len(rows)
    for row, tip in marks:
        one, other = tip.partition(":")[0].split(", ")
        assert tip.endswith(f": {values[one, other]:.2f}%") and tuple(values.index[int(row)]) == (one, other)
    assert cka["title"].startswith("cka, bn5: median") and "#rows" not in cka["svg"]
    with drawing():
        assert by_networks(with_names(pd.DataFrame(rows[:2]), NONE))["charts"] == []  # two pairs are no map
        for some, names_shown in ((rows[:3], 1 + 3), (rows[2:6], 2 * 4)):  # one order for both, where they meet
            (chart,) = by_networks(with_names(pd.DataFrame(some), NONE))["charts"]
            assert len(re.findall(r">(in[^<]*)</text>", chart["svg"])) == names_shown


def test_comparisons_of_networks_that_are_called_alike_are_two() -> None:
    found = {"method": "cka", "layer1": "bn5", "layer2": "bn5", "on": "data"}
    both = [
        {"spec1": one, "spec2": "c", "network1": "t in0-gn0", "network2": "t in1-gn0", "value": value, **found}
        for one, value in (("a", 0.2), ("b", 0.4))
    ]
    compared = with_names(pd.DataFrame(columns=list(_row({}, Path()))), pd.DataFrame(both)).comparisons
    assert list(compared["networks"]) == ["t in0-gn0 (a) and t in1-gn0", "t in0-gn0 (b) and t in1-gn0"]


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_an_absent_library_is_named_and_nothing_is_written(library, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    found = with_names(fake(3), NONE)
    about: dict[str, Any] = {"name": "p", "text": "", "summary": [], "failures": [], "pictures": {}}
    about["commands"] = dict.fromkeys(found.stitches["name"], ("python", ""))
    with pytest.raises(ValueError, match=f"{library} is not installed: pip install -r requirements-studies.txt"):
        write_page(tmp_path / "p.html", found, **about)
    if library == "jinja2":
        with pytest.raises(ValueError, match="jinja2 is not installed"):
            write_tables(found, "pairs", tmp_path)
    assert not list(tmp_path.iterdir())


def test_texts_of_strangers_stay_texts(tmp_path) -> None:
    assert escaped("a_b%{\\}") == r"a\_b\%\{\textbackslash{}\}"
    frame = fake(40).assign(front_layer=20 * ["</script><b>", "$y$ z"], end_layer="x & y_")
    found = with_names(frame, NONE)
    commands = {name: ("python stitch_nets.py", "</script>") for name in found.stitches["name"]}
    assert table_data(found, commands, {})["ends"] == ["</script>"]
    about = {"name": "<i>", "text": "<u>", "summary": [("<s>", "<q>")], "failures": []}
    write_page(tmp_path / "p.html", found, **about, commands=commands, pictures={})
    page = (tmp_path / "p.html").read_text()
    assert page.count("</script>") == 2 and not re.search("<[biusq]>", page)
    assert ">$y$ z \N{RIGHTWARDS ARROW} x &amp; y_</text>" in page
    assert r"x \& y\_" in to_latex(grouped(found, "pairs"), "")
