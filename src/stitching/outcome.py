"""What came of stitches: their maps, how near these come to the end network, and what the stitched networks do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.dataset import Split
from src.evaluation.adversarial import robust_accuracy
from src.evaluation.passes import batch_of
from src.evaluation.probe import Probe
from src.evaluation.scores import AgreementCounter, tally
from src.metrics.algebra.moments import Affine, PairedMoments, least_squares, squared_error
from src.metrics.diagnostics import diagnose, facts_of_sums
from src.stitching.cka import FRONT
from src.stitching.controls import CEILING, CONTROLS, FLOOR
from src.stitching.cut_networks import LOGITS, CutNetworks
from src.stitching.end_norms import PREFIX
from src.stitching.final_features import FinalFeatures
from src.stitching.fits import wants_patches
from src.stitching.geometry import Geometry
from src.stitching.inits import init_of
from src.stitching.layer import MaskedStitch, Stitch, affine_arrays, from_arrays
from src.stitching.moments import mean_variance
from src.stitching.ood import Scores
from src.stitching.significance import intervals_of, penalty_of, score_of
from src.stitching.stacked_maps import map_chunks
from src.stitching.stages import COMPARED, MAPS, STAGES
from src.stitching.stitch_spec import StitchSpec
from src.training.train_state import History

FIT_COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


@dataclass(slots=True)
class StitchRun:
    """A stitch on its way: what it is to be, the layer, what training made of it, and why it failed if it did.

    names: under which name each of its maps is scored; maps that are equal share one. controls: under which names the
    networks of each control are. variance: the mean variance of the end network's activation. early_stop: what became
    of it, where it was asked for.
    """

    spec: StitchSpec
    layer: Stitch
    initial: dict[str, Any]
    history: History = field(default_factory=History)
    failure: str | None = None
    controls: dict[str, list[str]] = field(default_factory=dict)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    fits: dict[str, dict[str, int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    similar: dict[str, Any] = field(default_factory=dict)
    variance: float = 0.0
    early_stop: dict[str, int] = field(default_factory=dict)


class Outcomes:
    """The maps of all stitches that came through training, told apart, and what is known of each."""

    def __init__(self, cuts: CutNetworks, *, front_labelled: bool = True, comparable: bool = True) -> None:
        self.cuts, self.comparable = cuts, comparable
        self.unlabelled = () if front_labelled else ("front",)
        self._known: dict[tuple, str] = {}
        self._stitches: dict[str, tuple[StitchSpec, Stitch]] = {}
        self._heads: dict[str, tuple[str, Probe]] = {}
        self._errors: dict[str, list[Tensor]] = {}
        self._finals = FinalFeatures(cuts)

    def add(
        self, works: Sequence[StitchRun], on_val: PairedMoments, on_train: PairedMoments | None
    ) -> dict[str, Stitch]:
        """Finish the maps of stitches of one pair of layers, from its moments, and return them by name."""
        exact, fitted = least_squares(on_val), least_squares(on_train) if on_train else None
        geometry = self.cuts.geometry(works[0].spec.cut)
        health = _health(geometry, on_val)
        for work in works:
            own = work.spec.needs_train_moments  # what others asked for must not change what this one says
            _add_maps(work, on_val, exact, on_train if own else None, fitted if own else None)
            for stage in MAPS:
                if stage in work.maps:
                    work.names[stage] = self._name(work, stage)
            work.similar = {f"cka{COMPARED[stage].suffix}": None for stage in ("front", *work.names)}
            work.similar |= {"health": health, "cka_group_at": None}
            work.variance = mean_variance(on_val)
            work.similar |= _distances(work.maps, on_val, same_shape=geometry.front_shape == geometry.end_shape)
        return {name: self._stitches[name][1] for work in works for name in work.names.values()}

    @staticmethod
    def add_ckas(works: Sequence[StitchRun], ckas: Mapping[str, float], group: int | None = None) -> None:
        """Note the CKA of every map by name, and of the front network's activation, `FRONT`."""
        for work in works:
            for stage, name in {"front": FRONT, **work.names}.items():
                work.similar[f"cka{COMPARED[stage].suffix}"] = ckas[name]
            work.similar["cka_group_at"] = group

    def _name(self, work: StitchRun, stage: str) -> str:
        key = work.spec.cut, *_bytes_of(work.maps[stage])
        if key not in self._known:
            self._known[key] = name = f"map {len(self._known)}"
            layer = from_arrays(work.maps[stage], self.cuts.geometry(work.spec.cut)).to(self.cuts.device).eval()
            self._stitches[name] = work.spec, layer
        return self._known[key]

    def attach_controls(
        self, work: StitchRun, sewn: Mapping[str, Sequence[StitchRun]], heads: Mapping[str, Probe]
    ) -> None:
        """Name the networks of a stitch's controls, so that they are scored with it: those that came through.

        sewn: by control its stitches. heads: by control what was fitted to features of the front layer instead.
        """
        for control, others in sewn.items():
            if others and not any(other.failure for other in others):
                work.controls[control] = [self._name_of(other) for other in others]
            elif not others and CONTROLS[control].is_end:
                work.controls[control] = ["end"]  # the end network stitched to itself by a map that changes nothing
        for control, head in heads.items():
            work.controls[control] = [f"{control} {work.spec.front_layer}"]
            self._heads[work.controls[control][0]] = work.spec.front_layer, head

    def _name_of(self, control: StitchRun) -> str:
        key = (control.spec,)
        if key not in self._known:
            self._known[key] = f"control {len(self._known)}"
            self._stitches[self._known[key]] = control.spec, control.layer
        return self._known[key]

    def sewn(self) -> dict[str, tuple[StitchSpec, Stitch]]:
        """Every map and control that is scored, by its name, probes left out."""
        return dict(self._stitches)

    def robust(
        self, cuts: CutNetworks, val: Split, works: Sequence[StitchRun], bound: float
    ) -> dict[StitchSpec, dict[str, Any]]:
        """The accuracy of both networks and of each map on images that are changed against it, by spec."""
        known: dict[str, float] = {}

        def accuracy(name: str) -> float:
            if name not in known:
                known[name] = robust_accuracy(_network(cuts, name, self._stitches), val, bound=bound, title="attacking")
            return known[name]

        rows = {"front": "front"} if self.comparable and not self.unlabelled else {}
        return {
            work.spec: {
                "robust": {row: accuracy(name) for row, name in {**rows, "end": "end", **work.names}.items()},
                "adversarial": bound,
            }
            for work in works
        }

    def score(self, works: Sequence[StitchRun], val: Split, *, labelled: bool, at_once: int = 0) -> AgreementCounter:
        """One pass over the validation images that scores both networks and every map of every stitch.

        at_once: so many affine maps into one layer together, 0 for each on its own.
        """
        couples = dict.fromkeys(couple for work in works for couple in _couples(work.names).values())
        kept = {name for work in works for name in _resampled(work, several=val.labels.dim() > 1)}
        counts = AgreementCounter(
            val.spec.task,
            target="end",
            couples=list(couples),
            labelled=labelled,
            unlabelled=self.unlabelled,
            keep=kept,
            at_once=at_once > 0,
        )
        specs = [spec for spec, _ in self._stitches.values()]
        networks = ["front", "end"] if self.comparable else ["end"]
        more = {role: [LOGITS] for role in networks}
        more.setdefault("front", []).extend(layer for layer, _ in self._heads.values())
        measured = {name for work in works for name in work.names.values() if self._stitches[name][1].affine() is None}
        more["end"] += [self._stitches[name][0].end_layer for name in measured]
        maps = {name for work in works for name in work.names.values()}
        more["end"] += self._finals.layers_for({name: self._stitches[name][0].end_layer for name in maps})

        size = batch_of(val)
        chunks, others = map_chunks(self.cuts, self._stitches, images=size, most=at_once)

        def forward(images: Tensor) -> dict[str, Tensor]:
            fronts = self.cuts.front_activations(specs, images, more)
            logits = {role: fronts[role][LOGITS] for role in networks}
            self._finals.add_own(fronts["end"])
            for chunk in chunks:
                logits |= self._finals.stacked_logits(chunk, fronts, images)
            for name, (spec, layer) in others.items():
                stitched = self.cuts.stitched(spec, layer, fronts)
                if name in measured:
                    self._errors.setdefault(name, []).append((stitched - fronts["end"][spec.end_layer]).square().sum())
                logits[name] = self._finals.logits(name, (spec, layer), stitched, images, fronts["end"])
            return logits | {name: head(fronts["front"][layer]) for name, (layer, head) in self._heads.items()}

        return tally(forward, val, counts, batch_size=size, title="evaluating") if works else counts

    def result(
        self, work: StitchRun, counts: AgreementCounter, ood: Mapping[str, Scores] | None = None
    ) -> dict[str, Any]:
        """What a result file says of one stitch; `ood` is what is known of the activations of each map by name."""
        geometry = self.cuts.geometry(work.spec.cut)
        stages = {"front": "front", "end": "end", **work.names}
        for stage, name in work.names.items():
            if name in self._errors:
                l2 = math.fsum(torch.stack(self._errors[name]).tolist()) / (
                    counts.images * math.prod(geometry.end_shape)
                )
                suffix = COMPARED[stage].suffix
                work.similar |= {f"l2{suffix}": l2, f"l2_relative{suffix}": _over(l2, work.variance)}
        errors = {
            stage: {
                "match": work.similar[f"l2_relative{COMPARED[stage].suffix}"],
                "match_final": self._finals.error(name, counts.images),
            }
            for stage, name in work.names.items()
        }
        return {
            "match_errors": errors,
            **({"early_stop": work.early_stop} if work.early_stop else {}),
            "geometry": {"front": geometry.front_shape, "end": geometry.end_shape, "layouts": geometry.layouts},
            "trans_fit": pd.DataFrame(work.history.epochs, columns=FIT_COLUMNS),
            "trans_history": {iteration: _published(state) for iteration, state in work.history.snapshots.items()},
            "parameters": work.layer.count(),
            "trans_m": work.maps,
            "fits": work.fits,
            "model_results": {STAGES[stage].scores: counts.scores(name) for stage, name in stages.items()},
            "hits": {key: counts.hits(*couple) for key, couple in _couples(work.names).items()},
            "m2_sim": {
                COMPARED[stage].agreement: counts.agreement(name) for stage, name in stages.items() if stage in COMPARED
            },
            **_verdicts(work, stages, counts),
            **({"ood": _rows_of_ood(work, ood)} if ood else {}),
            **work.similar,
        }


