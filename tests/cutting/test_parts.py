"""Cut networks equal whole ones with the layer's output replaced, and compute no more than that needs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from src.cutting import tracing
from src.cutting.freeze import freeze
from src.cutting.parts import (
    dependent_layers,
    final_input,
    follows,
    head,
    heads,
    is_traced,
    later_layers,
    layer_names,
    tail,
    tails,
)
from src.cutting.structure import input_of
from src.models import build_model

CASES = {"lenet": (1, 32), "dense": (1, 32), "tiny10": (3, 32), "nbn_tiny10": (3, 32), "resnet20_w1": (3, 32)}
CASES |= {"vit_w32": (3, 32), "inceptionv1": (3, 64), "inceptionv1_bn": (3, 64)}
# blocks that are lines of the same table or turns of the same loop as others
ALIKE = re.compile(r"mixed(3|4[b-e]|5)|blocks\.[1-4]\b|layer(1\.[12]|2\.[12]|3\.1)\b")


def network_and_images(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    channels, size = CASES[name]
    network = build_model(name, channels=channels, classes=10, size=size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: statistics that leave nothing as it was
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network, torch.randn(2, channels, size, size)


@contextmanager
def last_call(network: nn.Module, layer: str, images: Tensor, replacement: Tensor) -> Iterator[list[Tensor]]:
    """The plain way: hook a layer and replace what its last call returns."""
    total, calls, seen = count_calls(network, layer, images), 0, []

    def hook(module, inputs, output):
        nonlocal calls
        calls += 1
        if calls == total:
            seen.append(output.clone())
            return replacement

    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def count_calls(network: nn.Module, layer: str, images: Tensor) -> int:
    calls = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *_: calls.append(1))
    network(images)
    handle.remove()
    return len(calls)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_head_and_tail_equal_hooks_at_every_layer(name: str) -> None:
    network, images = network_and_images(name)
    layers = layer_names(network)
    outputs = heads(network, layers)(images)
    for layer, output in zip(layers, outputs, strict=True):
        if ALIKE.match(layer):
            continue
        replacement = output * 0.5 + 0.1
        with last_call(network, layer, images, replacement) as seen:
            expected = network(images)
        assert_close(output, seen[0], rtol=1e-5, atol=1e-6)
        assert_close(tail(network, layer)(replacement, images), expected, rtol=1e-5, atol=1e-6)
        assert_close(head(network, layer)(images), seen[0], rtol=1e-5, atol=1e-6)


def test_heads_and_tails_of_untouched_outputs_give_the_whole_network() -> None:
    network, images = network_and_images("resnet20_w1")
    for layer in ("layer2.0.relu", "layer2.0.bn1", "layer3.0.downsample", "layer1.1", "avgpool", ""):
        assert_close(tail(network, layer)(head(network, layer)(images), images), network(images), rtol=0, atol=0)


@pytest.mark.parametrize("until", ["relu2", "bn5", "fc", "layer2.1.relu", "layer3.0.bn1"])
def test_a_tail_until_a_later_layer_gives_its_output(until: str) -> None:
    name, layer = ("resnet20_w1", "layer2.0.bn1") if "layer" in until else ("tiny10", "bn2")
    network, images = network_and_images(name)
    activation = head(network, layer)(images)
    assert_close(tail(network, layer, until)(activation, images), head(network, until)(images), rtol=0, atol=0)
    changed = tail(network, layer, until)(activation + 1, images)
    assert not torch.equal(changed, head(network, until)(images))
    with pytest.raises(ValueError, match="does not depend"):
        tail(network, until, layer)


def test_the_tail_of_tiny10_runs_no_convolution_before_the_cut() -> None:
    network, images = network_and_images("tiny10")
    ran: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    activation = head(network, "bn5")(images)
    assert ran == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    ran.clear()
    tail(network, "bn5")(activation, images)
    assert ran == ["conv6", "conv7", "conv8"]


def test_the_tail_of_inceptionv1_runs_no_convolution_before_the_cut() -> None:
    network, _ = network_and_images("inceptionv1")
    convolutions = [n for n, m in tail(network, "mixed4a").named_modules() if isinstance(m, nn.Conv2d)]
    later = ("mixed4b", "mixed4c", "mixed4d", "mixed4e", "mixed5")
    assert convolutions and all(name.startswith(later) for name in convolutions)


def test_a_skip_connection_around_the_cut_is_computed_from_the_images() -> None:
    network, images = network_and_images("resnet20_w1")
    part = tail(network, "layer2.1.bn2")
    activation = head(network, "layer2.1.bn2")(images)
    assert not torch.equal(part(activation, images), part(activation, images.flip(0)))
    assert "layer2.1.conv2" not in dict(part.named_modules())
    assert "layer1.0.conv1" in dict(part.named_modules())


def test_gradients_pass_the_tail_to_the_activation_only() -> None:
    network, images = network_and_images("resnet20_w1")
    network.requires_grad_(False)
    activation = head(network, "layer2.0.add")(images).requires_grad_()
    tail(network, "layer2.0.add")(activation, images).sum().backward()
    assert activation.grad is not None and activation.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


class InPlace(nn.Module):
    """Overwrites the output of its BatchNorm, and adds into a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.more, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(images)))
        y = self.more(x)
        y += x
        return self.fc(self.relu(y).mean((2, 3)))


