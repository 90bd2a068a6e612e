"""Write the tables of README and docs that follow from the parsers and the registries: python -m docs.tables

A table stands between `<!-- table: KIND NAME -->` and `<!-- /table -->`; MAKERS knows the kinds. With --check
nothing is written, and what would change is an error.
"""

import argparse
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from src.metrics import MEASURES, Metric
from src.stitching.controls import CONTROLS
from src.stitching.exclusions import EXCLUDED, OF_ONE_STAGE, OF_TARGETS
from src.stitching.stages import STAGES
from src.stitching.targets import TARGETS
from studies.__main__ import COMMANDS, parser_of

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SCRIPTS = ("train_model", "stitch_nets", "layer_info", "compare_nets", "compare_frank_m2", "eval_net", "eval_stitch")
# the options that README shows, which every version of the suite has; the pages show all
PUBLISHED = {
    "train_model": "-m -d -i -g -e -b -lr -wd -opt -s -o",
    "stitch_nets": "-d -i -m -r -f -e -lr -b -wd --optimizer --seed -s --target-type --temperature --l1 --cka-reg -o",
    "compare_frank_m2": "-l -g -t -b",
}
CHANGES = {  # what may be done to either side -> in a reader's words
    "translation": "shift",
    "isotropic_scaling": "scale",
    "orthogonal": "rotation",
    "invertible_linear": "any invertible map",
}
_MARKED = re.compile(r"(<!-- table: ([\w ]+) -->\n)((?!<!-- ).*\n)*?<!-- /table -->")


class _Parsed(Exception):
    """Raised in the place of parsing: it carries the parser."""


@functools.cache
def parser_of_script(script: str) -> argparse.ArgumentParser:
    """The parser of a script; for `studies` and `studies COMMAND` that of the studies' command line."""
    if script.startswith("studies"):
        return parser_of(script.removeprefix("studies").strip() or "run")

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Parsed(parser)

    parse, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, stop  # pyright: ignore
    try:
        importlib.import_module(script).parse_args([])
    except _Parsed as parsed:
        return parsed.args[0]
    finally:
        argparse.ArgumentParser.parse_args = parse
    raise AssertionError(f"{script} parses nothing")


def groups_of(script: str) -> Iterator[tuple[str, list[argparse.Action]]]:
    """The groups of a script's options and arguments in the order of its help, without --help and empty groups."""
    groups: dict[str, list[argparse.Action]] = {}
    for group in parser_of_script(script)._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        groups.setdefault(group.title or "", []).extend(actions)
    yield from ((title, actions) for title, actions in groups.items() if actions)


