"""What runs on a GPU between two readings asks it for no number: fake tensors of the device `cuda` have none."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from src.evaluation.probe import PooledFeatures
from src.evaluation.scores import AgreementCounter, tally
from src.evaluation.together import Together
from src.metrics import Grid, linear_cka
from src.metrics.algebra.gram import GPU_BLOCK, block_side, blocks, gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.matrix_rows import float64_pieces, unit
from src.metrics.algebra.moments import GPU_NUMBERS, Affine, PairedMoments, Sums, rows_at_once
from src.metrics.difference import Differences, differences_of
from src.metrics.engine.mapped import MappedSimilarity
from src.metrics.engine.plan import plan_grid
from src.metrics.neighbours import _alignment, _Far, _nearest
from src.models import build_model
from src.stitching import CutNetworks, StitchSpec
from src.stitching.families import NormStitch, widening_of
from src.stitching.layer import Stitch
from src.stitching.moments import _Gathering, gather_moments
from src.stitching.objective import StitchObjective
from src.stitching.ood import _Distances, _Reference
from src.stitching.stacked import stack
from src.stitching.stacked_maps import map_chunks
from src.stitching.start import initial_stitch
from src.training import loop
from src.training.train_state import TrainState
from tests.devices.test_fake_device import CUDA, NoFloat64OnMps, fake, move_by_replacement, split_on

__all__ = ["fake"]


def networks() -> list[Any]:
    return [build_model("tiny10", channels=3, classes=10, size=32).to(CUDA) for _ in range(2)]


def cuts_of(*specs: StitchSpec) -> CutNetworks:
    front, end = networks()
    return CutNetworks(front, end, list(specs), torch.zeros(2, 3, 32, 32, device=CUDA))


def test_a_pass_that_gathers_moments(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("bn3", "bn3"), ("bn3", "bn4"), ("bn7", "bn5")]
    specs = [StitchSpec(one, other, init="ps_inv", resize=True) for one, other in pairs]
    cuts, averages = cuts_of(*specs), PooledFeatures(["bn3"])
    monkeypatch.setattr(_Gathering, "moments", lambda gathering: gathering.sums)
    found = gather_moments(cuts, specs, split_on(CUDA), title="", on_message=print, averages=averages)
    assert found and all(sums.all_products.device == CUDA for sums in found.values())  # pyright: ignore
    monkeypatch.undo()
    with pytest.raises(DataDependentOutputException):  # who reads them asks whether they are finite
        gather_moments(cuts, specs, split_on(CUDA), title="", on_message=print)


@pytest.mark.parametrize("group", [None, 4])
def test_a_grid_takes_batches_in(fake, group: int | None) -> None:
    names, shapes = ["cka", "l2", "lr", "cca"], [(4, 3, 3)]
    plan = plan_grid(names, n_images=8, shapes_x=shapes, shapes_y=shapes, group=None)
    grid = Grid(plan, CUDA)
    for _ in range(2):
        grid.update([torch.zeros(4, 4, 3, 3, device=CUDA)], [torch.zeros(4, 4, 3, 3, device=CUDA)])
    assert grid.seen == 8
    with pytest.raises(DataDependentOutputException):
        grid.cells()


def test_the_blocks_of_a_grid(fake) -> None:
    n, seen = GPU_BLOCK + 1, []
    sides = [torch.zeros(n, 3, device=CUDA) for _ in range(2)]
    with pytest.raises(DataDependentOutputException):  # the sums, after the last block
        gram_sums(sides, sides, on_block=lambda: seen.append(1))
    assert len(seen) == blocks(n, CUDA) == 3
    assert block_side(torch.device("cpu")) == 512 and blocks(n) == 15


def test_float64_comes_in_large_pieces(fake) -> None:
    wide = 1 << 15
    assert len(list(float64_pieces(torch.zeros(1024, wide, device=CUDA), CUDA))) == 1
    assert len(list(float64_pieces(torch.zeros(1024, wide), torch.device("cpu")))) == 64
    assert rows_at_once(16, 16, CUDA) * 16 == rows_at_once(1 << 15, 1, CUDA) * (1 << 14) == GPU_NUMBERS
    assert rows_at_once(16, 16) == 8192


def test_rows_differences_and_mapped_activations(fake) -> None:
    layer, differences = Layer(8, 3, CUDA), Differences(3, CUDA)
    layer.update(torch.zeros(8, 3, device=CUDA))
    differences.update(torch.zeros(8, 3, device=CUDA), torch.zeros(8, 3, device=CUDA))
    for read in (layer.centre, differences.require_finite):
        with pytest.raises(DataDependentOutputException):
            read()
    shared = MappedSimilarity(n_images=8, shape_x=(3, 2, 2), shape_y=(5, 2, 2), device=CUDA)
    shared.update(torch.zeros(8, 3, 2, 2, device=CUDA), torch.zeros(8, 5, 2, 2, device=CUDA))
    for side in (shared.x, shared.y):
        side.centred = True
    weights = [torch.zeros(5, 3, device=CUDA)]
    with Reads() as reads, pytest.raises(DataDependentOutputException):
        shared.cka(weights, side="features")
    assert reads.count <= 1


class Reads(TorchDispatchMode):
    """How often a number is asked for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "item", "is_nonzero", "nonzero")
        return function(*args, **(kwargs or {}))


