"""Study files: what they may say, and the line that each mistake gets."""

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import src.stitching.run
import src.studies.pair_work
from src.core.errors import UserError
from src.stitching import Geometry, StitchSpec
from src.studies.declared import texts_of
from src.studies.estimate import (
    PAIRED,
    START,
    Costs,
    own_seconds,
    paired_operations,
    shared_seconds,
    stitch_operations,
)
from src.studies.plan import make_plan
from src.studies.schema import Study
from src.studies.store import Store
from src.studies.toml import Document
from studies.__main__ import main

GOOD = """\
networks = ["a3.pt", "b3.pt"]
dataset = "toy"
seeds = [0, 1]

[[stitch]]
layers = "bn1"
init = ["ps_inv", "random"]
low_rank = [
    1,
    "full",
]
batch_size = 16
[compare]
layers = "bn1"
metrics = "cka"
"""
# what is put in place of what, and the line that is printed
BAD = {
    "no TOML": ("seeds = [0, 1]", "seeds = [0, 1", "s.toml:5: unclosed array"),
    "a key twice": ("seeds = [0, 1]", 'dataset = "toy"', "s.toml:3: cannot overwrite a value"),
    "an unknown key": ("seeds", "seed", "s.toml:3: seed: no such key; seeds?"),
    "an unknown key of a table": ("init =", "inti =", "s.toml:7: stitch.inti: no such key; init?"),
    "a key far from all": ("seeds", "zzz", "s.toml:3: zzz: no such key; known are networks, pairs, dataset"),
    "an unknown table": ("[compare]", "[compares]", "s.toml:13: compares: no such key; compare?"),
    "an init that is none": ('"ps_inv"', '"foo"', "s.toml:7: stitch.init: unknown init 'foo'; choose from eye, "),
    "a rank that is none": ('"full"', '"half"', "s.toml:8: stitch.low_rank: 'half' is not a whole number above 0"),
    "a rank of 0": ("    1,", "    0,", "s.toml:8: stitch.low_rank: 0 is not a whole number above 0"),
    "a seed below 0": ("[0, 1]", "[0, -1]", "s.toml:3: seeds: -1 is not a whole number from 0"),
    "a truth for a number": ("[0, 1]", "true", "s.toml:3: seeds: True is not a whole number"),
    "no seeds": ("[0, 1]", "[]", "s.toml:3: seeds: an empty list"),
    "a data set that is none": ('"toy"', '"tox"', "s.toml:2: dataset: "),
    "a metric that is none": ('"cka"', '"ckb"', "s.toml:15: compare.metrics: 'ckb' is none of "),
    "no metrics": ('metrics = "cka"', "", "s.toml:13: compare.metrics: is missing"),
    "no layers": ('layers = "bn1"\ninit', "init", "s.toml:5: stitch: names either layers, or both"),
    "half of the layers": ('layers = "bn1"\ninit', 'end_layers = "bn1"\ninit', "s.toml:5: stitch: names either layers"),
    "a layer that is none": ('layers = "bn1"\ninit', 'layers = "bn7"\ninit', "s.toml:5: stitch: "),
    "a network that is none": ('"b3.pt"', '"c3.pt"', "s.toml:1: networks: no weight file c3.pt"),
    "a pattern of none": ('"b3.pt"', '"c*.pt"', "s.toml:1: networks: no file matches c*.pt"),
    "one network": (', "b3.pt"', "", 's.toml:1: networks: pairs = "all" needs two networks or more'),
    "pairs of three": ("seeds = [0, 1]", 'pairs = [["a3.pt", "b3.pt", "b5.pt"]]', "s.toml:3: pairs: a list of pairs"),
    "a control that is none": ("seeds = [0, 1]", 'controls = ["slef"]', "s.toml:3: controls: unknown control 'slef'"),
    "a batch of more": ("batch_size = 16", "batch_size = 49", "s.toml:5: stitch: batch size 49 exceeds the 48"),
    "options that exclude each other": ("init = [", "orthogonal = true\nmask = 'semi-match'\ninit = [", "s.toml:5: "),
    "a rank that no layer has": ("    1,\n    \"full\",", "    9", "s.toml:5: stitch: nothing is left to do: "),
    "a rate that is no number": ("init = [", "lr = 'fast'\ninit = [", "s.toml:7: stitch.lr: 'fast' is not a "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_its_line(name, toy, capsys) -> None:
    old, new, expected = BAD[name]
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if "nothing is left" in expected:
        text = text[: text.index("[compare]")]
    (toy / "s.toml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["s.toml", "--dry-run"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith(f"error: {expected}"), captured.err
    assert captured.err.count("\n") == 1 and not (toy / "results").exists()


def test_a_word_that_is_no_command_is_said(toy, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tabel", "s.toml"])
    assert stop.value.code == 2 and "no command 'tabel'; choose from status, table" in capsys.readouterr().err


def test_no_file_and_no_text(toy, capsys) -> None:
    (toy / "s.toml").write_bytes(b"a = '\xff'")
    for file, line in (("t.toml", "no study file t.toml"), ("s.toml", "s.toml:1: no UTF-8 text")):
        with pytest.raises(SystemExit):
            main([file])
        assert capsys.readouterr().err == f"error: {line}\n"


def test_several_complaints_begin_with_the_first(toy) -> None:
    (toy / "s.toml").write_text(GOOD.replace("init", "inti").replace('"cka"', '"ckb"'))
    with pytest.raises(ValueError, match=r"s\.toml:7: stitch\.inti: .* \(and 1 more\)$"):
        Study(toy / "s.toml")


def test_lines_of_keys_tables_and_elements(tmp_path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        '# "a" = [\na = [ # one [\n  1, 2,\n\n  "]", # x\n  3 ]\nb = "# no = [comment"\n[[t]]\nc = 1\n[[t]]\nc = 2\n'
    )
    document = Document(file)
    assert document.values == {"a": [1, 2, "]", 3], "b": "# no = [comment", "t": [{"c": 1}, {"c": 2}]}
    places = [("a",), ("a", 0), ("a", 2), ("a", 3), ("b",), ("t", 1, "c"), ("t", 0, "c", 5), ("t", 0, "d"), ("z",)]
    assert [document.line(place) for place in places] == [2, 3, 5, 6, 7, 11, 9, 8, 1]


def test_values_become_lists_and_full_is_no_rank(toy) -> None:
    (toy / "s.toml").write_text(GOOD)
    (stitch,) = Study(toy / "s.toml").says.stitch
    assert stitch.init == ["ps_inv", "random"] and stitch.low_rank == [1, None] and stitch.epochs is None


def test_the_estimate_counts_the_controls_that_are_sewn(toy, monkeypatch) -> None:
    text = 'pairs = [["a3.pt", "b5.pt"]]\ncontrols = ["self", "self_random"]\n[stitch]\nlayers = "bn1"\nepochs = 1\n'
    text += 'init = ["ps_inv", "random"]\nbatch_size = 16\n{}'
    sewn = []
    original = src.stitching.run._Group._start_control
    monkeypatch.setattr(
        src.stitching.run._Group,
        "_start_control",
        lambda group, spec, on: sewn.append(spec) or original(group, spec, on),
    )
    counted = []
    price = src.studies.pair_work.own_seconds
    monkeypatch.setattr(src.studies.pair_work, "own_seconds", lambda *about: counted.append(about[2]) or price(*about))
    # 3072 rows for 5 outputs: stitched to itself ps_inv is exact, and both random starts are one; 48 rows for 320: not
    for number, more in enumerate(("", "flatten = true\n")):
        sewn.clear()
        counted.clear()
        Path(f"s{number}.toml").write_text(text.format(more))
        main(["worker", f"s{number}.toml", "--shard", "1/1", "--device", "cpu"])
        assert sum(counted) == len(sewn) == number + 1


def test_the_estimate_knows_what_similarity_multiplies() -> None:
    """Counted by hand, in multiplications and additions of the Gram matrices' upper halves, or of features."""
    wide, small = (16, 30, 30), (64, 4, 4)
    spec = StitchSpec("", "", epochs=1)
    down = stitch_operations(spec, Geometry(wide, small, resize=True), 1000)
    assert down == 1000**2 * (14_400 + 3 * 16 * 16 + 1024)  # of 16 inputs the 64 outputs are no more
    up = stitch_operations(replace(spec, epochs=0), Geometry(small, wide, resize=True), 1000)
    assert up == 1000**2 * (1024 + 2 * 16 * 16 + 14_400)
    assert stitch_operations(spec, Geometry(small, small), 10_000) == 10_000 * 2048**2
    groups = 4_000_000_000 // (4 * 2 * 14_400)  # images of both sides that fit into memory
    flat = stitch_operations(spec, Geometry(wide, wide, flatten=True), 100_000)
    assert flat == pytest.approx(100_000 * groups * 5 * 14_400)


def test_the_estimate_counts_the_images_that_a_stitch_is_trained_on() -> None:
    costs = Costs(1e-3, 2e-3, train=3000, val=500, products=1e9)
    plain = StitchSpec("", "", epochs=5, target_type="match_later")
    few = replace(plain, train_on="iri", iri_images=100)
    for price in (shared_seconds, partial(own_seconds, others=2, geometry=None)):
        assert price(few, costs=costs) == price(plain, costs=replace(costs, train=100)) < price(plain, costs=costs)
    assert plain.trained_on(3000) == replace(few, iri_images=4000).trained_on(3000) == 3000
    # 5 epochs and moments of none; validation images once, and twice through both networks when all is scored
    assert shared_seconds(plain, costs) == pytest.approx(5 * 3 + 0.5 + 2 * 1.5)


def test_what_stitches_share_is_paid_once_in_each_part_of_the_work(toy, monkeypatch) -> None:
    for name, seconds in (("shared_seconds", 10.0), ("own_seconds", 1.0)):
        monkeypatch.setattr(src.studies.pair_work, name, lambda *about, seconds=seconds: seconds)
    text = 'pairs = [["a3.pt", "b5.pt"]]\nseeds = [0, 1]\n{}'
    text += '[stitch]\nbatch_size = 16\nlayers = "bn1"\ninit = ["ps_inv", "random"]\n'
    found = []
    for number, minutes in enumerate(("", "minutes = 0.2\n")):
        Path(f"s{number}.toml").write_text(text.format(minutes))
        found.append([bundle.seconds for bundle in make_plan(Study(Path(f"s{number}.toml"))).bundles])
    assert found == [[START + 2 * (10 + 2)], 4 * [START + 10 + 1]]


def test_metrics_that_hold_all_images_against_all_are_priced_by_their_pairs() -> None:
    """Gram sums and differences are not, nor what is summed over positions; one of your own has no price."""
    metrics = ["cka", "l2", "procrustes", "rsa", "mine.py:metric"]
    assert paired_operations(metrics, "images", 100) == 2 * PAIRED * 100**2
    assert paired_operations(metrics, "channels", 100) == PAIRED * 100**2  # rsa has no other view
    assert paired_operations(["cka", "l2"], None, 100) == 0


# what is put in place of what in GOOD, and the line about too many
RATES, SEEDS = ([1 / number for number in range(1, 2001)], list(range(1000)))
MANY = {
    "options": ({'init = ["ps_inv", "random"]': f"lr = {RATES}", "[0, 1]": str(SEEDS)},
        "s.toml:5: stitch: 8000000 stitches (2 pairs of networks x 2 low_rank x 2000 lr x 1000 seed), 8000002 results"),
    "couples of layers": ({'layers = "bn1"\ninit': "layers = 'all'\ninit", "[0, 1]": str(SEEDS)},
        "s.toml:5: stitch: 512000 stitches (128 couples of layers in 2 pairs of networks x "),
    "networks": ({'"b3.pt"': ", ".join(f'"toy_w3#{number}"' for number in range(600))},
        "s.toml:5: stitch: 360600 stitches (601 networks x 600 others of each), and 200000 are the most; split"),
    "tables": ({"[compare]": f'[[stitch]]\nlayers = "conv2"\nseed = {list(range(60_000))}\n[compare]',
        "[0, 1]": str(list(range(50_000)))},
        "s.toml:5: stitch: 400000 stitches (2 pairs of networks x 2 init x 2 low_rank x 50000 seed), 520002 results"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANY)
def test_what_is_too_much_is_counted_before_it_is_made(name, toy, capsys, monkeypatch) -> None:
    text, (changes, line) = GOOD, MANY[name]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    (toy / "s.toml").write_text(text)
    monkeypatch.setattr(StitchSpec, "__post_init__", lambda spec: pytest.fail("made"))
    with pytest.raises(SystemExit) as caught:
        main(["s.toml", "--dry-run"])
    captured = capsys.readouterr()
    assert caught.value.code == 2 and captured.err.startswith(f"error: {line}"), captured.err
    assert captured.err.count("\n") == 1


def test_planning_takes_little_for_each_stitch(toy) -> None:
    """0.07 ms on a quiet machine, 0.2 ms with three controls; three times that is allowed here."""
    took = []
    for count in (20, 2000):
        (toy / "s.toml").write_text(GOOD.replace("[0, 1]", str(list(range(count)))))
        study, start = Study(toy / "s.toml"), time.process_time()
        plan = Store(toy / str(count)).plan(study)
        took.append(time.process_time() - start)
        assert len(plan.names) == 2 * 4 * count + 2
    assert took[1] - took[0] < 16_000 * 6e-4


def test_a_table_may_name_networks_and_pairs_of_its_own(toy) -> None:
    text = GOOD.replace("[[stitch]]", '[[stitch]]\nnetworks = ["a3.pt", "b5.pt"]\npairs = "self"').replace("full", "2")
    text += 'pairs = [["b5.pt", "a3.pt"]]\n[[stitch]]\nfront_layers = "bn1"\nend_layers = "conv2"\nseed = 7\n'
    text += "batch_size = 16\n"
    text = text.replace('"2"', "2").replace("[compare]", "[[compare]]")
    (toy / "s.toml").write_text(text)
    bundles = make_plan(Study(toy / "s.toml")).bundles
    made = [(bundle.pair, item.spec) for bundle in bundles for item in bundle.items]
    stitches = [(pair, spec.seed) for pair, spec in made if isinstance(spec, StitchSpec)]
    asked = {(pair, seed) for pair in (("a3.pt", "a3.pt"), ("b5.pt", "b5.pt")) for seed in (0, 1)}
    assert set(stitches) == asked | {(("a3.pt", "b3.pt"), 7), (("b3.pt", "a3.pt"), 7)}
    assert [bundle.pair for bundle in bundles if bundle.is_comparison] == [("b5.pt", "a3.pt")]


def test_networks_of_a_table_stand_in_for_listed_pairs_of_the_study(toy) -> None:
    text = (
        'pairs = [["a3.pt", "b3.pt"]]\n[[stitch]]\nlayers = "bn1"\nepochs = 0\n[[stitch]]\nlayers = "bn1"\nepochs = 0\n'
    )
    (toy / "s.toml").write_text(text + 'networks = ["b3.pt", "b5.pt"]\n')
    pairs = [bundle.pair for bundle in make_plan(Study(toy / "s.toml")).bundles]
    assert pairs == [("a3.pt", "b3.pt"), ("b3.pt", "b5.pt"), ("b5.pt", "b3.pt")]


def test_two_networks_once_are_in_the_order_in_which_they_are_named(toy) -> None:
    text = 'networks = ["b5.pt", "[ab]3.pt"]\npairs = "once"\n[compare]\nlayers = "bn1"\nmetrics = "cka"\n'
    (toy / "s.toml").write_text(text)
    pairs = [bundle.pair for bundle in make_plan(Study(toy / "s.toml")).bundles]
    assert pairs == [("b5.pt", "a3.pt"), ("b5.pt", "b3.pt"), ("a3.pt", "b3.pt")]
    (toy / "s.toml").write_text(text.replace(', "[ab]3.pt"', ""))
    with pytest.raises(UserError, match='pairs = "once" needs two networks or more'):
        make_plan(Study(toy / "s.toml"))


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    {
        "in[0-1].pt": ["in0.pt", "in1.pt"],
        "in[!0].pt": ["in1.pt", "in2.pt"],
        "in?.pt": ["in0.pt", "in1.pt", "in2.pt"],
        "in[0-1].pt?size=8": ["in0.pt?size=8", "in1.pt?size=8"],
        "**/*3.pt": ["a3.pt", "b3.pt"],
        "in[3].pt": ["in[3].pt"],  # a file of that name
    }.items(),
)
def test_patterns_are_those_of_the_shell(pattern, wanted, toy) -> None:
    for name in ("in0", "in1", "in2", "in[3]"):
        shutil.copy("a3.pt", f"{name}.pt")
    (toy / "s.toml").write_text(f'networks = ["{pattern}"]\npairs = "self"\n[stitch]\nlayers = "bn1"\n')
    assert texts_of(Study(toy / "s.toml")) == wanted