class Untraceable(InPlace):
    """Decides by the values of its input, which no tracer can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else images + 0.0)


class SideEffect(InPlace):
    """Calls an in-place operation for its effect alone."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn(self.conv(images))
        self.relu(x)
        return self.fc(self.more(x).mean((2, 3)))


@pytest.mark.parametrize("kind", [InPlace, Untraceable, SideEffect])
def test_in_place_operations_do_not_reach_the_layer_before_them(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, images = kind().eval(), torch.randn(2, 3, 8, 8)
    before_relu = network.bn(network.conv(images)).detach()  # type: ignore[operator]
    assert before_relu.min() < 0
    bn, relu = heads(network, ["bn", "relu"])(images)
    assert_close(bn, before_relu)
    assert relu.min() >= 0
    assert_close(head(network, "bn")(images), before_relu)
    part, activation = tail(network, "bn"), before_relu.clone()
    assert_close(part(activation, images), network(images))
    assert_close(part(activation, images), network(images))  # and the caller's tensor was not overwritten
    assert torch.equal(activation, before_relu)
    assert_close(tail(network, "conv", "bn")(head(network, "conv")(images), images), before_relu)


class Within(nn.Module):
    """A block of which one module decides by values, and one that returns several."""

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if x.sum() > 0 else y.mul_(2)

    class Both(Decides):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.blocks = nn.Sequential(nn.Sequential(nn.ReLU(), self.Decides()), nn.Conv2d(4, 4, 1))
        self.both = self.Both()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.both(self.blocks(self.first(images)))[0].mean((2, 3)))


@torch.no_grad()
def test_a_module_that_cannot_be_traced_is_one_step_of_the_graph() -> None:
    torch.manual_seed(0)
    network, images = Within().eval(), torch.randn(2, 3, 8, 8)
    for layer in ("first", "blocks.0.0", "blocks.0.1", "blocks.0", "blocks.1", "last"):
        part = tail(network, layer)
        assert is_traced(part) and is_traced(head(network, layer))
        given = head(network, layer)(images) * 0.5 + 0.1
        with last_call(network, layer, images, given) as seen:
            expected = network(images)
        assert_close(part(given, images), expected)
        assert_close(head(network, layer)(images), seen[0])
    assert not any("first" in name for name, _ in tail(network, "blocks.0.1").named_modules())
    for layer in ("blocks.0.1.inner", "both:0", "both.inner"):  # within such a module hooks do it
        assert not is_traced(tail(network, layer))
        assert_close(tail(network, layer)(head(network, layer)(images), images), network(images))
    assert {"both:0", "both:1", "blocks.0.1", "blocks.0.1.inner"} < set(layer_names(network, images))
    assert "both" not in layer_names(network, images)


@torch.no_grad()
def test_hooks_are_gone_where_tracing_fails() -> None:
    network, images = Untraceable().eval(), torch.randn(2, 3, 8, 8)
    assert not is_traced(head(network, "conv")) and is_traced(head(InPlace(), "conv"))
    head(network, "conv")(images)
    assert_close(tail(network, "relu")(network.relu(torch.zeros(2, 4, 6, 6)), images), network.fc(torch.zeros(2, 4)))
    assert not network.conv._forward_hooks and not network.relu._forward_hooks


