"""The place of a mount: the directory underneath, and the kernel's mount table.

A mount that is gone must never look like an empty data set. So the directory underneath holds a marker file, and is
made read-only (0555) while the mount is meant to be there; both are undone by `umount`. All of this runs as the caller.
Nothing here touches a mounted file system: a dead one answers ENOTCONN, a stuck one never.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from millpond.daemon.errors import MountError, NotMountedError

MARKER = "NOT-MOUNTED.millpond.txt"
_MARKER_TEXT = """\
This directory is a millpond mount that is not mounted now.
  target:  {target}
  version: {version}
Run `millpond mounts --restore` to mount it again, or `millpond umount {mountpoint}` to give it up.
"""
READ_ONLY = 0o555
# Of our mounts, in the kernel's table.
FSTYPE = "fuse.millpond"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo: where, what kind, its source, and `major:minor` of its device."""

    mountpoint: str
    fstype: str
    source: str
    device: str


def mount_table() -> list[MountEntry]:
    """All mounts of this process's namespace, in mount order (proc_pid_mountinfo(5))."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for raw in file:
            line = os.fsdecode(raw)
            fields, _, tail = line.partition(" - ")
            parts, rest = fields.split(" "), tail.split(" ")
            found.append(MountEntry(_unescape(parts[4]), rest[0], _unescape(rest[1]), parts[2]))
    return found


def mounted_at(path: str) -> MountEntry | None:
    """What is mounted on top at exactly this (resolved) path."""
    for entry in reversed(mount_table()):
        if entry.mountpoint == path:
            return entry
    return None


def mounts_around(paths: Iterable[str]) -> list[str]:
    """Mountpoints of ours that these (absolute) paths are, or lie in, each once."""
    ours = {entry.mountpoint for entry in mount_table() if entry.fstype == FSTYPE}
    found: dict[str, None] = {}
    for path in paths if ours else ():
        where = os.path.realpath(path)
        while where not in ours and where != os.path.dirname(where):
            where = os.path.dirname(where)
        if where in ours:
            found[where] = None
    return list(found)


def mounts_below(folder: str) -> list[str]:
    """Mountpoints of ours below a folder."""
    prefix = os.path.join(os.path.realpath(folder), "")
    return [
        entry.mountpoint for entry in mount_table() if entry.fstype == FSTYPE and entry.mountpoint.startswith(prefix)
    ]


def resolve(path: str) -> str:
    """The absolute path with links resolved in all but the last part, which may be a dead mount."""
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name) if name else path


def check(mountpoint: str) -> None:
    """Raise MountError unless an empty directory of ours is there, with nothing mounted on it.

    `mountpoint` is resolved. A marker left by a mount that died counts as empty.
    """
    there = mounted_at(mountpoint)
    if there is not None:
        raise MountError(
            f"'{mountpoint}' is already a mountpoint ({there.fstype})",
            path=mountpoint,
            hint=f"run `millpond umount {mountpoint}` first, or choose another directory",
        )
    try:
        found = os.lstat(mountpoint)
        if not stat.S_ISDIR(found.st_mode):
            raise MountError(
                f"mountpoint '{mountpoint}' is not a directory", path=mountpoint, hint="give an empty directory"
            )
        names = [name for name in os.listdir(mountpoint) if name != MARKER]
    except OSError as error:
        hint = (
            f"create it: mkdir -p {mountpoint}" if isinstance(error, FileNotFoundError) else "choose another directory"
        )
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be used: {error.strerror}"
        raise MountError(f"mountpoint '{mountpoint}' {reason}", path=mountpoint, hint=hint) from error
    if names:
        raise MountError(
            f"mountpoint '{mountpoint}' is not empty ({len(names)} entries)",
            path=mountpoint,
            hint="give an empty directory",
        )


@contextlib.contextmanager
def prepared(mountpoint: str, *, target: str, version: str) -> Iterator[int]:
    """The marker written; then, when the block (which mounts) has succeeded, the directory underneath made read-only.

    Yields the mode the directory had. fusermount3 wants a writable directory, so the mode is changed after the mount,
    through a descriptor opened before it. When the block fails, marker and mode are as before.
    """
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        had_marker = MARKER in os.listdir(fd)
        if mode == READ_ONLY:  # left by a mount that died: its record knows the mode from before
            os.fchmod(fd, 0o755)
        text = _MARKER_TEXT.format(target=target, version=version, mountpoint=mountpoint)
        _write_marker(fd, mountpoint, text)
        try:
            yield mode
        except BaseException:
            if not had_marker:
                with contextlib.suppress(OSError):
                    os.unlink(MARKER, dir_fd=fd)
            with contextlib.suppress(OSError):
                os.fchmod(fd, mode)
            raise
        os.fchmod(fd, READ_ONLY)
        os.fsync(fd)
    finally:
        os.close(fd)


def released(mountpoint: str, mode: int) -> None:
    """Undo `prepared` once nothing is mounted any more: the marker gone, the mode as it was. Safe twice."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # the directory itself was removed meanwhile
    try:
        os.fchmod(fd, mode)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MARKER, dir_fd=fd)
    finally:
        os.close(fd)


def require_mounted(path: str) -> None:
    """Raise NotMountedError when `path` is (in) a directory that should be a mount and is not."""
    where = path
    while True:
        if os.path.lexists(os.path.join(where, MARKER)):
            raise NotMountedError(
                f"'{where}' is a mount that is not mounted now; its data is not here",
                path=where,
                hint="run `millpond mounts --restore`, or `millpond umount` to give it up",
            )
        parent = os.path.dirname(where)
        if parent == where:
            return
        where = parent


def _write_marker(fd: int, mountpoint: str, text: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MARKER, dir_fd=fd)
        out = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=fd)
    except OSError as error:
        raise MountError(
            f"cannot mount on '{mountpoint}': {error.strerror}",
            path=mountpoint,
            hint="the mountpoint must be a directory that you may write to",
        ) from error
    with os.fdopen(out, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _unescape(text: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as three octal digits."""
    if "\\" not in text:
        return text
    raw = os.fsencode(text)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), raw))
