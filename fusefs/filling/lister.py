"""Directories listed ahead, in a thread of a filler: so the kernel learns the inodes of files that somebody looks up one by one.

It is done as any program would do it, with a path below the mountpoint; by who may mount, in a mount of his own of the same, which keeps nobody from unmounting. Else
nothing of the mount stays open between two directories.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import sys
import threading
import time

from millpond.daemon.mounts import syscalls
from millpond.fusefs.filling.tally import Tally

log = logging.getLogger("millpond.filler")

# Directories that wait; more are not taken.
_MOST_WAITING = 1024
# What tells that this process will never be let in.
_NOT_LET_IN = (errno.EACCES, errno.EPERM)
# Entries after which it is seen whether to let go of the directory.
_SEEN = 64
# Where it is not apart: no other directory is opened when no file was looked up for so long: who has read all that he wanted may unmount. It is seen again after as long as it
# was quiet, but at most so long.
_QUIET_S, _LOOK_S = 0.002, 0.25
# How long this thread waits for the other one, which is busy, after each call of the system.
_SWITCH_S = 0.0005
# How long its end is waited for.
_END_S = 10.0


class Lister:
    """Of the mount on `place`, as long as that has the number `major:minor`, and this filler is not kept away from it, as `tally` tells."""

    def __init__(self, place: str, number: str, tally: Tally) -> None:
        self._place = place
        self._number = number
        self._tally = tally
        # Whether it may look into a mount of its own, as long as nothing was said against it: then it is in nobody's way.
        self._is_apart = True
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="lister", daemon=True)
        sys.setswitchinterval(_SWITCH_S)
        self._thread.start()

    def add(self, path: bytes) -> None:
        """List a directory, by its path from the mount's root, when those that were added before are."""
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(path)

    def end(self) -> None:
        """List no more."""
        self._ends = True
        self._waiting.put(None)

    def join(self) -> None:
        """`end`, and wait until nothing is open any more; not for ever, as a holder that is stopped answers nothing."""
        self.end()
        self._thread.join(_END_S)

    def _run(self) -> None:
        while (path := self._waiting.get()) is not None and not self._ends:
            try:
                while not self._is_apart and not self._is_over and (quiet_s := self._tally.quiet_s) > _QUIET_S:
                    time.sleep(min(quiet_s, _LOOK_S))
                if not self._is_over:
                    self._list(path)
            except OSError as error:  # who reads hears of whatever it is
                if error.errno in _NOT_LET_IN:
                    log.info("directories are not listed ahead: %s", error)
                    return

    def _root(self) -> int:
        """What is at the place. Raises OSError."""
        if self._is_apart:
            try:
                return syscalls.clone(os.fsencode(self._place))
            except OSError as error:
                if error.errno not in (*_NOT_LET_IN, errno.ENOSYS, errno.EINVAL):  # EINVAL: it may not be copied
                    raise
                self._is_apart = False
        return os.open(self._place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def _is_over(self) -> bool:
        return self._ends or self._tally.is_kept_away

    def _list(self, path: bytes) -> None:
        """Raises OSError."""
        root = self._root()
        try:
            device = os.fstat(root).st_dev
            if f"{os.major(device)}:{os.minor(device)}" != self._number:
                return  # it was detached, or is covered by another
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(path or b".", flags, dir_fd=root)
        finally:
            os.close(root)
        try:
            with os.scandir(directory) as entries:
                for number, _ in enumerate(entries):
                    if number % _SEEN == 0 and self._is_over:
                        return
        finally:
            os.close(directory)
