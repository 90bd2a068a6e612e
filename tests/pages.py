"""README and the pages of docs: their text, their commands, and the tables in them."""

import re

from docs.tables import PAGES
from tests.paths import ROOT

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language in all pages, README's first, each once."""
    found = (block for text in TEXTS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    return list(dict.fromkeys(found))


def commands() -> list[str]:
    """The lines of all console blocks, and what a container is to run in them; each once."""
    lines = [line.split("  # ")[0].strip() for block in blocks("console") for line in block.splitlines()]
    inner = [command for line in lines for command in re.findall(r'docker_run\.sh .*-c "(.*)"', line)]
    return list(dict.fromkeys(lines + inner))


def scripts() -> list[tuple[str, str]]:
    """Script and arguments of each command that runs one of ours."""
    return [(match[1], match[2]) for line in commands() if (match := re.fullmatch(r"python (\w+)\.py (.*)", line))]


def studies() -> list[str]:
    """What stands behind `python -m studies` in each such command."""
    return [line.removeprefix("python -m studies ") for line in commands() if line.startswith("python -m studies ")]


def section(page: str, title: str) -> str:
    """A section of a page, its heading left out, up to the next heading of its level."""
    (level, start), *_ = [
        (match[1], match.end()) for match in re.finditer(r"^(#+) (.*)$", TEXTS[page], re.MULTILINE) if match[2] == title
    ]
    return re.split(rf"^#{{1,{len(level)}}} ", TEXTS[page][start:], flags=re.MULTILINE)[0]


def names_tables() -> dict[str, list[list[str]]]:
    """{what a `<!-- names: WHAT -->` says: rows of the table behind it, without its head}, of all pages."""
    found = {}
    for text in TEXTS.values():
        for what, table in re.findall(r"<!-- names: (\w+) -->\n\n((?:\|.*\n)+)", text):
            found[what] = [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()[2:]]
    return found
