"""What `make docs` does beside mkdocs: pages that lie elsewhere join the site, and nothing in it may ask a network.

A link is written as it works in the repository; here those that lead out of docs/ are turned to the page on the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# a file of the repository -> its page
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "model_weights/README.md": "model_weights.md",
}
# what the theme would fetch to search in pages that were opened from a folder, and what does it here
FETCHED, OURS = "https://unpkg.com/iframe-worker/shim", "search_from_files.js"
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
ASKING = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b(?![^>]*rel=["']?canonical)[^>]*"""
    r"""\bhref=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import\s+["'](?:https?:)?//"""
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_turned(text, posixpath.dirname(source))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that lead out of docs/."""
    return markdown if page.file.src_uri in ELSEWHERE.values() else _turned(markdown, "docs")


def on_post_page(output: str, **_: Any) -> str:
    return output.replace(FETCHED, OURS)


def on_post_template(output_content: str, **_: Any) -> str:
    return output_content.replace(FETCHED, OURS)


def on_post_build(config: Any) -> None:
    """Refuse a site that asks a network for something."""
    site = Path(config["site_dir"])
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        if found := ASKING.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} asks a network: {found[0]}")


def _turned(text: str, folder: str) -> str:
    """Markdown of a file in that folder of the repository with its links as the site needs them."""

    def turn(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        page = ELSEWHERE.get(path, path.removeprefix("docs/"))
        return f"{match[1]}{page}{match[3] or ''})"

    return _LINK.sub(turn, text)
