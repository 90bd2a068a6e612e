"""ResNet-20 for small images, of any width."""

from torch import Tensor, flatten, nn

from src.core.errors import UserError
from src.models.sizes import check_size


class Add(nn.Module):
    """The sum of a block's two paths, a module so that it can be named: two (n, c, h, w) become one."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return residual + shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2).

    (n, inputs, h, w) becomes (n, outputs, h / stride, w / stride), rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        shortcut = x if self.downsample is None else self.downsample(x)
        # The published networks use one module for both activations; its last call is the block's output.
        return self.relu(self.add(residual, shortcut))


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Three blocks of which the first may change channels and resolution."""
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)
    )


class ResNet20(nn.Module):
    """ResNet-20 with projection shortcuts and 16, 32, 64 times `width` channels (He et al. 2016, section 4.2).

    Images (n, channels, size, size) of any size become logits (n, classes). Raises UserError for a width below 1.
    """

    def __init__(self, *, channels: int, classes: int, size: int, width: int = 1) -> None:
        super().__init__()
        check_size("ResNet20", size, 1)
        if width < 1:
            raise UserError(f"width {width} of ResNet20 is not positive; use 1 or more")
        base = 16 * width
        self.conv1 = nn.Conv2d(channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.layer1 = stage(base, base, 1)
        self.layer2 = stage(base, 2 * base, 2)
        self.layer3 = stage(2 * base, 4 * base, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * base, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # PyTorch's default is made for leaky ReLU and starts these convolutions too small (He et al. 2015).
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(flatten(self.avgpool(x), 1))
