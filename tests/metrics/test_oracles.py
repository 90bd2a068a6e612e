"""Metrics written a second time, from the papers' matrix formulas in float64, and checked against published numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.spatial
import scipy.stats
import torch
from scipy.spatial.distance import cdist

from src.metrics import METRICS
from src.metrics.algebra.layer import Layer
from src.metrics.neighbours import rbf_cka
from tests.cells import number_of

RANK_CUT = 1e-9


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices only: two threads waiting for each other on a busy machine take 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def centred(x):
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(0)


def orthonormal(x, cut=RANK_CUT):
    """Basis of the columns, dead ones dropped, each column at norm 1 first."""
    c = centred(x)
    c = c[:, np.ptp(np.asarray(x, dtype=np.float64), axis=0) > 0]
    u, s, _ = np.linalg.svd(c / np.linalg.norm(c, axis=0), full_matrices=False)
    return u[:, s > cut * s[0]]


def hsic_cka(k, other):
    h = np.eye(len(k)) - 1 / len(k)

    def hsic(a, b):
        return np.sum((h @ a @ h) * b)

    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def cka(x, y):
    return hsic_cka(centred(x) @ centred(x).T, centred(y) @ centred(y).T)


def unbiased_hsic(a, b):
    n, one = len(a), np.ones(len(a))
    a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
    whole = one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2))
    return np.trace(a @ b) + whole - 2 / (n - 2) * (one @ a @ b @ one)


def cka_units(x, y):
    def own(z):
        by_unit = [np.outer(unit, unit) for unit in z.T]
        pairs = sum(unbiased_hsic(a, b) for i, a in enumerate(by_unit) for b in by_unit[:i] + by_unit[i + 1 :])
        return pairs * z.shape[1] / (z.shape[1] - 1)

    x, y = centred(x), centred(y)
    if min(x.shape[1], y.shape[1]) > 60:  # the same with the pairs of a unit and itself taken out of all
        own = own_by_difference
    return unbiased_hsic(x @ x.T, y @ y.T) / np.sqrt(own(x) * own(y))


def own_by_difference(z):
    alone = sum(unbiased_hsic(np.outer(unit, unit), np.outer(unit, unit)) for unit in z.T)
    return (unbiased_hsic(z @ z.T, z @ z.T) - alone) * z.shape[1] / (z.shape[1] - 1)


def cka_debiased(x, y):
    hsic = unbiased_hsic
    k, other = centred(x) @ centred(x).T, centred(y) @ centred(y).T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def cka_rbf(x, y, threshold=0.5):
    def kernel(z):
        distances = cdist(centred(z), centred(z), "sqeuclidean")
        return np.exp(-distances / (2 * threshold**2 * np.median(distances)))

    return hsic_cka(kernel(x), kernel(y))


def canonical(x, y):
    """Canonical correlations as cosines of the angles between the two column spaces."""
    return np.cos(scipy.linalg.subspace_angles(orthonormal(x), orthonormal(y)))


def cca(x, y):
    return np.mean(canonical(x, y) ** 2)


def cca_mean(x, y):
    return np.mean(canonical(x, y))


def svcca(x, y):
    def principal(z):
        u, s, _ = np.linalg.svd(centred(z), full_matrices=False)
        kept = np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99 - 1e-12) + 1
        return u[:, :kept]

    return np.mean(np.cos(scipy.linalg.subspace_angles(principal(x), principal(y))))


def pwcca(x, y):
    bx, by = orthonormal(x), orthonormal(y)
    # Canonical variates as eigenvectors of the product of both projections.
    values, vectors = np.linalg.eigh(bx.T @ by @ by.T @ bx)
    kept = slice(-min(bx.shape[1], by.shape[1]), None)
    weights = np.abs((bx @ vectors[:, kept]).T @ centred(x)).sum(1)
    return np.sum(weights * np.sqrt(np.clip(values[kept], 0, None))) / weights.sum()


def l2(x, y):
    return np.mean((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2)


def l2_relative(x, y):
    return l2(x, y) / np.mean(centred(y) ** 2)


def lr(x, y):
    q = orthonormal(x)
    return np.linalg.norm(q.T @ centred(y)) ** 2 / np.linalg.norm(centred(y)) ** 2


def ps_inv(x, y):
    scale = np.where(np.ptp(np.asarray(x, np.float64), axis=0) > 0, 1.0, 0.0)
    w = np.linalg.lstsq(centred(x) * scale, centred(y), rcond=RANK_CUT)[0].T
    return {"w": w, "b": np.asarray(y, np.float64).mean(0) - w @ np.asarray(x, np.float64).mean(0), "r2": lr(x, y)}


def procrustes(x, y):
    wide = max(x.shape[1], y.shape[1])
    a, b = (np.pad(centred(z), ((0, 0), (0, wide - z.shape[1]))) for z in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    q, _ = scipy.linalg.orthogonal_procrustes(a, b)
    return np.linalg.norm(a @ q - b) ** 2


def corr(x, y):
    live_x, live_y = (np.ptp(np.asarray(z, np.float64), axis=0) > 0 for z in (x, y))
    matrix = np.zeros((y.shape[1], x.shape[1]))
    both = np.corrcoef(np.asarray(y, np.float64)[:, live_y].T, np.asarray(x, np.float64)[:, live_x].T)
    matrix[np.ix_(live_y, live_x)] = both[: live_y.sum(), live_y.sum() :]
    return {"matrix": matrix, "mean_best": matrix[live_y][:, live_x].max(1).mean()}


def mutual_knn(x, y, k=10):
    def nearest(z):
        distances = cdist(centred(z), centred(z))
        np.fill_diagonal(distances, np.inf)
        return [set(row) for row in np.argsort(distances, axis=1)[:, :k]]

    return np.mean([len(a & b) / k for a, b in zip(nearest(x), nearest(y), strict=True)])


def cosine_neighbours(z, k=10):
    """Indices of the nearest first, and all cosines."""
    z = np.asarray(z, np.float64)
    norms = np.linalg.norm(z, axis=1)
    cosines = (z @ z.T) / np.outer(norms, norms)
    return [[j for j in np.argsort(-row, kind="stable") if j != i][:k] for i, row in enumerate(cosines)], cosines


def jaccard(x, y):
    near = [[set(row) for row in cosine_neighbours(z)[0]] for z in (x, y)]
    return np.mean([len(a & b) / len(a | b) for a, b in zip(*near, strict=True)])


def second_cos(x, y):
    (near_x, cos_x), (near_y, cos_y) = cosine_neighbours(x), cosine_neighbours(y)
    values = []
    for i in range(len(near_x)):
        union = sorted(set(near_x[i]) | set(near_y[i]))
        values.append(1 - scipy.spatial.distance.cosine(cos_x[i][union], cos_y[i][union]))
    return np.mean(values)


def rank_sim(x, y):
    values = []
    for a, b in zip(cosine_neighbours(x)[0], cosine_neighbours(y)[0], strict=True):
        shared = set(a) & set(b)
        ranks = [(a.index(j) + 1, b.index(j) + 1) for j in shared]
        best = sum(1 / k for k in range(1, len(shared) + 1))
        values.append(sum(2 / ((1 + abs(p - q)) * (p + q)) for p, q in ranks) / best if shared else 0)
    return np.mean(values)


def dist_corr(x, y):
    h = np.eye(len(x)) - 1 / len(x)
    a, b = (h @ cdist(centred(z), centred(z)) @ h for z in (x, y))
    return np.sqrt(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


def ang_shape(x, y):
    a, b = (centred(z) / np.linalg.norm(centred(z)) for z in (x, y))
    return np.arccos(min(1, np.linalg.norm(a.T @ b, "nuc")))


def aligned_cos(x, y):
    wide = max(x.shape[1], y.shape[1])
    a, b = (np.pad(np.asarray(z, np.float64), ((0, 0), (0, wide - z.shape[1]))) for z in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(a / np.abs(a).max(), b / np.abs(b).max())
    a = a @ rotation
    kept = (np.linalg.norm(a, axis=1) > 0) & (np.linalg.norm(b, axis=1) > 0)
    return np.mean([p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(a[kept], b[kept], strict=True)])


def rsa(x, y):
    above = np.triu_indices(len(x), 1)
    matrices = [1 - np.atleast_2d(np.corrcoef(np.asarray(z, np.float64))) for z in (x, y)]
    ranks = [scipy.stats.rankdata(matrix[above]) for matrix in matrices]
    return scipy.stats.pearsonr(*ranks)[0]


def soft_match(x, y):
    """Channels repeated until both sides have as many, matched one to one."""
    matrix = corr(x, y)["matrix"]
    matrix = matrix[np.ix_(matrix.any(1), matrix.any(0))]
    many = np.lcm(*matrix.shape)
    gains = matrix.repeat(many // len(matrix), 0).repeat(many // matrix.shape[1], 1)
    return gains[scipy.optimize.linear_sum_assignment(-gains)].mean()


ORACLES = {
    "jaccard": jaccard,
    "second_cos": second_cos,
    "rank_sim": rank_sim,
    "dist_corr": dist_corr,
    "ang_shape": ang_shape,
    "aligned_cos": aligned_cos,
    "rsa": rsa,
    "soft_match": soft_match,
    "cka": cka,
    "cka_debiased": cka_debiased,
    "cka_units": cka_units,
    "cka_rbf": cka_rbf,
    "cca": cca,
    "cca_mean": cca_mean,
    "svcca": svcca,
    "pwcca": pwcca,
    "l2": l2,
    "l2_relative": l2_relative,
    "lr": lr,
    "ps_inv": ps_inv,
    "procrustes": procrustes,
    "corr": corr,
    "mutual_knn": mutual_knn,
}


def kornblith_pair():
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    return x, state.randn(100, 10) + x


KNOWN = {"cka": 0.55761, "cka_debiased": 0.51346, "cka_rbf": 0.65483, "cca": 0.54540}


def waves() -> tuple[np.ndarray, np.ndarray]:
    i, j = np.arange(40)[:, None], np.arange(7)[None]
    x = np.sin(1 + 1.3 * i + 0.7 * j**2) + 0.3 * np.cos(0.37 * i * j)
    return x, np.cos(0.5 + 1.1 * i + 0.9 * j[:, :5] ** 2) + 0.5 * x[:, :5]


WAVES = {
    "jaccard": 0.174600,
    "second_cos": 0.015322,
    "rank_sim": 0.262010,
    "dist_corr": 0.600174,
    "ang_shape": 0.989363,
    "aligned_cos": 0.467915,
    "rsa": 0.221132,
    "soft_match": 0.451373,
}


@pytest.mark.parametrize("name", sorted(WAVES))
def test_known_numbers(name):
    x, y = waves()
    assert METRICS[name].of_rows(torch.tensor(x), torch.tensor(y)) == pytest.approx(WAVES[name], abs=6e-7)
    assert ORACLES[name](x, y) == pytest.approx(WAVES[name], abs=6e-7)
    for dtype in (torch.float32, torch.float64):
        value = number_of(name, torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype), batch=17)
        assert value == pytest.approx(WAVES[name], abs=2e-6)


def test_every_metric_has_an_oracle():
    assert set(ORACLES) == set(METRICS)


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_numbers(name, dtype):
    x, y = (torch.tensor(side, dtype=dtype) for side in kornblith_pair())
    assert float(METRICS[name].of_rows(x, y)) == pytest.approx(KNOWN[name], abs=6e-6)
    assert ORACLES[name](*kornblith_pair()) == pytest.approx(KNOWN[name], abs=6e-6)
    assert number_of(name, x, y, batch=33) == pytest.approx(KNOWN[name], abs=6e-6)


@pytest.mark.reference
def test_numbers_file_agrees():
    known = json.loads((Path(os.environ["REFERENCE_DIR"]) / "numbers.json").read_text())["known answers for metrics"]
    expected = [known["linear cka"], known["debiased linear cka"], known["rbf cka, threshold 0.5"]]
    assert expected + [known["R2_CCA, centred"]] == [KNOWN[n] for n in ("cka", "cka_debiased", "cka_rbf", "cca")]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_oracles_agree_on_ordinary_data(name):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 7, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(7, 7 if METRICS[name].same_shape else 4, generator=generator, dtype=torch.float64)
    y = y + torch.randn(y.shape, generator=generator, dtype=torch.float64)
    value, truth = METRICS[name].of_rows(x, y), ORACLES[name](x.numpy(), y.numpy())
    if METRICS[name].summary:
        for key, expected in truth.items():
            np.testing.assert_allclose(value[key], expected, atol=1e-10)
    assert METRICS[name].number(value) == pytest.approx(METRICS[name].number(truth), abs=1e-10)


def test_rbf_bandwidth_follows_threshold():
    x, y = (Layer.of(torch.tensor(side)) for side in kornblith_pair())
    for threshold in (0.2, 1.0):
        expected = cka_rbf(*kornblith_pair(), threshold)
        assert rbf_cka(x, y, threshold) == pytest.approx(expected, abs=1e-12)


def test_ckatorch_agrees():
    """The public package ckatorch 1.0.3 (a development requirement) gives the same CKA in float64."""
    ckatorch = pytest.importorskip("ckatorch.core")
    x, y = (torch.tensor(side) for side in kornblith_pair())
    for unbiased, name in ((False, "cka"), (True, "cka_debiased")):
        theirs = float(ckatorch.cka_base(x, y, kernel="linear", unbiased=unbiased))
        assert float(METRICS[name].of_rows(x, y)) == pytest.approx(theirs, abs=1e-10)
