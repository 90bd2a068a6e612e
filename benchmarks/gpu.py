"""What a GPU does of all this, in one table: python -m benchmarks.gpu [--device cpu]

Milliseconds a step of 1, 8 and 64 stitches of Tiny10 at bn3, each on its own, stacked, and recorded; launches and
readings of a step; TF32; whether a stitch is the same alone and in company; CKA of 8 x 8 layers; products by block, and
decompositions. Images and weights are drawn at random. Under five minutes on one GPU; exit code 2 where there is none.
With `--device cpu` the same rows with tiny sizes, in which launches are operators: to see whether it runs.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.run import machine
from src.core.errors import UserError
from src.core.precision import full_precision, products
from src.dataset import DATASETS
from src.dataset.split import Batch, MemorySplit
from src.evaluation.layer_grid import compare_layers
from src.evaluation.passes import BATCH_SIZE, GPU_BATCH
from src.metrics.algebra.gram import BLOCK, GPU_BLOCK
from src.models import build_model
from src.stitching import CutNetworks, StitchSpec, initial_stitch
from src.stitching.objective import StitchObjective
from src.stitching.stacked import CHUNK, stack
from src.training.stacked import Member, Share
from src.training.train_state import WHOLE_EPOCH, Losses, TrainState

WAYS = ("on their own", "stacked", "recorded")
READINGS = ("_local_scalar_dense", "is_nonzero", "nonzero")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    images: int
    batch: int
    stitches: Sequence[int]
    steps: int
    layer: str
    grid: Sequence[str]
    features: int
    matrix: int


ALL = Size(10_000, 128, (1, 8, 64), 20, "bn3", tuple(f"bn{i}" for i in range(1, 9)), 14_400, 2592)
TINY = Size(16, 4, (1, 3), 2, "bn7", ("bn7", "bn8"), 30, 20)


class Bench:
    """Networks and images on a device, and what is measured of them."""

    def __init__(self, device: torch.device, size: Size) -> None:
        self.device, self.size = device, size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (size.images, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (size.images,), generator=generator)
        self.split = MemorySplit(DATASETS["cifar10"], pixels.to(device), labels.to(device))
        self.networks = []
        for seed in (0, 1):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = build_model("tiny10", channels=3, classes=10, size=32)
            self.networks.append(network.eval().to(device))
        self.blank = torch.zeros(2, 3, 32, 32, device=device)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], Any], times: int = 1) -> float:
        """Of one of so many calls, after one that nobody counts."""
        work()
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return 1e3 * (time.perf_counter() - start) / times

    def counts(self, work: Callable[[], Any]) -> tuple[int, int]:
        """Launches, and readings for which a GPU is waited for."""
        if not self.is_gpu:
            with _Operators() as seen:
                work()
            return seen.operators, seen.readings
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
        torch.cuda.set_sync_debug_mode("default")
        with torch.profiler.profile() as profile:
            work()
            self.wait()
        events = profile.events() or []
        launched = sum(str(event.device_type).endswith("CUDA") for event in events)
        return launched, sum("called a synchronizing" in str(one.message) for one in told)

    def learners(self, count: int, seeds: Sequence[int] | None = None) -> tuple[CutNetworks, list[TrainState]]:
        """So many stitches at the start of their training."""
        layer = self.size.layer
        specs = [StitchSpec(layer, layer, epochs=1, lr=1e-3 * (1 + k % 7)) for k in range(count)]
        cuts = CutNetworks(self.networks[0], self.networks[1], specs, self.blank)
        states = []
        for number, spec in enumerate(specs):
            seed = seeds[number] if seeds else number
            stitch = initial_stitch(cuts.geometry(spec.cut), None, seed=seed).to(self.device)
            states.append(TrainState(stitch, StitchObjective(cuts, spec, stitch, self.split.spec.task), spec.recipe))
        return cuts, states

    def step(self, way: str, count: int) -> Callable[[], Any]:
        """A step of so many stitches, one way or another, images and all."""
        cuts, states = self.learners(count)
        batches = self.batches()

        def share(images: Tensor) -> Any:
            return cuts.share(cuts.specs, images)

        if way == "on their own":
            kept = [Losses("{}", WHOLE_EPOCH) for _ in states]

            def alone() -> None:
                images, labels = next(batches)
                shared = share(images)
                for state, losses in zip(states, kept, strict=True):
                    state.step(shared, images, labels, losses)

            return alone
        return self.together(states, share, batches, captured=way == "recorded")

    def together(
        self, states: Sequence[TrainState], share: Share, batches: Iterator[Batch], *, captured: bool
    ) -> Callable[[], Any]:
        members = [Member(state, 0) for state in states]
        stacked = stack(members, [share], captured=captured)
        assert stacked
        stacked.begin(0, 1 << 12)

        def step() -> None:
            batch = next(batches)
            stacked.step([batch], [None if captured else share(batch[0])])

        return step

    def batches(self) -> Iterator[Batch]:
        """Batches without end."""
        order, augment = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        while True:
            yield from self.split.batches(self.size.batch, order=order, augment=augment, drop_last=True)

    def trained(self, seeds: Sequence[int], steps: int) -> Tensor:
        """What the first of some stitches has become."""
        cuts, states = self.learners(len(seeds), seeds)
        step = self.together(
            states, lambda images: cuts.share(cuts.specs[:1], images), self.batches(), captured=self.is_gpu
        )
        for _ in range(steps):
            step()
        return next(states[0].trained.parameters()).detach().clone()

    def grid(self, batch: int) -> Callable[[], Any]:
        layers = list(self.size.grid), list(self.size.grid)
        pair = self.networks[0], self.networks[1]
        return lambda: compare_layers(pair, layers, self.blank, self.split, ["cka"], batch_size=batch, memory=4e10)


class _Operators(TorchDispatchMode):
    """How many operators run within the block, and how many of them read a number."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.readings = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        self.readings += function.overloadpacket.__name__ in READINGS
        return function(*args, **(kwargs or {}))


