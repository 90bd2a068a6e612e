"""A multilayer perceptron on pixels."""

from collections import OrderedDict

from torch import nn

from src.models.sizes import check_size

HIDDEN = 300


class Dense(nn.Sequential):
    """A multilayer perceptron with three hidden layers of 300 ReLU units (Rumelhart et al. 1986; Nair and Hinton 2010).

    Images (n, channels, size, size) of any size become logits (n, classes).
    """

    def __init__(self, *, channels: int, classes: int, size: int) -> None:
        check_size("Dense", size, 1)
        super().__init__(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(channels * size * size, HIDDEN),
                relu1=nn.ReLU(),
                fc2=nn.Linear(HIDDEN, HIDDEN),
                relu2=nn.ReLU(),
                fc3=nn.Linear(HIDDEN, HIDDEN),
                relu3=nn.ReLU(),
                fc4=nn.Linear(HIDDEN, classes),
            )
        )
