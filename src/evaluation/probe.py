"""What is linearly there: logistic regression on the average activation of a layer."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from src.core.task import Task
from src.dataset import Split

STEPS, TOLERANCE = 1000, 1e-6  # of L-BFGS: at most so many, until no entry of the gradient is larger


class Probe:
    """Activations (n, channels, ...) -> logits: standardised averages over positions, times w (classes, channels)."""

    def __init__(self, mean: Tensor, scale: Tensor, w: Tensor, b: Tensor) -> None:
        self.mean, self.scale, self.w, self.b = mean, scale, w, b

    def __call__(self, activation: Tensor) -> Tensor:
        x = (global_avg_pool(activation).to(self.mean.device).double() - self.mean) / self.scale
        return x @ self.w.T + self.b


def global_avg_pool(activation: Tensor) -> Tensor:
    """The average over positions, (n, channels)."""
    return activation.flatten(2).mean(2) if activation.dim() > 2 else activation


def fit_probe(x: Tensor, labels: Tensor, task: Task, classes: int) -> Probe:
    """Multinomial (for several labels: binomial) logistic regression on x (n, channels), float64 on the CPU.

    Minimises the mean loss plus |w|^2 / (2 n) over standardised channels by L-BFGS (Liu and Nocedal 1989); a channel
    without variance counts for nothing. The bias is not held down.
    """
    x = x.cpu().double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale[scale <= 1e-12 * mean.abs()] = torch.inf
    x, labels = (x - mean) / scale, labels.cpu()
    shape = classes, x.shape[1] + 1

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        wb = torch.from_numpy(values).view(shape).requires_grad_()
        with torch.enable_grad():
            loss = task.loss(x @ wb[:, :-1].T + wb[:, -1], labels) + wb[:, :-1].square().sum() / (2 * len(x))
            (gradient,) = torch.autograd.grad(loss, wb)
        return loss.item(), gradient.reshape(-1).numpy()

    start = np.zeros(shape[0] * shape[1])
    options = {"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 0.0}
    with torch.inference_mode(False):
        found = scipy.optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    wb = torch.from_numpy(found.x).view(shape)
    return Probe(mean, scale, wb[:, :-1], wb[:, -1])


class PooledFeatures:
    """Feed it outputs of layers of the front network, a batch after the other; then probes can be fitted to them."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    @property
    def layers(self) -> list[str]:
        return list(self._parts)

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        for layer, parts in self._parts.items():
            parts.append(global_avg_pool(outputs[layer]))

    def probe(self, layer: str, split: Split) -> Probe:
        """The probe of a layer for the labels of a split, all of whose images were seen in their order."""
        with torch.inference_mode(False):
            x = torch.cat(self._parts[layer]).cpu().clone()
            return fit_probe(x, split.labels.cpu(), split.spec.task, split.spec.classes)
