"""Tiny10, the small convolutional network of the representation comparison literature."""

from collections import OrderedDict

from torch import nn

from src.models.sizes import check_size

# One row a convolution: output channels, kernel, stride. None of them pads.
CONVOLUTIONS = ((16, 3, 1), (16, 3, 1), (32, 3, 2), (32, 3, 1), (32, 3, 1), (64, 3, 2), (64, 3, 1), (64, 1, 1))


class Tiny10(nn.Sequential):
    """Eight convolutions, each with BatchNorm and ReLU, then a global average (Kornblith et al. 2019, Tiny-10).

    Images (n, channels, size, size) with size >= 27 become logits (n, classes).
    """

    batch_norm = True

    def __init__(self, *, channels: int, classes: int, size: int) -> None:
        check_size(type(self).__name__, size, 27)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (width, kernel, stride) in enumerate(CONVOLUTIONS, start=1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, kernel, stride)
            if self.batch_norm:
                layers[f"bn{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, classes)
        super().__init__(layers)


class NbnTiny10(Tiny10):
    """Tiny10 without BatchNorm (after Kornblith et al. 2019).

    Images (n, channels, size, size) with size >= 27 become logits (n, classes).
    """

    batch_norm = False

    def __init__(self, *, channels: int, classes: int, size: int) -> None:
        super().__init__(channels=channels, classes=classes, size=size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Nothing rescales the signal here; PyTorch's default would lose it in eight layers (He et al. 2015).
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
