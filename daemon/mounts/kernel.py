"""What the kernel does for a mount only where it may and can: how fast mounts are here, for `doctor` and the engines."""

from __future__ import annotations

import os
import re
from glob import iglob

# The first kernel that reads a file in place of a mount's, and the first that mounts an image that is a file of any file system.
_PASSTHROUGH = (6, 9)
_IMAGE = (6, 12)
_CAP_SYS_ADMIN = 21
# The numbers of the machine's own namespaces (include/linux/proc_ns.h).
_OF_MACHINE = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}


def is_privileged() -> bool:
    """Whether this process has CAP_SYS_ADMIN."""
    with open("/proc/self/status") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def is_machines(namespace: str) -> bool:
    """Whether this process is in the machine's own namespace, `pid` or `user`, and not in a container's."""
    try:
        return os.stat(f"/proc/self/ns/{namespace}").st_ino == _OF_MACHINE[namespace]
    except OSError:
        return False


def why_no_passthrough() -> str:
    """Why large files cannot be handed to the kernel whole; "" when they can, as far as can be told without a mount."""
    if not is_privileged():
        return "only root may hand files to the kernel"
    return _why_older(_PASSTHROUGH)


def why_no_image() -> str:
    """Why a version cannot be mounted as an image; "" when it can, as far as can be told without a mount."""
    if not is_privileged() or not is_machines("user"):
        return "only root may mount an image"
    return _why_older(_IMAGE)


def _why_older(version: tuple[int, int]) -> str:
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is not None and (int(found[1]), int(found[2])) < version:
        return f"Linux {release} is older than {version[0]}.{version[1]}"
    return ""


def why_no_read_ahead() -> str:
    """Why the kernel's read-ahead cannot be set for a mount; "" when it can."""
    for path in iglob("/sys/class/bdi/*/read_ahead_kb"):
        return "" if os.access(path, os.W_OK) else "only root may set it, and where /sys can be written"
    return "there is no /sys/class/bdi"