def _network(cuts: CutNetworks, name: str, stitches: Mapping[str, tuple[StitchSpec, Stitch]]) -> Any:
    """Images -> logits of one of the two networks, or of a stitched one by its name."""
    if name not in stitches:
        return lambda images: cuts.outputs(name, [LOGITS], images)[LOGITS]
    spec, layer = stitches[name]
    layer.eval()
    return lambda images: cuts.logits(spec, layer, cuts.front_activations([spec], images), images)


def _health(geometry: Geometry, moments: PairedMoments) -> dict[str, Any]:
    """Ranks and dead channels of the two activations on validation images, and what makes a fit to them doubtful."""
    if geometry.is_flat:
        view, shapes, positions = "images", (geometry.front_shape, geometry.end_shape), 1
    else:
        view, across = "channels", geometry.end_shape[1:]
        shapes = ((geometry.inputs, *across), (geometry.outputs, *across))
        positions = math.prod(across)
    facts = tuple(facts_of_sums(sums, ranked=True) for sums in (moments.x, moments.y))
    return asdict(diagnose(view, moments.n // positions, shapes, facts, ["ps_inv"], None, None))  # pyright: ignore


def _resampled(work: StitchRun, *, several: bool) -> list[str]:
    """The networks whose decisions are kept image by image: those of the score; all, of several labels."""
    if several:
        return ["front", "end", *work.names.values(), *(name for names in work.controls.values() for name in names)]
    bounds = [work.controls.get(control, []) for control in (CEILING, FLOOR)]
    twin = [work.names["after"]] if work.spec.iri_images else []
    return [work.names["after"], *bounds[0], *bounds[1]] if all(bounds) else twin


def _verdicts(work: StitchRun, stages: Mapping[str, str], counts: AgreementCounter) -> dict[str, Any]:
    """The controls' figures, how sure the accuracies are, and what they say of the trained stitch."""
    controls = {control: _control(names, counts) for control, names in work.controls.items()}
    single = {control: names[0] for control, names in work.controls.items() if len(names) == 1}
    verdicts: dict[str, Any] = {
        "intervals": {row: intervals_of(counts, name) for row, name in {**stages, **single}.items()},
        "penalty": penalty_of(counts, work.names["after"]),
    }
    if controls:
        verdicts["controls"] = controls
    if {FLOOR, CEILING} <= controls.keys():
        (ceiling,) = work.controls[CEILING]
        verdicts["score"] = score_of(counts, work.names["after"], work.controls[FLOOR], ceiling)
    if reason := _void(controls, counts.scores("end")["acc"]):
        none = {"value": None, "low": None, "high": None, "reason": reason}
        verdicts |= {name: none for name in ("penalty", "score") if verdicts.get(name)}
    return verdicts


def _void(controls: Mapping[str, Mapping[str, Any]], end: float | None) -> str:
    """Why neither penalty nor score say anything, where that is so: a front that knows nothing does better than end."""
    floor = controls.get(FLOOR, {}).get("acc")
    if floor is None or end is None or floor <= end:
        return ""
    return f"{FLOOR} fronts reach {floor:.1%} and end itself {end:.1%}, so what end loses to a stitch says nothing"


def _rows_of_ood(work: StitchRun, ood: Mapping[str, Scores]) -> dict[str, Scores]:
    """The scores of each map and control of a stitch; of several networks their means."""
    rows = {row: [name] for row, name in work.names.items()} | work.controls
    scored = {}
    for row, names in rows.items():
        each = [ood[name] for name in names if name in ood]
        if each:
            scored[row] = {
                place: {key: float(np.mean([one[place][key] for one in each])) for key in scores}
                for place, scores in each[0].items()
            }
    return scored


def _control(names: Sequence[str], counts: AgreementCounter) -> dict[str, Any]:
    """What the networks of a control reach: the mean of several, and the figures of each."""
    each = [{**counts.scores(name), **counts.agreement(name)} for name in names]
    kept = ("acc", "loss", "rel_acc", "same_class_out")
    means = {key: None if each[0][key] is None else float(np.mean([one[key] for one in each])) for key in kept}
    if names == ["end"]:
        return means | {"by_construction": True}
    return means | ({"each": [{key: one[key] for key in kept} for one in each]} if len(each) > 1 else {})


def _add_maps(
    work: StitchRun, on_val: PairedMoments, exact: Affine, on_train: PairedMoments | None, fitted: Affine | None
) -> None:
    """before, after, their difference; least squares on validation and on training images; the first minus after."""
    after, geometry = work.layer.all_arrays(), work.layer.geometry
    ps_inv = affine_arrays(exact, geometry)
    mask = (
        work.layer.mask.cpu().numpy()
        if isinstance(work.layer, MaskedStitch)
        else np.ones(ps_inv["w"].shape, np.float32)
    )
    work.maps = {"before": work.initial, "after": after}
    is_affine = work.layer.affine() is not None
    if is_affine:
        work.maps["diff"] = _difference(after, work.initial)
    work.maps["ps_inv"] = ps_inv
    if is_affine:
        work.maps["ps_frank"] = _difference(ps_inv, after)
        work.maps["mask"] = {"w": mask.reshape(after["w"].shape), "b": np.ones_like(after["b"])}
    unknowns = geometry.inputs + 1
    work.fits = {"ps_inv": {"rows": on_val.n, "unknowns": unknowns}}
    if on_train and fitted:
        work.maps["ls_train"] = affine_arrays(fitted, geometry)
        work.fits["ls_train"] = {"rows": on_train.n, "unknowns": unknowns}
        if init_of(work.spec.init).needs_moments:
            free = int(max((mask.reshape(len(mask), -1) != 0).sum(1))) + 1
            if wants_patches(work.spec):
                free = geometry.inputs * work.spec.kernel**2 + 1
            work.fits["before"] = {"rows": on_train.n, "unknowns": free}


def _bytes_of(arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a map from others: its family and its float32 numbers, of an affine one without its factors."""
    family = arrays.get("family")
    statistics = sorted(name for name in arrays if name.startswith(PREFIX))
    names = ["w", "b", *statistics] if family is None else sorted(arrays.keys() - {"family"})
    return family, *(np.asarray(arrays[name], dtype=np.float32).tobytes() for name in names)


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] - other[key] for key in ("w", "b")}


def _distances(maps: Mapping[str, dict[str, Any]], moments: PairedMoments, *, same_shape: bool) -> dict[str, Any]:
    """`l2`, the mean squared difference to the end network's activation, and `l2_relative`, over its mean variance."""
    outputs, variance = len(moments.mean_y), mean_variance(moments)
    values: dict[str, Any] = {}
    for stage, record in COMPARED.items():
        if not record.is_map:
            unchanged = Affine(torch.eye(outputs), torch.zeros(outputs))
            l2 = squared_error(moments, unchanged) if same_shape else None
        elif stage in maps and "family" in maps[stage]:
            l2 = None  # not affine: the scoring pass tells
        elif stage in maps:
            w, b = (torch.as_tensor(np.asarray(maps[stage][key])) for key in ("w", "b"))
            l2 = squared_error(moments, Affine(w.reshape(outputs, -1), b))
        else:
            continue
        values[f"l2{record.suffix}"] = l2
        values[f"l2_relative{record.suffix}"] = None if l2 is None else _over(l2, variance)
    return values


def _over(l2: float, variance: float) -> float:
    return l2 / variance if variance else float("nan")


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
