"""Stitches between two networks: started, trained side by side, held against both. No options, files or printing."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.precision import full_precision
from src.dataset import Split, hold_out
from src.evaluation.identical import IdenticalCache, fixed_subset, identical_inputs
from src.evaluation.probe import PooledFeatures
from src.evaluation.scores import AgreementCounter
from src.stitching.cka import FRONT, can_share, cka_group, ckas, passes, share, shared_ckas
from src.stitching.controls import CONTROLS, control_specs, possible_controls, prepare_controls
from src.stitching.cut_networks import CutNetworks
from src.stitching.families import KernelStitch, widening_of
from src.stitching.fits import StartData, check_patches, fitted_kernel, gather_start_data, wants_patches
from src.stitching.inits import init_of
from src.stitching.layer import ConstantStitch, Stitch
from src.stitching.moments import Moments, end_variances, gather_moments, mean_variance
from src.stitching.naming import spec_names
from src.stitching.objective import StitchObjective
from src.stitching.ood import out_of_distribution
from src.stitching.outcome import Outcomes, StitchRun
from src.stitching.significance import paired_shares
from src.stitching.stacked import CHUNK, stack
from src.stitching.stacked_maps import SCORED
from src.stitching.start import initial_stitch
from src.stitching.stitch_spec import DATA, IDENTICAL, ControlSpec, Cut, StitchSpec, TrainingInputs
from src.stitching.targets import AT_FINAL, AT_STITCH, TARGETS
from src.stitching.validation import Validation, comes_later, scores_of
from src.training.loop import DEBUG_STEPS, after, check_batch, diverged, fit_together, scored
from src.training.run_state import Course, Resume
from src.training.train_state import History, TrainState
from src.training.watch import Watch

Outcome = dict[str, Any] | FloatingPointError
HELD_OUT = 0.1  # of the training images, for early stopping


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who hears of the course of the work: a notice in a line, and an epoch that is done, with its history."""

    on_message: Callable[[str], None] = lambda text: None
    on_epoch: Callable[[StitchSpec, History], None] = lambda spec, history: None


@dataclass(frozen=True, slots=True)
class StitchPlan:
    """How stitches are made and judged, beside what their specs say.

    similarity: also CKA with the end network's activation, the dearest part. labelled, front_labelled: whether the
    labels are of the classes of the end, and of the front network. comparable: whether both networks decide between the
    same classes. ood: also whether what is handed on looks like end's own. adversarial: the bound within which images
    are changed against each network, 0 for not at all. controls: names of CONTROLS. fresh(seed): an untrained network
    of the front's architecture that takes the same images. memory: bytes of moments held at once, and of activations of
    validation images from one epoch to the next.
    `resume` says where the state of those that train together is kept, `identical` where inputs are that the front
    network cannot tell from the training images. stacked: so many stitches are computed together, 0 for each on its
    own, whatever the device has.
    """

    similarity: bool = True
    labelled: bool = True
    front_labelled: bool = True
    comparable: bool = True
    ood: bool = False
    adversarial: float = 0.0
    controls: Sequence[str] = ()
    fresh: Callable[[int], nn.Module] | None = None
    memory: float = MEMORY
    resume: Callable[[Sequence[StitchSpec]], Resume] | None = None
    identical: IdenticalCache = field(default_factory=lambda: IdenticalCache(None, {}))
    callbacks: Callbacks = field(default_factory=Callbacks)
    stacked: int | None = None

    def chunk(self, device: torch.device) -> int:
        """Stitches that are computed together on a device; 0: each takes its own step, as on a processor."""
        usual = CHUNK if device.type == "cuda" else 0
        return usual if self.stacked is None else self.stacked

    def scored(self, device: torch.device) -> int:
        """Stitches that are scored together."""
        return min(SCORED, self.chunk(device))


