"""Layouts of what layers give: found by following the channels, canonical behind the cut, resized token by token."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from src.cutting.channel_axis import find_outputs, layout_warnings, layouts_of, require_fit
from src.cutting.freeze import freeze
from src.cutting.layout import ASKABLE, RANKS, Layout, with_grid
from src.cutting.parts import head, heads, is_traced, layer_names, tail
from src.cutting.selection import choose_layers
from src.models import build_model
from src.stitching import Geometry
from src.stitching.upsampling import is_upsampled

IMAGES = torch.zeros(2, 3, 8, 12)


@pytest.mark.parametrize("kind", RANKS)
def test_canonical_form_and_back(kind: str) -> None:
    own = torch.randn([5, 3, 4, 2][: RANKS[kind]])
    layout = Layout(kind)
    turned = layout.canonical(own)
    assert tuple(turned.shape[1:]) == layout.shape(tuple(own.shape[1:]))
    assert torch.equal(layout.original(turned), own) and layout.original(turned.clone()).is_contiguous()
    if kind in ("channels_last", "tokens"):
        assert torch.equal(turned[1, 1].flatten(), own[1, ..., 1].flatten())


class Mixed(nn.Module):
    """Layers of every layout: maps, channels last and back, patches as tokens with a class token, windows, features."""

    def __init__(self, traced: bool = True) -> None:
        super().__init__()
        self.traced = traced
        self.conv, self.bn = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.norm, self.mlp = nn.LayerNorm(5), nn.Linear(5, 5)
        self.inner, self.windows = nn.Identity(), nn.Identity()
        self.back, self.line, self.patches = nn.Identity(), nn.Identity(), nn.Conv2d(5, 6, 2, 2)
        self.cls, self.joined, self.block = nn.Parameter(torch.randn(1, 1, 6)), nn.Identity(), nn.Linear(6, 6)
        self.across, self.product, self.rest = nn.Linear(25, 25), nn.Identity(), nn.Identity()
        self.many, self.fc = nn.Identity(), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        if not self.traced and images.sum() > 1e9:
            return images
        x = self.bn(self.conv(images))
        last = self.inner(self.mlp(self.norm(x.permute(0, 2, 3, 1))))
        x = x + self.back(last.permute(0, 3, 1, 2))
        windows = last.unflatten(1, (4, 2)).unflatten(3, (6, 2)).transpose(2, 3).flatten(0, 2)
        x = x + self.windows(windows).mean()
        self.line(x.flatten(2))
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.joined(torch.cat([self.cls.expand(tokens.shape[0], -1, -1), tokens], 1))
        tokens = self.block(tokens) + tokens
        tokens = tokens + self.across(tokens.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + self.product(tokens @ torch.eye(6))
        self.many(tokens[:, :, None, None, :])
        return self.fc(self.rest(tokens[:, 1:]).mean(1))


EXPECTED = {
    "conv": "maps", "bn": "maps", "norm": "last", "mlp": "last", "inner": "last", "back": "maps", "line": "maps",
    "patches": "maps", "joined": "tokens 1+4x6", "block": "tokens 1+4x6", "across": "maps", "rest": "tokens 0+4x6",
    "product": "tokens 0+5x5?", "": "features",
}  # fmt: skip


@pytest.mark.parametrize("traced", [True, False])
def test_layouts_are_followed_through_the_pass(traced: bool) -> None:
    network = Mixed(traced).eval()
    assert is_traced(head(network, "conv")) == traced
    found = find_outputs(network, list(EXPECTED), IMAGES)
    assert {layer: str(output.layout) for layer, output in found.items()} == EXPECTED
    assert found["joined"].shape == (25, 6) and found["joined"].canonical == (6, 25, 1)
    lines = layout_warnings(network, found)
    assert "a guess: outputs of product of Mixed are taken to be tokens; ?layout=" in lines[0]
    assert not lines[1:] if traced else "hooks cut it: each part runs the whole" in lines[1]
    refused = find_outputs(network, ["windows", "many"], IMAGES)
    with pytest.raises(ValueError, match=r"'windows' gives \(48, 2, 2, 5\) for 2 images, not a row an image"):
        layouts_of(refused)
    assert "neither maps nor tokens" in refused["many"].refused
    assert set(choose_layers(network, "all", IMAGES)) == set(EXPECTED) - {""} | {"fc"}


@pytest.mark.parametrize("traced", [True, False])
@torch.no_grad()
def test_heads_and_tails_speak_the_canonical_form(traced: bool) -> None:
    torch.manual_seed(0)
    network, images = Mixed(traced).eval(), torch.randn(2, 3, 8, 12)
    layers = list(EXPECTED)
    layouts = layouts_of(find_outputs(network, layers, images))
    own, canonical = heads(network, layers)(images), heads(network, layers, layouts)(images)
    for layer, before, after in zip(layers, own, canonical, strict=True):
        assert torch.equal(layouts[layer].canonical(before), after)
        if layer in ("line", ""):  # on which nothing depends, and the output itself
            continue
        part, whole = tail(network, layer, layouts=layouts), tail(network, layer)
        assert torch.equal(part(after, images), whole(before, images))
        assert torch.equal(part(after + 1, images), whole(before + 1, images))
        assert_close(freeze(part)(after + 1, images), whole(before + 1, images))
    later = tail(network, "conv", "block", layouts)(canonical[0], images)
    assert_close(later, canonical[layers.index("block")])


def test_what_is_asked_for_wins_where_it_has_as_many_axes() -> None:
    network = Mixed().eval()
    found = find_outputs(network, ["conv", "norm", "block", ""], IMAGES, "maps")
    assert [str(output.layout) for output in found.values()] == ["maps", "maps", "maps", "features"]
    found = find_outputs(network, ["across", "conv"], IMAGES, "tokens")
    assert [str(output.layout) for output in found.values()] == ["tokens 2+2x2", "maps"]
    with pytest.raises(ValueError, match=r"\?layout=tokens fits none of the layers, which give for an image: conv"):
        require_fit("tokens", find_outputs(network, ["conv"], IMAGES, "tokens"))
    require_fit(None, {})
    network.product.layout = "maps"  # type: ignore[assignment]
    assert str(find_outputs(network, ["product"], IMAGES)["product"].layout) == "maps"
    assert set(ASKABLE) < set(RANKS)


@pytest.mark.parametrize(
    ("tokens", "grid", "expected"),
    [
        (197, None, "tokens 1+14x14"),
        (198, None, "tokens 2+14x14"),
        (25, (4, 6), "tokens 1+4x6"),
        (1, (4, 6), "tokens 0+1x1"),
        (150, (4, 6), "tokens 6+12x12"),
        (143, None, "tokens"),
    ],
)
def test_places_of_tokens(tokens: int, grid: tuple[int, int] | None, expected: str) -> None:
    assert str(with_grid(Layout("tokens"), tokens, grid)) == expected
    assert with_grid(Layout(), tokens, grid) == Layout()


def resized(x: Tensor, front: Layout, end: Layout, end_shape: tuple[int, ...]) -> Tensor:
    geometry = Geometry(
        tuple(x.shape[1:]), (9, *end_shape), resize=True, front_layout=front, end_layout=end
    )  # other channels: a stitch follows
    assert not is_upsampled(geometry)
    return geometry.interpolate(x)


def test_resizing_interpolates_the_grid_and_keeps_tokens_without_a_place() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2 + 6, 1)  # two tokens, and patches in 2 x 3
    front, grid = Layout("tokens", grid=(2, 3), prefix=2), x[:, :, 2:, 0].unflatten(2, (2, 3))
    wanted = F.interpolate(grid, size=(4, 6), mode="bilinear", align_corners=False)
    mean = grid.mean((2, 3))
    for prefix in (0, 1, 2, 4):
        moved = resized(x, front, Layout("tokens", grid=(4, 6), prefix=prefix), (prefix + 24, 1))
        assert_close(moved[:, :, prefix:, 0].unflatten(2, (4, 6)), wanted)
        for place in range(prefix):
            assert_close(moved[:, :, place, 0], x[:, :, place, 0] if place < 2 else mean)
    assert_close(resized(x, front, Layout(), (4, 6)), wanted)
    assert torch.equal(resized(x, front, Layout(), (2, 3)), grid)  # tokens as a map: nothing to interpolate
    assert torch.equal(resized(x, front, front, (8, 1)), x)
    back = resized(wanted, Layout("channels_last"), Layout("tokens", grid=(4, 6), prefix=1), (25, 1))
    assert torch.equal(back[:, :, 1:, 0].unflatten(2, (4, 6)), wanted)
    assert_close(back[:, :, 0, 0], wanted.mean((2, 3)))
    with pytest.raises(ValueError, match=r"gives \(5, 23, 1\), tokens and .*: tokens that lie in no square grid"):
        Geometry((5, 23, 1), (5, 4, 4), resize=True, front_layout=Layout("tokens"))


def test_equal_counts_of_tokens_in_other_places_are_resized_only_if_asked() -> None:
    def pair(resize: bool) -> Geometry:
        layouts = Layout("tokens", grid=(2, 8)), Layout("tokens", grid=(4, 4))
        return Geometry((5, 16, 1), (3, 16, 1), resize=resize, front_layout=layouts[0], end_layout=layouts[1])

    assert pair(True).is_resized and not pair(False).is_resized
    assert math.prod(pair(False).places[0]) == 16


def test_every_layer_of_our_transformer_is_known() -> None:
    network = build_model("vit_w32", channels=3, classes=10, size=32).eval()
    found = find_outputs(network, layer_names(network), torch.zeros(2, 3, 32, 32))
    assert layout_warnings(network, found) == []
    assert str(found["blocks.3"].layout) == str(found["blocks.0.attn.mix"].layout) == "tokens 0+8x8"


class Turned(nn.Module):
    """As many tokens as there are blank images, and these first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(1, 8, (16, 32), (16, 32)), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.conv(images).flatten(2).permute(2, 0, 1)).mean(0))


def test_a_first_axis_that_only_happens_to_be_as_long_as_the_batch_is_refused() -> None:
    found = find_outputs(Turned().eval(), ["conv", "mix", "head"], torch.zeros(2, 1, 32, 32))
    assert [output.layout is not None for output in found.values()] == [True, False, True]
    assert found["mix"].refused == "the layer 'mix' gives (2, 3, 8) for 3 images, not a row an image"
