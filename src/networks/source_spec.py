"""The text that names a network on a command line, taken apart."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.cutting.layout import ASKABLE
from src.dataset.preprocessing import INTERPOLATIONS, RESIZES
from src.models import canonical_name
from src.networks.sources import SOURCES
from src.networks.sources.library import Source

PREFIX = "features:"  # of the names of saved activations
VIEW = {
    "size": lambda text: _whole(text),
    "mean": lambda text: _numbers(text),
    "std": lambda text: _numbers(text),
    "interpolation": lambda text: _one_of(text, INTERPOLATIONS),
    "resize": lambda text: _one_of(text, RESIZES),
    "classes": lambda text: _said(text),
    "weights": lambda text: _one_of(text, ("raw", "ema")),
    "layout": lambda text: _one_of(text, ASKABLE),
}


@dataclass(frozen=True, slots=True)
class Named:
    """A network spec, or the name of an architecture, that the user wrote: on this command line or in a study's TOML.

    Wherever such a text is taken, a plain `str` is one out of a file: it makes no Python file run, and no download. No
    file holds a `Named`, so whoever reads one and forgets of this gets a network or a line that says what to name.
    """

    text: str

    def __str__(self) -> str:
        return self.text


def is_features(spec: str | Named) -> bool:
    """Whether a text names saved activations, in the place of a network."""
    return str(spec).startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network spec: a line of SOURCES, the name there, and where its weights are from.

    A weight file's source is "file", and so is that of the bare name of an architecture of ours. `weights` is a file
    or the source's own name for its weights, `seed` is of random ones; `view` is what stands behind the `?`, in values.
    """

    text: str
    source: str
    name: str
    weights: str | None = None
    seed: int | None = None
    view: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Source | None:
        """The line of SOURCES; None for a file."""
        return SOURCES.get(self.source)

    @property
    def model(self) -> str:
        """The architecture, without weights and what is asked of them."""
        return f"{self.source}:{self.name}" if self.record and self.record.prefixed else self.name

    @property
    def is_trained(self) -> bool:
        """Whether it names weights, and they are of a trained network."""
        if self.record is None:
            return Path(self.name).is_file()
        return self.weights is not None or self.record.open is not None


@dataclass(frozen=True, slots=True)
class Asker:
    """A file that asks for what the user alone may ask for, and the option, if any, with which the user does."""

    file: str = "a file"
    option: str = ""

    def no_run(self, spec: str, remedy: str = "") -> UserError:
        """That it asks for a Python file; `remedy` is the spec to name, where it is another."""
        what = f"{self.file} asks for {spec}, and no file makes a Python file run"
        return UserError(f"{what}; if you trust it, name it yourself: {self._named(remedy or spec)}")

    def no_download(self, spec: NetworkSpec) -> UserError:
        """That it asks for weights that are not here."""
        what = f"{self.file} asks for {spec.text}, which has not been downloaded here, and no file makes a download"
        return UserError(f"{what}; name it yourself: {self._named(spec.text)}")

    def _named(self, spec: str) -> str:
        plain = re.fullmatch(r"[\w@%+=:,./-][\w@%+=:,./#-]*", spec, re.ASCII)  # a # within a word is no comment
        return f"{self.option} {spec if plain else shlex.quote(spec)}".lstrip()


def parse_spec(text: str) -> NetworkSpec:
    """Take a spec apart.

    An existing file of exactly that name wins over any other reading. Raises UserError, with the spec in it, for one
    that cannot be read.
    """
    if Path(text).is_file():
        return NetworkSpec(text, "file", text)
    body, view = split_view(text)
    if Path(body).is_file():
        return NetworkSpec(text, "file", body, view=view)
    prefix, _, rest = body.partition(":")
    if (record := SOURCES.get(prefix)) and record.prefixed and body != prefix:
        if record.open:
            return NetworkSpec(text, prefix, _named(rest, text), view=view)
        return NetworkSpec(text, prefix, *_name_and_weights(rest, text), view=view)
    if ".py:" in body:
        file, _, rest = body.partition(".py:")
        name, weights, seed = _name_and_weights(rest, text)
        return NetworkSpec(text, "python", f"{file}.py:{name}", weights, seed, view)
    if match := re.fullmatch(r"([^#@:/\\]+)#(.*)", body, re.DOTALL):
        return NetworkSpec(text, "own", canonical_name(match[1]), None, _seed(match[2], text), view)
    return NetworkSpec(text, "file", body, view=view)


def split_view(text: str) -> tuple[str, dict[str, Any]]:
    body, *options = re.split(r"[?&](?=\w+=)", text)
    view = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in VIEW:
            raise UserError(f"{text}: unknown {key!r} behind the ?; known are {', '.join(VIEW)}")
        if key in view:
            raise UserError(f"{text}: {key} is given twice")
        try:
            view[key] = VIEW[key](value)
        except ValueError as error:
            raise UserError(f"{text}: {key} is {error}") from None
    return body, view


def _name_and_weights(text: str, whole: str) -> tuple[str, str | None, int | None]:
    """NAME, NAME@WEIGHTS or NAME#SEED."""
    name, at, weights = text.partition("@")
    if at:
        if not weights:
            raise UserError(f"{whole}: no weights behind the @")
        return _named(name, whole), weights, None
    name, mark, seed = text.partition("#")
    return _named(name, whole), None, _seed(seed, whole) if mark else None


def _named(name: str, whole: str) -> str:
    if not name:
        raise UserError(f"{whole}: no name behind the colon")
    return name


def _seed(text: str, whole: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise UserError(f"{whole}: the seed behind the # is {text!r}, not a whole number")
    return int(text)


def _said(text: str) -> str:
    if not text:
        raise UserError("'', not a data set or a file with a name a line")
    return text


def _whole(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", text, re.ASCII):
        raise UserError(f"{text!r}, not a whole number above 0")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{text!r}, not numbers with commas between them") from None


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise UserError(f"{text!r}, none of {', '.join(choices)}")
    return text
