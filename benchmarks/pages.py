"""Tables that commands put into pages, each between two marks."""

import re
from collections.abc import Sequence
from pathlib import Path


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def renew(text: str, name: str, table: str) -> str:
    """The page with this table in the place of the one of that name."""
    return re.sub(rf"(<!-- made: {name} -->\n).*?(<!-- /made -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL)


def write(page: Path, name: str, table: str) -> None:
    """Renew a table of a page, where there is such a page."""
    if page.exists():
        page.write_text(renew(page.read_text(), name, table))
