"""The claims about stitching on our own networks: python -m benchmarks.findings [SECTION ...] makes docs/findings.md.

Runs the studies of each section that are not done yet, reduces their results to docs/findings/*.csv, and makes tables
and pictures of these alone. CIFAR-10 has to be there; a run that was interrupted goes on.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from benchmarks.findings.runs import Runs
from benchmarks.findings.sections import SECTIONS, Section
from benchmarks.findings.values import DIGITS, in_order
from benchmarks.pages import table_text, write
from src.cli import arguments
from src.cli import output as cli
from src.core.errors import UserError
from src.core.files import atomic_write
from src.results.plots.style import save
from src.studies.estimate import in_words
from src.studies.frames import Frame
from tests.paths import ROOT

DOCS = ROOT / "docs"
KEPT, PAGE = DOCS / "findings", DOCS / "findings.md"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("-o", "--out-dir", type=Path, default=Path("results/findings"), help="folder of the runs")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and how long it takes")
    parser.add_argument(
        "--full", action="store_true", help="all images and the paper's epochs, for a GPU; into OUT_DIR/full alone"
    )
    parser.add_argument("--redraw", action="store_true", help="tables and pictures from the kept CSV files; no run")
    parser.add_argument("--as-is", action="store_true", help="sections whose runs are there; no run")
    parser.add_argument("--workers", type=arguments.positive, metavar="N", help="processes of a study")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from, not its line alone")
    return parser.parse_args(argv)


def act(args: argparse.Namespace) -> None:
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        raise UserError(f"no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    chosen = [SECTIONS[name] for name in args.sections]
    runs = Runs(args.out_dir / "full" if args.full else args.out_dir, args.full, args.workers)
    kept = runs.folder if args.full else KEPT
    if args.dry_run:
        cli.say("\n".join(ahead(runs, chosen)))
        return
    for section in chosen:
        if not args.redraw and not collected(section, runs, kept, run=not args.as_is):
            continue
        draw(section, kept, DOCS if kept == KEPT else kept)


def ahead(runs: Runs, chosen: Iterable[Section]) -> list[str]:
    """What there is to do, a line each study, and how long all of it takes two processes."""
    lines, total = [], 0.0
    for name in in_order(study for section in chosen for study in section.studies):
        seconds, left, of = runs.seconds(name)
        total += seconds
        lines.append(f"{name}: {left} of {of} results to do, about {in_words(seconds)}" if left else f"{name}: done")
    for section in chosen:
        if section.minutes:
            lines.append(f"{section.name}: about {section.minutes:g} min beside these, the first time")
            total += 60 * section.minutes
    return [*lines, f"all together: about {in_words(total)}"]


def collected(section: Section, runs: Runs, kept: Path, *, run: bool) -> bool:
    """Keep the reduced rows of a section, after its studies are run; False where they are not there."""
    if not run and (missing := runs.missing(section.studies)):
        cli.notice(f"{section.name}: left out, for {', '.join(missing)} is not done")
        return False
    for study in section.studies if run else ():
        runs.run(study)
    for key, frame in section.reduce(runs).items():
        with atomic_write(file_of(section, key, kept)) as file:
            file.write(frame.to_csv(index=False, float_format=f"%.{DIGITS}g").encode())
    return True


def file_of(section: Section, key: str, kept: Path) -> Path:
    return kept / f"{section.name}{'-' * bool(key)}{key}.csv"


def frames_of(section: Section, kept: Path) -> Mapping[str, Frame]:
    """The reduced rows of a section, by what its files are called behind its name."""
    files = [kept / f"{section.name}.csv", *sorted(kept.glob(f"{section.name}-*.csv"))]
    return {file.stem.removeprefix(section.name).removeprefix("-"): pd.read_csv(file) for file in files}


def draw(section: Section, kept: Path, docs: Path) -> None:
    """Make the tables and the picture of a section of its reduced rows alone."""
    frames = frames_of(section, kept)
    for name, rows in section.tables(frames).items():
        cli.say(f"\n{name}\n\n{table_text(rows)}")
        if docs == DOCS:
            write(PAGE, name, table_text(rows))
    picture = docs / f"findings-{section.name}.png"
    save(section.picture(frames), picture)
    cli.say(f"\npicture: {picture.relative_to(ROOT) if picture.is_relative_to(ROOT) else picture}")


def main(argv: list[str] | None = None) -> None:
    goes_on = "the same command goes on with what is missing"
    cli.run_script(parse_args, act, argv, interrupted=f"interrupted; {goes_on}", goes_on=goes_on)


if __name__ == "__main__":
    main()
