"""Code paths of a GPU, run without one: fake tensors of the device `cuda` refuse to meet tensors of the processor."""

import pytest
import torch
from torch import Generator, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.dataset import DATASETS
from src.dataset.split import MemorySplit
from src.evaluation.layer_grid import compare_layers
from src.evaluation.scores import AgreementCounter, tally
from src.metrics import PairedMoments
from src.metrics.algebra.moments import Affine
from src.models import build_model
from src.stitching import TARGETS, Constraint, CutNetworks, Pair, StitchObjective, StitchSpec, build_stitch, cut_pair
from src.stitching.layer import KINDS
from src.training.recipe import OPTIMIZERS

CUDA = torch.device("cuda", 0)


def move_by_replacement(module: nn.Module, function) -> nn.Module:
    """What `Module.to` does, for fake parameters, whose content cannot be exchanged in place."""
    for child in module.children():
        move_by_replacement(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nn.Module, "_apply", lambda module, function, *_: move_by_replacement(module, function))
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        try:
            torch.zeros(2, device=CUDA)[torch.zeros(1, dtype=torch.long, device=CUDA)]
        except RuntimeError as error:
            pytest.skip(f"torch {torch.__version__} wants a driver even for this: {str(error).splitlines()[0]}")
        yield mode


def split_on(device: torch.device, name: str = "cifar10") -> MemorySplit:
    spec = DATASETS[name]
    images = torch.zeros(8, spec.channels, spec.size, spec.size, dtype=torch.uint8, device=device)
    return MemorySplit(spec, images, torch.zeros(8, dtype=torch.long, device=device))


def fake_pair(model: str, layer: str, **geometry: bool) -> Pair:
    front, end = (build_model(model, channels=3, classes=10, size=32).to(CUDA) for _ in range(2))
    return cut_pair(front, end, layer, layer, torch.zeros(2, 3, 32, 32, device=CUDA), **geometry)  # pyright: ignore


def test_a_tensor_left_on_the_processor_is_an_error_here(fake) -> None:
    with pytest.raises(Exception, match="device"):
        torch.add(torch.zeros(2, device=CUDA), torch.zeros(2))


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_batches_stay_on_the_device(fake, name: str) -> None:
    split = split_on(CUDA, name)
    for images, labels in split.batches(4, order=Generator(), augment=Generator()):
        assert images.device == CUDA and labels.device == CUDA and images.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "layer"), [("tiny10", "bn3"), ("resnet20_w1", "layer2.0.bn1"), ("inceptionv1", "mixed4a")]
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "orthogonal"])  # building that looks at values
def test_a_training_step_of_a_stitch(fake, model: str, layer: str, kind: str) -> None:
    front, end = (build_model(model, channels=3, classes=10, size=32).to(CUDA) for _ in range(2))
    specs = [StitchSpec(layer, layer, target_type=target, l1=0.1) for target in TARGETS]
    cuts = CutNetworks(front, end, specs, torch.zeros(2, 3, 32, 32, device=CUDA))
    geometry = cuts.geometry(specs[0].cut)
    affine = Affine(torch.randn(geometry.outputs, geometry.inputs), torch.zeros(geometry.outputs))
    mask = torch.ones(geometry.outputs, geometry.inputs)
    constraint = {"full": Constraint(), "masked": Constraint(mask=mask), "low rank": Constraint(rank=2)}[kind]
    stitch = build_stitch(affine, geometry, constraint).to(CUDA)
    split = split_on(CUDA)
    images, labels = next(split.batches(4))
    for spec in specs:
        objective = StitchObjective(cuts, spec, stitch, split.spec.task)
        loss, correct = objective(cuts.share([spec], images), images, labels)
        assert loss.device == CUDA and correct.device == CUDA
    for parameter in stitch.parameters():  # the backward pass itself asks for a real GPU
        parameter.grad = torch.zeros_like(parameter)
    for make in OPTIMIZERS.values():
        make(stitch.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(parameter.device == CUDA for parameter in stitch.parameters())


@pytest.mark.parametrize("geometry", [{"flatten": True}, {"resize": True}])
def test_other_geometries(fake, geometry: dict[str, bool]) -> None:
    pair = fake_pair("tiny10", "bn7", **geometry)
    size = pair.geometry.inputs
    stitch = build_stitch(Affine(torch.randn(size, size), torch.zeros(size)), pair.geometry).to(CUDA)
    images, _ = next(split_on(CUDA).batches(4))
    assert pair.stitched(stitch)(images).device == CUDA


class NoFloat64OnMps(TorchDispatchMode):
    """Refuses float64 on a device `mps`, as Apple's GPUs do; fake tensors allow it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "mps" and result.dtype == torch.float64:
            raise TypeError(f"{function} made a float64 tensor on mps")
        return result


def test_scores_do_without_float64_on_the_device(fake) -> None:
    split = split_on(torch.device("mps", 0))
    split.batches = lambda *_, **__: iter([(torch.zeros(8, 3, 32, 32, device="mps"), split.labels)])
    network = build_model("tiny10", channels=3, classes=10, size=32).eval()
    move_by_replacement(network, lambda value: torch.zeros(value.shape, dtype=value.dtype, device="mps"))
    with NoFloat64OnMps():
        counts = AgreementCounter(split.spec.task, target="one")
        tally(lambda images: {"one": network(images)}, split, counts, batch_size=8)
        assert counts.images == 8 and counts.decisions == 8
        with pytest.raises(DataDependentOutputException):  # as far as a score can go without values
            counts.scores("one")
        with pytest.raises(TypeError, match="float64 tensor on mps"):
            torch.zeros(2, device="mps").double()


@pytest.mark.parametrize("name", ["cka", "procrustes", "jsd", "disagreement"])
def test_networks_are_compared_where_the_images_are(fake, name: str) -> None:
    networks = (build_model("tiny10", channels=3, classes=10, size=32).eval() for _ in range(2))
    with pytest.raises(DataDependentOutputException):  # as far as a comparison can go without values
        compare_layers(tuple(networks), (["bn8"], ["bn8"]), torch.zeros(2, 3, 32, 32), split_on(CUDA), [name])  # pyright: ignore


def test_moments_on_the_device(fake) -> None:
    moments = PairedMoments(3, 5, CUDA)
    # what update() does with each piece; it then looks for NaN, which fake tensors do not have
    moments.x.take(torch.zeros(8, 3, device=CUDA))
    moments.y.take(torch.zeros(8, 5, device=CUDA))
    moments.add_held()
    assert moments.xy.device == CUDA
