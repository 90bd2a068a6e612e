"""Names, lists and patterns of layers."""

import pytest
from torch import nn

from src.cutting.selection import choose_layers
from src.models import build_model

RESNET = build_model("resnet20_w1", channels=3, classes=10, size=32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bn1", ["bn1"]),
        ("layer2.0.add, bn1", ["layer2.0.add", "bn1"]),
        ("layer2.*.add", ["layer2.0.add", "layer2.1.add", "layer2.2.add"]),
        ("layer?.0.bn2", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("layer*", ["layer1", "layer2", "layer3"]),
        ("layer3.**.conv1,bn1,layer3.0.conv1", ["layer3.0.conv1", "layer3.1.conv1", "layer3.2.conv1", "bn1"]),
        ("", [""]),
    ],
)
def test_layers_that_a_text_names(text: str, expected: list[str]) -> None:
    assert choose_layers(RESNET, text) == expected


def test_all_is_each_that_runs_and_holds_no_other_in_the_order_of_running() -> None:
    names = choose_layers(RESNET, "all")
    assert names.index("conv1") < names.index("bn1") < names.index("layer1.0.conv1") < names.index("fc")
    assert not any(any(RESNET.get_submodule(name).children()) for name in names)
    assert set(choose_layers(RESNET, "**")) >= set(names)


@pytest.mark.parametrize(
    ("text", "message"), [("bn9", "no layer 'bn9'"), ("x*", "matches 'x.'"), ("bn1,", "empty name")]
)
def test_what_names_no_layer_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_layers(RESNET, text)


def test_a_dot_in_a_pattern_is_a_dot() -> None:
    network = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Identity()}), "a_b": nn.Identity()})
    network.forward = lambda x: network["a"]["b"](network["a_b"](x))  # type: ignore[method-assign, operator]
    assert choose_layers(network, "a.?") == ["a.b"]