@full_precision()
def stitch(cuts: CutNetworks, train: Split, val: Split, plan: StitchPlan | None = None) -> list[Outcome]:
    """The result of each of `cuts.specs`, in their order; a FloatingPointError stands for one that diverged.

    All that share a seed, epochs, batch size and precision train side by side, their controls with them; images,
    augmentation and the networks are computed once a batch for all of them, and what comes of each is what would come
    of it alone. One pass over the images of each split gathers the moments of all pairs of layers, and one scores all
    stitches; beyond `plan.memory` the stitches are taken in groups.
    """
    plan = plan or StitchPlan()
    controls, notes = possible_controls(plan.controls, labelled=plan.labelled, task=train.spec.task)
    plan = replace(plan, controls=controls)
    if plan.adversarial and not plan.labelled:
        raise UserError("--adversarial attacks decisions about labels, and these are of other classes than end's")
    for note in [*notes, *check_patches(cuts, cuts.specs, plan.memory)]:
        plan.callbacks.on_message(note)
    for spec in cuts.specs:
        if spec.epochs:
            check_batch(spec.batch_size, spec.trained_on(len(train)))
    groups = list(_groups(cuts, plan, len(train)))
    if len(groups) > 1:
        inputs = len({spec.inputs for spec in cuts.specs})
        seeds = len({(spec.inputs, spec.seed) for spec in cuts.specs}) if plan.controls else inputs
        reasons = [f"to stay below {plan.memory / 1e9:g} GB of moments"] * (len(groups) > seeds)
        reasons += ["each seed with controls of its own"] * (seeds > inputs)
        reasons += ["each set of training images on its own"] * (inputs > 1)
        plan.callbacks.on_message(f"{len(cuts.specs)} stitches in {len(groups)} groups, {', and '.join(reasons)}")
    outcomes: dict[StitchSpec, Outcome] = {}
    right: dict[StitchSpec, np.ndarray] = {}
    made: dict[TrainingInputs, tuple[Split, dict[str, Any]]] = {}
    for specs in groups:
        (inputs,) = {spec.inputs for spec in specs}
        if inputs not in made:
            made = {inputs: _trained_on(inputs, cuts, train, plan)}
        split, facts = made[inputs]
        group = _Group(cuts, specs, split, val, plan, usual=train)
        found = group.outcomes()
        outcomes |= {spec: outcome | facts if isinstance(outcome, dict) else outcome for spec, outcome in found.items()}
        right |= group.right
    _add_differences(outcomes, right)
    return [outcomes[spec] for spec in cuts.specs]


def _trained_on(
    inputs: TrainingInputs, cuts: CutNetworks, train: Split, plan: StitchPlan
) -> tuple[Split, dict[str, Any]]:
    """The images that stitches are trained on, and what a result says of them."""
    if inputs.kind == DATA:
        return (fixed_subset(train, inputs.images) if inputs.images else train), {}
    layer = inputs.front_layer

    def forward(images: Tensor) -> Tensor:
        return cuts.outputs("front", [layer], images)[layer]

    made = identical_inputs(forward, train, layer, plan.identical, steps=inputs.steps, count=inputs.images)
    return made.split, {"identical": made.facts()}


def _add_differences(outcomes: Mapping[StitchSpec, Outcome], right: Mapping[StitchSpec, np.ndarray]) -> None:
    """Say beside each stitch of identically represented inputs what it reaches minus what its twin of the data does."""
    for spec, outcome in outcomes.items():
        if isinstance(outcome, dict) and spec.train_on == IDENTICAL and spec in right and spec.twin in right:
            apart = paired_shares(right[spec], right[spec.twin])
            outcome["identical"] = outcome["identical"] | {"minus_data": apart}  # what it was is of all on these inputs


