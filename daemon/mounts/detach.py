"""Taking a mount away that nobody serves any more."""

from __future__ import annotations

import os
import subprocess

from millpond.daemon.mounts import syscalls

_SECONDS = 20.0


def detach(place: str) -> None:
    """Take a mount away at once, whoever uses it; it may be gone already. By fusermount3 where this process may not. Raises OSError,
    subprocess.TimeoutExpired."""
    try:
        syscalls.umount(os.fsencode(place), lazy=True)
    except PermissionError:
        command = ["fusermount3", "-u", "-z", "-q", "--", place]
        subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
