"""InceptionV1 (GoogLeNet) with the layer names and the padding of its TensorFlow original."""

from typing import Any

import torch
from torch import Tensor, nn

from src.models.sizes import check_size

# Output channels of each block: 1x1, 3x3 bottleneck, 3x3, 5x5 bottleneck, 5x5, pool_reduce.
BLOCKS = {
    "mixed3a": (64, 96, 128, 16, 32, 32),
    "mixed3b": (128, 128, 192, 32, 96, 64),
    "mixed4a": (192, 96, 204, 16, 48, 64),
    "mixed4b": (160, 112, 224, 24, 64, 64),
    "mixed4c": (128, 128, 256, 24, 64, 64),
    "mixed4d": (112, 144, 288, 32, 64, 64),
    "mixed4e": (256, 160, 320, 32, 128, 128),
    "mixed5a": (256, 160, 320, 48, 128, 128),
    "mixed5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"mixed4a": "maxpool4", "mixed5a": "maxpool10"}


class Concat(nn.Module):
    """Branches joined over channels, a module so that it can be named: several (n, c_i, h, w) become one."""

    def forward(self, *branches: Tensor) -> Tensor:
        return torch.cat(branches, 1)


class IdleBatchNorm(nn.BatchNorm2d):
    """The entries of a BatchNorm that hands its input on unchanged: (n, c, h, w) to the same.

    The published InceptionV1 stores a BatchNorm after every convolution and never applies it.
    """

    def forward(self, input: Tensor) -> Tensor:
        return input


def _forgive_missing_norms(module: nn.Module, incompatible_keys: Any) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if "_pre_relu_bn." not in name]


def _halving_pool() -> nn.MaxPool2d:
    # Windows that overhang on the right and below are TensorFlow's "same" padding of even sizes.
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class InceptionV1(nn.Module):
    """GoogLeNet without auxiliary classifiers and dropout (Szegedy et al. 2015, table 1; mixed4a as in TensorFlow's).

    Images (n, channels, size, size) with size >= 32 become logits (n, classes).

    With `batch_norm` a BatchNorm acts after every convolution (Ioffe and Szegedy 2015). Without it nothing normalises:
    the `_bn` layers pass their input on, and load_state_dict(strict=True) takes a state dict with or without their
    entries, since they change nothing.
    """

    def __init__(self, *, channels: int, classes: int, size: int, batch_norm: bool = False) -> None:
        super().__init__()
        check_size("InceptionV1", size, 32)
        self._norm = nn.BatchNorm2d if batch_norm else IdleBatchNorm
        if not batch_norm:
            self.register_load_state_dict_post_hook(_forgive_missing_norms)

        # Symmetric padding would shift every window: the original pads two pixels before and three behind.
        self.conv2d0_pad = nn.ZeroPad2d((2, 3, 2, 3))
        self._add_conv("conv2d0", channels, 64, 7, stride=2, padding=0)
        self.conv2d0 = nn.ReLU()
        self.maxpool0 = _halving_pool()
        self.localresponsenorm0 = nn.LocalResponseNorm(9, alpha=1e-4, beta=0.5, k=1)
        self._add_conv("conv2d1", 64, 64, 1)
        self.conv2d1 = nn.ReLU()
        self._add_conv("conv2d2", 64, 192, 3)
        self.conv2d2 = nn.ReLU()
        self.localresponsenorm1 = nn.LocalResponseNorm(9, alpha=1e-4, beta=0.5, k=1)
        self.maxpool1 = _halving_pool()
        width = 192
        for name in BLOCKS:
            if name in POOL_BEFORE:
                self.add_module(POOL_BEFORE[name], _halving_pool())
            width = self._add_block(name, width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.logits = nn.Linear(width, classes)

    def _add_conv(
        self, name: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = -1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if padding < 0 else padding)
        # Without BatchNorm, only He's variance keeps the signal's size through 20 layers of ReLU (He et al. 2015).
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.add_module(f"{name}_pre_relu_conv", conv)
        self.add_module(f"{name}_pre_relu_bn", self._norm(outputs))

    def _add_block(self, name: str, inputs: int) -> int:
        ones, three_in, three, five_in, five, pooled = BLOCKS[name]
        self._add_conv(f"{name}_1x1", inputs, ones, 1)
        self._add_conv(f"{name}_3x3_bottleneck", inputs, three_in, 1)
        self.add_module(f"{name}_3x3_bottleneck", nn.ReLU())
        self._add_conv(f"{name}_3x3", three_in, three, 3)
        self._add_conv(f"{name}_5x5_bottleneck", inputs, five_in, 1)
        self.add_module(f"{name}_5x5_bottleneck", nn.ReLU())
        self._add_conv(f"{name}_5x5", five_in, five, 5)
        self.add_module(f"{name}_pool", nn.MaxPool2d(3, 1, padding=1))
        self._add_conv(f"{name}_pool_reduce", inputs, pooled, 1)
        self.add_module(f"{name}_pre_relu", Concat())
        self.add_module(name, nn.ReLU())
        return ones + three + five + pooled

    def _run(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def _conv(self, x: Tensor, name: str) -> Tensor:
        return self._run(x, f"{name}_pre_relu_conv", f"{name}_pre_relu_bn")

    def _conv_relu(self, x: Tensor, name: str) -> Tensor:
        return self._run(self._conv(x, name), name)

    def _block(self, x: Tensor, name: str) -> Tensor:
        one = self._conv(x, f"{name}_1x1")
        three = self._conv(self._conv_relu(x, f"{name}_3x3_bottleneck"), f"{name}_3x3")
        five = self._conv(self._conv_relu(x, f"{name}_5x5_bottleneck"), f"{name}_5x5")
        pooled = self._conv(self._run(x, f"{name}_pool"), f"{name}_pool_reduce")
        joined = self.get_submodule(f"{name}_pre_relu")(one, three, five, pooled)
        return self._run(joined, name)

    def forward(self, images: Tensor) -> Tensor:
        x = self._conv_relu(self.conv2d0_pad(images), "conv2d0")
        x = self._run(x, "maxpool0", "localresponsenorm0")
        x = self._conv_relu(self._conv_relu(x, "conv2d1"), "conv2d2")
        x = self._run(x, "localresponsenorm1", "maxpool1")
        for name in BLOCKS:
            if name in POOL_BEFORE:
                x = self._run(x, POOL_BEFORE[name])
            x = self._block(x, name)
        return self.logits(torch.flatten(self.avgpool(x), 1))
