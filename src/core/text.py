"""What files and networks say reaches a terminal, a log or a picture with its control characters escaped."""

import difflib
import re
from collections.abc import Iterable

# control characters; those that turn the direction of writing, or part lines; and halves of characters
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def has_controls(text: str) -> bool:
    """Whether a text holds control characters; halves of characters, as in odd file names, are none."""
    return any(not "\ud800" <= found <= "\udfff" for found in _UNSAFE.findall(text))


def visible(text: str, keep: str = "\n\t") -> str:
    """A text in which control characters but some are written as Python writes them: \\x1b for that of ESC."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def in_line(text: str, limit: int = 200) -> str:
    """The first line of a text, visible, and no more of it than a line has."""
    return visible(text.partition("\n")[0], keep="")[:limit]


def close_to(text: str, names: Iterable[str]) -> str:
    """Names of which a text may be a misspelling, such as "; close: cifar10"; "" where there are none."""
    plain = {name: _letters(name) for name in names}
    near = difflib.get_close_matches(_letters(text), plain.values(), n=3, cutoff=0.75)
    if near[:1] == [_letters(text)]:  # in case or marks alone
        near = near[:1]
    close = [name for match in dict.fromkeys(near) for name, letters in plain.items() if letters == match]
    return f"; close: {', '.join(close[:3])}" if close else ""


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
