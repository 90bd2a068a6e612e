"""What courses of training that go side by side have of a step each: their batches, and what is shared of these."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from src.dataset.ahead import Ahead
from src.dataset.split import Batch
from src.training.run_state import Run


class Asked(Sequence[Any]):
    """What belongs to each course, made where somebody asks for it, and once."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count, self._make = count, make
        self._made: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if number not in self._made:
            self._made[number] = self._make(number)
        return self._made[number]


def batches_of(runs: Sequence[Run], aheads: Sequence[Ahead], batch_size: int, steps: int) -> Iterator[Sequence[Batch]]:
    """The batches of all courses, step by step."""
    if aheads:
        for step in range(steps):
            yield Asked(len(runs), lambda number, step=step: aheads[number].make(aheads[number].rows(step)))
        return
    several = zip(*(run.batches(batch_size) for run in runs), strict=False)
    for _, batches in zip(range(steps), several, strict=False):
        yield batches


def drawn_ahead(runs: Sequence[Run], batch_size: int, steps: int) -> list[Ahead]:
    """The batches of all courses, drawn beforehand; none where those of one cannot be."""
    if not all(run.course.split.draws_ahead for run in runs):
        return []
    return [ahead for run in runs if (ahead := run.ahead(batch_size, steps))]
