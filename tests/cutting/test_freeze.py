"""Frozen networks give what they gave, with fewer operations, and leave their donors as they were."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from src.cutting.freeze import freeze
from src.cutting.parts import head, heads, tail
from src.models import build_model


def trained(name: str, size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(name, channels=3, classes=10, size=size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor, 0.5, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize(
    ("name", "layer"),
    [("tiny10", "bn3"), ("tiny10", "conv3"), ("resnet20_w1", "layer2.0.add"), ("inceptionv1_bn", "mixed4a")],
)
@torch.no_grad()
def test_folding_changes_nothing_but_the_work(name: str, layer: str) -> None:
    network, images = trained(name), torch.randn(2, 3, 32, 32)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    front, end = head(network, layer), tail(network, layer)
    activation = front(images)
    logits = end(activation, images)
    frozen = freeze(front), freeze(end)
    assert_close(frozen[0](images), activation, rtol=1e-4, atol=1e-4 * float(activation.abs().max()))
    assert_close(frozen[1](activation, images), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    left = [m for part in frozen for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    # a BatchNorm behind the cut has no convolution to be folded into
    assert len(left) == (1 if layer.startswith("conv") else 0)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())


def test_an_activation_that_is_asked_for_is_not_folded_away() -> None:
    network, images = trained("tiny10"), torch.randn(2, 3, 32, 32)
    convolution, norm = heads(network, ["conv2", "bn2"])(images)
    both = freeze(heads(network, ["conv2", "bn2"]))
    assert_close(both(images), (convolution, norm), rtol=1e-4, atol=1e-4)


def test_frozen_parts_need_no_gradient_and_stay_in_eval_mode() -> None:
    part = freeze(head(trained("tiny10"), "bn3"))
    assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize(("name", "layer"), [("tiny10", "bn3"), ("resnet20_w1", "layer2.0.add"), ("dense", "fc2")])
def test_relus_write_over_what_nobody_else_reads(name: str, layer: str) -> None:
    network, images = trained(name), torch.randn(2, 3, 32, 32)
    front, end = freeze(head(network, layer)), freeze(tail(network, layer))
    in_place = [m for part in (front, end) for m in part.modules() if isinstance(m, nn.ReLU) and m.inplace]
    assert in_place and not any(m.inplace for m in network.modules() if isinstance(m, nn.ReLU))
    activation, pixels = front(images).requires_grad_(), images.clone()
    before = activation.detach().clone()
    loss = end(activation, images).square().mean()
    (gradient,) = torch.autograd.grad(loss, activation)
    other = activation.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(tail(network, layer)(other, images).square().mean(), other)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(activation, before) and torch.equal(images, pixels)


@pytest.mark.parametrize("layers", [["conv2", "bn2", "relu2"], ["bn2", "relu2"]])
@torch.no_grad()
def test_a_relu_leaves_an_activation_that_is_asked_for_alone(layers: list[str]) -> None:
    network, images = trained("tiny10"), torch.randn(2, 3, 32, 32)
    expected = heads(network, layers)(images)
    assert_close(freeze(heads(network, layers))(images), expected, rtol=1e-4, atol=1e-4)


def test_what_a_layer_gives_does_not_depend_on_which_others_are_asked_for() -> None:
    network, images = trained("tiny10"), torch.randn(2, 3, 32, 32)
    (alone,) = freeze(heads(network, ["bn3"]))(images)
    beside = freeze(heads(network, ["conv2", "conv3", "bn3", "relu3"]))(images)[2]
    assert torch.equal(alone, beside)


class Colliding(nn.Module):
    """One convolution read by two BatchNorms, and every name that a folded layer might be given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.a_0, self.folded_0, self.relu_in_place_0 = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.one, self.two, self.three, self.four = (nn.BatchNorm2d(3) for _ in range(4))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(self.a(x)) + self.two(self.a(x)) + self.three(self.a_0(x))
        return self.relu_in_place_0(self.relu(self.four(self.folded_0(x))))


def with_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor, 0.5, 0.3)  # type: ignore[arg-type]
    return network.eval()


@torch.no_grad()
def test_names_of_folded_layers_collide_with_none() -> None:
    torch.manual_seed(0)
    network, images = with_statistics(Colliding()), torch.randn(2, 3, 4, 4)
    part = freeze(heads(network, [""]))
    assert_close(part(images)[0], network(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in part.modules())


def weight_normalised(convolution: nn.Conv2d) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many networks
        return nn.utils.weight_norm(convolution)


MADE_WEIGHTS = {
    "spectral": nn.utils.parametrizations.spectral_norm,
    "weight": nn.utils.parametrizations.weight_norm,
    "old spectral": nn.utils.spectral_norm,
    "old weight": weight_normalised,
    "pruned": lambda convolution: prune.l1_unstructured(convolution, "weight", 0.5),
}


@pytest.mark.parametrize("made", MADE_WEIGHTS)
def test_a_convolution_whose_weights_are_made_is_not_folded(made: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(MADE_WEIGHTS[made](nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU())
    with_statistics(network)
    images = torch.randn(2, 3, 8, 8)
    expected = network(images).detach()
    part = freeze(head(network, "2"))
    assert_close(part(images), expected, rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in part.modules())
    assert_close(network(images).detach(), expected, rtol=0, atol=0)


def test_a_buffer_of_five_axes_stays_and_the_network_keeps_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    network.register_buffer("mask", torch.ones(1, 2, 2, 2, 2))
    network.register_buffer("maps", torch.randn(1, 2, 2, 2))
    images, strides = torch.randn(2, 3, 4, 4), network.maps.stride()  # type: ignore[union-attr, operator]
    part = freeze(network)
    assert_close(part(images), network(images))
    assert network.maps.stride() == strides != part.maps.stride()  # type: ignore[union-attr, operator]
