"""The place of a mount: the directory underneath, and the kernel's mount table.

A mount that is gone must never look like an empty data set. So the directory underneath holds a marker file, and is
made read-only (0555) while the mount is meant to be there; both are undone by `umount`. All of this runs as the caller.
Nothing here touches a mounted file system: a dead one answers ENOTCONN, a stuck one never.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from millpond.daemon.errors import MountError, NotMountedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import scratch
from millpond.daemon.project.durable import make_folders

MARKER = "NOT-MOUNTED.millpond.txt"
# The marker before it has its name.
_MARKER_NEW = f"{MARKER}.tmp"
_OURS = frozenset((MARKER, _MARKER_NEW))
_MARKER_TEXT = """\
This directory is a millpond mount that is not mounted now.
  target:  {target}
  version: {version}
Run `millpond mounts --restore` to mount it again, or `millpond umount {mountpoint}` to give it up.
"""
READ_ONLY = 0o555
FSTYPE = "fuse.millpond"
# Mounts by the erofs engine are of this kind, and their source is the path of an image, which was open as a descriptor.
IMAGE_FSTYPE = "erofs"
_IMAGE = re.compile(r"/proc/self/fd/\d+/")
# What the kernel's table calls a mount; behind it stand the name of the object that it shows, if it is one, and the id of its record.
SOURCE = "millpond"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo: where, what kind, its source, `major:minor` of its device, and which part of it."""

    mountpoint: str
    fstype: str
    source: str
    device: str
    root: str = "/"

    @property
    def words(self) -> list[str]:
        """What we told the kernel's table; empty for what is no mount of ours."""
        source, kind = self.source, FSTYPE
        if self.fstype == IMAGE_FSTYPE and (found := _IMAGE.match(source)) is not None:
            source, kind = source[found.end() :], IMAGE_FSTYPE
        words = source.split(":")
        return words if self.fstype == kind and words[0] == SOURCE else []

    @property
    def is_ours(self) -> bool:
        """Whether it is a mount of millpond's."""
        return self.fstype == FSTYPE or bool(self.words)


def mount_table() -> list[MountEntry]:
    """All mounts of this process's namespace, in mount order (proc_pid_mountinfo(5))."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for raw in file:
            line = os.fsdecode(raw)
            fields, _, tail = line.partition(" - ")
            parts, rest = fields.split(" "), tail.split(" ")
            found.append(MountEntry(_unescape(parts[4]), rest[0], _unescape(rest[1]), parts[2], _unescape(parts[3])))
    return found


def source_of(name: str | None, record: str) -> str:
    """What the kernel's table is told of a mount: of one that shows a tracked object, its name; and the id of its record."""
    return ":".join(each for each in (SOURCE, name, record) if each)


def is_of(entry: MountEntry, record: str) -> bool:
    """Whether a mount is of ours and made for the record with this id. Another store's, or another user's, may have taken its place; a
    millpond of before told no ids."""
    words = entry.words
    return bool(words) and (len(words) % 2 == 1 or words[-1] == record)


def shown_objects() -> dict[str, ObjectName]:
    """The object that each of our mounts shows, by mountpoint: a tracked folder, or a file alone in a folder. Of mounts that show
    something else, or were made by a millpond that did not say, nothing."""
    found: dict[str, ObjectName] = {}
    for entry in mount_table():
        found.pop(entry.mountpoint, None)  # what is below another mount is not seen
        words = entry.words
        if entry.root == "/" and len(words) in (3, 4):
            found[entry.mountpoint] = ObjectName(words[1], words[2])
    return found


def mounted_at(path: str) -> MountEntry | None:
    """What is mounted on top at exactly this (resolved) path."""
    for entry in reversed(mount_table()):
        if entry.mountpoint == path:
            return entry
    return None


def mount_around(path: str) -> str | None:
    """The mountpoint of the mount of ours that an absolute path is, or lies in, however many links lead there."""
    where = os.path.realpath(path)
    ours: dict[str, bool] = {}
    for entry in mount_table():
        ours[entry.mountpoint] = entry.is_ours
    while where not in ours and where != os.path.dirname(where):
        where = os.path.dirname(where)
    return where if ours.get(where) else None


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
        names = [name for name in os.listdir(mountpoint) if name not in _OURS]
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
    through a descriptor opened before it. When the block fails, marker and mode are as before. One command at a time: raises MountError
    while another is at it, and when that was first.
    """
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _lock(fd, mountpoint)
        check(mountpoint)  # what was mounted while this one made its plan
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
                _unmark(fd)
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
        _unmark(fd)
    finally:
        os.close(fd)


def made(mountpoint: str, *, target: str, version: str) -> list[str]:
    """Make the directory for a mount where nothing is; the folders above it that were made for it, the outermost first. It has the
    marker from its first moment, so nobody sees an empty directory. Raises MountError."""
    parent = os.path.dirname(mountpoint)
    try:
        above = make_folders(parent)
        fresh = scratch.temporary_name(scratch.scratch(parent), secrets.token_hex(6))
        os.mkdir(fresh)
        fd = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_marker(fd, mountpoint, _MARKER_TEXT.format(target=target, version=version, mountpoint=mountpoint))
        finally:
            os.close(fd)
        os.rename(fresh, mountpoint)
    except OSError as error:
        raise MountError(
            f"cannot mount on '{mountpoint}': {error.strerror}",
            path=mountpoint,
            hint="it must be a place where you may make a directory",
        ) from error
    return above


def taken_away(mountpoint: str) -> None:
    """Undo `made` (not the folders above) once nothing is mounted any more: it goes with its marker, in one step. What holds more
    than the marker stays, without it. Safe twice."""
    try:
        os.chmod(mountpoint, 0o755)
        if is_marked(mountpoint):
            parent = os.path.dirname(mountpoint)
            gone = scratch.temporary_name(scratch.scratch(parent), secrets.token_hex(6))
            os.rename(mountpoint, gone)
            mountpoint = gone
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # it was removed meanwhile, or the folder around it may not be written to
    try:
        _unmark(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # what holds more than the marker
        os.rmdir(mountpoint)


def is_marked(path: str) -> bool:
    """Whether nothing is at a path but the place of a mount that is not mounted now."""
    try:
        names = set(os.listdir(path))
    except OSError:
        return False
    return MARKER in names and names <= _OURS


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


def _lock(fd: int, mountpoint: str) -> None:
    """Until `fd` is closed. Raises MountError when another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MountError(
            f"another command is mounting on '{mountpoint}'",
            path=mountpoint,
            hint="`millpond mounts` shows it when it is there",
        ) from None
    except OSError:
        pass  # a file system where directories cannot be locked: the daemon refuses what comes second


def _unmark(fd: int) -> None:
    for name in _OURS:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=fd)


def _write_marker(fd: int, mountpoint: str, text: str) -> None:
    try:
        out = os.open(
            _MARKER_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444, dir_fd=fd
        )
    except OSError as error:
        raise MountError(
            f"cannot mount on '{mountpoint}': {error.strerror}",
            path=mountpoint,
            hint="the mountpoint must be a directory that you may write to",
        ) from error
    with os.fdopen(out, "wb") as file:
        file.write(os.fsencode(text))  # names are bytes, which need not be text
        file.flush()
        os.fsync(file.fileno())
    # In one step: a directory that has a marker is at no moment without one.
    os.rename(_MARKER_NEW, MARKER, src_dir_fd=fd, dst_dir_fd=fd)


def _unescape(text: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as three octal digits."""
    if "\\" not in text:
        return text
    raw = os.fsencode(text)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), raw))
