"""LeNet-5 with ReLU and max pooling."""

from collections import OrderedDict

from torch import nn

from src.models.sizes import check_size


class LeNet(nn.Sequential):
    """Two unpadded 5x5 convolutions with pooling, then three dense layers (LeCun et al. 1998, with ReLU).

    Images (n, channels, size, size) with size >= 16 become logits (n, classes).
    """

    def __init__(self, *, channels: int, classes: int, size: int) -> None:
        check_size("LeNet", size, 16)
        side = ((size - 4) // 2 - 4) // 2
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 5),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * side * side, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, classes),
            )
        )
