"""What is linearly there: logistic regression on the average activation of a layer."""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from src.activations import feed
from src.dataset import Split
from src.stitching import Cuts
from src.task import Task

STEPS, TOLERANCE = 1000, 1e-6  # of L-BFGS: at most so many, until no entry of the gradient is larger


class Probe:
    """Activations (n, channels, ...) -> logits: standardised averages over positions, times w (classes, channels)."""

    def __init__(self, mean: Tensor, scale: Tensor, w: Tensor, b: Tensor) -> None:
        self.mean, self.scale, self.w, self.b = mean, scale, w, b

    def __call__(self, activation: Tensor) -> Tensor:
        x = (averaged(activation).to(self.mean) - self.mean) / self.scale
        return x @ self.w.T + self.b


def averaged(activation: Tensor) -> Tensor:
    """The average over positions, (n, channels)."""
    return activation.flatten(2).mean(2) if activation.dim() > 2 else activation


def fit_probe(x: Tensor, labels: Tensor, task: Task, classes: int) -> Probe:
    """Multinomial (for several labels: binomial) logistic regression on x (n, channels), float64 on the CPU.

    Minimises the mean loss plus |w|^2 / (2 n) over standardised channels by L-BFGS (Liu and Nocedal 1989); a channel
    without variance counts for nothing. The bias is not held down.
    """
    x = x.double().cpu()
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


def fit_probes(cuts: Cuts, layers: Sequence[str], split: Split, *, classes: int) -> dict[str, Probe]:
    """A probe for each of some layers of the front network, from one pass over a split."""
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def front(images: Tensor) -> dict[str, Tensor]:
        return cuts.outputs("front", layers, images)

    def keep(outputs: dict[str, Tensor]) -> None:
        for layer, activation in outputs.items():
            rows[layer].append(averaged(activation).cpu())

    feed([front], split, keep, title="averages for probes")
    with torch.inference_mode(False):
        return {
            layer: fit_probe(torch.cat(parts).clone(), split.labels.cpu(), split.spec.task, classes)
            for layer, parts in rows.items()
        }