class AsOftenAsBright(nn.Module):
    """Calls its layer more often for brighter images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((2, 3))
        for _ in range(1 + int(images.mean() > 0)):
            x = self.layer(x)
        return self.fc(x)


@torch.no_grad()
def test_the_last_call_counts_in_every_batch() -> None:
    network, dark = AsOftenAsBright().eval(), torch.full((2, 3, 4, 4), -1.0)
    front, end, given = head(network, "layer"), tail(network, "layer"), torch.randn(2, 3)
    for images in (dark, -dark, dark):
        with last_call(network, "layer", images, given) as seen:
            expected = network(images)
        assert_close(front(images), seen[0])
        assert_close(end(given, images), expected)


def test_a_tail_by_hooks_refuses_an_earlier_layer_as_one_by_its_graph_does() -> None:
    for network in (InPlace().eval(), Untraceable().eval()):
        images = torch.randn(2, 3, 8, 8)
        activation = head(network, "relu")(images)
        with pytest.raises(ValueError, match="'conv' does not depend on 'relu'"):
            tail(network, "relu", "conv")(activation, images)


class Several(nn.Module):
    """Layers that return a tuple, a record and what torch's attention does; `forward` takes more than images."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x - 1

    class Record(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"twice": 2 * x, "half": x / 2}

    def __init__(self, traced: bool) -> None:
        super().__init__()
        self.pair, self.record, self.traced = self.Pair(), self.Record(), traced
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, activation: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            activation = activation * mask
        if not self.traced and activation.sum() > 1e9:
            return activation
        one, other = self.pair(activation)
        record = self.record(one * other)
        out, _ = self.attention(record["twice"], record["half"], one)
        return out.sum(1)


@pytest.mark.parametrize("traced", [True, False])
@torch.no_grad()
def test_one_tensor_of_several_is_a_layer(traced: bool) -> None:
    torch.manual_seed(0)
    network, images = Several(traced).eval(), torch.randn(2, 3, 4)
    assert is_traced(head(network, "pair:0")) == traced
    one, half, out = heads(network, ["pair:0", "record:1", "attention:0"])(images)
    assert_close(one, images + 1)
    assert_close(half, (images + 1) * (images - 1) / 2)
    assert_close(out.sum(1), network(images))
    for layer, activation in (("pair:0", one), ("record:1", half), ("attention:0", out)):
        part = tail(network, layer)
        assert_close(part(activation, images), network(images))
        assert not torch.equal(part(2 * activation, images), network(images))
    with pytest.raises(ValueError, match="'pair' returns 2 values; name a tensor of them, such as pair:0"):
        head(network, "pair")(images)
    with pytest.raises(ValueError, match="pair:2|returns 2 values"):
        head(network, "pair:2")(images)
    if traced:
        names = ["", "pair:0", "pair:1", "record:0", "record:1", "attention:0", "attention:1"]
        assert [name for name in layer_names(network) if "out_proj" not in name] == names


class Remembers(nn.Module):
    """Keeps what it computed, as networks do that cache their position biases, and drops at random in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.cache = nn.Linear(4, 4), nn.Linear(4, 2), {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.first.weight.sum() + 0 * x.sum()
        return self.second(F.dropout(self.first(x) + self.cache["bias"], training=self.training))


def flags(network: nn.Module) -> list:
    state = [(name, value.requires_grad, value.stride(), value.clone()) for name, value in network.named_parameters()]
    return [state, [module.training for module in network.modules()], [name for name, _ in network.named_modules()]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Remembers, InPlace, Untraceable])
def test_neither_cutting_nor_freezing_touches_the_model(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    network = kind().train(training)
    next(network.parameters()).requires_grad_(False)
    before = flags(network)
    layer, images = ("first", torch.randn(3, 4)) if kind is Remembers else ("conv", torch.randn(2, 3, 8, 8))
    for _ in range(2):  # what tracing leaves behind would spoil the second
        front, end = freeze(head(network, layer)), freeze(tail(network, layer))
        logits = end(front(images), images)
    assert str(flags(network)) == str(before) and not getattr(network, "cache", None)
    assert_close(logits, network.eval()(images), rtol=1e-4, atol=1e-5)  # no dropout, and BatchNorm by its statistics


def test_an_unknown_layer_is_refused_with_the_closest_names() -> None:
    network, _ = network_and_images("resnet20_w1")
    with pytest.raises(ValueError, match=r"no layer 'layer2.0.bn3'; close: .*layer2\.0\.bn"):
        head(network, "layer2.0.bn3")


def test_a_layer_that_never_runs_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert layer_names(Idle()) == ["", "used"]
    for cut in (head, tail):
        with pytest.raises(ValueError, match="'idle' does not run"):
            cut(Idle(), "idle")


class Encoder(nn.Module):
    """A network of torch's own transformer, whose code torch.fx does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("layer", ["encoder.layers.1", "encoder.layers.1.linear2", "encoder", "embed"])
