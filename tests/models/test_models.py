"""Architectures: parity with the published ones, names, shapes, and what cutting a network needs of them."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from src.models import build_model, canonical_name, folder_name, model_names
from src.models.inceptionv1 import InceptionV1
from src.models.resnet20 import ResNet20

NAMES = ["lenet", "dense", "tiny10", "nbn_tiny10", "resnet20_w1", "vit_w32", "inceptionv1", "inceptionv1_bn"]
CASES = [
    "lenet-c1-n10",
    "lenet-c3-n10",
    "dense-c1-n10",
    "tiny10-c3-n10",
    "tiny10-c3-n100",
    "nbn_tiny10-c3-n10",
    "resnet20_w1-c3-n10",
    "resnet20_w3-c3-n10",
    "inceptionv1-c3-n40",
]
# Nothing ever called it, and it holds nothing.
UNUSED = {"sigmoid"}


@pytest.fixture(scope="module")
def architectures(reference: Path) -> dict:
    return json.loads((reference / "architectures.json").read_text())


def known_tensor(name: str, shape: torch.Size, position: int) -> Tensor:
    base = torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + position).reshape(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return (0.5 + base.abs()).float()
    if len(shape) >= 2:
        return (base * 1.4 * math.sqrt(2 / math.prod(shape[1:]))).float()
    return (1 + 0.2 * base if name.endswith("weight") else 0.1 * base).float()


def known_state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: known_tensor(name, state[name].shape, position) for position, name in enumerate(sorted(state))}


def known_images(channels: int, size: int, scale: float) -> Tensor:
    shape = (2, channels, size, size)
    return (scale * torch.sin(0.013 * torch.arange(math.prod(shape), dtype=torch.float64))).reshape(shape).float()


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_model(request.param, channels=3, classes=10, size=32).eval()


@pytest.mark.reference
def test_no_published_case_is_left_out(architectures: dict) -> None:
    assert set(architectures) == set(CASES)


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_parity_with_the_published_architecture(architectures: dict, case: str) -> None:
    published = architectures[case]
    name, channels, size = published["model"], published["channels"], published["size"]
    network = build_model(name, channels=channels, classes=published["classes"], size=size).eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == published["state"]
    for layer in set(published["layers"]) - UNUSED:
        network.get_submodule(layer)
    assert folder_name(name) == published["class_name"]
    network.load_state_dict(known_state(network))
    with torch.no_grad():
        logits = network(known_images(channels, size, 100.0 if name == "inceptionv1" else 1.0))
    expected = torch.tensor(published["logits"])
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.reference
@pytest.mark.parametrize("file", ["Tiny10/CIFAR10/in0-gn0/110000.pt", "ResNet20_w1/CIFAR10/in0-gn0/110000.pt"])
def test_published_weights_load(reference: Path, file: str) -> None:
    network = build_model(file.split("/")[0], channels=3, classes=10, size=32)
    state = torch.load(reference / "model_weights" / file, map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("lenet", 1, 61_706),  # LeNet-5 with a dense C5, the usual figure
        ("dense", 1, (1024 + 1) * 300 + 2 * 301 * 300 + 301 * 10),
        ("nbn_tiny10", 3, 448 + 2_320 + 4_640 + 9_248 + 9_248 + 18_496 + 36_928 + 4_160 + 650),
        ("tiny10", 3, 86_138 + 2 * (2 * 16 + 3 * 32 + 3 * 64)),
        ("resnet20_w1", 3, 269_722 + 576 + 2_176),  # He et al.'s 0.27M and two projections with BatchNorm
        # patches, positions, 6 blocks of 12 w^2 weights and 13 w biases and norms, the last norm, the head
        ("vit_w96", 3, 49 * 96 + 64 * 96 + 6 * (12 * 96**2 + 13 * 96) + 2 * 96 + 970),
        ("inceptionv1", 3, 6_058_014),
        ("inceptionv1_bn", 3, 6_058_014),
    ],
)
def test_parameter_counts(name: str, channels: int, parameters: int) -> None:
    network = build_model(name, channels=channels, classes=10, size=32)
    assert sum(value.numel() for value in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("spelling", "canonical", "folder"),
    [
        ("LeNet", "lenet", "LeNet"),
        ("DENSE", "dense", "Dense"),
        ("tiny10", "tiny10", "Tiny10"),
        ("Tiny10", "tiny10", "Tiny10"),
        ("NbnTiny10", "nbn_tiny10", "NbnTiny10"),
        ("nbntiny10", "nbn_tiny10", "NbnTiny10"),
        ("nbn_tiny10", "nbn_tiny10", "NbnTiny10"),
        ("NBN_Tiny10", "nbn_tiny10", "NbnTiny10"),
        ("InceptionV1", "inceptionv1", "InceptionV1"),
        ("inceptionv1_BN", "inceptionv1_bn", "InceptionV1_bn"),
        ("ResNet20_w1", "resnet20_w1", "ResNet20_w1"),
        ("resnet20_W137", "resnet20_w137", "ResNet20_w137"),
        ("VIT_W96", "vit_w96", "ViT_w96"),
    ],
)
def test_spellings(spelling: str, canonical: str, folder: str) -> None:
    assert canonical_name(spelling) == canonical
    assert folder_name(spelling) == folder
    assert canonical_name(folder) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "vgg",
        "",
        "resnet20",
        "resnet20_w",
        "resnet20_w0",
        "resnet20_w-1",
        "resnet20_w<width>",
        "tiny10\n",
        "resnet20_w٣",
    ],
)
def test_unknown_names_list_the_known_ones(name: str) -> None:
    for function in (canonical_name, folder_name, lambda name: build_model(name, channels=3, classes=10, size=32)):
        with pytest.raises(ValueError, match="unknown model") as error:
            function(name)
        assert "\n" not in str(error.value)
        assert all(known in str(error.value) for known in model_names())


def test_help_shows_the_family_of_widths() -> None:
    assert "resnet20_w<width>" in model_names()
    assert len(model_names()) == len(NAMES)


def test_nothing_works_in_place(model: nn.Module) -> None:
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize("training", [False, True])
def test_fx_traces_to_the_same_logits(model: nn.Module, training: bool) -> None:
    # Weights of idle and fresh BatchNorm are alike, so give every entry a value of its own.
    model.load_state_dict(known_state(model))
    model.train(training)
    traced = fx.GraphModule(model, fx.Tracer().trace(model))
    images = known_images(3, 32, 1.0)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))


def test_every_layer_runs(model: nn.Module) -> None:
    """A layer that no forward pass calls has no activation to stitch."""
    called = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert called == {name for name, _ in model.named_modules()}


def test_modules_are_registered_in_the_order_they_run(model: nn.Module) -> None:
    order = []
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for name, module in leaves:
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32))
    # A residual block runs its relu twice; its first place counts.
    assert list(dict.fromkeys(order)) == [name for name, _ in leaves]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 100, 32), (4, 3, 45)])
def test_channels_classes_and_size_are_honoured(name: str, channels: int, classes: int, size: int) -> None:
    network = build_model(name, channels=channels, classes=classes, size=size).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("lenet", 16),
        ("dense", 1),
        ("tiny10", 27),
        ("nbn_tiny10", 27),
        ("resnet20_w1", 1),
        ("vit_w32", 4),
        ("inceptionv1", 32),
    ],
)
def test_the_smallest_size_works_and_one_less_is_refused(name: str, smallest: int) -> None:
    network = build_model(name, channels=3, classes=10, size=smallest).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, smallest, smallest)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"image size {smallest - 1} is too small .* at least {smallest}"):
        build_model(name, channels=3, classes=10, size=smallest - 1)


@pytest.mark.parametrize("counts", [{"channels": 0, "classes": 10}, {"channels": 3, "classes": 0}])
def test_counts_below_one_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        build_model("tiny10", size=32, **counts)


@pytest.mark.parametrize("width", [1, 2, 7])
def test_width_multiplies_the_channels_of_resnet(width: int) -> None:
    network = build_model(f"resnet20_w{width}", channels=3, classes=10, size=32)
    state = network.state_dict()
    assert state["conv1.weight"].shape[0] == 16 * width
    assert state["layer3.2.bn2.weight"].shape == (64 * width,)
    assert "layer1.0.downsample.0.weight" not in state
    with pytest.raises(ValueError, match="width 0"):
        ResNet20(channels=3, classes=10, size=32, width=0)


@torch.no_grad()
def test_vit_mixes_tokens_as_torchs_own_transformer_does() -> None:
    """A block with the weights of torch.nn's pre-norm encoder layer gives what that gives."""
    width = 64
    block = build_model(f"vit_w{width}", channels=3, classes=10, size=32).get_submodule("blocks.2").eval()
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    block.load_state_dict(known_state(block))
    state = {
        theirs + kind: block.state_dict()[ours + kind] for theirs, ours in names.items() for kind in ("weight", "bias")
    }
    options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
    layer = nn.TransformerEncoderLayer(width, 2, 4 * width, **options).train()  # eval mode takes a fused path
    layer.load_state_dict(state)
    tokens = known_images(1, 64, 1.0)[:, 0, :49]
    torch.testing.assert_close(block(tokens), layer(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vit_tells_tokens_by_their_place() -> None:
    network = build_model("vit_w32", channels=3, classes=10, size=32).eval()
    images = known_images(3, 32, 1.0)
    assert not torch.allclose(network(images), network(images.flip(2)), atol=1e-4)  # alike without places
    table = network.get_parameter("pos_embed.table")
    assert table.shape == (64, 32)
    alike = table @ table.T
    assert (alike.argmax(1) == torch.arange(64)).all()  # nothing is closer to a place than itself
    assert alike[0, 1] == pytest.approx(alike[0, 8].item()) and alike[0, 1] > alike[0, 2] > alike[0, 3]
    with pytest.raises(ValueError, match="width 100 of ViT is no multiple of 32"):
        build_model("vit_w100", channels=3, classes=10, size=32)


def test_tiny10_halves_images_without_padding() -> None:
    network = build_model("tiny10", channels=3, classes=10, size=32).eval()
    bn1 = network.get_submodule("bn1")
    shapes = []
    bn1.register_forward_hook(lambda module, inputs, output: shapes.append(output[0].numel()))
    network(torch.zeros(1, 3, 32, 32))
    assert shapes == [14_400]


def test_inception_ignores_its_batch_norm_entries_unless_asked() -> None:
    plain = InceptionV1(channels=3, classes=4, size=32).eval()
    normed = InceptionV1(channels=3, classes=4, size=32, batch_norm=True).eval()
    state = known_state(plain)
    plain.load_state_dict(state)
    normed.load_state_dict(state)
    images = known_images(3, 32, 100.0)
    with torch.no_grad():
        logits = plain(images)
        assert not torch.allclose(normed(images), logits, rtol=0.1)
        plain.train()
        assert torch.equal(plain(images), logits)
    assert plain.state_dict()["conv2d0_pre_relu_bn.num_batches_tracked"] == 0


def test_inception_loads_a_state_dict_without_batch_norm() -> None:
    source = build_model("inceptionv1", channels=3, classes=4, size=32)
    bare = {name: value for name, value in known_state(source).items() if "_bn." not in name}
    network = build_model("inceptionv1", channels=3, classes=4, size=32)
    network.load_state_dict(bare)
    source.load_state_dict(known_state(source))
    images = known_images(3, 32, 100.0)
    with torch.no_grad():
        assert torch.equal(network(images), source(images))
    with pytest.raises(RuntimeError, match="logits.bias"):
        network.load_state_dict({name: value for name, value in bare.items() if name != "logits.bias"})
    with pytest.raises(RuntimeError, match="conv2d0_pre_relu_bn"):
        build_model("inceptionv1_bn", channels=3, classes=4, size=32).load_state_dict(bare)


@pytest.mark.parametrize("name", NAMES)
def test_fresh_networks_follow_the_global_generator_and_keep_the_signal(name: str) -> None:
    torch.manual_seed(3)
    first = build_model(name, channels=3, classes=10, size=64)
    torch.manual_seed(3)
    second = build_model(name, channels=3, classes=10, size=64)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with torch.no_grad():
        logits = first(torch.randn(8, 3, 64, 64))
    # Different images must still give different logits, neither vanishing nor exploding.
    assert 1e-3 < logits.std(0).mean() < 10
