"""Every implementation on one page: our values beside those of other packages, on the same five pairs of matrices.

`python -m benchmarks.implementations` writes docs/implementations.md. Packages that are not installed are named there;
none is needed for anything else.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.spatial
import torch

from src.metrics import METRICS
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.cka import participation_of
from tests.paths import ROOT

PAGE = ROOT / "docs" / "implementations.md"
Matrix = np.ndarray


@dataclass(frozen=True, slots=True)
class Other:
    """A function of another package that gives one number for two matrices, or of each side of them.

    package, function: what stands on the page. ours: the metric beside it. of: the number. relation: what ours becomes
    in its terms, in words and as a function; why: what explains the rest.
    """

    package: str
    function: str
    ours: str
    of: Callable[[Matrix, Matrix], float]
    why: str
    relation: Callable[[float], float] = lambda value: value


def pairs() -> dict[str, tuple[Matrix, Matrix]]:
    """Five seeded pairs, rows images: many images, few, far from zero, wide against narrow, and unrelated."""
    made = {}
    shapes = {"many": (200, 10, 8), "few": (16, 40, 30), "far from zero": (60, 12, 12), "wide": (50, 90, 6)}
    for seed, (name, (n, dx, dy)) in enumerate([*shapes.items(), ("unrelated", (40, 20, 20))]):
        random = np.random.default_rng(seed)
        sources = random.normal(size=(n, 5))
        x, y = (sources @ random.normal(size=(5, d)) + 0.7 * random.normal(size=(n, d)) for d in (dx, dy))
        if name == "unrelated":
            y = random.normal(size=(n, dy))
        made[name] = (x + 20, y - 30) if name == "far from zero" else (x, y)
    return made


def inner(package: str, name: str) -> ModuleType:
    """A module of a package, without what the package as a whole imports (plots, data loaders)."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"no package {package}")
    path = Path(found.submodule_search_locations[0], f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_{package}_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gram(x: Matrix) -> torch.Tensor:
    return torch.from_numpy(x @ x.T)


def ratio(hsic: Callable[[Any, Any], Any], x: Matrix, y: Matrix, *, hollow: bool = False) -> float:
    """CKA of an HSIC of Gram matrices, whose diagonals are taken out first where its package does so elsewhere."""
    k, other = (gram(side).fill_diagonal_(0) if hollow else gram(side) for side in (x, y))
    cross, own, others = (float(hsic(*given)) for given in ((k, other), (k, k), (other, other)))
    return cross / np.sqrt(own * others)


def batched(hsic: Callable[[Any, Any], Any]) -> Callable[[Any, Any], float]:
    return lambda k, other: float(hsic(k[None], other[None]))


def torch_cka_hsic(k: torch.Tensor, other: torch.Tensor) -> float:
    kind = importlib.import_module("torch_cka.cka").CKA

    class Here:
        device = "cpu"

    return kind._HSIC(Here, k.float(), other.float())


def repsim(function: str, *more: str) -> Callable[[Matrix, Matrix], float]:
    return lambda x, y: float(getattr(importlib.import_module("repsim"), function)([x, y], *more)[0, 1])


def rsatoolbox(dissimilarity: str, comparison: str) -> Callable[[Matrix, Matrix], float]:
    def compare(x: Matrix, y: Matrix) -> float:
        toolbox = importlib.import_module("rsatoolbox")
        sides = [toolbox.rdm.calc_rdm(toolbox.data.Dataset(side), method=dissimilarity) for side in (x, y)]
        return float(toolbox.rdm.compare(*sides, method=comparison)[0, 0])

    return compare


def regression(x: Matrix, y: Matrix) -> float:
    kind = importlib.import_module("sklearn.linear_model").LinearRegression
    predicted = kind().fit(x, y).predict(x)
    score = importlib.import_module("sklearn.metrics").r2_score
    return float(score(y, predicted, multioutput="variance_weighted"))


def disparity(x: Matrix, y: Matrix) -> float:
    wide = max(x.shape[1], y.shape[1])
    x, y = (np.pad(side, ((0, 0), (0, wide - side.shape[1]))) for side in (x, y))
    return float(scipy.spatial.procrustes(x, y)[2])


def participation(x: Matrix, _: Matrix) -> float:
    return float(importlib.import_module("dimensionality").participation_ratio(x, return_all=True)["row"])


OTHERS = (
    Other("ckatorch", "hsic.hsic0", "cka", lambda x, y: ratio(inner("ckatorch", "hsic").hsic0, x, y), "equal"),
    Other(
        "ckatorch",
        "hsic.hsic1",
        "cka_debiased",
        lambda x, y: ratio(batched(inner("ckatorch", "hsic").hsic1), x, y),
        "equal; over batches it averages HSIC, as ours does with `--group-at`",
    ),
    Other(
        "cka-pytorch",
        "hsic.hsic1",
        "cka_debiased",
        lambda x, y: ratio(batched(inner("cka_pytorch", "hsic").hsic1), x, y),
        "equal; it is the estimator of batches, so its `CKA` is never the biased one",
    ),
    Other(
        "torch-cka",
        "CKA._HSIC",
        "cka_debiased",
        lambda x, y: ratio(torch_cka_hsic, x, y, hollow=True),
        "equal but for float32 without centring, which loses digits far from zero; its `CKA` averages over batches",
    ),
    Other("repsim", "cka, linear, gretton", "cka", repsim("cka", "linear", "gretton"), "equal"),
    Other(
        "repsim",
        "cka, linear, song",
        "cka_debiased",
        repsim("cka", "linear", "song"),
        "only its numerator is the unbiased HSIC, the own terms below are biased ones",
    ),
    Other(
        "repsim",
        "cka, linear, lange",
        "cka_debiased",
        repsim("cka", "linear", "lange"),
        "another correction of the numerator (Lange et al. 2022), above the biased own terms, too",
    ),
    Other(
        "repsim",
        "cka, rbf, gretton",
        "cka_rbf",
        repsim("cka", "rbf", "gretton"),
        "another bandwidth: ours is half the median distance, as in Kornblith et al. 2019",
    ),
    Other(
        "repsim",
        "cca, yanai",
        "cca",
        repsim("cca", "yanai"),
        "equal; ours refuses fewer images than features, where it says 1 or near it",
    ),
    Other("repsim", "pwcca", "pwcca", repsim("pwcca"), "weights: ours sum what a direction carries of the front"),
    Other("rsatoolbox", "correlation, spearman", "rsa", rsatoolbox("correlation", "spearman"), "equal"),
    Other(
        "rsatoolbox",
        "euclidean, cosine",
        "cka",
        rsatoolbox("euclidean", "cosine"),
        "no centring of dissimilarities, so it is high for any two sets of points",
    ),
    Other(
        "rsatoolbox",
        "euclidean, cosine_cov",
        "cka",
        rsatoolbox("euclidean", "cosine_cov"),
        "equal: squared distances, whitened for what they share, are CKA (Diedrichsen et al. 2021)",
    ),
    Other(
        "scikit-learn",
        "LinearRegression, R2",
        "lr",
        regression,
        "equal, of variance-weighted R2; ours refuses a fit that has no choice",
    ),
    Other(
        "scipy",
        "spatial.procrustes",
        "procrustes",
        disparity,
        "it also fits a scale: 1 - s^2, where ours is 2 - 2 s",
        lambda value: 1 - (1 - value / 2) ** 2,
    ),
    Other(
        "dimensionality",
        "participation_ratio, row",
        "participation_ratio",
        participation,
        "equal; of the first matrix; its default also corrects for few units",
    ),
)
ABSENT = {
    "netrep": "its shape metrics are `procrustes` and `ang_shape` (tests hold ours against their formulas)",
    "anatome": "its CKA is ours by features, its `nmds`, `pwcca` and `svcca` follow the published code",
}


def ours(name: str, x: Matrix, y: Matrix) -> float:
    rows = torch.from_numpy(x), torch.from_numpy(y)
    if name in METRICS:
        return METRICS[name].number(METRICS[name].of_rows(*rows))
    ratios = participation_of([gram_sums([Layer.of(rows[0]).centre()], [Layer.of(rows[1]).centre()])[0, 0]])
    assert ratios
    return ratios[0]


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "none"


def row(other: Other, made: Sequence[tuple[Matrix, Matrix]]) -> str | None:
    """A line of the table; None where the package cannot be used here."""
    cells, apart = [], 0.0
    for x, y in made:
        try:
            value = other.of(x, y)
        except ImportError:
            return None
        try:
            mine = other.relation(ours(other.ours, x, y))
        except ValueError:  # ours is refused where images are too few
            mine = float("nan")
        cells.append(number(value) if abs(value - mine) < 1e-5 else f"{number(value)} ({number(mine)})")
        apart = max(apart, abs(value - mine)) if np.isfinite(mine) else apart
    about = f"{other.package} {version_of(other.package)}, `{other.function}`"
    return f"| {about} | `{other.ours}` | {' | '.join(cells)} | {apart:.0e} | {other.why} |"


def page() -> str:
    made = pairs()
    rows = {other: row(other, list(made.values())) for other in OTHERS}
    missing = sorted({other.package for other, line in rows.items() if line is None})
    lines = [
        "# Every implementation on one page",
        "",
        "You have a number from another package and ask which of ours it is. Here are both, on the same five pairs of",
        "matrices, made by `python -m benchmarks.implementations`. Where theirs is another, ours stands in brackets.",
        "",
        f"| package, function | ours | {' | '.join(made)} | largest difference | why |",
        f"|---|---|{'---|' * len(made)}---|---|",
        *(line for line in rows.values() if line),
        "",
        "The pairs (images, features of both): "
        + ", ".join(f"{name} ({len(x)}, {x.shape[1]} and {y.shape[1]})" for name, (x, y) in made.items())
        + ".",
        "",
        *(f"* {name} could not be installed here: {text}." for name, text in ABSENT.items() if not version_of(name)),
        *(f"* {name} was not installed when this page was made." for name in missing),
        "",
        "What else differs between code that is called CKA: whether rows are images or positions (`--view`), whether",
        "activations are averaged over positions first, whether batches are, and what of them (HSIC or ratios).",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.implementations", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=PAGE, help="file of the page")
    args = parser.parse_args(argv)
    args.out.write_text(page(), encoding="utf-8")
    print(f"written: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
