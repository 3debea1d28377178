"""millpond: a storage daemon for the dataset and model versions of DVC repositories.

The library: `open`, `read` and `get_url` for files of any version, `MillpondFileSystem` for fsspec. They are loaded when they
are asked for first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millpond.daemon.api.filesystem import MillpondFileSystem as MillpondFileSystem
    from millpond.daemon.api.reading import get_url as get_url
    from millpond.daemon.api.reading import open as open
    from millpond.daemon.api.reading import read as read
    from millpond.daemon.errors import MillpondError as MillpondError

__all__ = ["MillpondError", "MillpondFileSystem", "get_url", "open", "read"]

_HOMES = {
    "MillpondError": "millpond.daemon.errors",
    "MillpondFileSystem": "millpond.daemon.api.filesystem",
    "get_url": "millpond.daemon.api.reading",
    "open": "millpond.daemon.api.reading",
    "read": "millpond.daemon.api.reading",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("millpond.daemon.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'millpond' has no attribute '{name}'")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
