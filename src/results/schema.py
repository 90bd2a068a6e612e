"""What results say, a kind a field: those that are used when a result is read. Others pass unread."""

from typing import Any

import pandas as pd

from src.core.records import (
    ARRAY,
    NATURAL,
    NETWORK,
    NUMBER,
    POSITIVE,
    SCORE,
    SIZE,
    TEXT,
    Each,
    Kind,
    Maybe,
    Several,
    check,
)
from src.stitching.stages import COMPARED
from src.stitching.stitch_spec import spec_table

_SCORES = {"acc": Maybe(SCORE), "loss": Maybe(NUMBER)}
_NUMBERS = Each(Maybe(NUMBER))
_VERDICT = {"value": Maybe(NUMBER), "low": Maybe(NUMBER), "high": Maybe(NUMBER), "reason": TEXT}
_FRAME = Kind("a frame", lambda value: isinstance(value, pd.DataFrame))
PARAMS = {
    "front_model": TEXT,
    "end_model": TEXT,
    "dataset": Maybe(TEXT),
    "evaluate_on": Maybe(TEXT),
    "image_size": Maybe(SIZE),
    **spec_table(),
}
# what stitch_nets.py and its published ancestor write
STITCH: dict[str, Any] = {
    "params": PARAMS,
    "key": Maybe(TEXT),
    "weights": Maybe(Each(Maybe(NETWORK))),
    "geometry": Maybe({"layouts": Maybe(Each(Maybe(TEXT)))}),
    "trans_m": Each(Each(ARRAY)),
    "trans_history": Maybe(Each(Each(ARRAY), int)),
    "trans_fit": Maybe(_FRAME),
    "fits": Maybe(Each({"rows": NATURAL, "unknowns": POSITIVE})),
    "model_results": Each(_SCORES),
    "m2_sim": Maybe(Each(_NUMBERS)),
    "match_errors": Maybe(Each(_NUMBERS)),
    "identical": Maybe({"relative_error": Each(NUMBER), "minus_data": _VERDICT, "images": NATURAL, "steps": NATURAL}),
    "robust": Maybe(Each(SCORE)),
    "early_stop": Maybe(Each(NATURAL)),
    "intervals": Maybe(Each(Each(Maybe(Several(Maybe(NUMBER), 2))))),
    "controls": Maybe(Each(_SCORES | {"each": Several(_SCORES)})),
    "penalty": Maybe(_VERDICT),
    "score": Maybe(_VERDICT),
    "ood": Maybe(Each(Each(_NUMBERS))),
    "constant_accuracy": Maybe(SCORE),
    "images": Maybe(Each(POSITIVE)),
    **{f"{name}{stage.suffix}": Maybe(NUMBER) for name in ("cka", "l2", "l2_relative") for stage in COMPARED.values()},
}
# what studies write of a comparison
COMPARISON: dict[str, Any] = {"networks": Several(NETWORK, 2), "frame": _FRAME}


def _arrays_alone(maps: Any) -> Any:
    """The maps of a result without the name of their family, which is text among their arrays."""
    if not isinstance(maps, dict):
        return maps
    return {
        stage: {name: part for name, part in arrays.items() if name != "family" or not TEXT.accepts(part)}
        if isinstance(arrays, dict)
        else arrays
        for stage, arrays in maps.items()
    }


def check_result(result: Any) -> None:
    """Raise UserError where the result of a stitch or of a comparison says what none does."""
    if not isinstance(result, dict):
        return
    if {"params", "trans_m"} <= result.keys():
        check(result | {"trans_m": _arrays_alone(result["trans_m"])}, STITCH)
    elif {"networks", "frame"} <= result.keys():
        check(result, COMPARISON)
