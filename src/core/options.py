"""What an option of a command line is: data, from which parsers, help and tables are made."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """A command line's option for a field of a spec. Defaults are the spec's.

    kind: what it takes, a key of KINDS in `src/cli/arguments.py`; "flag" takes nothing. many: whether it takes several
    values, separated by commas, for as many stitches. default: its default in words, where it is None.
    """

    field: str
    flags: tuple[str, ...]
    group: str
    help: str
    kind: str = "flag"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    default: str = ""
