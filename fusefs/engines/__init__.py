"""Engines: how a Filesystem is served to the kernel.

An engine module has `serve(filesystem, settings, mounted)`: mount at `settings.mountpoint` (or take the /dev/fuse descriptor
`/dev/fd/N`), call `mounted()` once requests are answered, and return when the mount is gone. Raises MountError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from millpond.daemon.mounts.engines import DIRECT, EROFS, PYFUSE3

if TYPE_CHECKING:
    from millpond.fusefs.filesystem import Filesystem
    from millpond.fusefs.filling.starting import Forked
    from millpond.fusefs.image.mounter import Mounter

# As much as one request brings; 512 is slower for who reads on, and more gains nothing.
READ_AHEAD_KB = 1024
# The kind that mounts have in the kernel's table.
FSTYPE = "fuse.millpond"
ENGINES = {
    DIRECT: "millpond.fusefs.engines.direct_engine",
    EROFS: "millpond.fusefs.engines.erofs_engine",
    PYFUSE3: "millpond.fusefs.engines.pyfuse3_engine",
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to mount. `place` is the mountpoint itself also when `mountpoint` is a descriptor's name. `on_open` is told the
    inode of each open; without it an engine may have the kernel not ask. Up to `materialize` bytes of large files may be
    written out in the folder `scratch` for the kernel to read them there. `serving` processes serve the mount, which read the store at
    `store`; 0: as many as load has it, up to `serving_most` (0: as the cores allow). `fillers` wait to bring
    neighbours of what is read; else it is why there are none. `far`: not all contents are on this machine. `mounter` waits to mount an image, if it is to be one."""

    mountpoint: str
    place: str
    name: str
    allow_other: bool = False
    read_ahead_kb: int = READ_AHEAD_KB
    on_open: Callable[[int], None] | None = None
    materialize: int = 0
    scratch: str = ""
    store: str = ""
    serving: int = 1
    serving_most: int = 0
    fillers: Sequence[Forked] | str = ""
    far: bool = False
    mounter: Mounter | None = None

    @property
    def fills(self) -> bool:
        """Whether neighbours of what is read may be brought."""
        return not isinstance(self.fillers, str)

    @property
    def why_no_filler(self) -> str:
        """Why not; "" if they may."""
        return self.fillers if isinstance(self.fillers, str) else ""


class EngineRefused(Exception):
    """An engine cannot run here, for this reason; nothing is mounted."""


class Engine(Protocol):
    """What an engine module offers."""

    async def serve(
        self, filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]
    ) -> None:
        """Mount, serve, return when the mount is gone."""
        ...


def load(name: str) -> Engine:
    """The engine of a key of ENGINES."""
    module: Engine = import_module(ENGINES[name])
    return module


def mount_options(settings: EngineSettings) -> list[str]:
    """Options of the mount, as fusermount3 and libfuse take them. The kernel checks permissions."""
    options = [
        f"fsname={settings.name}",
        f"subtype={FSTYPE.removeprefix('fuse.')}",
        "ro",
        "noatime",
        "default_permissions",
    ]
    return [*options, "allow_other"] if settings.allow_other else options
