"""Engines: how a Filesystem is served to the kernel.

An engine module has `serve(filesystem, settings, mounted)`: mount at `settings.mountpoint` (or take the /dev/fuse descriptor
`/dev/fd/N`), call `mounted()` once requests are answered, and return when the mount is gone. Raises MountError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from millpond.fusefs.filesystem import Filesystem

ENGINES = {"pyfuse3": "millpond.fusefs.engines.pyfuse3_engine"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to mount. `place` is the mountpoint itself also when `mountpoint` is a descriptor's name."""

    mountpoint: str
    place: str
    name: str
    allow_other: bool = False
    read_ahead_kb: int = 1024


class Engine(Protocol):
    """What an engine module offers."""

    async def serve(
        self, filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]
    ) -> None:
        """Mount, serve, return when the mount is gone."""
        ...


def load(name: str) -> Engine:
    """The engine of a name: a key of ENGINES, or `auto`. Raises KeyError."""
    module: Engine = import_module(ENGINES["pyfuse3" if name == "auto" else name])
    return module
