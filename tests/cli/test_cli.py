"""What all scripts share on the command line: help, tables of 80 columns, JSON, grids of layers."""

import errno
import importlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import compare_nets
import layer_info
import stitch_nets
from src import results
from src.cli import output as cli
from src.cutting import selection as layers
from src.models import MODELS
from src.results import text as report
from src.results.titles import network_names, stitch_title
from src.training.train_state import History
from tests.paths import ROOT
from tests.toy import save_toy

SCRIPTS = ("train_model", "stitch_nets", "layer_info", "compare_nets", "compare_frank_m2", "eval_net", "eval_stitch")
TOY = ("a3.pt", "b5.pt")
STITCHED = "results/s/bn1-bn1.pkl"
WEIGHTS = ROOT / "model_weights/Tiny10/Digits"
COMMANDS = {
    "train_model": ("-m", "toy_w3", "-d", "toy", "-e", "1", "-b", "16"),
    "stitch_nets": (*TOY, "bn1", "bn1", "-e", "1", "-b", "16"),
    "layer_info": ("toy_w3", "-d", "toy"),
    "compare_nets": (*TOY, "bn1", "bn1", "toy", "cka", "ps_inv"),
    "compare_frank_m2": (STITCHED, "after", "cka", "l2"),
    "eval_net": ("a3.pt",),
    "eval_stitch": (STITCHED, "ps_inv"),
}
GRID = (*TOY, "all", "all", "toy", "cka", "l2", "corr")


@pytest.fixture
def stitched(toy: Path) -> Path:
    stitch_nets.main([*TOY, "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", "s"])
    return toy


def run(script: str, *arguments: str) -> object:
    return importlib.import_module(script).main(list(arguments))


