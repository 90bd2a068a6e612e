"""A spec says all that decides a stitch, and its key is that of equal specs only."""

from dataclasses import fields, replace

import pytest

from src.stitching import StitchSpec
from src.stitching.options import OPTIONS

SPEC = StitchSpec("bn3", "bn5")
OTHER = {"low_rank": 2, "orthogonal": True, "flatten": True, "resize": True, "amp": True, "debug": True, "whiten": True}
OTHER |= {"init": "eye", "mask": "semi-match", "optimizer": "sgd", "target_type": "soft_2", "cosine": True}
OTHER |= {"stage_epochs": "10,20", "train_on": "iri", "norm": True, "train_end_norm": True}
BASES = {  # what a field needs beside it
    "temperature": {"target_type": "soft_1"},
    "match_layers": {"target_type": "match_later"},
    "iri_steps": {"train_on": "iri", "iri_images": 3},
    "stage_epochs": {"target_type": "match,hard", "stage_epochs": "20,10"},
}


def test_every_field_is_in_the_key() -> None:
    keys = {SPEC.key()}
    for field in fields(SPEC):
        value = getattr(SPEC, field.name)
        base = replace(SPEC, **BASES.get(field.name, {}))
        other = OTHER.get(field.name, "bn7" if isinstance(value, str) else value + 1 if value is not None else 3)
        keys.add(replace(base, **{field.name: other}).key())
    assert len(keys) == 1 + len(fields(SPEC))
    assert SPEC.key(weights="a") != SPEC.key(weights="b") != SPEC.key()


def test_whole_numbers_in_fields_of_floating_point_are_converted() -> None:
    whole, exact = replace(SPEC, lr=1, l1=2), replace(SPEC, lr=1.0, l1=2.0)
    assert whole == exact and whole.key() == exact.key() and isinstance(whole.lr, float)
    assert replace(SPEC, lr=0.1).key() != replace(SPEC, lr=0.1 + 1e-17).key() or 0.1 == 0.1 + 1e-17
    assert replace(SPEC, lr=0.1).key() != replace(SPEC, lr=0.10000000000000002).key()


def test_both_spellings_of_a_mask_are_one_stitch() -> None:
    assert replace(SPEC, mask="random-permuation") == replace(SPEC, mask="random-permutation")


def test_a_key_stays_what_it_is() -> None:
    """Results of yesterday are found by it: only a new format may change it."""
    assert SPEC.key() == "a56feaf247742bf0bbc005f5a9d8feafd6ad261c67ca9b4318c437363526a07f"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "muon"}, "unknown optimizer 'muon'; choose from adam, sgd"),
        ({"init": "best"}, "unknown init 'best'; choose from eye"),
        ({"target_type": "easy"}, "unknown target type 'easy'"),
        ({"target_type": "match,hard"}, "match,hard is trained in 2 stages, and --epochs 30 says .* such as -e 2,2"),
        ({"target_type": "match,hard", "stage_epochs": "1,2"}, "stages of 1,2 epochs are not 30 epochs in all"),
        ({"target_type": "hard", "stage_epochs": "30"}, "stages of 30 epochs"),
        ({"target_type": "match,hard", "stage_epochs": "1,x"}, "'x' is not a whole number, 0 or more"),
        ({"low_rank": 2, "mask": "semi-match"}, "excludes"),
        ({"lr": 0}, "learning rate 0.0"),
        ({"epochs": -1}, "-1 epochs"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


def test_every_option_is_a_field() -> None:
    names = {field.name for field in fields(SPEC)}
    assert {option.field for option in OPTIONS} <= names
    others = {"front_layer", "end_layer", "amp", "tf32", "debug", "stage_epochs"}  # the last is said by --epochs
    assert names - {option.field for option in OPTIONS} == others
