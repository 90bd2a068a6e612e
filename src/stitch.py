"""Stitches between two networks: started, trained side by side, held against both. No options, files or printing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from src.activations import BATCH_SIZE
from src.dataset import Split
from src.evaluation import PairView, can_share, view_pair
from src.gathering import gather_moments
from src.learner import History, Learner
from src.metrics.moments import PairedMoments
from src.outcome import Outcomes, Work
from src.scores import Tally, tally
from src.stitching import LOGITS, Cuts, StitchObjective, StitchSpec, initial_stitch
from src.training import DEBUG_STEPS, Resume, fit

Outcome = dict[str, Any] | FloatingPointError


@dataclass(frozen=True, slots=True)
class Tell:
    """Who hears of the course of the work: a notice in a line, and an epoch that is done, with its history."""

    notice: Callable[[str], None] = lambda text: None
    epoch: Callable[[StitchSpec, History], None] = lambda spec, history: None


def stitch(
    cuts: Cuts,
    train: Split,
    val: Split,
    *,
    similarity: bool = True,
    labelled: bool = True,
    memory: float = 8e9,
    resume: Callable[[Sequence[StitchSpec]], Resume] | None = None,
    tell: Tell | None = None,
) -> list[Outcome]:
    """The result of each of `cuts.specs`, in their order; a FloatingPointError stands for one that diverged.

    All that share a seed, epochs, batch size and precision train side by side; images, augmentation and both networks
    are computed once a batch for all of them, and what comes of each is what would come of it alone. One pass over the
    images of each split gathers the moments of all pairs of layers, and one scores all stitches; `memory` (bytes)
    bounds the moments held at once, beyond which the stitches are taken in groups.
    similarity: also CKA with the end network's activation, the dearest part. labelled: whether the labels are of the
    classes of these networks. `resume` says where the state of those that train together is kept.
    """
    tell = tell or Tell()
    groups = list(_groups(cuts, memory))
    if len(groups) > 1:
        tell.notice(f"{len(cuts.specs)} stitches in {len(groups)} groups, to stay below {memory / 1e9:g} GB of moments")
    outcomes: dict[StitchSpec, Outcome] = {}
    for specs in groups:
        outcomes |= _stitch_group(cuts, specs, train, val, similarity, labelled, resume, tell)
    return [outcomes[spec] for spec in cuts.specs]


def _groups(cuts: Cuts, memory: float) -> Iterator[list[StitchSpec]]:
    """The specs by pairs of layers, as many pairs at once as their moments of both splits leave room for."""
    group: list[StitchSpec] = []
    held = 0.0
    for cut, geometry in cuts.geometries.items():
        needed = 2 * 8 * (geometry.inputs + geometry.outputs) ** 2
        if group and held + needed > memory:
            yield group
            group, held = [], 0.0
        group += [spec for spec in cuts.specs if spec.cut == cut]
        held += needed
    if group:
        yield group


def _stitch_group(
    cuts: Cuts,
    specs: list[StitchSpec],
    train: Split,
    val: Split,
    similarity: bool,
    labelled: bool,
    resume: Callable[[Sequence[StitchSpec]], Resume] | None,
    tell: Tell,
) -> dict[StitchSpec, Outcome]:
    asking = [spec for spec in specs if spec.needs_train_moments]
    on_train = gather_moments(cuts, asking, train, title="moments on train", notice=tell.notice)
    works = [_start(cuts, spec, on_train.get(spec.cut), tell) for spec in specs]
    for together in _training_groups(works):
        _train(cuts, together, train, val, labelled, resume, tell)
    done = [work for work in works if not work.failure]
    outcomes = Outcomes(cuts)
    shared = {cut for cut, geometry in cuts.geometries.items() if similarity and can_share(geometry, len(val))}
    others = [work.spec for work in done if work.spec.cut not in shared]
    on_val = gather_moments(cuts, others, val, title="moments on val", notice=tell.notice)
    for cut in dict.fromkeys(work.spec.cut for work in done):
        same = [work for work in done if work.spec.cut == cut]
        view = None
        if cut in shared:
            view = view_pair(
                cuts.pair(same[0].spec), val, keep=True, title=f"activations on val, {cut[0]} and {cut[1]}"
            )
        elif similarity:
            view = PairView(cuts.pair(same[0].spec), val, on_val[cut])
        if view and view.cka_group:
            tell.notice(
                f"cka: mean over groups of {view.cka_group} images, since all activations are too large to keep"
            )
        outcomes.add(same, view.moments if view else on_val[cut], on_train.get(cut), view)
    counts = outcomes.score(done, val, labelled=labelled)
    surroundings = {
        "constant_accuracy": val.spec.task.constant_accuracy(val.labels) if labelled else None,
        "images": {"train": len(train), "val": len(val)},
    }
    return {
        work.spec: FloatingPointError(work.failure) if work.failure else outcomes.result(work, counts) | surroundings
        for work in works
    }


def _start(cuts: Cuts, spec: StitchSpec, moments: PairedMoments | None, tell: Tell) -> Work:
    layer = initial_stitch(
        cuts.geometry(spec),
        moments,
        init=spec.init,
        mask=spec.mask,
        rank=spec.low_rank,
        orthogonal=spec.orthogonal,
        seed=spec.seed,
        whiten=spec.whiten,
    ).to(cuts.device)
    if not layer.matrix().any():
        tell.notice(f"warning: --mask {spec.mask} keeps no weight of --init {spec.init}; all weights start at zero")
    if spec.init == "orthogonal" and layer.geometry.outputs < layer.geometry.inputs:
        tell.notice(
            f"--init orthogonal: {layer.geometry.outputs} outputs are fewer than {layer.geometry.inputs} inputs, so it "
            "is the rotation nearest to the end activation with zeros appended"
        )
    return Work(spec, layer, layer.arrays())


def _training_groups(works: Sequence[Work]) -> list[list[Work]]:
    """Those that see the same batches in the same precision."""
    groups: dict[tuple, list[Work]] = {}
    for work in works:
        spec = work.spec
        groups.setdefault((spec.seed, spec.epochs, spec.batch_size, spec.amp, spec.debug), []).append(work)
    return list(groups.values())


def _train(
    cuts: Cuts,
    works: Sequence[Work],
    train: Split,
    val: Split,
    labelled: bool,
    resume: Callable[[Sequence[StitchSpec]], Resume] | None,
    tell: Tell,
) -> None:
    specs = [work.spec for work in works]
    learners = [
        Learner(
            work.layer,
            StitchObjective(cuts, work.spec, work.layer, train.spec.task, labelled=labelled),
            replace(work.spec.recipe, weight_decay=0.0) if work.spec.whiten else work.spec.recipe,
            snapshot=work.layer.snapshot,
            snapshot_every=work.spec.save_frequency * max(1, work.spec.epochs),
        )
        for work in works
    ]
    of = {id(learner): work for learner, work in zip(learners, works, strict=True)}

    def validate(those: Sequence[Learner]) -> list[dict[str, float]]:
        scored = [(str(number), of[id(learner)]) for number, learner in enumerate(those)]

        def forward(images: Tensor) -> dict[str, Tensor]:
            front = cuts.outputs("front", [work.spec.front_layer for _, work in scored], images)
            end = {} if labelled else {"end": cuts.outputs("end", [LOGITS], images)[LOGITS]}
            return end | {name: cuts.logits(work.spec, work.layer, front, images) for name, work in scored}

        target = None if labelled else "end"
        counts = tally(forward, val, Tally(val.spec.task, target=target, labelled=labelled), batch_size=BATCH_SIZE)
        return [_validation(counts, name) for name, _ in scored]

    def tell_epoch(_: int) -> None:
        for learner, work in zip(learners, works, strict=True):
            if not learner.failure:
                tell.epoch(work.spec, learner.history)

    layers = f"{specs[0].front_layer} -> {specs[0].end_layer}" if len(specs) == 1 else f"{len(specs)} stitches"
    fit(
        learners,
        train,
        seed=specs[0].seed,
        share=lambda images: cuts.share(specs, images),
        validate=validate,
        after_epoch=tell_epoch,
        resume=resume(specs) if resume else None,
        max_steps=DEBUG_STEPS if specs[0].debug else None,
        title=f"stitch {layers}",
    )
    for learner, work in zip(learners, works, strict=True):
        work.history, work.failure = learner.history, learner.failure


def _validation(counts: Tally, name: str) -> dict[str, float]:
    """Loss and accuracy; without labels of these classes cross-entropy to the end network, and agreement with it."""
    if counts.labelled:
        return counts.scores(name)
    found = counts.agreement(name)
    return {"loss": found["crossentropy"], "acc": found["same_class_out"]}
