"""Who holds a mount: found from /proc alone, never by touching the mount."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass

# The name of a process that lists directories of a mount ahead (fusefs/filling/).
FILLER = "millpond-filler"
# Entries reported; a job with a thousand loader workers needs no thousand lines.
MAX_HOLDERS = 20


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process with something open below a mount: `what` is cwd, root, exe, mapped or an open path."""

    pid: int
    user: str
    command: str
    what: str


def who_holds(mountpoint: str) -> list[MountUser]:
    """Processes that this one may look into and that hold `mountpoint`; at most MAX_HOLDERS."""
    found: list[MountUser] = []
    prefix = mountpoint.rstrip("/") + "/"
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to see
            what = _held(int(name), mountpoint, prefix)
            if what is not None:
                found.append(MountUser(int(name), _user(int(name)), _command(int(name)), what))
                if len(found) >= MAX_HOLDERS:
                    break
    return found


def is_only_ours(mountpoint: str) -> bool:
    """Whether nobody holds it whom this process may look into, but perhaps fillers, which list a directory of it and let go."""
    return all(user.command == FILLER for user in who_holds(mountpoint))


def _held(pid: int, mountpoint: str, prefix: str) -> str | None:
    def inside(path: str) -> bool:
        return path == mountpoint or path.startswith(prefix)

    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            if inside(os.readlink(f"/proc/{pid}/{link}")):
                return link
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with contextlib.suppress(OSError):
            path = os.readlink(f"{folder}/{number}")
            if inside(path):
                return path
    with open(f"/proc/{pid}/maps", "rb") as file:
        needle = os.fsencode(prefix)
        if any(needle in line for line in file):
            return "mapped"
    return None


def _user(pid: int) -> str:
    uid = os.stat(f"/proc/{pid}").st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
        return file.read().strip()
