"""What stitch_nets.py prints and writes."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src import results
from src.cli import output as cli
from src.results import plots
from src.results import text as report
from src.results.stitch_text import stitch_table, stitches_table
from src.stitching import StitchSpec, spec_names
from src.stitching.states import SET
from src.training.train_state import History


def epochs_of(specs: Sequence[StitchSpec], *, always: bool) -> Callable[[StitchSpec, History], None]:
    """Who writes a line on stderr after each epoch: of several stitches, those of the first alone, with its name."""
    whose = f"{spec_names(specs)[0]}, the first of {len(specs)}" if len(specs) > 1 else ""

    def tell(spec: StitchSpec, history: History) -> None:
        if spec == specs[0]:
            cli.tell_epoch(history, spec.epochs, always=always, whose=whose)

    return tell


def publish(
    args: argparse.Namespace, paths: Sequence[Path | None], outcomes: list[dict[str, Any]], *, single: bool
) -> None:
    """Print and write what came of the stitches that came through."""
    if not outcomes:
        return
    if single:
        cli.publish(args, cli.Place(paths[0]), outcomes[0], stitch_table(outcomes[0]), draw=plots.draw_stitch)
        return
    made_by = cli.made_by(args) if any(paths) else {}
    try:
        for path, result in zip(paths, outcomes, strict=True):
            if path:
                results.write(path, result | made_by, overwrite=args.overwrite or args.resume)
                results.keep_row(path, result)
    finally:
        if not args.json:
            cli.say(stitches_table(outcomes))
    pictures = cli.picture_paths(args, paths[0].with_name(f"{SET}.pkl")) if paths[0] and args.plot else []
    for picture in pictures:
        plots.draw_stitches(outcomes, picture)
    places = {"results": str(paths[0].parent) if paths[0] else None}
    places |= {"picture": ", ".join(map(str, pictures))} if pictures else {}
    if args.json:
        cli.say(report.to_json({"stitches": outcomes, **places}))
    elif paths[0]:
        cli.say("\n".join(f"{what}: {where}" for what, where in places.items()))


def refuse_diverged(outcomes: dict[str, Any]) -> None:
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, FloatingPointError)}
    if len(outcomes) == 1 and failed:
        raise next(iter(failed.values()))
    if failed:
        name, error = next(iter(failed.items()))
        raise FloatingPointError(
            f"{len(failed)} of {len(outcomes)} stitches diverged and have no result; {name}: {error}"
        )
