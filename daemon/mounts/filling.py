"""Whether mounts here may bring what is read next into the page cache (fusefs/filling/), and why not: for `doctor` and for the holders."""

from __future__ import annotations

import os

from millpond.daemon.mounts import engines
from millpond.daemon.mounts.connections import CONTROL, NO_CONTROL
from millpond.daemon.mounts.kernel import is_machines, is_privileged

OFF = "MILLPOND_FILL is 0"
IN_SYSTEM_MODE = "not in system mode"
BY_ENGINE = "not with this engine"
IN_CONTAINER = "not in a container, where nobody might be left to end the mount if all is killed"


def why_not(*, fill: bool, system: bool) -> str:
    """Why mounts of this caller have no filler, as far as can be told without a mount; "" when they have. `fill`: what the daemon's
    MILLPOND_FILL says; `system`: whether it serves many users."""
    if not fill:
        return OFF
    if system:
        return IN_SYSTEM_MODE
    if engines.choose(None).engine != engines.DIRECT:
        return BY_ENGINE
    if not is_machines("pid"):
        return IN_CONTAINER
    # Each connection has its files there, which are its user's.
    may_end = os.path.ismount(CONTROL) or (is_privileged() and is_machines("user"))
    return "" if may_end else NO_CONTROL
