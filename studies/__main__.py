"""Run a declared set of stitches and comparisons, on one machine or many, and read what came of it."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

if not __package__:  # python /path/to/studies, from any folder: Python looks in that folder, not in the one above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.cli import arguments
from src.cli import output as cli
from src.core.config import choose_device, decoders_of
from src.core.precision import require_tf32
from src.studies import messages as say
from src.studies.differences import difference_tables
from src.studies.engines import ENGINES, choose_workers
from src.studies.engines.local import Here
from src.studies.frames import collect, command_of, devices_of, remember
from src.studies.means import OVER, grouped
from src.studies.page import write_page
from src.studies.plan import StudyPlan
from src.studies.runner import Driver, Options, shard
from src.studies.schema import Study
from src.studies.store import Store
from src.studies.table import text_lines, write_frame, write_tables

CALLED = "-m studies" if __package__ else sys.argv[0]
COMMANDS = ("status", "table", "report", "worker")
PURPOSE = {
    "run": "Run what a study file declares and is not there yet.",
    "status": "Say how far a study is, and what failed.",
    "table": "Write a study's table: CSV and LaTeX, means with intervals.",
    "report": "Write a study's page: one HTML file that opens offline.",
    "worker": "Do a share of a study, for machines that have a folder in common.",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    command = words.pop(0) if words and words[0] in COMMANDS else "run"
    if command == "run" and len(words) > 1 and not words[0].startswith("-") and words[1].endswith(".toml"):
        parser_of(command).error(f"no command {words[0]!r}; choose from {', '.join(COMMANDS)}, or name the study first")
    parser = parser_of(command)
    args = parser.parse_args(words)
    args.command = command
    return args


def parser_of(command: str) -> argparse.ArgumentParser:
    script = CALLED + ("" if command == "run" else f" {command}")
    parser = arguments.parser(script, PURPOSE[command], "studies/tour.toml" + " --shard 1/2" * (command == "worker"))
    parser.prog = f"python {script}"
    parser.epilog = (parser.epilog or "").replace(".py", "")
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="the study; its name is that of its results")
    parser.add_argument("-o", "--out-dir", type=Path, default=Path("results"), metavar="DIR", help="folder of all runs")
    if command in ("run", "worker"):
        add_run_options(parser)
    if command == "run":
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and what it takes")
        parser.add_argument("--engine", choices=tuple(ENGINES), default="local", help="where the work is done")
        parser.add_argument(
            "--workers", type=arguments.positive, metavar="N", help="processes (default: one a GPU, or one a core)"
        )
    if command == "table":
        parser.add_argument("--over", choices=OVER, default="pairs", help="what means and intervals are over")
        parser.add_argument(
            "--between",
            metavar="NAME",
            help="test whether groups of pairs differ, by an option of stitches such as init, or by architecture, "
            "train_fraction, shuffle_labels or adversarial of both networks",
        )
    if command == "worker":
        parser.add_argument("--shard", type=shard_of, required=True, metavar="I/N", help="the I-th of N shares")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from, not its line alone")
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retries", type=arguments.natural, default=2, metavar="N", help="more attempts at what fails")
    parser.add_argument(
        "--deaths",
        type=arguments.natural,
        default=20,
        metavar="N",
        help="processes that may be ended from outside while at a result, before it is given up",
    )
    parser.add_argument(
        "--patience",
        type=arguments.positive_float,
        default=60.0,
        metavar="S",
        help="seconds after which another runner, or a job, that has started and gives no sign of life is given up",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")
    arguments.add_memory_option(parser, "GB of moments or activations held at once, by each process")


def shard_of(text: str) -> tuple[int, int]:
    """argparse type: I/N, from 1/N to N/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 1/4")
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> None:
    """Do what is missing, or say what that is; ends with exit code 1 where something failed for good."""
    study = Study(args.file)
    store = Store(args.out_dir / study.name)
    dry = args.command == "run" and args.dry_run
    device = choose_device(args.device)
    plan = store.plan(study, cli.notice, keep=not dry, device=device)
    if args.command == "worker" or args.engine == "local":  # other engines have devices of their own
        refuse_tf32(plan, device)
    bundles, gpus = len(plan.bundles), device_count(device)
    if args.command == "worker":
        engine: Any = Here()
        bundles = shard(plan, *args.shard)
    else:
        workers = choose_workers(args.workers, bundles, gpus)
        if dry:
            cli.say("\n".join(say.plan_lines(plan, store, workers)))
            return
        bundles = None
        how = {"folder": store.folder, "options": study.says.submitit, "patience": args.patience}
        engine = ENGINES[args.engine](workers, **how)
    options = Options(args.retries, args.deaths, args.patience, args.device, 1e9 * args.memory, decoders(engine))
    failures = Driver(plan, store, engine, options, cli.notice).run(bundles)
    for line in say.device_lines(devices_of(remember(store.folder))):
        cli.notice(f"warning: {line}")
    cli.say("\n".join([*say.status_lines(plan, store), f"results: {store.folder}"]))
    if failures:
        raise SystemExit(1)


