"""A job's log, read by the user's own process as it grows: no daemon stands between, and none need run."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import IO

from millpond.cli.console import Console
from millpond.daemon.jobs.joblog import DROPPED, EARLIER, ERROR, NAME, OWN, Record, parse

# Where the system does not tell of changes, or forgets to.
POLL_S, IDLE_S = 0.2, 1.0
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_IN_CHANGES = 0x2 | 0x80 | 0x100  # IN_MODIFY, IN_MOVED_TO, IN_CREATE


class JobLog:
    """The records of a log, in order, each once: those that are there, then what is added, across its parts."""

    def __init__(self, folder: Path) -> None:
        self._parts = (folder / EARLIER, folder / NAME)
        self._file: IO[bytes] | None = None
        self._inode = 0
        self._rest = b""
        # Whether something was read already.
        self._told = False

    def read(self) -> list[Record]:
        """What is new, and at first that something before it is gone. Raises OSError for a log that cannot be read; one that is not
        there yet has nothing."""
        found: list[Record] = []
        gone: Record | None = None
        while True:
            if self._file is not None:
                *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
                for line in lines:
                    record = parse(line + b"\n")
                    if record is not None and record.stream == OWN and record.content.startswith(DROPPED.encode()):
                        gone = record
                    elif record is not None:
                        found.append(record)
            if not self._go_on():
                break
        # Who follows has read what is dropped meanwhile.
        begin = [gone] if gone is not None and not self._told else []
        self._told = self._told or bool(found)
        return [*begin, *found]

    def close(self) -> None:
        """Safe twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _go_on(self) -> bool:
        """Open the part after this one, if there is one by now."""
        inodes = [_inode(part) for part in self._parts]
        if self._inode and self._inode == inodes[1]:
            return False
        if self._inode and self._inode not in inodes:  # not read quickly enough: something is missed
            self._told = False
        # This was the earlier one: the log goes on in the later. Else this one is dropped already, or none was read yet.
        for part in self._parts[1:] if self._inode and self._inode == inodes[0] else self._parts:
            with contextlib.suppress(FileNotFoundError):
                file = open(part, "rb")  # noqa: SIM115 - kept until the next part
                self.close()
                self._file, self._inode, self._rest = file, os.fstat(file.fileno()).st_ino, b""
                return True
        return False


class Watch:
    """Waits for changes in a folder, for the end of a process, or for a signal."""

    def __init__(self, folder: Path, pidfd: int, wake: int) -> None:
        self._poll = select.poll()
        self._changes = _inotify(folder)
        self._ended, self._wake = pidfd, wake
        for fd in (self._changes, pidfd, wake):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)

    def wait(self) -> bool:
        """Until something may have happened; whether the process has ended."""
        if self._ended < 0:
            return True
        ready = {fd for fd, _ in self._poll.poll((IDLE_S if self._changes >= 0 else POLL_S) * 1000)}
        for fd in ready - {self._ended}:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 65536)
        return self._ended in ready

    def close(self) -> None:
        if self._changes >= 0:
            os.close(self._changes)
            self._changes = -1


class Printer:
    """Writes records out as the job wrote them, each stream to its own (with `err` both to stderr); the shim's lines to stderr,
    but for a verb's error with `told`: somebody else says it."""

    def __init__(self, console: Console, *, timestamps: bool = False, err: bool = False, told: bool = False) -> None:
        self._console = console
        self._told = told
        self._err = err
        self._timestamps = timestamps
        self._midway = {b"stdout": False, b"stderr": False}

    def show(self, records: list[Record]) -> None:
        """Raises OutputError."""
        for record in records:
            head = record.time + b" " if self._timestamps and not self._midway.get(record.stream) else b""
            if record.stream == OWN and self._told and record.content.startswith(ERROR.encode()):
                continue
            if record.stream == OWN:
                self._console.write_bytes(head + b"[millpond] " + record.content + b"\n", err=True)
                continue
            self._midway[record.stream] = not record.whole
            end = b"\n" if record.whole else b""
            self._console.write_bytes(head + record.content + end, err=self._err or record.stream == b"stderr")


def last(records: list[Record], lines: int) -> list[Record]:
    """The records of the last lines."""
    for at in range(len(records) - 1, -1, -1):
        if records[at].whole:
            lines -= 1
            if lines < 0:
                return records[at + 1 :]
    return records


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _inotify(folder: Path) -> int:
    """A descriptor that is readable when something changes there (inotify(7)), -1 where that cannot be had."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    add: Callable[..., int] = libc.inotify_add_watch
    fd = int(libc.inotify_init1(_IN_NONBLOCK_CLOEXEC))
    if fd >= 0 and add(fd, os.fsencode(folder), _IN_CHANGES) < 0:
        os.close(fd)
        return -1
    return fd