def widest(text: str) -> str:
    """The longest line that has no path in it."""
    lines = [line for line in text.splitlines() if not re.match(r"(result|picture|weights): ", line)]
    return max(lines, key=len)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_grouped_has_defaults_and_two_examples(script: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(script, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(widest(text)) <= 80, widest(text)
    purpose = " ".join(text.split("\n\n")[1].split())
    assert purpose.endswith(".") and not re.search(r"\.\s", purpose), purpose
    assert text.split("examples:")[1].count(f"python {script}.py ") == 2
    assert "\nrun and result:\n" in text
    for option in re.split(r"\n  (?=-)", text.split("examples:")[0])[1:]:
        words = " ".join(option.split())
        takes_value = re.match(r"(-\w+, )?--?[\w-]+ ([A-Z]|\{)", words) or re.match(r"-\w+ ([A-Z]|\{)", words)
        assert not takes_value or "default: " in words, words


def test_the_examples_in_the_help_can_be_parsed(capsys) -> None:
    for script in SCRIPTS:
        module = importlib.import_module(script)
        with pytest.raises(SystemExit):
            module.main(["--help"])
        examples = capsys.readouterr().out.split("examples:")[1].replace("\\\n", " ")
        for line in examples.strip().splitlines():
            module.parse_args(line.split()[2:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_json_is_all_that_stdout_holds(script: str, stitched: Path, capsys) -> None:
    capsys.readouterr()
    run(script, *COMMANDS[script], "--json", "--run-name", "j")
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    result = results.read(record["result"])
    assert record["params"]["json"] is True and set(record) - {"result"} <= set(result)
    for key, value in result.items():
        if isinstance(value, float) or key == "model_results":
            assert record[key] == value  # in full precision
    assert "NaN" not in captured.out


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_fits_80_columns(script: str, stitched: Path, capsys) -> None:
    capsys.readouterr()
    run(script, *COMMANDS[script])
    text = capsys.readouterr().out
    assert len(widest(text)) <= 80, widest(text)
    assert re.search(r"^result: \S+\.pkl$", text, re.MULTILINE)


def test_sigterm_ends_a_script_as_an_error_does(capsys) -> None:
    cleared = []
    with pytest.raises(SystemExit) as stop, cli.one_line_errors(traceback=False):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one, while the first is seen to
            cleared.append(True)
    assert stop.value.code == 143 and cleared
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_stays_with_whoever_asked_for_it_before(monkeypatch) -> None:
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(True))
    try:
        with cli.one_line_errors(traceback=False):
            signal.raise_signal(signal.SIGTERM)
        assert caught == [True]
    finally:
        signal.signal(signal.SIGTERM, before)
    with ThreadPoolExecutor() as pool:  # where Python lets no one set a handler
        pool.submit(lambda: cli.one_line_errors(traceback=False).__enter__()).result()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("model", [*(name for name in MODELS if "<" not in name), "resnet20_w10", "vit_w96"])
def test_tables_of_layers_fit_and_cut_no_name(model: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    layers = layer_info.run(layer_info.parse_args([model, "-d", "celeba" if "inception" in model else "cifar10"]))
    text = capsys.readouterr().out
    assert len(widest(text)) <= 80, widest(text)
    for name in layers["layer"]:
        assert re.search(rf"^ *\d+ {re.escape(name)} ", text, re.MULTILINE), name


def test_every_pair_of_layers_equals_that_pair_alone(toy: Path, capsys) -> None:
    compare_nets.main([*GRID, "--run-name", "all"])
    captured = capsys.readouterr()
    result = results.read(Path("results/all/compare_nets-all-all.pkl"))
    assert result["layers1"] == ["conv1", "bn1", "conv2", "relu", "pool", "flatten", "fc1", "fc2"]
    frame = result["frame"].set_index(["method", "layer1", "layer2"])["value"]
    assert frame.size == 3 * 8 * 8 and list(result["frame"]) == ["method", "layer1", "layer2", "value"]
    assert "8 x 8 pairs of layers, 48 images: one pass" in captured.err
    assert "l2: no value for" in captured.out and len(widest(captured.out)) <= 80
    for method, one, other in (("cka", "bn1", "fc1"), ("l2", "fc2", "fc2"), ("corr", "conv2", "relu")):
        compare_nets.main([*TOY, one, other, "toy", method, "--run-name", method])
        alone = results.read(Path(f"results/{method}/compare_nets-{one}-{other}.pkl"))["frame"]["value"].iloc[0]
        assert frame[method, one, other] == pytest.approx(alone, abs=1e-6)
    assert np.isnan(frame["l2", "bn1", "bn1"])  # 3 and 5 channels
    reasons = result["refused"].set_index(["method", "layer1", "layer2"])["reason"]
    assert "one shape" in reasons["l2", "bn1", "bn1"]
    assert set(reasons.index) == set(frame.index[frame.isna()])


def test_little_memory_takes_more_passes_and_gives_the_same(toy: Path, capsys) -> None:
    layers = "bn1,pool,fc1,fc2"
    command = (*TOY, layers, layers, *GRID[4:])
    compare_nets.main([*command, "--run-name", "one"])
    one = results.read(Path("results/one/compare_nets-bn1..fc2-bn1..fc2.pkl"))
    passes = []
    for gigabytes in ("0.0001", "0.00003", "1e-9"):
        compare_nets.main([*command, "--memory", gigabytes, "--run-name", gigabytes])
        passes += map(int, re.findall(r"images: (\d+) passes by blocks of layers", capsys.readouterr().err))
        many = results.read(Path(f"results/{gigabytes}/compare_nets-bn1..fc2-bn1..fc2.pkl"))
        np.testing.assert_allclose(one["frame"]["value"], many["frame"]["value"], atol=1e-6)
        assert len(one["refused"]) == len(many["refused"])
    assert len(set(passes)) == 3 and passes[-1] >= 16  # a pass for each pair


def test_layers_by_option_and_by_position(toy: Path) -> None:
    for run_name, words in (
        ("a", ["conv1,bn1", "bn1,fc1", "toy", "cka"]),
        ("b", ["toy", "cka", "--layers1", "conv1,bn1", "--layers2=bn1,fc1"]),
        ("c", ["all", "fc2", "toy", "cka", "--layers1", "conv1,bn1", "--layers2", "bn1,fc1"]),
        ("d", ["conv1,bn1", "fc2", "toy", "cka", "--layers2", "bn1,fc1"]),
    ):
        compare_nets.main([*TOY, *words, "--run-name", run_name])
        (path,) = Path("results", run_name).iterdir()
        assert path.name == "compare_nets-conv1..bn1-bn1..fc1.pkl"
        result = results.read(path)
        assert result["layers1"] == ["conv1", "bn1"] and result["layers2"] == ["bn1", "fc1"]
    compare_nets.main([*TOY, "toy", "cka", "--layers1", "", "--layers2", "", "--run-name", "e"])
    assert Path("results/e/compare_nets-output-output.pkl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bn1,bn7", "bn1", "toy", "cka"], "no layer 'bn7'"),
        (["bn1,conv1", "bn1,conv1", "toy", "l2"], "l2 needs activations of one shape"),
        (["bn1,,conv1", "bn1", "toy", "cka"], "an empty name"),
        (["toy", "cka", "--layers1", "all"], "invalid choice|required"),
        (["all", "all", "toy", "cka", "--memory", "0"], "above 0"),
    ],
)
def test_bad_layers_are_one_line(words: list[str], message: str, toy: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        compare_nets.main([*TOY, *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and re.search(message, error), error
    assert not list(toy.rglob("*.pkl"))


def test_layers_come_in_the_order_in_which_they_run(toy: Path) -> None:
    network = save_toy(toy / "c3.pt", 3, 5)
    names = layers.choose_layers(network, "all")
    assert names.index("relu") > names.index("conv2")  # its second call counts
    assert layers.choose_layers(network, "fc1, bn1,fc1") == ["fc1", "bn1"]


def test_a_matrix_is_folded_and_long_labels_get_numbers() -> None:
    names = [f"layer{i}.0.downsample.1" for i in range(20)]
    values = np.arange(400.0).reshape(20, 20)
    values[3, 4] = np.nan
    text = report.matrix_text(values, names, names)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\nlayer3.0.downsample.1") >= 2 and " - " in text
    legend = " ".join(text.split("columns: ")[1].split())
    assert legend == ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
    assert report.matrix_text(np.eye(2), ["a", "b"], ["c", "d"]).splitlines() == [
        "       c      d",
        "a 1.0000 0.0000",
        "b 0.0000 1.0000",
    ]


def test_a_table_cuts_only_the_column_that_may_be_cut() -> None:
    rows = [{"layer": "l" * 60, "kind": "AdaptiveAvgPool2d", "params": 7}, {"layer": "m", "kind": "ReLU", "params": 10}]
    lines = report.columns_text(rows, right=("params",), squeeze="kind").splitlines()
    assert max(map(len, lines)) == 80 and lines[1].startswith("l" * 60 + " AdaptiveAvg~ ")
    assert lines[2].split() == ["m", "ReLU", "10"] and lines[2].endswith("    10")


def test_json_of_awkward_values() -> None:
    record = {
        "nan": float("nan"),
        "number": np.float64(0.1) + np.float64(0.2),
        "small": np.eye(2),
        "large": {"w": np.zeros((100, 100))},
        "path": Path("a/b"),
        "none": None,
        3: (True, np.int64(4)),
        "empty": {},
    }
    assert json.loads(report.to_json(record)) == {
        "nan": None,
        "number": 0.1 + 0.2,
        "small": [[1, 0], [0, 1]],
        "path": "a/b",
        "none": None,
        "3": [True, 4],
        "empty": {},
    }


def test_a_table_of_results(toy: Path) -> None:
    for run_name, options in (("a", ("-i", "ps_inv")), ("b", ("-r", "1", "--seed", "4"))):
        stitch_nets.main([*TOY, "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", run_name, *options])
    compare_nets.main([*TOY, "bn1", "bn1", "toy", "cka", "--run-name", "a"])
    Path("results/b/broken.pkl").write_bytes(b"no pickle")
    with pytest.warns(UserWarning, match="1 files left out.*broken.pkl"):
        frame = results.table("results")
    assert list(frame["run"]) == ["a", "b"] and list(frame["init"]) == ["ps_inv", "random"]
    assert list(frame["seed"]) == [0, 4] and frame["low_rank"].iloc[1] == 1
    for row in frame.to_dict("records"):
        result = results.read(row["path"])
        assert row["accuracy_after"] == result["model_results"]["trans"]["acc"]
        assert row["cka_front"] == result["cka"] and row["cka_after"] == result["cka_frank"]
        assert row["l2_before"] == result["l2_before"] and row["l2_ps_inv"] == result["l2_ps_inv"]
        assert row["relative_accuracy_after"] == result["m2_sim"]["after"]["rel_acc"]
        assert row["agreement_front"] == result["m2_sim"]["m1"]["same_class_out"]
        assert row["lr"] == result["params"]["lr"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        results.table("nowhere")
    Path("empty").mkdir()
    assert results.table("empty").empty and list(results.table("empty")) == list(frame)


def test_a_table_says_what_a_result_rests_on(toy: Path) -> None:
    stitch_nets.main([*TOY, "bn1", "bn1", "-e", "1", "-b", "16", "-i", "ps_inv", "--run-name", "a", "--debug"])
    stitch_nets.main([*TOY, "pool", "fc1", "--flatten", "-e", "0", "--run-name", "a"])
    rows = {row["front_layer"]: row for row in results.table("results").to_dict("records")}
    one, other = rows["bn1"], rows["pool"]
    assert one["debug"] is True and other["debug"] is False and one["amp"] is False
    assert (one["front_architecture"], one["end_architecture"]) == ("toy_w3", "toy_w5")
    assert (one["front_init_seed"], one["end_init_seed"], one["front_trained_on"]) == (0, 2, "toy")
    result = results.read(one["path"])
    assert one["key"] == result["key"] and one["accuracy_ls_train"] == result["model_results"]["ls_train"]["acc"]
    assert one["l2_relative_after"] == result["l2_relative_frank"] and np.isnan(other["accuracy_ls_train"])
    assert one["rows_per_unknown_ps_inv"] == 48 * 64 / 4 and other["rows_per_unknown_ps_inv"] == 48 / 13


def test_rows_are_kept_and_read_anew_where_files_changed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TOY, "bn1", "bn1", "-e", "0", "--no-similarity"]
    stitch_nets.main([*command, "--seed", "0,1", "--run-name", "r"])
    Path("results/r/.stitches.jsonl").unlink()  # as if by an earlier version
    Path("results/other.pkl").write_bytes(pickle.dumps({"another": "script's"}))
    first = results.table("results")
    cache = Path("results/.stitches.jsonl")
    assert len(cache.read_text().splitlines()) == 3
    reads: list[Path] = []
    monkeypatch.setattr("src.results.frame.read", lambda path: reads.append(path) or results.read(path))
    pd.testing.assert_frame_equal(results.table("results"), first)
    assert reads == []
    stitch_nets.main([*command, "--seed", "0,1", "-i", "ones-zeros", "--run-name", "r", "--overwrite"])
    Path("results/r/.stitches.jsonl").unlink()
    assert list(results.table("results")["init"]) == ["ones-zeros"] * 2 and len(reads) == 2
    cache.write_text(cache.read_text()[:-40] + "\nnonsense\n[1]\n")  # torn
    assert len(results.table("results")) == 2 and 2 < len(reads) <= 4
    cache.unlink()
    cache.mkdir()  # cannot be written
    assert len(results.table("results")) == 2


def test_who_writes_many_stitches_keeps_their_rows(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TOY, "bn1,pool", "fc1", "--flatten", "-e", "0", "--run-name", "r"]
    stitch_nets.main(command)
    reads: list[Path] = []
    monkeypatch.setattr("src.results.frame.read", lambda path: reads.append(path) or results.read(path))
    warm = results.table("results")
    stitch_nets.main([*command, "--overwrite"])
    assert len(warm) == len(results.table("results")) == len(results.table("results/r")) == 2 and reads == []
    Path("results/r/.stitches.jsonl").unlink()
    pd.testing.assert_frame_equal(results.table("results"), warm)
    assert len(reads) == 2


def append_rows(folder: str, writer: int) -> None:
    for number in range(100):
        path = Path(folder, f"{writer}-{number}.pkl")
        path.write_bytes(b"x" * number)
        results.keep_row(path, {"params": {"init": "y" * 9000}, "trans_m": {}, "model_results": {}})


def test_rows_that_several_processes_keep_at_once_do_not_tear_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_rows, args=(str(tmp_path), number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(results.table(tmp_path)) == 400  # none of these files could be read


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_save_prints_and_writes_no_result(script: str, stitched: Path, capsys) -> None:
    before = {path for path in stitched.rglob("*") if "snapshots" not in path.parts}
    capsys.readouterr()
    run(script, *COMMANDS[script], "--no-save")
    printed = capsys.readouterr().out
    assert printed and "result:" not in printed
    run(script, *COMMANDS[script], "--no-save", "--json", *(["--overwrite"] if script == "train_model" else []))
    assert json.loads(capsys.readouterr().out)["result"] is None
    assert {path for path in stitched.rglob("*") if "snapshots" not in path.parts} == before
    assert (stitched / "snapshots").exists() == (script == "train_model")


@pytest.mark.parametrize("script", SCRIPTS)
def test_who_only_answers_does_so_where_nothing_can_be_written(script: str, stitched: Path, capsys) -> None:
    capsys.readouterr()
    for place in ("/proc/nowhere", "a3.pt"):
        if script == "train_model":
            continue  # its results are beside its weights
        with pytest.raises(SystemExit) as stop:
            run(script, *COMMANDS[script], "-o", place)
        captured = capsys.readouterr()
        assert stop.value.code == 2 and captured.err.splitlines()[-1].startswith("error: ")
        answers = script in ("layer_info", "eval_net", "eval_stitch")
        assert bool(captured.out) == answers and "result:" not in captured.out


def test_a_result_that_is_there_is_refused_before_any_work(stitched: Path, capsys) -> None:
    run("eval_net", "a3.pt", "--run-name", "e")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("eval_net", "a3.pt", "--run-name", "e")
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and "exists already" in captured.err


def test_whoever_has_read_enough_may_go(stitched: Path) -> None:
    """`| head -1` is no error, and the result is written all the same."""
    code = "import sys, layer_info; layer_info.main(sys.argv[1:])"
    root = str(Path(layer_info.__file__).parent)
    command = [sys.executable, "-c", code, "resnet20_w1", "--run-name", "h"]
    with subprocess.Popen(
        command, cwd=stitched, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}
    ) as script:
        assert script.stdout and script.stderr
        script.stdout.close()
        errors = script.stderr.read()
    assert script.returncode == 0 and errors == b""
    assert (stitched / "results/h/layer_info-resnet20_w1-cifar10.pkl").exists()


def test_a_stitch_at_chance_says_so_and_one_that_works_does_not(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [str(WEIGHTS / f"in{seed}-gn{seed}/440.pt") for seed in (0, 1)]
    stitch_nets.main([*weights, "bn4", "bn4", "-e", "1", "--no-save"])
    text = " ".join(capsys.readouterr().out.split())
    assert "no better than one constant answer" in text and "-lr" in text and "-i ps_inv" in text
    stitch_nets.main([*weights, "bn4", "bn4", "-e", "1", "--no-save", "-i", "ps_inv"])
    assert "constant answer" not in capsys.readouterr().out


def test_a_fit_with_fewer_rows_than_unknowns_is_marked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [str(WEIGHTS / f"in{seed}-gn{seed}/440.pt") for seed in (0, 1)]
    stitch_nets.main([*weights, "bn8", "bn8", "-e", "0", "--no-save"])
    assert "ps_inv*" not in capsys.readouterr().out
    stitch_nets.main([*weights, "bn6", "fc", "-f", "-e", "0", "--no-save"])
    text = capsys.readouterr().out
    assert re.search(r"^ps_inv\* +100.00%|^ps_inv\* +99", text, re.MULTILINE)
    assert "fitted to 359 rows with" in " ".join(text.split())


@pytest.mark.parametrize(("terminal", "always"), [(True, False), (True, True), (False, False)])
def test_a_line_for_each_epoch_stands_in_for_the_bar(
    terminal: bool, always: bool, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    cli.tell_epoch(History([{"train_loss": 1.0}, {"train_loss": 0.51237, "val_loss": 2.0}]), 30, always=always)
    line = "" if terminal and not always else "epoch 2 of 30: train_loss 0.5124, val_loss 2.0000\n"
    assert capsys.readouterr() == ("", line)


def test_of_several_stitches_a_line_says_whose_it_is(toy: Path, capsys) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "conv1,conv2", "conv2", "-d", "toy", "-e", "1", "-b", "16", "--no-save"])
    assert "epoch 1 of 1 of conv1-conv2, the first of 2: train_loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "remedy"),
    [
        ("compare_nets", ["a3.pt", "b3.pt", "conv2", "conv2", "toy", "cka"], "-o for another folder, or --no-save"),
        ("stitch_nets", ["a3.pt", "b3.pt", "conv2", "conv2", "-d", "toy"], "-o for another folder, or --no-save"),
    ],
)
def test_where_nothing_may_be_written_the_ways_out_are_named(
    script: str, arguments: list[str], remedy: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "results")

    monkeypatch.setattr(results, "run_folder", refuse)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main(arguments)
    assert capsys.readouterr().err.endswith(f"error: Permission denied: results; give {remedy}\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_importing_is_one_line(script: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")  # which comes as the first of many seconds
    surroundings = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), "--help"],
        env=surroundings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "error: interrupted\n")


