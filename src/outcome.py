"""What came of stitches: their maps, how near these come to the end network, and what the stitched networks do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.activations import BATCH_SIZE
from src.dataset import Split
from src.evaluation import PairView
from src.learner import History
from src.metrics.moments import Affine, PairedMoments, least_squares, squared_error
from src.scores import Tally, tally
from src.stitching import LOGITS, Cuts, MaskedStitch, StitchLayer, StitchSpec, from_arrays
from src.stitching.inits import INITS

FIT_COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
# the published keys: cka is the front network's, cka_frank that of the trained stitch
SUFFIX = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv", "ls_train": "_ls_train"}
PUBLISHED = {"after": "trans"}  # in model_results
STAGES = ("before", "after", "ps_inv", "ls_train")  # maps that are scored


@dataclass(slots=True)
class Work:
    """A stitch on its way: what it is to be, the layer, what training made of it, and why it failed if it did.

    names: under which name each of its maps is scored; maps that are equal share one.
    """

    spec: StitchSpec
    layer: StitchLayer
    initial: dict[str, Any]
    history: History = field(default_factory=History)
    failure: str | None = None
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    fits: dict[str, dict[str, int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    similar: dict[str, Any] = field(default_factory=dict)


class Outcomes:
    """The maps of all stitches that came through training, told apart, and what is known of each."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts = cuts
        self._known: dict[tuple, str] = {}
        self._stitches: dict[str, tuple[StitchSpec, StitchLayer]] = {}

    def add(
        self, works: Sequence[Work], on_val: PairedMoments, on_train: PairedMoments | None, view: PairView | None
    ) -> None:
        """Finish the maps of stitches of one pair of layers, from its moments; similarity from a view of it."""
        exact, fitted = least_squares(on_val), least_squares(on_train) if on_train else None
        geometry = self.cuts.geometry(works[0].spec)
        for work in works:
            own = work.spec.needs_train_moments  # what others asked for must not change what this one says
            _add_maps(work, on_val, exact, on_train if own else None, fitted if own else None)
            for stage in STAGES:
                if stage in work.maps:
                    work.names[stage] = self._name(work, stage)
        mine = {name: self._stitches[name][1] for work in works for name in work.names.values()}
        ckas = view.ckas(mine) if view else {}
        for work in works:
            for stage, name in {"front": "front", **work.names}.items():
                work.similar[f"cka{SUFFIX[stage]}"] = ckas.get(name)
            work.similar["cka_group_at"] = view.cka_group if view else None
            work.similar |= _distances(work.maps, on_val, same_shape=geometry.front_shape == geometry.end_shape)

    def _name(self, work: Work, stage: str) -> str:
        w, b = (np.asarray(work.maps[stage][key], dtype=np.float32) for key in ("w", "b"))
        key = work.spec.cut, w.tobytes(), b.tobytes()
        if key not in self._known:
            self._known[key] = name = f"map {len(self._known)}"
            layer = from_arrays(work.maps[stage], self.cuts.geometry(work.spec)).to(self.cuts.device)
            self._stitches[name] = work.spec, layer
        return self._known[key]

    def score(self, works: Sequence[Work], val: Split, *, labelled: bool) -> Tally:
        """One pass over the validation images that scores both networks and every map of every stitch."""
        couples = dict.fromkeys(couple for work in works for couple in _couples(work.names).values())
        counts = Tally(val.spec.task, target="end", couples=list(couples), labelled=labelled)
        layers = [*(work.spec.front_layer for work in works), LOGITS]

        def forward(images: Tensor) -> dict[str, Tensor]:
            front = self.cuts.outputs("front", layers, images)
            logits = {"front": front[LOGITS], "end": self.cuts.outputs("end", [LOGITS], images)[LOGITS]}
            stitched = {
                name: self.cuts.logits(spec, layer, front, images) for name, (spec, layer) in self._stitches.items()
            }
            return logits | stitched

        return tally(forward, val, counts, batch_size=BATCH_SIZE, title="evaluating") if works else counts

    def result(self, work: Work, counts: Tally) -> dict[str, Any]:
        """What a result file says of one stitch."""
        geometry = self.cuts.geometry(work.spec)
        stages = {"front": "front", "end": "end", **work.names}
        agreeing = {stage: name for stage, name in stages.items() if stage != "end"}
        return {
            "geometry": {"front": geometry.front_shape, "end": geometry.end_shape, "layouts": geometry.layouts},
            "trans_fit": pd.DataFrame(work.history.epochs, columns=FIT_COLUMNS),
            "trans_history": {iteration: _published(state) for iteration, state in work.history.snapshots.items()},
            "trans_m": work.maps,
            "fits": work.fits,
            "model_results": {PUBLISHED.get(stage, stage): counts.scores(name) for stage, name in stages.items()},
            "hits": {key: counts.hits(*couple) for key, couple in _couples(work.names).items()},
            "m2_sim": {{"front": "m1"}.get(stage, stage): counts.agreement(name) for stage, name in agreeing.items()},
            **work.similar,
        }


