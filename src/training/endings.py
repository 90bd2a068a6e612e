"""What a training that came through may have ended in without a word."""

from collections.abc import Mapping, Sequence

from src.core.intervals import is_chance

RISEN, AT_LEAST = 1.5, 0.1  # times the lowest loss, and nats above it, from which on a training went wrong on its way


def bad_endings(
    epochs: Sequence[Mapping[str, float]], *, rate: float, chance: float, images: int, whose: str = "the network"
) -> list[str]:
    """What makes the end of a training doubtful, and what to try; `epochs` are its rows, in order.

    chance: accuracy of the best constant answer on the `images` that were trained on.
    """
    if not epochs:
        return []
    last, losses, lines = epochs[-1], [row["train_loss"] for row in epochs], []
    if is_chance(last["train_accuracy"], chance, images):
        lines.append(
            f"{whose} ends at chance, right on {last['train_accuracy']:.1%} of its own training images, no better than "
            f"one constant answer ({chance:.1%}); try a lower -lr than {rate:g}, or more epochs"
        )
    if line := risen_loss(losses, rate):
        lines.append(line)
    return lines


def risen_loss(losses: Sequence[float], rate: float) -> str:
    """That a training loss ended far above that of its lowest epoch; nothing where it did not."""
    if not losses or losses[-1] < max(RISEN * min(losses), min(losses) + AT_LEAST):
        return ""
    best = losses.index(min(losses))
    return (
        f"the training loss ended at {losses[-1]:.4g}, far above the {losses[best]:.4g} of epoch {best + 1}; "
        f"try a lower -lr than {rate:g}"
    )