def refuse_tf32(plan: StudyPlan, device: Any) -> None:
    """Raise UserError where a stitch is to be trained in TF32, and the device has none."""
    if any(getattr(item.spec, "tf32", False) for bundle in plan.bundles for item in bundle.items):
        require_tf32(device)


def decoders(engine: Any) -> int | None:
    """Processes that decode images for each worker, where workers share the cores of this machine."""
    return decoders_of(engine.slots) if engine.shares_cores else None


def device_count(device: Any) -> int:
    """GPUs that the work is to be divided among; 0 without any."""
    import torch

    if device.type == "cpu":
        return 0
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


def status(args: argparse.Namespace) -> None:
    plan, store, _ = read(args)
    cli.say("\n".join([*say.status_lines(plan, store), *say.plan_lines(plan, store, 1)[4:]]))


def table(args: argparse.Namespace) -> None:
    plan, store, _ = read(args)
    found = collect(plan, store)
    tests = difference_tables(found, args.between) if args.between else {}
    for line in say.device_lines(found.devices):
        cli.notice(f"warning: {line}")
    if len(found.stitches):
        cli.say("\n".join(text_lines(grouped(found, args.over))))
    places = write_tables(found, args.over, store.folder)
    for name, (frame, lines) in tests.items():
        cli.say("\n".join(["", *lines]))
        places[f"tests between {args.between}, {name}"] = write_frame(
            frame, store.folder / f"{name}-{args.between}.csv"
        )
    cli.say("\n".join(f"{what}: {path}" for what, path in places.items()))


def report(args: argparse.Namespace) -> None:
    plan, store, study = read(args)
    found = collect(plan, store)
    items = {item.name: (bundle, item.spec) for bundle in plan.bundles for item in bundle.items}
    commands = {name: command_of(items[name][0], items[name][1]) for name in found.stitches["name"]}
    pictures = {name: f"{name}.png" for name in commands if store.path(name).with_suffix(".png").is_file()}
    path = store.folder / "report.html"
    write_page(
        path,
        found,
        name=study.name,
        text=study.document.text,
        summary=say.summary(plan, store, found),
        failures=[failure for name, failure in store.failures().items() if name in items],
        commands=commands,
        pictures=pictures,
    )
    cli.say(f"page: {path}")


def read(args: argparse.Namespace) -> tuple[StudyPlan, Store, Study]:
    study = Study(args.file)
    store = Store(args.out_dir / study.name)
    return store.plan(study, cli.notice, keep=False), store, study


def act(args: argparse.Namespace) -> None:
    """What the command of the command line says."""
    {"run": run, "worker": run, "status": status, "table": table, "report": report}[args.command](args)


def main(argv: list[str] | None = None) -> None:
    remedy = "interrupted; the same command goes on with what is missing"
    goes_on = "the same command goes on with what is missing"
    cli.run_script(
        parse_args, act, argv, interrupted=remedy, less_memory="lower --memory, or --workers", goes_on=goes_on
    )


if __name__ == "__main__":
    main()
