"""The engines by name, and which one serves a mount here.

`direct` speaks the kernel's protocol itself and is much the faster; `pyfuse3` goes through libfuse, and runs wherever that does.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from millpond.daemon.errors import MountError

AUTO, DIRECT, PYFUSE3 = "auto", "direct", "pyfuse3"
NAMES = (AUTO, DIRECT, PYFUSE3)
# Processes that may serve one mount.
MOST_SERVING = 64
# The first kernel with FUSE 7.31.
OLDEST_KERNEL = (5, 4)


class Choice(NamedTuple):
    """An engine, and why it is this one."""

    engine: str
    why: str


def choose(name: str | None) -> Choice:
    """The engine that serves what was asked for as `name` (none is auto). Raises MountError."""
    from importlib.util import find_spec  # commands that only name engines need not load it

    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    fits = found is None or (int(found[1]), int(found[2])) >= OLDEST_KERNEL
    portable = find_spec(PYFUSE3) is not None
    if name == PYFUSE3:
        if not portable:
            raise MountError("the engine pyfuse3 is not installed", hint="pip install pyfuse3, or use --engine direct")
        return Choice(PYFUSE3, "it was asked for")
    if name == DIRECT:
        return Choice(DIRECT, "it was asked for")
    if name not in (None, AUTO):
        raise MountError(f"there is no engine '{name}'", hint=f"use --engine {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if fits or not portable:
        why = "it is the fastest" if fits else "pyfuse3 is not installed"
        return Choice(DIRECT, f"{why}, and this is Linux {release}")
    return Choice(PYFUSE3, f"Linux {release} is older than {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]}")
