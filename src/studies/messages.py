"""What a study is, costs and has come to, in lines."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from src import results
from src.core.errors import UserError
from src.results.stitch_text import networks_at_chance
from src.studies.estimate import in_words, size_in_words
from src.studies.frames import ROLES, Frame, StudyResults
from src.studies.plan import StudyPlan
from src.studies.store import Failure, Store
from src.studies.table import heading, key_text


def plan_lines(plan: StudyPlan, store: Store, workers: int) -> list[str]:
    """What a run would do: results, passes, time and disk."""
    done = store.done()
    rest = [left for bundle in plan.bundles if (left := bundle.without(done)).items]
    stitches = sum(len(bundle.items) for bundle in rest if not bundle.is_comparison)
    comparisons = sum(bundle.is_comparison for bundle in rest)
    ahead = seconds_left(plan, store, workers)
    lines = [
        f"{counted(stitches, 'stitch', 'stitches')} and {counted(comparisons, 'comparison', 'comparisons')} to do, "
        f"{len(done.intersection(plan.names))} of {len(plan.names)} done",
        f"{counted(len(rest), 'pass', 'passes')}, each of one pair of networks",
        f"about {in_words(ahead)} with {counted(workers, 'process', 'processes')}, at the speed measured here"
        if rest
        else "nothing is left to do",
        f"about {size_in_words(plan.size)} on disk in the end",
    ]
    for reason, count in plan.left_out.items():
        lines.append(f"left out: {counted(count, 'stitch', 'stitches')}: {reason}")
    return lines


def seconds_left(plan: StudyPlan, store: Store, workers: int) -> float:
    """How long what is missing of a plan takes so many processes, by its estimate."""
    done = store.done()
    rest = [left for bundle in plan.bundles if (left := bundle.without(done)).items]
    # a bundle of which a part is there takes what its rest does
    shares = {bundle.name: len(bundle.items) for bundle in plan.bundles}
    seconds = sum(bundle.seconds * len(bundle.items) / shares[bundle.name] for bundle in rest)
    return max(seconds / workers, max((bundle.seconds for bundle in rest), default=0.0))


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def status_lines(plan: StudyPlan, store: Store) -> list[str]:
    """How far a study is, who is at it, and what failed."""
    done, names = store.done(), set(plan.names)
    failures = {name: failure for name, failure in store.failures().items() if name in names}
    held = {path.stem for path in store.leases.glob("*.lease")}
    at_work = [bundle for bundle in plan.bundles if bundle.name in held and bundle.without(done).items]
    lines = [f"{len(done & names)} of {len(names)} results, {len(failures)} failed, {len(at_work)} passes held"]
    if others := len(done - names):
        lines.append(f"{counted(others, 'result', 'results')} of what the file no longer declares")
    return [*lines, *failure_lines(list(failures.values()))]


def failure_lines(failures: Sequence[Failure], shown: int = 10) -> list[str]:
    lines = [f"{_how_often(one)}: {one.about}: {one.line}" for one in failures[:shown]]
    return lines + ([f"and {len(failures) - shown} more"] if len(failures) > shown else [])


def at_chance_lines(stitches: Frame) -> list[str]:
    """What is said of networks that decide no better than chance, of each by one of its results."""
    lines: dict[str, None] = {}
    for role in ROLES:
        for path in stitches.drop_duplicates(f"{role}_network")["path"]:
            with suppress(OSError, UserError):
                lines |= dict.fromkeys(networks_at_chance(results.read(Path(path)), [role]))
    return list(lines)


def device_lines(devices: Collection[str]) -> list[str]:
    """A warning where results of several devices, which round otherwise, stand in one study."""
    if len(devices) < 2:
        return []
    return [f"results of {len(devices)} devices stand side by side: {', '.join(sorted(devices))}"]


def _how_often(failure: Failure) -> str:
    parts = [f"failed {counted(failure.count, 'time', 'times')}"] if failure.count or not failure.deaths else []
    parts += [f"stopped from outside {counted(failure.deaths, 'time', 'times')}"] if failure.deaths else []
    return ", ".join(parts)


def summary(plan: StudyPlan, store: Store, found: StudyResults) -> list[tuple[str, str]]:
    """What stands at the top of the page."""
    names = set(plan.names)
    missing = len(names - store.done())
    stitches = found.stitches
    lines = [("results", f"{len(names) - missing:,} of {len(names):,}" + f", {missing:,} missing" * bool(missing))]
    if len(stitches):
        count = stitches["networks"].nunique()
        layers = len(stitches[["front_layer", "end_layer"]].drop_duplicates())
        seeds = counted(stitches["seed"].nunique(), "seed", "seeds")
        lines.append(
            (
                "stitches",
                f"{len(stitches):,}: {counted(count, 'pair', 'pairs')} of networks, "
                f"{counted(layers, 'couple', 'couples')} of layers, {seeds}",
            )
        )
        lines.append(("data", ", ".join(dict.fromkeys(stitches["dataset"].dropna()))))
        lines += [
            (heading(axis), ", ".join(dict.fromkeys(key_text(axis, value) for value in stitches[axis])))
            for axis in found.axes
        ]
        lines += [("warning", text) for text in at_chance_lines(stitches)]
    lines += [("warning", text) for text in device_lines(found.devices)]
    if len(found.comparisons):
        lines.append(("comparisons", ", ".join(found.comparisons["method"].unique())))
        lines += [
            (
                f"compared {heading(column)}",
                ", ".join(dict.fromkeys(key_text(column, value) for value in found.comparisons[column])),
            )
            for column in found.ways
        ]
    return [*lines, *(("left out", f"{count:,}: {reason}") for reason, count in plan.left_out.items())]
