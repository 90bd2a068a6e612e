"""Pictures: what is drawn, of which results, and what happens where matplotlib is absent."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import compare_nets
import stitch_nets
from src import results
from src.core.intervals import wilson

pytest.importorskip("matplotlib")
from src.results.plots.layers import grid_figure, pair_figure
from src.results.plots.stitch import stitch_figure
from src.results.plots.stitches import stitches_figure

ACCURACIES = "accuracy on val, 95% intervals"
PNG = b"\x89PNG\r\n\x1a\n"
TOY = ("a3.pt", "b5.pt")


def stitch(*arguments: str) -> dict:
    stitch_nets.main([*arguments, "-b", "16", "--run-name", "r", "--overwrite", "--plot"])
    (path,) = Path("results/r").glob("*.pkl")
    assert path.with_suffix(".png").read_bytes().startswith(PNG)
    return results.read(path)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "arguments",
    [
        ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "0"),
        ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "--target-type", "soft_2"),
        ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "2", "-r", "1"),
        ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "2", "-m", "semi-match"),
        ("a3.pt", "b3.pt", "bn1", "bn1", "-e", "1", "-i", "ones-zeros"),
        ("a3.pt", "b5.pt", "pool", "fc1", "-e", "1", "--flatten"),
        ("a3.pt", "b5.pt", "fc1", "fc1", "-e", "1"),
    ],
    ids=" ".join,
)
def test_every_kind_of_stitch_is_drawn(arguments, toy) -> None:
    result = stitch(*arguments)
    figure = stitch_figure(result)
    titles = [axes.get_title() for axes in figure.get_axes()]
    for title in ("singular values", "learning curve", ACCURACIES, "ps_inv: least squares"):
        assert title in titles
    for axes in figure.get_axes():
        assert axes.get_ylabel() or axes.get_xlabel() or not axes.get_title()
    assert torch.is_grad_enabled()


def test_the_panels_show_the_numbers(toy) -> None:
    result = stitch(*TOY, "bn1", "bn1", "-e", "3", "-i", "ps_inv")
    panels = {axes.get_title(): axes for axes in stitch_figure(result).get_axes()}
    for title, name in (("before: init ps_inv", "before"), ("after: 3 epochs", "after")):
        (image,) = panels[title].get_images()
        np.testing.assert_allclose(np.asarray(image.get_array()), result["trans_m"][name]["w"][:, :, 0, 0])
        assert image.get_clim()[0] == -image.get_clim()[1]  # white is zero
    limits = {panels[title].get_images()[0].get_clim() for title in panels if panels[title].get_images()}
    assert len({limit for limit in limits if limit[0] < 0}) == 1  # one scale for all
    after = next(line for line in panels["singular values"].get_lines() if line.get_label() == "after")
    expected = np.linalg.svd(result["trans_m"]["after"]["w"][:, :, 0, 0].astype(float), compute_uv=False)
    np.testing.assert_allclose(np.asarray(after.get_ydata()), expected)
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in panels["learning curve"].get_lines()}
    val = [result["model_results"]["before"]["loss"], *result["trans_fit"]["val_loss"]]
    np.testing.assert_allclose(lines["val"], val)
    np.testing.assert_allclose(lines["after"], [result["model_results"]["trans"]["loss"]])
    keys = ("front", "end", "before", "trans", "ps_inv", "ls_train")
    written = [f"{100 * result['model_results'][key]['acc']:.1f}" for key in keys]
    assert texts(panels[ACCURACIES])[: len(keys)] == written
    assert texts(panels[ACCURACIES])[-1] == "chance 25.0"
    low, high = panels[ACCURACIES].get_ylim()
    assert low < 25 and high > 100 * max(wilson(result["model_results"][key]["acc"], 48)[1] for key in keys)


def test_accuracies_near_one_are_told_apart_and_chance_is_named(toy) -> None:
    result = stitch(*TOY, "bn1", "bn1", "-e", "1", "-i", "ps_inv")
    result["images"]["val"], result["constant_accuracy"] = 10_000, 0.1
    del result["intervals"]  # as results of before have none
    for place, scores in enumerate(result["model_results"].values()):
        scores["acc"] = 0.992 + 0.001 * place
    axes = next(axes for axes in stitch_figure(result).get_axes() if axes.get_title() == ACCURACIES)
    low, high = axes.get_ylim()
    assert 98 < low < 99.2 and 99.7 < high < 101
    assert texts(axes)[-1] == "chance, below: 10.0"
    result["fits"]["ps_inv"] = {"rows": 48, "unknowns": 49}
    axes = next(axes for axes in stitch_figure(result).get_axes() if axes.get_title() == ACCURACIES)
    assert [label.get_text() for label in axes.get_xticklabels()][4] == "ps_inv*"
    assert "fits whatever it is given" in axes.get_xlabel()


@pytest.mark.parametrize(
    "options",
    [
        ("bn1,conv2", "bn1,conv2"),
        ("bn1,conv2", "bn1,conv2", "--seed", "0,1", "-i", "eye,perm"),
        ("bn1", "bn1", "-r", "1,2,full", "--seed", "0,1"),
        ("bn1,conv2", "bn1,conv2", "--pairs", "zip"),
        ("bn1", "bn1", "-i", "eye,ps_inv", "-lr", "0.01,0.1"),
        ("bn1", "bn1", "--seed", "0,1,2"),
    ],
    ids=" ".join,
)
def test_every_kind_of_set_is_drawn_and_nothing_is_cut(options, toy) -> None:
    command = ["a3.pt", "b3.pt", *options, "-e", "1", "-b", "16", "--no-similarity"]
    stitch_nets.main([*command, "--run-name", "r", "--plot"])
    assert Path("results/r/stitches.png").read_bytes().startswith(PNG)
    found = [results.read(path) for path in sorted(Path("results/r").glob("*.pkl"))]
    figure = stitches_figure(found)
    figure.draw_without_rendering()
    for box in [axes.get_tightbbox() for axes in figure.get_axes()]:
        assert box is None or (box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1)


def test_the_map_and_the_curve_of_a_set_show_the_numbers(toy) -> None:
    command = ["a3.pt", "b3.pt", "bn1,conv2", "conv1,bn1", "-e", "0", "-i", "ps_inv", "--run-name", "r"]
    stitch_nets.main([*command, "--no-similarity"])
    found = [results.read(path) for path in sorted(Path("results/r").glob("*.pkl"))]
    panels = {axes.get_title(): axes for axes in stitches_figure(found).get_axes()}
    (image,) = panels["before"].get_images()
    fronts, ends = (
        [label.get_text() for label in labels]
        for labels in (panels["before"].get_yticklabels(), panels["before"].get_xticklabels())
    )
    for result in found:
        scores, params = result["model_results"], result["params"]
        row, column = fronts.index(params["front_layer"]), ends.index(params["end_layer"])
        value = scores["before"]["acc"] / scores["end"]["acc"]
        assert np.asarray(image.get_array())[row, column] == pytest.approx(value)

    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-r", "1,2", "--seed", "0,1", "-e", "0", "--run-name", "s"])
    found = [results.read(path) for path in sorted(Path("results/s").glob("*.pkl"))]
    (axes,) = stitches_figure(found).get_axes()
    line = next(line for line in axes.get_lines() if line.get_label() == "before")
    for place, rank in enumerate((1, 2)):
        some = [one["model_results"] for one in found if one["params"]["low_rank"] == rank]
        mean = np.mean([scores["before"]["acc"] / scores["end"]["acc"] for scores in some])
        assert np.asarray(line.get_ydata())[place] == pytest.approx(mean)


def test_heatmaps_hold_the_values(toy) -> None:
    compare_nets.main([*TOY, "conv1,bn1,fc1", "bn1,fc1", "toy", "cka", "corr", "--run-name", "r", "--plot"])
    path = Path("results/r/compare_nets-conv1..fc1-bn1..fc1.pkl")
    assert path.with_suffix(".png").read_bytes().startswith(PNG)
    result = results.read(path)
    figure = grid_figure(result)
    cka = next(axes for axes in figure.get_axes() if axes.get_title() == "cka")
    values = result["frame"].query("method == 'cka'")["value"].to_numpy()
    np.testing.assert_allclose(np.asarray(cka.get_images()[0].get_array()).ravel(), values)
    assert texts(cka) == [f"{value:.2f}" for value in values]
    assert [label.get_text() for label in cka.get_yticklabels()] == ["conv1", "bn1", "fc1"]
    corr = next(axes for axes in figure.get_axes() if axes.get_title() == "corr")
    assert len(texts(corr)) == 3  # fc1 has no positions
    assert figure.get_supxlabel() == "framed: most similar in its row; grey: no value"


def test_cells_that_are_no_more_than_chance_are_hatched(toy) -> None:
    compare_nets.main([*TOY, "conv1,bn1", "bn1,fc1", "toy", "cka", "--calibrate", "19", "--run-name", "r"])
    (path,) = Path("results/r").glob("*.pkl")
    result = results.read(path)
    frame = result["calibrated"]["frame"]
    frame["p"] = [0.05, 0.05, 0.1, 0.05]  # of conv1 with bn1, fc1, then bn1 with both
    figure = grid_figure(result)
    cka = next(axes for axes in figure.get_axes() if axes.get_title() == "cka")
    hatched = [patch.get_xy() for patch in cka.patches if patch.get_hatch()]  # pyright: ignore[reportAttributeAccessIssue]
    assert hatched == [(-0.5, 0.5)]
    assert "hatched: no more than chance (p > 0.05)" in figure.get_supxlabel()


def test_one_huge_value_does_not_make_all_others_look_equal(toy) -> None:
    compare_nets.main(["a3.pt", "b3.pt", "conv1,bn1", "conv1,bn1", "toy", "l2", "cka", "--run-name", "r", "--plot"])
    (path,) = Path("results/r").glob("*.pkl")
    result = results.read(path)
    l2 = result["frame"].index[result["frame"]["method"] == "l2"]
    result["frame"].loc[l2, "value"] = [1.0, 2.0, 3.0, 1e6]
    panel = next(axes for axes in grid_figure(result).get_axes() if axes.get_title() == "l2")
    (image,) = panel.get_images()
    assert image.get_clim()[0] == 0 and 3 < image.get_clim()[1] < 1e3
    assert image.colorbar is not None and image.colorbar.extend == "max"  # says that there is more
    assert texts(panel) == ["1.00", "2.00", "3.00", "1e6"]


@pytest.mark.parametrize("layers", [("bn1", "fc1,fc2"), ("conv1,bn1", "fc1"), ("all", "all")])
def test_nothing_in_a_heatmap_is_cut_or_hidden(layers, toy) -> None:
    """However few the cells: every word lies within the picture, and no panel's words on another panel's."""
    methods = ["cka", "procrustes", "cka_debiased"]
    compare_nets.main([*TOY, *layers, "toy", *methods, "--view", "images", "--run-name", "r", "--plot"])
    (path,) = Path("results/r").glob("*.pkl")
    figure = grid_figure(results.read(path))
    figure.draw_without_rendering()
    boxes = [box for axes in figure.get_axes() if (box := axes.get_tightbbox())]
    for box in [*boxes, *(text.get_window_extent() for text in figure.texts)]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for index, box in enumerate(boxes):
        assert box.padded(-1).count_overlaps(boxes[index + 1 :]) == 0


def test_values_are_written_into_few_cells_only(toy) -> None:
    compare_nets.main([*TOY, "bn1", "bn1", "toy", "cka", "--run-name", "r", "--plot"])
    result = results.read(Path("results/r/compare_nets-bn1-bn1.pkl"))
    result["layers1"] = result["layers2"] = [f"layer{n}" for n in range(13)]
    value = float(result["frame"]["value"].iloc[0])
    rows = [("cka", one, other, value) for one in result["layers1"] for other in result["layers2"]]
    result["frame"] = type(result["frame"])(rows, columns=["method", "layer1", "layer2", "value"])
    assert texts(grid_figure(result).get_axes()[0]) == []


def test_a_single_pair_has_bars(toy) -> None:
    compare_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "toy", "cka", "l2", "--run-name", "r", "--plot"])
    path = Path("results/r/compare_nets-bn1-bn1.pkl")
    assert path.with_suffix(".png").read_bytes().startswith(PNG)
    result = results.read(path)
    for axes, value in zip(pair_figure(result).get_axes(), result["frame"]["value"], strict=True):
        assert texts(axes) == [f"{value:.4g}"]
        (bar,) = axes.containers[0]
        assert bar.get_width() == pytest.approx(value)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [(stitch_nets, (*TOY, "bn1", "bn1", "--plot")), (compare_nets, (*TOY, "bn1", "bn1", "toy", "cka", "--plot"))],
    ids=["stitch_nets", "compare_nets"],
)
def test_absent_matplotlib_is_said_before_any_work(script, arguments, toy, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(script.cli, "open_pair", lambda *_: pytest.fail("work was done"))
    with pytest.raises(SystemExit) as stop:
        script.main(list(arguments))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert "pip install -r requirements-plots.txt" in captured.err
    assert not list(toy.rglob("*.p[kn][lg]"))


def test_an_old_picture_is_neither_overwritten_nor_left_to_lie(toy, capsys) -> None:
    command = [*TOY, "bn1", "bn1", "-e", "0", "--run-name", "r"]
    picture = Path("results/r/bn1-bn1.png")
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"mine")
    with pytest.raises(SystemExit):
        stitch_nets.main([*command, "--plot"])
    assert "bn1-bn1.png exists already" in capsys.readouterr().err and picture.read_bytes() == b"mine"
    stitch_nets.main([*command, "--plot", "--overwrite"])
    assert picture.read_bytes().startswith(PNG)
    stitch_nets.main([*command, "--overwrite"])
    assert not picture.exists()  # it showed the result that is gone


def test_drawing_leaves_no_trace_in_matplotlib(toy) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    stitch(*TOY, "bn1", "bn1", "-e", "0")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("layers", [("bn1", "bn1"), ("bn1,conv2", "bn1,conv2")])
def test_pictures_come_in_every_format_that_is_asked_for(layers, toy, capsys) -> None:
    options = ["-e", "0", "--plot", "--run-name", "r", "--format", "svg,PDF"]
    stitch_nets.main(["a3.pt", "b5.pt", *layers, *options])
    stem = "bn1-bn1" if layers[0] == "bn1" else "stitches"
    svg, pdf = (Path(f"results/r/{stem}.{kind}") for kind in ("svg", "pdf"))
    assert b"<svg" in svg.read_bytes() and pdf.read_bytes().startswith(b"%PDF-")
    assert f"picture: {svg}, {pdf}" in capsys.readouterr().out and not svg.with_suffix(".png").exists()
    before = svg.read_bytes(), pdf.read_bytes()
    with pytest.raises(SystemExit):
        stitch_nets.main(["a3.pt", "b5.pt", *layers, *options])
    assert "exists already" in capsys.readouterr().err
    stitch_nets.main(["a3.pt", "b5.pt", *layers, *options, "--overwrite"])
    assert (svg.read_bytes(), pdf.read_bytes()) == before  # equal pictures are equal files
    with pytest.raises(SystemExit):
        stitch_nets.main(["a3.pt", "b5.pt", *layers, "--plot", "--format", "gif"])
    assert "invalid choice: 'gif' (choose from png, pdf, svg)" in capsys.readouterr().err
