"""The connection of a mount whose holder is gone, ended for good.

It ends by itself when the last descriptor is closed, but a filler (fusefs/filling/) may have one that it cannot close, because it waits in
the kernel for a page that only an answer unlocks. Nothing here touches the mounted file system.
"""

from __future__ import annotations

import os
from pathlib import Path

from millpond.daemon.mounts import syscalls
from millpond.daemon.mounts.kernel import is_machines, is_privileged
from millpond.daemon.mounts.place import MountEntry, is_of, mounted_at

# fusectl: a folder a connection, with files of the user who mounted.
CONTROL = Path("/sys/fs/fuse/connections")
NO_CONTROL = f"only root could end the mount if its processes were killed, as {CONTROL} is not mounted"

NO_CONTROL_IN_SYSTEM_MODE = f"in system mode only where {CONTROL} is mounted"


def why_not(entry: MountEntry, *, system: bool = False) -> str:
    """Why this process's user could not abort the connection of a mount; "" when he can. In system mode the spawner would, by fusectl alone."""
    if system:
        return "" if _abort_file(entry).parent.is_dir() else NO_CONTROL_IN_SYSTEM_MODE
    if os.access(_abort_file(entry), os.W_OK):
        return ""
    # umount2(MNT_FORCE) is for who is root outside of all containers.
    if is_privileged() and is_machines("user"):
        return ""
    return NO_CONTROL


def abort(mountpoint: str, record: str) -> bool:
    """End the mount of the record with this id, whose holder is gone, if it is on top at exactly this path; whether it was. Who waits for it gets
    an error; where that takes umount2 it is unmounted too, unless it is in use. Raises OSError where it may not be done."""
    entry = mounted_at(mountpoint)
    if entry is None or not is_of(entry, record):
        return False
    try:
        abort_by_number(entry)
    except OSError:
        syscalls.abort(os.fsencode(mountpoint))
    return True


def abort_by_number(entry: MountEntry) -> None:
    """End a mount without a look at its path, which may lead through file systems that never answer. Raises OSError where it may not be done."""
    _abort_file(entry).write_bytes(b"1")


def _abort_file(entry: MountEntry) -> Path:
    return CONTROL / entry.device.partition(":")[2] / "abort"
