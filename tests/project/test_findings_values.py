"""What sections compute of their rows, by known answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from benchmarks.findings import calibrated, predict
from benchmarks.findings.more_is_better import compared, gains
from benchmarks.findings.recognition import missed, recognised
from benchmarks.findings.truncated import cut
from benchmarks.findings.values import of_correlation, one_order, relative
from src.studies.frames import ENDS, NETWORKS


def test_a_layer_is_recognised_by_the_best_value_of_its_row_and_of_its_column() -> None:
    table = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.2], [0.3, 0.3, 0.25]])
    for lower, values in ((False, table), (True, -table)):
        counts, chances = recognised(values, ["a", "b", "c"], lower=lower)
        assert counts == {"found": 4, "b:a": 1, "c:a": 1} and chances == pytest.approx([1 / 3] * 6)
    counts, _ = recognised(np.ones((3, 3)), ["a", "b", "c"], lower=False)
    assert counts == {"ties": 6}


def test_a_layer_competes_with_those_that_have_a_value_and_without_a_rival_it_is_not_counted() -> None:
    nan = np.nan
    table = np.array([[0.9, nan, nan], [nan, 0.7, 0.8], [nan, 0.3, 0.6]])
    counts, chances = recognised(table, ["a", "b", "c"], lower=False)
    assert counts == {"found": 2, "b:c": 1, "c:b": 1} and chances == [0.5] * 4


def test_what_is_missed_most_stands_first() -> None:
    frame = pd.DataFrame({"missed": ["a:b 1, ties 2", np.nan, "ties 3, b:c 1, c:d 1"]})
    assert missed(frame) == "ties 5, a:b 1, b:c 1 and 1 more"


def test_a_map_of_full_rank_is_itself_and_a_lower_one_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    w, b, mean = (torch.randn(*size, generator=generator).double() for size in ((5, 3), (5,), (3,)))
    full, bias = cut(w, b, mean, 3)
    assert torch.allclose(full, w) and torch.allclose(bias, b)
    nearest, bias = cut(w, b, mean, 1)
    assert torch.linalg.matrix_rank(nearest) == 1 and torch.allclose(nearest @ mean + bias, w @ mean + b)
    lost = torch.linalg.svdvals(w)[1:].square().sum()  # Eckart and Young: none of that rank is nearer
    assert (w - nearest).square().sum() == pytest.approx(float(lost))


def test_rank_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    score, metrics = pd.Series(rng.normal(size=9)), pd.DataFrame(rng.normal(size=(9, 3)).round(1))
    expected = [stats.spearmanr(score, metrics[name])[0] for name in metrics]
    assert predict.spearman(score, metrics) == pytest.approx(expected)
    assert np.isnan(predict.spearman(score, pd.DataFrame({"a": [1.0] * 9})))


def scored(networks: str = "abcdef") -> pd.DataFrame:
    """Of all pairs and two layers a score, a metric that orders them so and one that turns the order round."""
    rng = np.random.default_rng(1)
    effects = dict(zip(networks, rng.normal(size=len(networks)), strict=True))
    rows = []
    for i, one in enumerate(networks):
        for other in networks[i + 1 :]:
            for place, layer in enumerate(("x", "y")):
                score = effects[one] + effects[other] + rng.normal() + 10 * place
                row = {"layer": layer, "after": score, "before": score, predict.IDENTICAL: score}
                rows.append({ENDS[0]: one, ENDS[1]: other, **row, "v good": score**3, "v turned": -score})
    return pd.DataFrame(rows)


def test_a_metric_that_orders_pairs_as_the_score_is_the_best_and_one_that_turns_it_is_behind() -> None:
    rows = predict.summary(scored()).set_index("metric")
    assert list(rows.index) == ["v good", "v turned"]
    assert rows.loc["v good", "within after"] == pytest.approx(1) and rows.loc["v good", "behind"] == 0
    assert rows.loc["v turned", "behind_high"] < 0 and rows.loc["v turned", "within after"] == pytest.approx(-1)
    assert rows.loc["v good", predict.IDENTICAL] == pytest.approx(1)
    tables = predict.tables(dict.fromkeys(predict.GROUPS, scored()))
    assert tables["predict"][2][7].startswith("-1.00 [-1.00, -")
    assert tables["predict"][2][6].endswith(" *")
    head, good, turned = tables["predict-others"]
    assert good[:2] == ["`good`", "v"] and good[4] == good[8] == "is it" and turned[4] == tables["predict"][2][6]
    assert head[2:6] == ["data: after", "data: before", "data: behind the best", f"data: {predict.LAST[1]}"]


def test_a_metric_without_a_value_and_inputs_that_were_not_made_have_no_number() -> None:
    frame = scored().assign(**{"v none": np.nan, predict.IDENTICAL: np.nan})
    row = predict.summary(frame).set_index("metric").loc["v none"]
    assert np.isnan(row["within after"]) and np.isnan(row["behind"])
    none = predict.tables(dict.fromkeys(predict.GROUPS, frame))["predict-others"][3]
    assert none == ["`none`", "v", *[""] * 8]


def test_intervals_of_correlations_stay_below_one() -> None:
    low, high = of_correlation(np.array([0.95, 0.0]), np.array([0.3, 0.1]))
    assert -1 < low[0] < 0.95 < high[0] < 1 and (low[1], high[1]) == pytest.approx((-np.tanh(0.1), np.tanh(0.1)))


def costs() -> pd.DataFrame:
    """Two seeds; a front of half costs two points more than one of all, at ends of either."""
    rows = []
    for front, end in (("0", "1"), ("1", "0")):
        for kind, cost in (("all", 0.1), ("half", 0.12)):
            for end_kind in ("all", "half"):
                names = {ENDS[0]: f"{front}{kind}", ENDS[1]: f"{end}{end_kind}"}
                rows.append({**names, "front_kind": kind, "end_kind": end_kind, "layer": "x", "cost": cost})
    return pd.DataFrame(rows)


def test_what_more_data_saves_is_compared_at_the_same_end() -> None:
    assert list(gains(costs(), "all", "half")["gain"]) == pytest.approx([0.02] * 4)
    rows = compared(costs())
    assert rows[1] == ["all", "half", "any", "+2.0 [+2.0, +2.0]", "4", "4"]
    assert rows[2] == ["all", "half", "all", "+2.0", "2", "2"], "two ends have no interval"


def test_of_each_two_networks_one_order_is_kept() -> None:
    frame = pd.DataFrame({NETWORKS[0]: list("abac"), NETWORKS[1]: list("bacb"), "value": range(4)})
    assert list(one_order(frame)["value"]) == [0, 2, 3]


def test_accuracies_are_relative_to_the_end() -> None:
    frame = relative(pd.DataFrame({"accuracy_end": [0.8], "accuracy_after": [0.6]}), ["accuracy_after"])
    assert list(frame["accuracy_after"]) == pytest.approx([0.75])


def test_calibrated_scores_are_of_layers_with_their_namesakes(tmp_path, monkeypatch) -> None:
    made = []

    def compare(words: list[str]) -> None:
        made.append(words)
        folder = tmp_path / "x and y"
        folder.mkdir(parents=True)
        (folder / "one.pkl").touch()

    frame = pd.DataFrame({"layer1": ["a", "a"], "layer2": ["a", "b"], "method": "cka", "score": [0.5, 0.1]})
    monkeypatch.setattr(calibrated.compare_nets, "main", compare)
    monkeypatch.setattr(calibrated.results, "read", lambda path: {"calibrated": {"frame": frame}})
    for _ in range(2):  # what is there is not made again
        found = calibrated.scores([(("x", "y"), ("x.pt", "y.pt"))], "a,b", tmp_path)
    assert found[["layer", "value"]].to_numpy().tolist() == [["a", 0.5]] and len(made) == 1
    assert made[0][:4] == ["x.pt", "y.pt", "a,b", "a,b"] and "--calibrate" in made[0]
