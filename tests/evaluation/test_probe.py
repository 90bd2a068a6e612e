"""The probe is the logistic regression that others know."""

import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.evaluation.probe import fit_probe, global_avg_pool


def data(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 3.0, 1.0]) + 7
    x[:, 4] = 2.5
    labels = (x[:, 0] - 7 + (x[:, 1] - 7) / 100 + torch.randn(n, generator=generator) / 2).round().clamp(-1, 1) + 1
    return x, labels.long()


def test_it_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = data()
    probe = fit_probe(x, labels, SINGLE_LABEL, 3)
    z = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).nan_to_num(0, 0, 0)
    theirs = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(z.numpy(), labels.numpy())
    assert_close(probe(x).softmax(1), torch.from_numpy(theirs.predict_proba(z.numpy())), atol=1e-5, rtol=0)
    assert (probe(x).argmax(1) == labels).float().mean() > 0.7


def test_several_labels_are_as_many_regressions() -> None:
    x, labels = data()
    several = torch.stack([(labels == number).float() for number in range(2)], 1)
    probe = fit_probe(x, several, MULTI_LABEL, 2)
    assert probe(x).shape == (300, 2)
    assert MULTI_LABEL.correct(probe(x), several.double()).double().mean() > 0.75


def test_positions_are_averaged() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert_close(global_avg_pool(x), x.mean((2, 3)))
    assert_close(global_avg_pool(x[:, :, 0, 0]), x[:, :, 0, 0])