def _add_maps(
    work: Work, on_val: PairedMoments, exact: Affine, on_train: PairedMoments | None, fitted: Affine | None
) -> None:
    """before, after, their difference; least squares on validation and on training images; the first minus after."""
    after = work.layer.arrays()
    mask = work.layer.mask.cpu().numpy() if isinstance(work.layer, MaskedStitch) else np.ones_like(after["w"])
    ps_inv = _as_arrays(exact, after)
    work.maps = {
        "before": work.initial,
        "after": after,
        "diff": _difference(after, work.initial),
        "ps_inv": ps_inv,
        "ps_frank": _difference(ps_inv, after),
        "mask": {"w": mask.reshape(after["w"].shape), "b": np.ones_like(after["b"])},
    }
    unknowns = work.layer.geometry.inputs + 1
    work.fits = {"ps_inv": {"rows": on_val.n, "unknowns": unknowns}}
    if on_train and fitted:
        work.maps["ls_train"] = _as_arrays(fitted, after)
        work.fits["ls_train"] = {"rows": on_train.n, "unknowns": unknowns}
        if INITS[work.spec.init].needs_moments:
            free = int(max((mask.reshape(len(mask), -1) != 0).sum(1))) + 1
            work.fits["before"] = {"rows": on_train.n, "unknowns": free}


def _as_arrays(affine: Affine, like: dict[str, Any]) -> dict[str, Any]:
    return {"w": affine.w.cpu().numpy().reshape(like["w"].shape), "b": affine.b.cpu().numpy()}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] - other[key] for key in ("w", "b")}


def _distances(maps: Mapping[str, dict[str, Any]], moments: PairedMoments, *, same_shape: bool) -> dict[str, Any]:
    """`l2`, the mean squared difference to the end network's activation, and `l2_relative`, over its mean variance."""
    outputs = len(moments.mean_y)
    variance = float(moments.yy.trace()) / moments.n / outputs
    values: dict[str, Any] = {}
    for stage, suffix in SUFFIX.items():
        if stage == "front":
            unchanged = Affine(torch.eye(outputs), torch.zeros(outputs))
            l2 = squared_error(moments, unchanged) if same_shape else None
        elif stage in maps:
            w, b = (torch.as_tensor(np.asarray(maps[stage][key])) for key in ("w", "b"))
            l2 = squared_error(moments, Affine(w.reshape(outputs, -1), b))
        else:
            continue
        values[f"l2{suffix}"] = l2
        values[f"l2_relative{suffix}"] = None if l2 is None else l2 / variance if variance else float("nan")
    return values


def _couples(names: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The published key of each couple whose hits are counted together."""
    return {
        "m2_frank": ("end", names["after"]),
        "m2_ps_inv": ("end", names["ps_inv"]),
        "frank_ps_inv": (names["after"], names["ps_inv"]),
    }


def _published(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A snapshot of the stitch under the names that published results give its parameters."""
    return {f"transform.{name}": value.numpy() for name, value in state.items()}