def test_two_files_of_one_network_are_told_apart() -> None:
    one, other = ({"model": "nets.py:make", "path": f"nets.py:make@runs/{name}/w.pt"} for name in "ab")
    assert network_names([one, other]) == ["nets.py:make (a/w.pt)", "nets.py:make (b/w.pt)"]
    assert network_names([one, one]) == ["nets.py:make", "nets.py:make"]
    trained = {"init_seed": 0, "gradient_seed": 0, "model": "tiny10"}
    names = network_names([trained | {"path": "1.pt"}, trained | {"path": "old/1.pt"}])
    assert names == ["tiny10 in0-gn0 (1.pt)", "tiny10 in0-gn0 (old/1.pt)"]


def test_titles_say_networks_layers_and_data_set() -> None:
    front = {"model": "lenet", "dataset": "mnist", "init_seed": 0, "gradient_seed": 3}
    end = {"model": "tiny10", "dataset": "mnist", "init_seed": None, "gradient_seed": None}
    params = {"front_layer": "conv1", "end_layer": "", "dataset": None}
    result = {"params": params, "weights": {"front": front, "end": end}}
    assert stitch_title(result) == "lenet in0-gn3, conv1 -> tiny10, output (mnist)"
    published = {"params": params | {"dataset": "cifar10"}}
    assert stitch_title(published) == "front, conv1 -> end, output (cifar10)"


@pytest.mark.reference
def test_the_published_result_has_a_row(reference: Path, tmp_path: Path) -> None:
    shutil.copy(reference / "published_bn3-bn3.pkl", tmp_path)  # the folder gets a cache
    (row,) = results.table(tmp_path).to_dict("records")
    assert row["dataset"] == "cifar10" and row["front_layer"] == "bn3" and row["init"] == "ps_inv"
    assert row["accuracy_after"] == pytest.approx(0.8199) and np.isnan(row["accuracy_before"])