def test_blocks_of_distances_and_cosines() -> None:
    """On the processor, where kernels of distances can be made: as many numbers are read for many blocks as for one."""
    counts = []
    for images in (40, 1100):  # one block, and six
        x, y = (torch.randn(images, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        layers = Layer.of(x), Layer.of(y)
        far = [_Far(layer) for layer in layers]
        with Reads() as reads:
            _alignment(far[0], far[1], images)
            _nearest(layers[0], 5, "cosine")
        counts.append(reads.count)
    assert counts[0] == counts[1]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors of one number are computed with as they are, and then ask for a driver."""

    def zeros_of(counter: Together, names: list[str], device: torch.device) -> Tensor:
        return torch.zeros(len(names), dtype=torch.long).to(device)

    monkeypatch.setattr(Together, "_places", zeros_of)


def test_scores(fake, places) -> None:
    split, network = split_on(CUDA), networks()[0]
    counts = AgreementCounter(split.spec.task, target="a", couples=[("a", "b")], keep=["a", "b"])
    tally(lambda images: {"a": network(images), "b": -network(images)}, split, counts, batch_size=4)
    with pytest.raises(DataDependentOutputException):
        counts.scores("a")


def test_distances_from_the_usual(fake) -> None:
    task = split_on(CUDA).spec.task
    reference, outputs = _Reference(["bn3"], task), {"bn3": torch.zeros(4, 3, 2, 2, device=CUDA)}
    reference.learn(outputs)
    reference.whitening["bn3"] = torch.zeros(3, 3, dtype=torch.float64, device=CUDA)
    seen = _Distances(reference, ["one"], 4)
    outputs[""] = torch.zeros(4, 10, device=CUDA)
    seen.add(outputs, {"one": outputs})


class Apple(NoFloat64OnMps):
    """Refuses float64 on mps, and copies between it and the processor that become float64 on the way."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        given = [value for value in args if isinstance(value, Tensor)]
        made = [value for value in (result, *given) if isinstance(value, Tensor) and value.dtype == torch.float64]
        if made and any(value.device.type == "mps" for value in given):
            raise TypeError(f"{function} copies from mps to float64 of another device")
        return result


def test_apples_gpus_hand_float32_to_the_processor(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "require_finite", lambda sums: None)
    monkeypatch.setattr(Differences, "require_finite", lambda differences: None)
    x = torch.zeros(8, 3, device="mps")
    with Apple():
        with pytest.raises(TypeError, match="copies from mps"):
            x.to("cpu", torch.float64)
        with pytest.raises(TypeError, match="copies from mps"):
            torch.zeros(8, 3, dtype=torch.float64).copy_(x)
        moments = PairedMoments(3, 3, x.device)
        moments.x.take(x)  # slices of what lies there take a torch that was built for it
        differences_of(x, x)
        reference = _Reference(["bn3"], split_on(torch.device("cpu")).spec.task)
        outputs = {"bn3": torch.zeros(4, 3, 2, 2, device="mps"), "": torch.zeros(4, 10, device="mps")}
        reference.sums["bn3"] = Sums(3, "mps")
        reference.whitening["bn3"] = torch.zeros(3, 3, dtype=torch.float64)
        _Distances(reference, ["one"], 4).add(outputs, {"one": outputs})
        geometry = cuts_of(StitchSpec("bn3", "bn3")).geometry(StitchSpec("bn3", "bn3").cut)
        size = geometry.inputs
        own = PairedMoments(size, size, x.device)
        stitch: Any = NormStitch(Affine(torch.zeros(size, size), torch.zeros(size)), geometry, own)
        monkeypatch.undo()  # and with it what the fixture makes of `to`
        monkeypatch.setattr(nn.Module, "_apply", to_apple)
        stitch = stitch.eval().to("mps")
        assert stitch.covariance.device.type == "cpu" and stitch.bias.device.type == "mps"
        assert list(stitch.state_dict())[-2:] == ["mean", "covariance"]
        with torch.no_grad():
            made = [stitch.matrix(), stitch.offset(stitch.matrix())]
        assert all(part.device.type == "mps" and part.dtype == torch.float32 for part in made)


def to_apple(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    return move_by_replacement(module, lambda value: torch.zeros(value.shape, dtype=value.dtype, device="mps"))


def stitches_on(cuts: CutNetworks, specs: list[StitchSpec], task: Any) -> list[TrainState]:
    states = []
    for spec in specs:
        layer: Stitch = initial_stitch(cuts.geometry(spec.cut), None, seed=spec.seed, rank=spec.low_rank)
        if widening := widening_of(spec):
            start, size, drawn = layer.affine(), getattr(spec, widening.field), torch.Generator().manual_seed(0)
            assert start is not None
            layer = widening.build(start, layer.geometry, size, None, drawn)
        layer = layer.to(CUDA)
        objective = StitchObjective(cuts, spec, layer, task)
        states.append(TrainState(layer, objective, spec.recipe, snapshot=layer.snapshot, snapshot_every=3))
    return states


def zeros(losses: Any, inputs: Any, *_: Any) -> list[Tensor]:
    """In place of a backward pass, which asks for a real GPU."""
    return [torch.zeros_like(value) for value in inputs]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_epoch_of_stitches(fake, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """All steps of stitches that learn together, copies of their maps among them; then their losses are read."""
    base = StitchSpec("bn7", "bn7", epochs=1, batch_size=2, optimizer=optimizer, lr=1e-3)
    kinds: list[dict[str, Any]] = [{"l1": 0.1}, {"seed": 1}, {"target_type": "soft_12"}, {"target_type": "match_later"}]
    kinds += [{"kernel": 3, "l1": 0.1}, {"hidden": 128}]
    specs = [replace(base, **options, cosine=cosine) for options in kinds for cosine in (False, True)]
    cuts, split, steps = cuts_of(*specs), split_on(CUDA), []
    states = stitches_on(cuts, specs, split.spec.task)
    monkeypatch.setattr(torch.autograd, "grad", zeros)
    updates: list[int] = []
    for name in ("_fused_adam_", "_fused_sgd_"):  # of which there are no fakes
        monkeypatch.setattr(torch, name, lambda parameters, *_, **__: updates.append(len(parameters)))
    monkeypatch.setattr(loop, "_randomness", lambda seed, device: nullcontext())
    with pytest.raises(DataDependentOutputException):
        loop.fit(
            states,
            split,
            seed=0,
            share=lambda images: steps.append(images) or cuts.share(specs, images),
            validate=lambda those: [None for _ in those],
            stack=partial(stack, chunk=3),
        )
    assert len(steps) == 4 and sum(updates) == 4 * sum(len([*state.trained.parameters()]) for state in states)
    assert all(state.history.snapshots.keys() == {0, 3} for state in states)


def test_stitches_are_scored(fake, places) -> None:
    specs = [StitchSpec("bn7", "bn7"), StitchSpec("bn8", "bn7"), StitchSpec("bn7", "bn7", low_rank=1)]
    cuts, split = cuts_of(*specs), split_on(CUDA)
    layers = [initial_stitch(cuts.geometry(spec.cut), None).to(CUDA) for spec in specs]
    sewn = {str(number): (spec, layer) for number, (spec, layer) in enumerate(zip(specs, layers, strict=True))}
    (chunk,), others = map_chunks(cuts, sewn, images=4, most=4)
    counts = AgreementCounter(split.spec.task)
    tally(lambda images: chunk.logits(cuts, cuts.front_activations(specs, images), images), split, counts, batch_size=4)
    assert not others and counts.images == 8
    with pytest.raises(DataDependentOutputException):
        counts.scores("0")


def test_cka_as_a_term_of_a_loss(fake) -> None:
    x, y = (torch.zeros(8, d, device=CUDA) for d in (3, 5))
    assert linear_cka(x, y.requires_grad_()).device == CUDA
    with pytest.raises(DataDependentOutputException):  # of what does not learn somebody asks
        linear_cka(x, y.detach())


def test_what_nobody_asks_has_the_same_scale() -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 3.0
    found = unit(x, "first", asks=False)
    assert_close(found[:, [0, 1, 3, 4]], unit(x, "first"), rtol=1e-6, atol=1e-6)
    assert not found[:, 2].any() and unit(torch.ones(8, 2), "first", asks=False).isnan().all()
