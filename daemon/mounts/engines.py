"""The engines by name, and which one serves a mount here.

`direct` speaks the kernel's FUSE protocol itself and is much the faster of the two that do everything; `pyfuse3` goes through libfuse, and runs
wherever that does. `erofs`, which must be asked for, has the kernel read a version as the image of a file system: what is in the page cache is as
fast as on a disk, but only root may mount one, and it shows nothing that changes.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from millpond.daemon.errors import MountError
from millpond.daemon.mounts import kernel

AUTO, DIRECT, EROFS, PYFUSE3 = "auto", "direct", "erofs", "pyfuse3"
NAMES = (AUTO, DIRECT, EROFS, PYFUSE3)
# Processes that may serve one mount.
MOST_SERVING = 64
# The first kernel with FUSE 7.31.
OLDEST_KERNEL = (5, 4)


class Choice(NamedTuple):
    """An engine, and why it is this one."""

    engine: str
    why: str


def why_no_image(
    *, system: bool = False, versions: bool = False, xattrs: bool = False, materialize: bool = False
) -> str:
    """Why a mount with these options cannot be an image; "" when it can, as far as can be told without one. `system`: in system mode."""
    if versions:
        return "branches and tags move"
    if xattrs:
        return "--xattrs tells what changes"
    if materialize:
        return "--materialize hands files over one by one"
    if system:
        return "in system mode processes that are not root's serve mounts"
    return kernel.why_no_image()


def choose(name: str | None, no_image: str = "") -> Choice:
    """The engine that serves what was asked for as `name` (none is auto); `no_image` as why_no_image tells. Raises MountError."""
    from importlib.util import find_spec  # commands that only name engines need not load it

    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    fits = found is None or (int(found[1]), int(found[2])) >= OLDEST_KERNEL
    portable = find_spec(PYFUSE3) is not None
    if name == PYFUSE3:
        if not portable:
            raise MountError("the engine pyfuse3 is not installed", hint="pip install pyfuse3, or use --engine direct")
        return Choice(PYFUSE3, "it was asked for")
    if name == EROFS and no_image:
        raise MountError(f"the engine erofs cannot serve this: {no_image}", hint="use --engine direct, or leave it out")
    if name in (DIRECT, EROFS):
        return Choice(name, "it was asked for")
    if name not in (None, AUTO):
        raise MountError(f"there is no engine '{name}'", hint=f"use --engine {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if fits or not portable:
        why = "it is the fastest that does everything" if fits else "pyfuse3 is not installed"
        return Choice(DIRECT, f"{why}, and this is Linux {release}")
    return Choice(PYFUSE3, f"Linux {release} is older than {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]}")