def test_layers_within_a_transformer_of_torch_are_cut_by_hooks(layer: str) -> None:
    torch.manual_seed(0)
    network, images = Encoder().eval(), torch.randn(3, 1, 32, 32)
    fused = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        logits = network(images)
        activation = head(network, layer)(images)
        torch.backends.mha.set_fastpath_enabled(False)  # it does without the submodules whose hooks are asked here
        with last_call(network, layer, images, torch.zeros_like(activation)) as seen:
            expected = network(images)
        torch.backends.mha.set_fastpath_enabled(fused)
        assert_close(activation, seen[0])
        assert_close(tail(network, layer)(activation, images), logits, atol=1e-5, rtol=1e-5)
        assert_close(tail(network, layer)(torch.zeros_like(activation), images), expected)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert is_traced(head(network, layer)) == (layer in ("encoder", "embed"))


def test_the_layers_of_a_transformer_of_torch_are_listed() -> None:
    names = layer_names(Encoder().eval(), torch.zeros(2, 1, 32, 32))
    assert {"encoder", "encoder.layers.0", "encoder.layers.2.linear1", "encoder.layers.2.norm2"} <= set(names)
    assert "encoder.layers.0.self_attn.out_proj" not in names  # which is a parameter's place and does not run
    assert later_layers(Encoder().eval(), "embed", torch.zeros(2, 1, 32, 32)) == ["encoder", "head"]


@pytest.mark.parametrize("kind", [InPlace, Untraceable])
def test_outputs_of_several_later_layers_come_from_one_pass(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, images = kind().eval(), torch.randn(2, 3, 8, 8)
    activation = head(network, "bn")(images) + 1
    untils = ["relu", input_of("fc"), "fc", ""]
    part = tails(network, "bn", untils)
    part(activation, images)  # the first time, hooks count calls
    ran: list[str] = []
    network.more.register_forward_hook(lambda *_: ran.append("more"))  # type: ignore[operator]
    part(activation, images)
    assert len(ran) == (kind is Untraceable)  # a graph has modules of its own
    for until, output in zip(untils, part(activation, images), strict=True):
        assert_close(output, tail(network, "bn", until)(activation, images), rtol=0, atol=0)
    assert_close(network.get_submodule("fc")(part(activation, images)[1]), part(activation, images)[2])


def test_the_final_features_are_what_the_last_linear_layer_reads() -> None:
    for name, layer in (("tiny10", "fc"), ("resnet20_w1", "fc"), ("vit_w32", "head"), ("lenet", "fc3")):
        network, images = network_and_images(name)
        assert final_input(network, images) == input_of(layer)
        (features,) = heads(network, [input_of(layer)])(images)
        assert_close(network.get_submodule(layer)(features), network(images))
    images = torch.randn(2, 3, 8, 8)
    assert final_input(Untraceable().eval(), images) == ".fc" and final_input(InPlace().eval(), images) == ".fc"

    class Two(InPlace):
        def forward(self, images: Tensor) -> Tensor:
            x = self.bn(self.conv(images)).mean((2, 3))
            return self.fc(x) + self.get_submodule("again")(x)

    two = Two()
    two.again = nn.Linear(4, 2)
    assert final_input(two.eval(), images) is None
    assert final_input(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), images) is None


@pytest.mark.parametrize("kind", [InPlace, Untraceable])
def test_what_follows_a_layer(kind: type[nn.Module]) -> None:
    network, images = kind().eval(), torch.randn(2, 3, 8, 8)
    assert follows(network, "bn", input_of("fc"), images) and not follows(network, "fc", input_of("fc"), images)
    assert "more" in dependent_layers(network, "bn", images) and "conv" not in dependent_layers(network, "bn", images)


def test_a_network_is_traced_once_and_anew_when_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    original = tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda model: traces.append(1) or original(model))
    model, images = Switched(), torch.randn(2, 3, 8, 8)
    first = tail(model, "conv")(head(model, "conv")(images), images)
    assert len(layer_names(model)) == 3 and len(traces) == 1
    model.doubles = True
    assert torch.equal(tail(model, "conv")(head(model, "conv")(images), images), 2 * first) and len(traces) == 2
    model.conv = nn.Conv2d(3, 10, 1)
    assert torch.equal(tail(model, "conv")(head(model, "conv")(images), images), model(images)) and len(traces) == 3


class Switched(nn.Module):
    """Its graph depends on an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.doubles = nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.pool(self.conv(images)).flatten(1)
        return 2 * logits if self.doubles else logits