def _groups(cuts: CutNetworks, plan: StitchPlan, images: int) -> Iterator[list[StitchSpec]]:
    """The specs by pairs of layers, as many pairs at once as their moments of both splits leave room for.

    Controls belong to a seed, so with them each seed has groups of its own, and so has each set of training images.
    """
    sets = dict.fromkeys((spec.inputs, spec.seed if plan.controls else None) for spec in cuts.specs)
    for inputs, seed in sets:
        specs = [spec for spec in cuts.specs if spec.inputs == inputs and seed in (None, spec.seed)]
        group: list[StitchSpec] = []
        held = 0.0
        for cut in dict.fromkeys(spec.cut for spec in specs):
            same = [spec for spec in specs if spec.cut == cut]
            geometry = cuts.geometry(cut)
            sewn = control_specs(geometry, same[0], plan.controls, images)
            fronts = 1 + len({one.cut for some in sewn.values() for one in some})
            needed = 2 * 8 * fronts * (geometry.inputs + geometry.outputs) ** 2
            if group and held + needed > plan.memory:
                yield group
                group, held = [], 0.0
            group += same
            held += needed
        if group:
            yield group


class _Group:
    """Stitches that share their passes over the images, with their controls."""

    def __init__(
        self, cuts: CutNetworks, specs: list[StitchSpec], train: Split, val: Split, plan: StitchPlan, *, usual: Split
    ) -> None:
        """`usual` are the training images as they are, which tell what the end network is used to."""
        self.right: dict[StitchSpec, np.ndarray] = {}
        self.plain = cuts, val  # before controls put images beside these
        self.specs, self.plan, self.callbacks = specs, plan, plan.callbacks
        names = [name for name in plan.controls if plan.labelled or not CONTROLS[name].fit]
        self.sewn = {spec: control_specs(cuts.geometry(spec.cut), spec, names, len(train)) for spec in specs}
        self.names = dict(zip(cuts.specs, spec_names(cuts.specs), strict=True))
        self.cuts, self.train, self.val, self.usual = cuts, train, val, usual
        if names:
            made = prepare_controls(cuts, specs, names, (train, val, usual), fresh=plan.fresh)
            self.cuts, (self.train, self.val, self.usual) = made
        self.fits = {name: fit for name in names if (fit := CONTROLS[name].fit)}

    def outcomes(self) -> dict[StitchSpec, Outcome]:
        sewn = dict.fromkeys(spec for names in self.sewn.values() for several in names.values() for spec in several)
        asking = [spec for spec in [*self.specs, *sewn] if spec.needs_train_moments]
        averages = PooledFeatures([spec.front_layer for spec in self.specs]) if self.fits else None
        title = "moments on train" if asking else "averages for probes"
        on_train = gather_moments(
            self.cuts, asking, self.train, title=title, on_message=self.callbacks.on_message, averages=averages
        )
        data = gather_start_data(self.cuts, [*self.specs, *sewn], self.train, on_train)
        works = {spec: self._start(spec, data) for spec in self.specs}
        controls = {spec: self._start_control(spec, data) for spec in sewn}
        self.variances = self._variances([*works, *controls], on_train)
        stacked = self.plan.chunk(self.train.device) > 0
        for groups in _training_groups([*works.values(), *controls.values()], stacked=stacked):
            self._train(groups)
        done = [work for work in works.values() if not work.failure]
        outcomes = Outcomes(self.cuts, front_labelled=self.plan.front_labelled, comparable=self.plan.comparable)
        self._finish_maps(outcomes, done, on_train)
        layers = dict.fromkeys(work.spec.front_layer for work in done)
        heads = {
            (name, layer): fit(averages, layer, self.train)
            for name, fit in self.fits.items()
            for layer in layers
            if averages
        }
        for work in done:
            held = {name: [controls[one] for one in names] for name, names in self.sewn[work.spec].items()}
            outcomes.attach_controls(work, held, {name: heads[name, work.spec.front_layer] for name in self.fits})
        self._tell_diverged(controls)
        at_once = self.plan.scored(self.val.device)
        counts = outcomes.score(done, self.val, labelled=self.plan.labelled, at_once=at_once)
        ood = out_of_distribution(self.cuts, outcomes.sewn(), self.usual, self.val) if self.plan.ood else None
        self._note_scores(done, counts)
        robust = outcomes.robust(*self.plain, done, self.plan.adversarial) if self.plan.adversarial else {}
        surroundings = {
            "constant_accuracy": self.val.spec.task.constant_accuracy(self.val.labels) if self.plan.labelled else None,
            "images": {"train": len(self.train), "val": len(self.val)},
        }
        return {
            spec: FloatingPointError(work.failure)
            if work.failure
            else outcomes.result(work, counts, ood) | surroundings | robust.get(spec, {})
            for spec, work in works.items()
        }

    def _finish_maps(self, outcomes: Outcomes, done: Sequence[StitchRun], on_train: Moments) -> None:
        """The maps of each stitch, and how near they come to the end network's activation."""
        cuts, val = self.cuts, self.val
        keeps = {work.spec.cut: can_share(cuts.geometry(work.spec.cut), len(val)) for work in done}
        shared: dict[Cut, list[StitchRun]] = {}
        others: dict[Cut, list[StitchRun]] = {}
        for work in done:  # by what a stitch is itself, so that its bits do not depend on its company
            apart = self.plan.similarity and work.layer.affine() is not None and keeps[work.spec.cut]
            (shared if apart else others).setdefault(work.spec.cut, []).append(work)
        specs = [work.spec for works in others.values() for work in works]
        on_val = gather_moments(cuts, specs, val, title="moments on val", on_message=self.callbacks.on_message)
        asked = {cut: outcomes.add(others[cut], moments, on_train.get(cut)) for cut, moments in on_val.items()}
        for some in passes(cuts, list(shared), len(val)):
            both = share(cuts, some, val)
            for cut in some:  # whose activations are kept meanwhile
                stitches = outcomes.add(shared[cut], both[cut].moments, on_train.get(cut))
                outcomes.add_ckas(shared[cut], shared_ckas(both.pop(cut), stitches))
        if not self.plan.similarity:
            return
        by_stitch = ckas(cuts, asked, val)
        for cut, stitches in asked.items():
            if group := cka_group(cuts.geometry(cut), len(val)):
                self.callbacks.on_message(
                    f"cka: mean over groups of {group} images, since all activations are too large to keep"
                )
            outcomes.add_ckas(others[cut], {name: by_stitch[cut, name] for name in (FRONT, *stitches)}, group)

    def _tell_diverged(self, controls: Mapping[ControlSpec, StitchRun]) -> None:
        for control, work in controls.items():
            if not work.failure:
                continue
            whose: dict[str, list[str]] = {}  # stitches may share it
            for spec, sewn in self.sewn.items():
                for name in (name for name, several in sewn.items() if control in several):
                    whose.setdefault(control.source if len(sewn[name]) > 1 else name, []).append(self.names[spec])
            for name, stitches in whose.items():
                of = f" of {', '.join(stitches)}" if len(self.names) > 1 else ""
                self.callbacks.on_message(f"warning: the control {name}{of} has no value: {work.failure}")

    def _variances(self, specs: Sequence[StitchSpec], on_train: Moments) -> dict[tuple[Cut, str], float]:
        """The variance of the end network's own activations on training images, by cut and target."""
        targets = {(spec, stage.target) for spec in specs for stage in spec.stages}
        finals = {
            cut_target: self.cuts.matched(*cut_target)[0]
            for cut_target in targets
            if TARGETS[cut_target[1]].at == AT_FINAL
        }
        of_finals = end_variances(self.cuts, sorted(set(finals.values())), self.train)
        variances = {(spec.cut, target): of_finals[layer] for (spec, target), layer in finals.items()}
        for spec, target in targets:
            if TARGETS[target].at == AT_STITCH:
                variances[spec.cut, target] = mean_variance(on_train[spec.cut])
        return {key: value or 1.0 for key, value in variances.items()}  # of a dead layer the squares themselves

    def _start(self, spec: StitchSpec, data: StartData) -> StitchRun:
        layer = self._with_norms(spec, _initial(self.cuts, spec, data))
        if not any(weights.any() for weights in layer.matrices()):
            self.callbacks.on_message(
                f"warning: --mask {spec.mask} keeps no weight of --init {spec.init}; all weights start at zero"
            )
        if spec.init == "orthogonal" and layer.geometry.outputs < layer.geometry.inputs:
            self.callbacks.on_message(
                f"--init orthogonal: {layer.geometry.outputs} outputs are fewer than {layer.geometry.inputs} inputs, "
                "so it is the rotation nearest to the end activation with zeros appended"
            )
        return StitchRun(spec, layer, layer.arrays())

    def _start_control(self, spec: ControlSpec, data: StartData) -> StitchRun:
        layer = _initial(self.cuts, spec, data)
        if spec.constant:  # the best constant, where the end's mean is at hand, else what the stitch itself starts with
            moments = data.get(spec.cut)
            bias = moments.mean_y if moments else layer.affine().b
            layer = ConstantStitch(bias, layer.geometry).to(self.cuts.device)
        return StitchRun(spec, self._with_norms(spec, layer), {})

    def _with_norms(self, spec: StitchSpec, layer: Stitch) -> Stitch:
        """The stitch with statistics of its own of the end network, where these are to follow it."""
        if spec.train_end_norm:
            layer.norms = self.cuts.end_norms(spec.end_layer)
        return layer

    def _train(self, groups: Sequence[Sequence[StitchRun]]) -> None:
        """Train stitches, those of each group on the same batches, step by step next to each other."""
        learners = {id(work): self._learner(work, self.train.spec.task) for works in groups for work in works}
        of = {id(learners[id(work)]): work for works in groups for work in works}
        courses = [self._course(works, [learners[id(work)] for work in works]) for works in groups]
        specs = [work.spec for works in groups for work in works]
        own = [spec for spec in specs if not isinstance(spec, ControlSpec)]
        layers = f"{own[0].front_layer} -> {own[0].end_layer}" if len(own) == 1 else f"{len(own)} stitches"
        room = self.plan.memory if specs[0].epochs > 2 or specs[0].early_stop else 0  # the last is none of its own
        how = {"labelled": self.plan.labelled, "at_once": self.plan.scored(self.val.device), "room": room}
        validation = Validation(self.cuts, self.val, **how)

        def validate(train_states: Sequence[TrainState]) -> list[dict[str, float] | None]:
            """After an epoch; nobody asks for those of controls."""
            asked = {}
            for place, train_state in enumerate(train_states):
                spec, layer = of[id(train_state)].spec, of[id(train_state)].layer
                later = comes_later(spec, layer, 1 + len(train_state.history.epochs))
                if not (later or isinstance(spec, ControlSpec)):
                    asked[str(place)] = spec, layer
            found = validation(asked)
            return [found.get(str(place)) for place in range(len(train_states))]

        chunk = self.plan.chunk(self.train.device)
        captured = self.train.device.type == "cuda"
        fit_together(
            courses,
            validate=validate,
            max_steps=DEBUG_STEPS if specs[0].debug else None,
            tf32=specs[0].tf32,
            title=f"stitch {layers}",
            stack=partial(stack, chunk=chunk, captured=captured, told=self.callbacks.on_message) if chunk else None,
        )
        for course, works in zip(courses, groups, strict=True):
            for train_state, work in zip(course.train_states, works, strict=True):
                work.history, work.failure = train_state.history, train_state.failure
                work.layer.eval()
                if train_state.watch and course.held_out:
                    watch = train_state.watch
                    images = len(course.held_out)
                    work.early_stop = {"epoch": watch.epoch, "trained": watch.seen, "held_out": images}

    def _note_scores(self, works: Sequence[StitchRun], counts: AgreementCounter) -> None:
        """What the trained maps reach: the last epoch of those not validated after it, and what twins need."""
        for work in works:
            spec, name = work.spec, work.names["after"]
            if _waits(work.history):
                scores = scores_of(counts, name)
                if not math.isfinite(scores["loss"]):
                    steps = len(self.train) // spec.batch_size
                    where = after(spec.epochs, min(steps, DEBUG_STEPS) if spec.debug else steps)
                    work.failure = diverged(scores["loss"], where)
                    continue
                work.history.epochs[-1] |= scored(scores)
                self.callbacks.on_epoch(spec, work.history)
            if spec.iri_images and (shares := counts.shares("right", name)) is not None:
                self.right[spec] = shares

    def _course(self, works: Sequence[StitchRun], train_states: Sequence[TrainState]) -> Course:
        """What stitches of one seed are trained on, and who hears of it."""
        specs = [work.spec for work in works]

        def tell_epoch(epochs: int) -> None:
            for train_state, work in zip(train_states, works, strict=True):
                history = train_state.history  # of one that has learnt enough it does not grow
                if not isinstance(work.spec, ControlSpec) and len(history.epochs) == epochs and not _waits(history):
                    self.callbacks.on_epoch(work.spec, history)

        train, held_out = self.train, None
        if specs[0].early_stop:
            train, held_out = hold_out(self.train, HELD_OUT, seed=specs[0].seed)
        return Course(
            train_states,
            train,
            specs[0].seed,
            share=lambda images: self.cuts.share(specs, images, stage=train_states[0].stage),
            after_epoch=tell_epoch,
            resume=self.plan.resume(specs) if self.plan.resume else None,
            held_out=held_out,
        )

    def _learner(self, work: StitchRun, task: Any) -> TrainState:
        spec, is_control = work.spec, isinstance(work.spec, ControlSpec)
        stages = []
        for number, stage in enumerate(spec.stages):
            recipe = spec.recipe_for(stage.epochs)
            variance = self.variances.get((spec.cut, stage.target), 1.0)
            objective = StitchObjective(self.cuts, spec, work.layer, task, self.plan.labelled, number, variance)
            stages.append((replace(recipe, weight_decay=0.0) if spec.whiten else recipe, objective))
        return TrainState(
            work.layer,
            stages[0][1],
            stages[0][0],
            later=stages[1:],
            watch=Watch(spec.early_stop) if spec.early_stop else None,
            snapshot=work.layer.snapshot,
            snapshot_every=0 if is_control else spec.save_frequency * max(1, spec.epochs),
        )


