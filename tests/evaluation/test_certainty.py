"""compare_nets.py says how sure it is, and what images that do not correspond would give."""

from pathlib import Path

import pytest
import torch

import compare_nets
from src import results
from src.core.intervals import paired_difference, wilson
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.metrics import METRICS
from src.metrics.functional import FUNCTIONAL

NAMES = ["cka", "cka_debiased", "ps_inv", "mutual_knn", "l2", "jsd", "disagreement", "abs_acc_diff"]


def compare(*more: str) -> None:
    compare_nets.main(["a3.pt", "b3.pt", "conv2", "conv2", "toy", *NAMES, "--run-name", "r", *more])


def test_the_script_prints_draws_and_keeps_it(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    compare("--intervals", "--permutations", "20", "--plot")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "95% interval" in printed and "delete-one jackknife: cka, cka_debiased" in printed
    found = results.read(toy / "results/r/compare_nets-conv2-conv2.pkl")
    assert set(found["intervals"]) == set(NAMES) and set(found["null"]) == set(NAMES) - {"abs_acc_diff"}
    for name, (low, high) in found["intervals"].items():
        measure = {**METRICS, **FUNCTIONAL}[name]
        assert low - 1e-9 <= measure.number(found["values"][name]) <= high + 1e-9, name


def test_without_the_options_nothing_changes(toy: Path) -> None:
    compare()
    assert not {"intervals", "null"} & results.read(toy / "results/r/compare_nets-conv2-conv2.pkl").keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--intervals", "-g", "10"], "--intervals excludes --group-at"),
        (["--permutations", "-5"], "'-5' is not a whole number"),
    ],
)
def test_bad_options_are_one_line(toy: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(*more)
    assert message in capsys.readouterr().err


def test_lists_of_layers_have_what_each_pair_has_alone(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["cka", "procrustes", "cka_debiased", "jsd", "mutual_knn"]
    given = ["toy", *methods, "--intervals", "--permutations", "7"]
    compare_nets.main(["a3.pt", "b3.pt", "conv1,conv2", "conv1,conv2", *given, "--run-name", "grid"])
    grid = results.read(next((toy / "results/grid").glob("*.pkl")))
    text = capsys.readouterr().out
    for number, pair in enumerate([("conv1", "conv1"), ("conv1", "conv2"), ("conv2", "conv1"), ("conv2", "conv2")]):
        compare_nets.main(["a3.pt", "b3.pt", *pair, *given, "--run-name", f"alone{number}"])
        alone = results.read(next((toy / f"results/alone{number}").glob("*.pkl")))
        for kind, ends in (("intervals", ["low", "high"]), ("null", ["mean", "threshold"])):
            rows = grid[kind][(grid[kind]["layer1"] == pair[0]) & (grid[kind]["layer2"] == pair[1])].set_index("method")
            assert set(rows.index) == set(alone[kind])
            for name, expected in alone[kind].items():
                assert tuple(rows.loc[name, ends]) == pytest.approx(expected, abs=1e-12)
        low, high = alone["intervals"]["cka"]
        assert f"[{low:.4f}, {high:.4f}]" in text
    assert grid["certainty"] == alone["certainty"]


def test_too_little_memory_is_said_before_any_work(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(compare_nets, "compare_rows", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main(["a3.pt", "b3.pt", "conv2", "conv2", "toy", "l2", "--intervals", "--memory", "1e-9"])
    assert "keep all activations" in capsys.readouterr().err


def test_what_networks_decide_has_intervals_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 3, generator=generator) for _ in range(2))
    labels = torch.randint(0, 3, (400,), generator=generator)
    share = float((x.argmax(1) != y.argmax(1)).double().mean())
    assert FUNCTIONAL["disagreement"].interval(x, y, labels, SINGLE_LABEL) == pytest.approx(wilson(share, 400))
    a, b = (logits.argmax(1) == labels for logits in (x, y))
    hits = [int(which.sum()) for which in (a & b, a & ~b, ~a & b, ~a & ~b)]
    low, high = paired_difference(*hits)
    assert low < 0 < high  # by chance both are right alike
    found = FUNCTIONAL["abs_acc_diff"].interval(x, y, labels, SINGLE_LABEL)
    assert found == pytest.approx((0, max(-low, high)))
    assert FUNCTIONAL["jsd"].interval(x, y, (x > 0).double(), MULTI_LABEL)[0] > 0


def test_that_no_decision_differs_is_not_certain_of_few_images() -> None:
    x, labels = torch.eye(4).repeat(5, 1), torch.arange(20) % 4
    for name in ("disagreement", "abs_acc_diff"):
        for task, truth in ((SINGLE_LABEL, labels), (MULTI_LABEL, x)):
            low, high = FUNCTIONAL[name].interval(x, x, truth, task)
            assert low == 0 and 0.05 < high < 0.25, (name, task)
        values = FUNCTIONAL[name].each(x, -x, x, MULTI_LABEL)
        assert FUNCTIONAL[name].counting(values, MULTI_LABEL) and not FUNCTIONAL[name].counting(labels, MULTI_LABEL)
    assert FUNCTIONAL["jsd"].counting(torch.zeros(20), SINGLE_LABEL) is None


WORDS = ["a3.pt", "b3.pt", "bn1", "bn1", "toy", "cka"]


@pytest.mark.parametrize("place", range(len(WORDS) + 1))
@pytest.mark.parametrize(
    ("option", "draws"), [(["--calibrate"], 200), (["--calibrate", "39"], 39), (["--calibrate=7"], 7)]
)
def test_a_bare_calibrate_takes_no_word_that_follows(toy: Path, place: int, option: list[str], draws: int) -> None:
    args = compare_nets.parse_args([*WORDS[:place], *option, *WORDS[place:]])
    assert args.calibrate == draws
    assert [args.front_model, args.end_model, args.front_layer, args.end_layer, args.dataset] == WORDS[:5]
    assert args.methods == ["cka"] and compare_nets.parse_args(WORDS).calibrate is None


def test_a_pair_and_a_grid_are_calibrated(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["cka", "procrustes", "disagreement"]
    compare_nets.main([*WORDS[:5], *methods, "--calibrate", "19", "--run-name", "p"])
    text = capsys.readouterr().out
    assert "against 19 random pairings of 48 images" in text and "disagreement: not calibrated" in text
    (path,) = Path("results/p").glob("*.pkl")
    found = results.read(path)["calibrated"]
    assert found.keys() == {"cka", "procrustes", "how"} and found["how"]["draws"] == 19
    assert {"threshold", "p", "score"} <= found["cka"].keys() and 0.05 <= found["cka"]["p"] <= 1
    compare_nets.main(
        ["a3.pt", "b3.pt", "bn1,conv2", "bn1,conv2", "toy", "cka", "--calibrate", "19", "--run-name", "g"]
    )
    (path,) = Path("results/g").glob("*.pkl")
    found = results.read(path)["calibrated"]
    assert len(found["frame"]) == 4 and found["grid"]["cka"].keys() == {"max", "mean"}
    assert found["grid"]["cka"]["max"]["value"] == found["frame"]["value"].max()
    text = capsys.readouterr().out
    assert "of 4 pairs are more alike than by chance" in text and "the best of all:" in text
    with pytest.raises(SystemExit):
        compare_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "toy", "abs_acc_diff", "--calibrate", "--no-save"])
    assert "--calibrate: abs_acc_diff: no pairing of the images changes it" in capsys.readouterr().err


def test_a_layer_of_a_third_network_is_compared_on_the_same_images(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_nets.main([*WORDS, "disagreement", "--versus", "b5.pt", "bn1", "--run-name", "v"])
    text = capsys.readouterr().out
    assert "minus the same with b5.pt, bn1:" in text and "disagreement: none: it is of decisions" in text
    (path,) = Path("results/v").glob("*.pkl")
    found = results.read(path)["versus"]["cka"]
    values = []
    for end in ("b3.pt", "b5.pt"):
        compare_nets.main(["a3.pt", end, *WORDS[2:], "--run-name", end])
        (path,) = Path("results", end).glob("*.pkl")
        values.append(results.read(path)["values"]["cka"])
    assert found["value"] == pytest.approx(values[0] - values[1], abs=1e-6) and found["low"] <= found["high"]
    with pytest.raises(SystemExit):
        compare_nets.main(["a3.pt", "b3.pt", "all", "bn1", "toy", "cka", "--versus", "b5.pt", "bn1", "--no-save"])
    assert "--versus is of one pair of layers" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        compare_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "toy", "cka", "--versus", "b5.pt", "bn1,conv2", "--no-save"])
    assert refused.value.code == 2 and "--versus is of one layer of b5.pt; bn1,conv2 means 2" in capsys.readouterr().err
