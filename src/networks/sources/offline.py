"""A block in which nothing here reaches another machine, whatever a library makes of what a file tells it."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_blocks: list[object] = []  # those that are open, in all threads together: a library may download in one of its own
_watching = False


@contextmanager
def offline() -> Iterator[None]:
    """Let every look-up of a host, and every connection to one, end in an OSError; sockets of this machine stay."""
    global _watching
    if not _watching:
        sys.addaudithook(_refuse)  # for good, so that no library finds a way around what was patched
        _watching = True
    block = object()
    _blocks.append(block)
    try:
        yield
    finally:
        _blocks.remove(block)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _blocks or event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        return
    if event in ("socket.connect", "socket.sendto") and arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    raise OSError("no file makes a download")