def steps(bench: Bench) -> Iterator[str]:
    """Rows of steps of training."""
    for count in bench.size.stitches:
        for way in WAYS:
            if way == "recorded" and not bench.is_gpu:
                continue
            for tf32 in (False, True) if bench.is_gpu and way != "on their own" else (False,):
                with products(tf32=tf32):
                    step = bench.step(way, count)
                    for _ in range(4):  # a recording comes after the third
                        step()
                    took = bench.milliseconds(step, bench.size.steps)
                    launches, readings = bench.counts(step)
                yield row(f"step, {count} stitches {way}" + ", TF32" * tf32, took, launches, readings)


def company(bench: Bench) -> Iterator[str]:
    """Whether a stitch becomes the same in another company, and alone."""
    count = 4 if bench.is_gpu else 2
    first, same, alone = (bench.trained(seeds, 3 * bench.size.steps) for seeds in (range(count), [0] * count, [0]))
    yield f"in another company: {'the same bits' if torch.equal(first, same) else _apart(first, same)}"
    yield f"alone: {'the same bits' if torch.equal(first, alone) else _apart(first, alone)}"


def _apart(one: Tensor, other: Tensor) -> str:
    return f"apart by {float((one - other).abs().max() / one.abs().max()):.1e} of the largest weight"


def comparisons(bench: Bench) -> Iterator[str]:
    """Rows of CKA, of products and of decompositions."""
    size, many = bench.size, len(bench.size.grid)
    for batch in (BATCH_SIZE, GPU_BATCH):
        work = bench.grid(batch)
        took = bench.milliseconds(work)
        yield row(f"CKA {many} x {many}, {size.images} images, batches of {batch}", took, *bench.counts(work))
    rows = torch.randn(size.images, size.features, device=bench.device)
    for tf32 in (False, True) if bench.is_gpu else (False,):
        with products(tf32=tf32):
            for side in dict.fromkeys(min(side, size.images) for side in (BLOCK, GPU_BLOCK, size.images)):
                part = rows[:side]
                took = bench.milliseconds(lambda part=part: part @ part.T, 3)
                rate = 2 * side * side * size.features / max(took, 1e-9) / 1e9
                yield row(f"Gram block of {side}" + ", TF32" * tf32 + f": {rate:.1f} Tflop/s", took)
    wide = torch.randn(2 * size.matrix, size.matrix, device=bench.device, dtype=torch.float64)
    square = wide.T @ wide
    yield row(f"eigh of {size.matrix}, float64", bench.milliseconds(lambda: torch.linalg.eigh(square)))
    for driver in (None, "gesvd") if bench.is_gpu else (None,):
        took = bench.milliseconds(lambda driver=driver: torch.linalg.svdvals(square, driver=driver))
        yield row(f"svdvals of {size.matrix}, {driver or 'usual driver'}", took)


def row(what: str, took: float, launches: int | None = None, readings: int | None = None) -> str:
    counted = f" {launches:>9} {readings:>9}" if launches is not None else ""
    return f"{what:52} {took:10.3f}{counted}"


def table(device: torch.device, size: Size) -> Iterator[str]:
    """The lines of the table, as they come."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor, tiny sizes"
    yield f"{machine()}; {where}; chunks of {CHUNK} stitches"
    yield f"{'work':52} {'ms':>10} {'launches':>9} {'readings':>9}"
    with full_precision():
        bench = Bench(device, size)
        for part in (steps, company, comparisons):
            yield from part(bench)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split(":")[0])
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to see whether it runs"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU of NVIDIA here; --device cpu runs the same with tiny sizes", file=sys.stderr)
        raise SystemExit(2)
    try:
        for line in table(torch.device(args.device), TINY if args.device == "cpu" else ALL):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
