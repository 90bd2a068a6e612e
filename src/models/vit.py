"""A small vision transformer, of any width."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.models.resnet20 import Add
from src.models.sizes import check_size

PATCH, DEPTH = 4, 6
HEAD_WIDTH = 32  # channels of an attention head


class Tokens(nn.Module):
    """A map as a row of its positions, line by line: (n, c, h, w) becomes (n, h * w, c)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)


class Positions(nn.Module):
    """Adds to each token what is learned of its place in the grid of side x side: (n, side * side, c) to the same.

    Starts at the sines and cosines of rows and columns (Vaswani et al. 2017, section 3.5, over two dimensions), from
    which a small set of images gets further than from noise (Beyer et al. 2022).
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        angles = torch.arange(side)[:, None] * 10_000.0 ** -torch.linspace(0, 1, width // 4)
        waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
        rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
        self.table = nn.Parameter(torch.cat([rows, columns], 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class Mix(nn.Module):
    """What each head's queries gather of its values, a module so that it can be named: (n, t, 3c) becomes (n, t, c)."""

    layout = "tokens"  # which products of queries and keys do not tell

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        parts = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts[0], parts[1], parts[2]  # (n, heads, t, 32)
        # written out: on processors, for so few tokens, the fused kernel trains half as fast in bfloat16
        weights = (queries * HEAD_WIDTH**-0.5 @ keys.transpose(2, 3)).softmax(-1)
        return (weights @ values).transpose(1, 2).flatten(2)


class Mean(nn.Module):
    """The mean over tokens: (n, t, c) becomes (n, c)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class Block(nn.Module):
    """Self-attention, then a perceptron on each token, both normalised first and added to what came in.

    (n, t, width) becomes the same (Dosovitskiy et al. 2021, equations 2 and 3).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.Sequential(
            OrderedDict(qkv=nn.Linear(width, 3 * width), mix=Mix(width // HEAD_WIDTH), proj=nn.Linear(width, width))
        )
        self.add1 = Add()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), gelu=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )
        self.add2 = Add()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.add1(self.attn(self.norm1(tokens)), tokens)
        return self.add2(self.mlp(self.norm2(tokens)), tokens)


class ViT(nn.Sequential):
    """Patches of 4 x 4 pixels as tokens, six pre-norm blocks, the mean of the tokens (Dosovitskiy et al. 2021).

    Images (n, channels, size, size) with size >= 4 become logits (n, classes); what lies beyond the last whole patch
    is left out. The mean needs no class token (Beyer et al. 2022), so that every token has a place in the image.
    Raises UserError for a width that is no multiple of 32, the channels of a head.
    """

    def __init__(self, *, channels: int, classes: int, size: int, width: int = 96) -> None:
        check_size("ViT", size, PATCH)
        if width < 1 or width % HEAD_WIDTH:
            raise UserError(f"width {width} of ViT is no multiple of {HEAD_WIDTH}; use {HEAD_WIDTH}, 64, 96 ...")
        super().__init__(
            OrderedDict(
                patch_embed=nn.Conv2d(channels, width, PATCH, PATCH),
                tokens=Tokens(),
                pos_embed=Positions(size // PATCH, width),
                blocks=nn.Sequential(*(Block(width) for _ in range(DEPTH))),
                norm=nn.LayerNorm(width),
                pool=Mean(),
                head=nn.Linear(width, classes),
            )
        )
