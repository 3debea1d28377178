"""How much the kernel asks for ahead of a reader, where this process may say so (/sys/class/bdi).

What it asks for at a page fault in a mapping is as much, however far from the last one it is: who reads a mapping at random
gets many times what he wants. So the requests are looked at, and as long as most are scattered, files that are opened
get the kernel's own, small read-ahead. (One that is open keeps what it had.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from millpond.daemon.mounts.place import mounted_at

_BDI = "/sys/class/bdi"
# How often who mounts looks whether another one is done, and the pause between.
_TRIES, _PAUSE_S = 100, 0.01
# The kernel's own.
LEAST_KB = 128
# Requests from this size on are the kernel's reading ahead, or could be.
LARGE_BYTES = 64 << 10
# Requests of a file may overtake each other by this much and still follow each other.
NEAR_BYTES = 1 << 20
# Requests after which the read-ahead is thought over, and how many of them tell the kind.
_WINDOW = 16
_MOST = 12


def set_read_ahead(device: int, kb: int) -> None:
    """Of a file system by its device's number, if this process may."""
    path = f"{_BDI}/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(str(kb))


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Mounting, for who tells his file system by its being new in `names`: no other who does so meanwhile. Not waited for beyond a second."""
    try:
        fd = os.open(_BDI, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        for _ in range(_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(fd)


def names(kind: str) -> set[str]:
    """Names there of mounted file systems of a kind that has no devices."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(_BDI) if name.startswith(f"{kind}-")}
    return set()


class ReadAhead:
    """The read-ahead of one mount, between LEAST_KB and `most_kb`."""

    def __init__(self, most_kb: int) -> None:
        self._most_kb = max(most_kb, LEAST_KB)
        self._path: str | None = None
        self._kb = 0
        # Why it is the kernel's own; "" when it is ours.
        self.why_not = ""
        self._seen = self._scattered = 0

    def begin(self, place: str) -> None:
        """The kernel's first request at the mount on `place` was answered, which would have reset it."""
        entry = mounted_at(place)
        if entry is not None:
            self.begin_with(entry.device)

    def begin_with(self, name: str) -> None:
        """The same, by its name there."""
        self._path = f"{_BDI}/{name}/read_ahead_kb"
        self._set(self._most_kb)

    def seen(self, *, near: bool) -> None:
        """A large request, `near` the last one of its file or not."""
        self._seen += 1
        self._scattered += not near
        if self._seen < _WINDOW:
            return
        if self._scattered >= _MOST:
            self._set(LEAST_KB)
        elif self._scattered <= _WINDOW - _MOST:
            self._set(self._most_kb)
        self._seen = self._scattered = 0

    def _set(self, kb: int) -> None:
        if self._path is None or kb == self._kb:
            return
        try:
            with open(self._path, "w") as file:
                file.write(str(kb))
            self._kb = kb
        except OSError as error:
            self._path = None  # not ours to say
            self.why_not = f"the kernel's own, it may not be set here ({error.strerror})"

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        return {"read_ahead_kb": self._kb or LEAST_KB, "read_ahead_why": self.why_not}
