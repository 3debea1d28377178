"""Directories listed ahead, in a thread of a filler: so the kernel learns the inodes of files that somebody looks up one by one.

It is done as any program would do it, with a path below the mountpoint; nothing of the mount stays open between two directories, as it could not be unmounted.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading

log = logging.getLogger("millpond.filler")

# Directories that wait; more are not taken.
_MOST_WAITING = 1024
# What tells that this process will never be let in.
_NOT_LET_IN = (errno.EACCES, errno.EPERM)


class Lister:
    """Of the mount on `place`, as long as that has the number `major:minor`."""

    def __init__(self, place: str, number: str) -> None:
        self._place = place
        self._number = number
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ends = False
        threading.Thread(target=self._run, name="lister", daemon=True).start()

    def add(self, path: bytes) -> None:
        """List a directory, by its path from the mount's root, when those that were added before are."""
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(path)

    def end(self) -> None:
        """List no more."""
        self._ends = True
        self._waiting.put(None)

    def _run(self) -> None:
        while (path := self._waiting.get()) is not None and not self._ends:
            try:
                self._list(path)
            except OSError as error:  # who reads hears of whatever it is
                if error.errno in _NOT_LET_IN:
                    log.info("directories are not listed ahead: %s", error)
                    return

    def _list(self, path: bytes) -> None:
        """Raises OSError."""
        root = os.open(self._place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device = os.fstat(root).st_dev
            if f"{os.major(device)}:{os.minor(device)}" != self._number:
                return  # it was detached, or is covered by another
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(path or b".", flags, dir_fd=root)
        finally:
            os.close(root)
        try:
            os.listdir(directory)
        finally:
            os.close(directory)
