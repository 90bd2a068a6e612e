"""Which precision products have, wherever they are made; and what a device leaves in keys and results."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from src import results
from src.core.errors import UserError
from src.core.precision import OVERRIDE, device_facts, full_precision, mixed_precision, require_tf32
from src.cutting.freeze import cast_once, freeze
from src.cutting.parts import heads
from src.dataset import DATASETS
from src.dataset.split import MemorySplit
from src.evaluation.layer_grid import compare_layers
from src.models import build_model
from src.stitching import CutNetworks, StitchSpec, keys
from src.stitching.objective import StitchObjective
from src.stitching.run import StitchPlan, stitch
from src.stitching.start import initial_stitch
from src.studies.frames import devices_of
from src.studies.messages import device_lines
from src.training.train_state import TrainState
from tests.paths import ROOT

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "dot")


class Watched(TorchDispatchMode):
    """Notes for each product within the block whether a GPU would round its factors to TF32, and all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[bool] = []
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name in PRODUCTS:
            backends: tuple[Any, Any] = torch.backends.cudnn, torch.backends.cuda.matmul
            self.rounded.append(any(backend.allow_tf32 for backend in backends))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def rounding() -> Iterator[None]:
    """A process in which everything is rounded, as some containers have it."""
    backends: tuple[Any, Any] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def images_of(count: int, seed: int = 0) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return MemorySplit(DATASETS["cifar10"], pixels, torch.arange(count) % 10)


def networks() -> tuple[Any, Any]:
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(build_model("tiny10", channels=3, classes=10, size=32).eval())
    return made[0], made[1]


def untrained(seed: int) -> Any:
    return networks()[0]


