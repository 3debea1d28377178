"""Whether mounts here may bring what is read next into the page cache (fusefs/filling/), and why not: for `doctor` and for the holders."""

from __future__ import annotations

import os

from millpond.daemon.mounts import engines
from millpond.daemon.mounts.connections import CONTROL, NO_CONTROL, NO_CONTROL_IN_SYSTEM_MODE
from millpond.daemon.mounts.kernel import is_machines, is_privileged

OFF = "MILLPOND_FILL is 0"
BY_ENGINE = "not with this engine"
IN_CONTAINER = "not in a container, where nobody might be left to end the mount if all is killed"


def why_not(*, fill: bool, system: bool) -> str:
    """Why mounts of this caller have no filler, as far as can be told without a mount; "" when they have. `fill`: what the daemon's
    MILLPOND_FILL says; `system`: whether it serves many users."""
    if not fill:
        return OFF
    if engines.choose(None).engine != engines.DIRECT:
        return BY_ENGINE
    if not is_machines("pid"):
        return IN_CONTAINER
    # Each connection has its files there, which are its user's; in system mode the spawner may use them.
    if os.path.ismount(CONTROL):
        return ""
    if system:
        return NO_CONTROL_IN_SYSTEM_MODE
    return "" if is_privileged() and is_machines("user") else NO_CONTROL
