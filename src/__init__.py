"""Model stitching and representation comparison; the scripts beside this package are its users.

From Python: `compare` two arrays, `sew` two modules, `open_network` of a file, `load_results` of a folder. Each is
loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.face.comparing import compare
    from src.face.opening import load_results, open_network
    from src.face.sewing import sew

_HOMES = {"compare": "comparing", "sew": "sewing", "open_network": "opening", "load_results": "opening"}
__all__ = ["compare", "load_results", "open_network", "sew"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.face.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
