"""Big products and decompositions, by whichever library is faster on this kind of processor.

On AMD's processors torch's own matrix products (MKL) leave out the widest instructions: numpy's OpenBLAS takes half the
time there, and less for the product of a matrix with its own transpose, of which it computes one half. Elsewhere and on
GPUs torch multiplies. The choice follows from the processor's vendor and the libraries alone, so that a machine gives
the same numbers again, for an equal number of threads.

OpenBLAS has a pool of threads of its own, which wait for work by spinning, on the cores that torch's threads need next.
So it is held to one thread, and as many threads as torch has, which sleep when there is nothing to do, call it.
"""

import contextlib
import ctypes
import functools
import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

# A total with more numbers than this is added to in parts: 32 MB beside it are enough.
PART = 1 << 22
# Multiplications and additions below which one thread is done before a second one has begun.
SMALL = 2e7
# The smaller side of a matrix up to which cuSOLVER's default, Jacobi's method, is the fast one.
JACOBI = 1000


class Pool(NamedTuple):
    """How many threads an OpenBLAS uses, to be read and set."""

    get: Callable[[], int]
    set: Callable[[int], Any]


def times(a: Tensor, b: Tensor, out: Tensor | None = None, *, threads: int | None = None) -> Tensor:
    """Return a b^T for a: (m, k) and b: (n, k), in their own precision; where b is a, as a symmetric product.

    threads: how many multiply; None: as many as torch has, where it is worth their while.
    """
    if not _by_numpy(a):
        return torch.mm(a, b.mT, out=out)
    result = a.new_empty(len(a), len(b)) if out is None else out
    if threads is None:
        threads = torch.get_num_threads() if 2 * result.numel() * a.shape[1] > SMALL else 1
    with _bound(0, 1), np.errstate(all="ignore"):  # what is not finite is found out, and named, by those who asked
        x = a.numpy()  # one object for both sides of a symmetric product, by which it is known
        _multiply(x, x if b is a else b.numpy(), result.numpy(), threads)
    return result


def _multiply(x: np.ndarray, y: np.ndarray, out: np.ndarray, threads: int) -> None:
    """Put x y^T into `out`, in jobs that do not depend on each other."""
    if threads == 1:
        np.matmul(x, y.T, out=out)
    elif 8 * max(out.shape) <= x.shape[1]:  # long sums of few features: each thread takes a part of the sums
        parts = [
            (left, left if x is y else right)
            for left, right in zip(_cut(x.T, threads), _cut(y.T, threads), strict=True)
        ]
        np.sum(_run([lambda left=left, right=right: left.T @ right for left, right in parts], threads), axis=0, out=out)
    elif x is y:
        cuts = _slices(len(x), math.ceil((math.sqrt(8 * threads + 1) - 1) / 2))
        pairs = [(i, j) for index, i in enumerate(cuts) for j in cuts[index + 1 :]] + [(i, i) for i in cuts]
        _run([lambda i=i, j=j: _block(x, i, j, out) for i, j in pairs], threads)
    else:
        side = int(len(y) > len(x))
        cuts = _slices(out.shape[side], threads)
        jobs = [(x[i], y, out[i]) for i in cuts] if side == 0 else [(x, y[j], out[:, j]) for j in cuts]
        _run(
            [lambda left=left, right=right, to=to: np.matmul(left, right.T, out=to) for left, right, to in jobs],
            threads,
        )


def _block(x: np.ndarray, i: slice, j: slice, out: np.ndarray) -> None:
    rows = x[i]
    if i == j:
        out[i, i] = rows @ rows.T  # on its own, since numpy takes a part of a larger matrix for no symmetric product
        return
    np.matmul(rows, x[j].T, out=out[i, j])
    out[j, i] = out[i, j].T


def _slices(count: int, parts: int) -> list[slice]:
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False) if stop > start]


def _cut(x: np.ndarray, parts: int) -> list[np.ndarray]:
    return [x[part] for part in _slices(len(x), parts)]