def row_of(action: argparse.Action) -> tuple[str, str, str]:
    """Name, meaning and default of an option or argument, in Markdown."""
    text = (action.help or "") % (vars(action) | {"prog": ""})
    match = re.fullmatch(r"(.*?)(?: \(default: (.*)\))?", text, re.DOTALL)
    assert match
    meaning, default = _escaped(match[1]), _escaped(match[2] or _literal(action))
    bare = action.nargs == 0 or (action.choices and action.metavar is None)
    if action.choices and action.metavar is None:
        meaning += f": {', '.join(f'`{choice}`' for choice in action.choices)}"
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`", meaning, ""
    *others, last = action.option_strings
    value = "" if bare else f" {action.metavar or action.dest.upper()}"
    return ", ".join([*(f"`{name}`" for name in others), f"`{last}{value}`"]), meaning, default


def _literal(action: argparse.Action) -> str:
    """The default as one would type it; "" of a flag, and where there is none."""
    if action.nargs == 0 or action.default is None:
        return ""
    return f"{action.default:g}" if isinstance(action.default, float) else str(action.default)


def _escaped(text: str) -> str:
    """Help as Markdown of a table's cell; what looks like a file name or an option is set as code."""
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w-])(--?[a-z][\w-]*)", r"`\1`", text)


def common_options() -> list[argparse.Action]:
    """The options that all scripts have alike."""
    every = [
        {row_of(action): action for _, actions in groups_of(script) for action in actions if action.option_strings}
        for script in SCRIPTS
    ]
    return [action for row, action in every[0].items() if all(row in rows for rows in every)]


def _lines(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row).rstrip()} |" for row in (head, ("---",) * len(head), *rows)]


def options(script: str) -> str:
    """A table for each group of a script's options; those that all scripts share are left out."""
    shared = {row_of(action) for action in common_options()}
    parts = []
    for title, actions in groups_of(script):
        rows = [row_of(action) for action in actions]
        rows = [row for row in rows if row not in shared or script.startswith("studies")]
        if not rows:
            continue
        if actions[0].option_strings:
            parts.append("\n".join(_lines((title.removeprefix("options") or "others", "meaning", "default"), rows)))
        else:
            parts.append("\n".join(_lines(("argument", "meaning"), [row[:2] for row in rows])))
    return "\n\n".join(parts)


def published(script: str) -> str:
    """README's short table: the options that every version of the suite has."""
    flags = PUBLISHED[script].split()
    found = {flag: action for _, actions in groups_of(script) for action in actions for flag in action.option_strings}
    return "\n".join(_lines(("option", "meaning", "default"), [row_of(found[flag]) for flag in flags]))


def common(_: str) -> str:
    return "\n".join(_lines(("option", "meaning", "default"), [row_of(action) for action in common_options()]))


def studies(_: str) -> str:
    """The options of `python -m studies` and of its commands, each once."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for command in ("run", *COMMANDS):
        for _, actions in groups_of(f"studies {command}"):
            for action in actions:
                if action.option_strings:
                    rows.setdefault(row_of(action), []).append(command)
    every = len(COMMANDS) + 1
    table = [(*row, "all" if len(of) == every else ", ".join(of)) for row, of in rows.items()]
    return "\n".join(_lines(("option", "meaning", "default", "of"), table))


def metrics(_: str) -> str:
    """Every measure: what it is, which values mean more alike, its range, what leaves it as it is, what a row is."""
    head = ("method", "what it is", "more alike", "values", "unchanged by", "a row is of")
    rows = []
    for name, measure in MEASURES.items():
        low, high = (f"{end:.4g}" for end in measure.range)
        free = _unchanged(measure) if isinstance(measure, Metric) else ""
        cells = _escaped(measure.meaning), measure.more_alike, f"{low} to {high}".replace(" to inf", " and more"), free
        rows.append((f"`{name}`", *cells, ", ".join(getattr(measure, "views", ()))))
    return "\n".join(_lines(head, rows))


def _unchanged(metric: Metric) -> str:
    """What may be done to the activations of both networks, or of one of them, that leaves the value as it is."""
    parts = []
    for side, changes in (
        ("", metric.invariances),
        ("front: ", metric.front - metric.end),
        ("end: ", metric.end - metric.front),
    ):
        words = [word for change, word in CHANGES.items() if change in changes]
        parts += [side + ", ".join(words)] if words else []
    return "; ".join(parts)


def controls(_: str) -> str:
    rows = [(f"`{name}`", _escaped(control.about), _escaped(control.bounds)) for name, control in CONTROLS.items()]
    return "\n".join(_lines(("control", "what is sewn", "what it bounds"), rows))


def stages(_: str) -> str:
    """Each row of a stitch's table, and what the keys of a result call it."""
    head = ("in tables", "in `model_results`", "in `m2_sim`", "its similarity to the end", "in `trans_m`", "what it is")
    rows = []
    for name, stage in STAGES.items():
        similar = [f"`{key}{stage.suffix}`" for key in ("cka", "l2", "l2_relative") if stage.suffix is not None]
        keys = f"`{stage.scores}`", f"`{stage.agreement}`" if stage.agreement else "", ", ".join(similar)
        rows.append((f"`{name}`", *keys, f"`{name}`" if stage.is_map else "", _escaped(stage.about)))
    return "\n".join(_lines(head, rows))


def exclusions(_: str) -> str:
    """What excludes what, the options that a reason is about in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for first, second, why in EXCLUDED:
        rows.setdefault((_option(second), why), []).append(_option(first))
    for option, (belongs, why) in OF_TARGETS.items():
        others = ", ".join(f"`{name}`" for name, target in TARGETS.items() if not belongs(target))
        rows.setdefault((f"`--target-type` of {others} alone", why), []).append(_option(option))
    for option, why in OF_ONE_STAGE.items():
        rows.setdefault(("several stages of `--target-type`", why), []).append(_option(option))
    table = [(", ".join(options), other, why) for (other, why), options in rows.items()]
    return "\n".join(_lines(("option", "excludes", "because"), table))


def _option(option: str | tuple[str, str]) -> str:
    name, value = option if isinstance(option, tuple) else (option, "")
    return f"`--{name.replace('_', '-')}{f' {value}' * bool(value)}`"


MAKERS: dict[str, Callable[[str], str]] = {
    "options": options,
    "published": published,
    "common": common,
    "studies": studies,
    "metrics": metrics,
    "controls": controls,
    "exclusions": exclusions,
    "stages": stages,
}


def renewed(text: str) -> str:
    """A page with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        kind, _, name = match[2].partition(" ")
        return f"{match[1]}\n{MAKERS[kind](name)}\n\n<!-- /table -->"

    return _MARKED.sub(fill, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a table is not new")
    args = parser.parse_args(argv)
    stale = [page for page in PAGES if renewed(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    for page in stale:
        print(f"{'stale' if args.check else 'written'}: {page.relative_to(ROOT)}")
        if not args.check:
            page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(1 if stale and args.check else 0)


if __name__ == "__main__":
    main()