def cuts_of(*specs: StitchSpec) -> CutNetworks:
    return CutNetworks(*networks(), list(specs), torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("tf32", [False, True])
def test_only_training_rounds_and_only_where_it_is_asked_to(rounding: None, tf32: bool) -> None:
    cuts = cuts_of(StitchSpec("bn7", "bn7", init="ps_inv", epochs=1, batch_size=8, tf32=tf32))
    with Watched() as watched:
        stitch(cuts, images_of(16), images_of(8), StitchPlan(controls=["untrained"], fresh=untrained, ood=True))
    assert any(watched.rounded) is tf32
    assert not all(watched.rounded) and len(watched.rounded) > 100
    assert torch.backends.cuda.matmul.allow_tf32  # the process keeps what it had


def test_a_comparison_rounds_nothing(rounding: None) -> None:
    for group in (None, 3):
        with Watched() as watched:
            layers, sample = (["bn7"], ["bn7", "bn8"]), torch.zeros(2, 3, 32, 32)
            compare_layers(networks(), layers, sample, images_of(8), ["cka", "lr"], group=group)
        assert watched.rounded and not any(watched.rounded)


def test_what_a_container_sets_is_set_back() -> None:
    code = (
        "import torch; from src.core.precision import full_precision\n"
        "with full_precision(): print(torch.backends.cuda.matmul.allow_tf32)\n"
        "print(torch.backends.cuda.matmul.allow_tf32)"
    )
    environment = {"PATH": "", OVERRIDE: "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_what_cannot_be_set_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn:
        allow_tf32 = property(lambda self: True, lambda self, value: None)

    monkeypatch.setattr(torch.backends.cuda, "matmul", Stubborn())
    with pytest.raises(UserError, match=f"unset {OVERRIDE}"), full_precision():
        pass


def test_tf32_is_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--tf32 is of GPUs of NVIDIA, and this is cpu; leave it out"):
        require_tf32(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(UserError, match="--tf32: T4 does not multiply TF32; leave it out"):
        require_tf32(torch.device("cuda"))
    with pytest.raises(UserError, match="--tf32 excludes --amp"):
        StitchSpec("bn7", "bn7", tf32=True, amp=True)


def test_a_device_is_known_by_name_and_a_processor_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    device_facts.cache_clear()
    assert device_facts(torch.device("cpu")) == {}
    facts = device_facts(torch.device("cuda", 0))
    assert (facts["name"], facts["torch"]) == ("H100", str(torch.__version__))
    device_facts.cache_clear()


@pytest.mark.parametrize("stacked", [0, 2])
def test_stitches_that_are_trained_together_have_kernels_that_repeat(stacked: int) -> None:
    specs = [StitchSpec("bn7", "bn7", epochs=1, batch_size=8, lr=rate) for rate in (1e-3, 2e-3)]
    seen = set()

    class Repeats(Watched):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ == "convolution_backward":
                seen.add(torch.backends.cudnn.deterministic)
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Repeats():
        stitch(cuts_of(*specs), images_of(16), images_of(8), StitchPlan(similarity=False, stacked=stacked))
    assert seen == {stacked > 0} and not torch.backends.cudnn.deterministic


def test_frozen_weights_are_cast_once() -> None:
    spec = StitchSpec("bn3", "bn3", target_type="soft_12", amp=True, epochs=1)
    cuts, split = cuts_of(spec), images_of(4)
    layer = initial_stitch(cuts.geometry(spec.cut), None)
    train_state = TrainState(layer, StitchObjective(cuts, spec, layer, split.spec.task), spec.recipe)
    images, labels = next(split.batches(4))
    frozen = {value.shape for network in cuts.networks.values() for value in network.parameters()}

    class Casts(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: set[Any] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ == "_to_copy" and (kwargs or {}).get("dtype") is torch.bfloat16:
                self.shapes.add(args[0].shape)
            return super().__torch_dispatch__(function, types, args, kwargs)

    losses = []
    for _ in range(2):
        with Casts() as casts:
            loss, _ = train_state.objective(cuts.share([spec], images), images, labels)
            loss.backward()
        losses.append(loss.item())
    assert {tuple(layer.matrix().shape)} <= {tuple(shape)[:2] for shape in casts.shapes}  # the stitch's own
    own = {layer.matrix().shape, layer.matrix()[:, :, None, None].shape, layer.bias.shape}
    assert not (casts.shapes - own) & frozen
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["tiny10", "vit_w32", "lenet"])
def test_what_is_cast_once_gives_the_same_bits(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(name, channels=3, classes=10, size=32).eval()
        images = torch.randn(3, 3, 32, 32)
    part = freeze(heads(network, [""]))
    with torch.no_grad(), mixed_precision(images.device, enabled=True):
        low = cast_once(part, images)
        assert_close(low(images)[0], part(images)[0], rtol=0, atol=0)
    before = {value.dtype for value in part.parameters()}
    assert before == {torch.float32} and torch.bfloat16 in {value.dtype for value in low.parameters()}


def test_a_spec_says_tf32_only_where_it_is_asked_for() -> None:
    spec = StitchSpec("a", "b")
    assert "tf32" not in spec.identity() and replace(spec, tf32=True).key() != spec.key()
    assert spec.together != replace(spec, tf32=True).together


def test_another_device_stands_in_keys_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimpleNamespace(network=networks()[0], preprocessing=DATASETS["cifar10"].preprocessing, labels=())
    on_data: Any = SimpleNamespace(networks=[network, network], dataset="cifar10", reordered=[None, None], answers=())
    monkeypatch.setattr(keys, "code_of", lambda network: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H{device.index}")
    device_facts.cache_clear()
    where = [None, torch.device("cpu"), torch.device("cuda", 100), torch.device("cuda", 200)]
    about = [keys.key_inputs(on_data, ["a", "b"], device=device) for device in where]
    spec, geometry = StitchSpec("bn7", "bn7"), cuts_of(StitchSpec("bn7", "bn7")).geometry(StitchSpec("bn7", "bn7").cut)
    made = [keys.stitch_key(spec, geometry, one) for one in about]
    assert made[0] == made[1] and len(set(made[1:])) == 3
    assert keys.front_inputs(about[2]) != keys.front_inputs(about[1])
    assert "device" not in results.provenance(where[1])
    assert results.provenance(where[2], tf32=True)["device"]["name"] == "H100"
    assert results.provenance(where[2], tf32=True)["device"]["tf32"] is True
    device_facts.cache_clear()


def test_a_study_says_that_devices_mix() -> None:
    frame = pd.DataFrame({"device": ["H100", None, "H100"]})
    assert device_lines(devices_of(frame)) == ["results of 2 devices stand side by side: H100, the processor"]
    assert device_lines(devices_of(frame[:1])) == device_lines(devices_of(frame[1:2])) == []