def _waits(history: History) -> bool:
    """Whether the last epoch of a stitch is to be scored yet."""
    return bool(history.epochs) and "val_loss" not in history.epochs[-1]


def _initial(cuts: CutNetworks, spec: StitchSpec, data: StartData) -> Any:
    geometry = cuts.geometry(spec.cut)
    patches = data.patches.get((spec.cut, spec.kernel))
    if patches is not None and wants_patches(spec):
        return KernelStitch(*fitted_kernel(patches, spec.kernel), geometry).to(cuts.device)
    anchors = data.anchors.get((spec.cut, init_of(spec.init).anchors, spec.seed))
    affine = initial_stitch(
        geometry,
        data.get(spec.cut),
        init=spec.init,
        mask=spec.mask,
        rank=spec.low_rank,
        orthogonal=spec.orthogonal,
        seed=spec.seed,
        whiten=spec.whiten,
        data=anchors or data.folds.get(spec.cut),
    )
    if widening := widening_of(spec):
        generator = Generator().manual_seed(spec.seed + 1)  # the seed itself drew the affine map
        start = affine.affine()
        made = widening.build(start, geometry, getattr(spec, widening.field), data.get(spec.cut), generator)
        return made.to(cuts.device)
    return affine.to(cuts.device)


def _training_groups(works: Sequence[StitchRun], *, stacked: bool) -> list[list[list[StitchRun]]]:
    """Those that see the same batches in the same precision; where these are `stacked`, beside those of other seeds."""
    groups: dict[tuple, list[StitchRun]] = {}
    for work in works:
        groups.setdefault(work.spec.together, []).append(work)
    if not stacked:
        return [[group] for group in groups.values()]
    side_by_side: dict[tuple, list[list[StitchRun]]] = {}
    for key, group in groups.items():
        side_by_side.setdefault(key[1:], []).append(group)  # all but the seed
    return list(side_by_side.values())
