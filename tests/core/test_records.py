"""What files say is checked by kind, shown without control characters, and named in one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.core import records
from src.core.errors import UserError
from src.core.records import Each, Maybe, Several, check, read_json
from src.core.text import has_controls, in_line, visible

ESCAPE = "\x1b[2J"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (records.TEXT, ["", "a b", "\u00e4", "\udcff"], [1, None, b"x", ESCAPE, "a\nb", "\u202e", "x" * 30_000]),
        (records.SIZE, [1, 4096, np.int64(3)], [0, 4097, 10**400, True, 1.0, "1", float("inf"), np.float32(1)]),
        (records.SEED, [0, 2**63 - 2], [-1, 2**63 - 1, "../../x", None]),
        (records.FRACTION, [1, 0.5, np.float32(0.5)], [0, 1.5, -1, math.nan, True, None, [1]]),
        (records.SCORE, [0, 1.0, math.nan], [2, -0.1, 1j, np.complex64(0)]),
        (records.DIGEST, ["", "a" * 64], ["a", "/" * 64, 7]),
        (
            records.ARRAY,
            [np.zeros(2), torch.zeros(2)],
            [np.array([None]), [1], torch.eye(2).to_sparse(), np.array("a")],
        ),
    ],
)
def test_a_kind_takes_what_it_says(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check({"field": value}, {"field": kind})
    for value in bad:
        with pytest.raises(UserError, match="^field is ") as caught:
            check({"field": value}, {"field": kind})
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_tables_within_tables_name_the_place_and_new_fields_pass() -> None:
    table = {"networks": Each({"seed": Maybe(records.SEED)}), "sizes": Several(records.SIZE, 2)}
    check({"networks": {"front": {"seed": None, "new": object()}, "end": {}}, "sizes": (1, 2), "newer": 1}, table)
    for value, complaint in (
        ({"networks": {"end": {"seed": "x"}}}, "^networks.end.seed is 'x', not a whole number"),
        ({"networks": {ESCAPE: {}}}, r"^networks has the key '\\x1b\[2J'$"),
        ({"networks": [1]}, "^networks is a list, not a table$"),
        ({"sizes": [1, 2, 3]}, "^sizes is a list of 3, and 2 are the most$"),
        ({"sizes": [1, 0]}, r"^sizes\[1\] is 0, not a whole number from 1 to 4096$"),
        (None, "^it is None, not a table$"),
    ):
        with pytest.raises(UserError, match=complaint):
            check(value, table)
    with pytest.raises(UserError, match=r"^a is missing$"):
        check({}, {"a": records.TEXT}, required=["a"])


def test_control_characters_are_shown() -> None:
    assert visible(f"a{ESCAPE}\tb\n\x9b\u202e\ud800") == "a\\x1b[2J\tb\n\\x9b\\u202e\\ud800"
    assert in_line(f"{ESCAPE}\r\nb") == "\\x1b[2J\\x0d"
    assert has_controls(ESCAPE) and not has_controls("\u00e4\udcff")


def test_json_of_files_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path, 100) == {"a": 1}
    for content in ("[" * 100_000, "{", "x" * 200_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"x\.json is (no JSON|larger than such a file is)$"):
            read_json(path, 150_000)
