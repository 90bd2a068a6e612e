"""What logits mean: exactly one label an image, or any number of them."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Task(ABC):
    """How logits (images, classes) become losses, probabilities and predictions.

    Targets are labels as the data set gives them, or probabilities of the shape of the logits (soft targets).
    """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss an image (and a label, for multi-label tasks), in nats; a scalar."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, (images, classes)."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Decisions in the form of the labels."""

    @abstractmethod
    def energy(self, logits: Tensor) -> Tensor:
        """Free energy of each image, (images,): the lower, the surer is the network that it knows something there."""

    @abstractmethod
    def crossentropy(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Cross-entropy to given probabilities, averaged over images AND classes, in nats; a scalar."""

    @abstractmethod
    def divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Mean KL an image (and a label) from what wanted logits say to what logits say, in nats; a scalar."""

    @abstractmethod
    def constant_accuracy(self, labels: Tensor) -> float:
        """Accuracy of the best constant answer, 0 to 1: what is reached without looking at the images."""

    @abstractmethod
    def strata(self, labels: Tensor) -> Tensor:
        """A whole number an image, (images,): a fair share of the images has its part of each number."""

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which decisions are right: booleans in the shape of the labels; their mean is the accuracy."""
        return self.predictions(logits) == labels


class SingleLabel(Task):
    """One class an image: softmax, labels (images,) of class indices."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def energy(self, logits: Tensor) -> Tensor:
        return -logits.logsumexp(1)

    def crossentropy(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        return F.cross_entropy(logits, probabilities) / logits.shape[1]

    def divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        # as F.kl_div has it, which vmap would run stitch by stitch
        said, wanted = logits.log_softmax(1), wanted.log_softmax(1)
        return (wanted.exp() * (wanted - said)).sum() / len(logits)

    def constant_accuracy(self, labels: Tensor) -> float:
        return labels.bincount().max().item() / len(labels)

    def strata(self, labels: Tensor) -> Tensor:
        return labels


class MultiLabel(Task):
    """Independent yes/no attributes: sigmoid, labels (images, attributes) of 0.0 and 1.0, threshold 0.5."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def predictions(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(logits.dtype)

    def energy(self, logits: Tensor) -> Tensor:
        return -F.softplus(logits).sum(1)  # each label against its absence, whose logit is 0 (Wang et al. 2021)

    def crossentropy(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        return self.loss(logits, probabilities)

    def divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        yes, no = (F.logsigmoid(sign * wanted) for sign in (1, -1))  # of Bernoulli variables
        terms = yes.exp() * (yes - F.logsigmoid(logits)) + no.exp() * (no - F.logsigmoid(-logits))
        return terms.mean()

    def constant_accuracy(self, labels: Tensor) -> float:
        yes = labels.double().mean(0)
        return torch.maximum(yes, 1 - yes).mean().item()

    def strata(self, labels: Tensor) -> Tensor:
        return labels.new_zeros(len(labels), dtype=torch.int64)  # no image belongs to one class


SINGLE_LABEL = SingleLabel()
MULTI_LABEL = MultiLabel()
