"""Tests between groups of pairs: networks are the units, and many rows are many chances."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.results.frame import _row
from src.studies.differences import comparison_differences, difference_tables, differences, groupings
from src.studies.frames import COMPARED, FACTS, StudyResults, with_names

NONE = pd.DataFrame(columns=COMPARED)


def study(networks: int, effect: float, *, seed: int = 0, spread: float = 0.05, seeds: int = 1) -> StudyResults:
    """All ordered pairs by two inits; values are the sum of effects of front, end and pair, and of the second init."""
    random, rows = np.random.default_rng(seed), []
    own = random.normal(0, spread, (2, networks, 2))  # of front and end, also with the init
    for one, other in itertools.permutations(range(networks), 2):
        for number, init in enumerate(("random", "ps_inv")):
            value = 0.7 + own[0, one, number] + own[1, other, number] + random.normal(0, spread) + effect * number
            for repeat in range(seeds):
                row = _row({}, Path()) | {"front_layer": "bn3", "end_layer": "bn3", "init": init, "seed": repeat}
                row |= {"accuracy_after": value + random.normal(0, 1e-3), "name": f"{one}-{other}-{init}-{repeat}"}
                for role, network in (("front", one), ("end", other)):
                    row |= {f"{role}_model": f"{network}.pt", f"{role}_architecture": "ab"[network % 2]}
                    row |= {f"{role}_init_seed": network, f"{role}_gradient_seed": network}
                rows.append(row)
    return with_names(pd.DataFrame(rows), NONE)


def test_unrelated_groups_pass_as_often_as_they_may() -> None:
    """Values share networks: if pairs were the units, far more than 5% would pass."""
    ps = [float(differences(study(6, 0.0, seed=seed), "init")["p"].iloc[0]) for seed in range(300)]
    assert np.mean(np.array(ps) <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)


def test_a_difference_is_found_with_its_interval() -> None:
    frame = differences(study(6, 0.2), "init")
    (row,) = frame[frame["measure"] == "accuracy_after"].to_dict(orient="records")
    assert (row["group"], row["against"], row["n_group"], row["n_against"]) == ("ps_inv", "random", 30, 30)
    assert row["networks"] == 6 and row["p"] < 0.01
    assert row["low"] < 0.2 < row["high"] and row["low"] < row["difference"] < row["high"]


def test_seeds_are_no_units() -> None:
    one, many = (differences(study(5, 0.05, seeds=seeds), "init") for seeds in (1, 20))
    assert list(many["n_group"]) == list(one["n_group"]) == [20]
    assert many["p"].iloc[0] > 0.1 * one["p"].iloc[0]


def test_pairs_are_grouped_by_what_both_networks_are() -> None:
    results = study(6, 0.0)
    assert groupings(results) == ["init", "architecture"]
    frame = differences(results, "architecture")
    first = "b \N{RIGHTWARDS ARROW} a"
    assert set(frame["group"]) | set(frame["against"]) == {"a", "b", "a \N{RIGHTWARDS ARROW} b", first}
    assert len(frame) == 2 * 3 and set(frame["init"]) == {"random", "ps_inv"}


def test_holms_correction_is_over_the_rows_of_a_measure() -> None:
    frame = differences(study(6, 0.03), "architecture").sort_values("p")
    ps = frame["p"].to_numpy()
    expected = np.minimum(np.maximum.accumulate(ps * np.arange(len(ps), 0, -1)), 1)
    assert frame["p_holm"].to_numpy() == pytest.approx(expected)


def test_two_networks_are_too_few_and_say_nothing() -> None:
    frame = differences(study(2, 0.5), "init")
    assert frame["p"].isna().all() and frame["p_holm"].isna().all() and frame["difference"].notna().all()


def test_comparisons_are_tested_by_what_networks_are() -> None:
    results = study(6, 0.0)
    random, rows = np.random.default_rng(0), []
    for pair in (
        results.stitches[["front_network", "end_network", "front_model", "end_model"]].drop_duplicates().itertuples()
    ):
        same = pair.front_network[0] == pair.end_network[0]
        rows.append(
            {
                "spec1": pair.front_model,
                "spec2": pair.end_model,
                "network1": pair.front_network,
                "network2": pair.end_network,
                **{f"{fact}{i}": None for fact in FACTS for i in (1, 2)},
                "architecture1": pair.front_network.split()[0],
                "architecture2": pair.end_network.split()[0],
            }
            | {"method": "cka", "layer1": "bn3", "layer2": "bn3", "on": "data"}
            | {"value": 0.5 + 0.4 * same + 0.01 * random.random()}
        )
    both = with_names(
        results.stitches[[name for name in _row({}, Path()) if name in results.stitches]].assign(name=""),
        pd.DataFrame(rows),
    )
    frame = comparison_differences(both, "architecture")
    assert set(frame["method"]) == {"cka"} and frame["p_holm"].min() < 0.05
    tables = difference_tables(both, "architecture")
    assert set(tables) == {"stitches", "comparisons"} and "Holm" in tables["stitches"][1][1]


def test_what_does_not_tell_pairs_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="not told apart by 'inits'; close: init; choose from init, architecture"):
        differences(study(3, 0.0), "inits")


def compared(*architectures: str) -> StudyResults:
    """Comparisons of pairs of networks without any stitch; each pair's networks have one architecture."""
    rows = []
    for number, architecture in enumerate(architectures):
        for other in range(number):
            pair = {"spec1": f"{number}", "spec2": f"{other}", "network1": f"n{number}", "network2": f"n{other}"}
            facts = {f"{fact}{i}": None for fact in FACTS for i in (1, 2)}
            facts |= {"architecture1": architecture, "architecture2": architectures[other]}
            value = 0.5 + 0.3 * (architecture == architectures[other]) + 0.001 * number * other
            place = {"method": "cka", "layer1": "bn3", "layer2": "bn3", "on": "data"}
            rows.append({**pair, **place, "value": value, **facts})
    return with_names(pd.DataFrame(columns=list(_row({}, Path()))), pd.DataFrame(rows))


def test_comparisons_alone_are_tested_by_what_their_networks_are() -> None:
    tables = difference_tables(compared("t", "t", "t", "r", "r", "r"), "architecture")
    assert set(tables) == {"comparisons"}
    frame = tables["comparisons"][0]
    mixed = frame[frame["group"].str.contains("\N{RIGHTWARDS ARROW}")]
    assert len(mixed) == 1 and mixed["difference"].item() == pytest.approx(-0.3, abs=0.01) and mixed["p"].item() < 0.05


def test_comparisons_alone_say_by_what_they_can_be_grouped() -> None:
    with pytest.raises(ValueError, match="not told apart by 'architectur'; close: architecture; choose from arch"):
        difference_tables(compared("t", "r", "t"), "architectur")
    with pytest.raises(ValueError, match="choose from nothing"):
        difference_tables(compared("t", "t", "t"), "architecture")