def in_order(jobs: Sequence[Callable[[], Tensor]], like: Tensor) -> Iterator[Tensor]:
    """What jobs of one thread each return, in their order, done side by side where numpy multiplies what is `like` it.

    Only one job more than there are threads is ahead of what was asked for.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not _by_numpy(like):
        yield from (job() for job in jobs)
        return
    with _bound(0, 1):
        ahead: deque[Future[Tensor]] = deque()
        try:
            for job in jobs:
                ahead.append(_workers(threads, os.getpid()).submit(job))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            wait(ahead)  # what still multiplies would put the pool back to one thread after us


def _run(jobs: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    return list(_workers(threads, os.getpid()).map(lambda job: job(), jobs))


@functools.lru_cache(maxsize=1)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of the one that it was forked from did not come along."""
    return ThreadPoolExecutor(threads, f"products-{process}")


def add_times(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1, *, threads: int | None = None) -> None:
    """Add alpha a b^T to total: (m, n), in place; `threads` as in `times`."""
    if not _by_numpy(a):
        total.addmm_(a, b.mT, alpha=alpha)
    elif a is b and total.numel() <= PART:
        total.add_(times(a, a, threads=threads), alpha=alpha)
    else:
        rows = max(1, PART // max(1, total.shape[1]))
        for part, some in zip(total.split(rows), a.split(rows), strict=True):
            part.add_(times(some, b, threads=threads), alpha=alpha)


def dots(rows: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return the product of each pair of rows of (n, k), (pairs,), each on its own: a matrix product rounds otherwise
    with other rows beside."""
    if not _by_numpy(rows):
        return torch.stack([torch.dot(rows[i], rows[j]) for i, j in pairs])
    x = rows.numpy()
    with _bound(0, 1):
        return torch.tensor([np.dot(x[i], x[j]) for i, j in pairs], dtype=rows.dtype)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric float64 matrix."""
    if not _by_numpy(matrix) or not len(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    with _bound(1, torch.get_num_threads()):
        values, vectors = scipy.linalg.eigh(matrix.numpy(), driver="evd", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def eigvalsh(matrix: Tensor) -> Tensor:
    """Return the eigenvalues (d,), ascending, of a symmetric float64 matrix."""
    if not _by_numpy(matrix) or not len(matrix):
        return torch.linalg.eigvalsh(matrix)
    with _bound(1, torch.get_num_threads()):
        return torch.from_numpy(scipy.linalg.eigvalsh(matrix.numpy(), check_finite=False))


def svdvals(matrix: Tensor) -> Tensor:
    """Return the singular values (r,), descending: on a GPU of a large matrix without Jacobi's many sweeps."""
    large = matrix.device.type == "cuda" and min(matrix.shape) > JACOBI
    return torch.linalg.svdvals(matrix, driver="gesvd" if large else None)


def described(device: torch.device | str = "cpu") -> str:
    """Return which libraries multiply on a device, and with how many threads."""
    if torch.device(device).type != "cpu":
        return f"torch {torch.__version__}, {device}"
    library = (
        f"numpy {np.__version__}, scipy {scipy.__version__} (OpenBLAS)" if _pools() else f"torch {torch.__version__}"
    )
    return f"{library}, threads: {torch.get_num_threads()}"


def _by_numpy(x: Tensor) -> bool:
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and bool(_pools())


@contextlib.contextmanager
def _bound(library: int, threads: int) -> Iterator[None]:
    """A context in which numpy's (0) or scipy's (1) own pool has so many threads."""
    pool = _pools()[library]
    before = pool.get()
    pool.set(threads)
    try:
        yield
    finally:
        pool.set(before)


@functools.cache
def _pools() -> tuple[Pool, ...]:
    """The pools of numpy's and of scipy's own OpenBLAS; none where torch multiplies.

    Torch does so where the processor is no AMD, where its products are not those of MKL, and where no pool is found.
    """
    if _vendor() != "AuthenticAMD" or not torch.backends.mkl.is_available():
        return ()
    pools = [_pool(library, suffix) for library, suffix in ((np, "64_"), (scipy, ""))]
    return tuple(pool for pool in pools if pool) if all(pools) else ()


def _pool(library: ModuleType, suffix: str) -> Pool | None:
    folder = Path(str(library.__file__)).parent.with_suffix(".libs")
    for file in sorted(folder.glob("libscipy_openblas*.so*")):
        loaded = ctypes.CDLL(str(file))
        names = [f"scipy_openblas_{what}_num_threads{suffix}" for what in ("get", "set")]
        if all(hasattr(loaded, name) for name in names):
            return Pool(*(getattr(loaded, name) for name in names))
    return None


def _vendor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")]
    return found[0] if found else platform.processor().rpartition(", ")[2]
