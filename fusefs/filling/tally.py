"""What a filler has done, where its holder sees it, and what it is to leave alone for now."""

from __future__ import annotations

import mmap
import os
import time

# Their places among counters of 8 bytes, each of which is written at once: who reads them meanwhile sees the one before, or this.
_FILES, _BYTES, _DONE, _AWAY_US, _LOOKED_US = range(5)


class Tally:
    """Files and bytes that were brought by one process, and by those before it, and windows that it is through with: shared memory, `fd`, or
    new."""

    def __init__(self, fd: int = -1) -> None:
        if fd < 0:
            fd = os.memfd_create("millpond-tally", os.MFD_CLOEXEC)
            os.truncate(fd, mmap.PAGESIZE)
        self.fd = fd
        self._counts = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")

    def add(self, size: int, count: int = 1) -> None:
        """One file more, or several, of `size` bytes. One process does."""
        self._counts[_FILES] += count
        self._counts[_BYTES] += size

    def finish(self, count: int = 1) -> None:
        """One window more is done, or several. One process does."""
        self._counts[_DONE] += count

    def counts(self) -> tuple[int, int]:
        """Files and bytes so far."""
        return self._counts[_FILES], self._counts[_BYTES]

    @property
    def done(self) -> int:
        """Windows so far."""
        return self._counts[_DONE]

    def keep_away(self, seconds: float) -> None:
        """For so long nothing of the mount may be open: it is about to be unmounted. The holder says so."""
        self._counts[_AWAY_US] = int((time.monotonic() + seconds) * 1e6)

    @property
    def is_kept_away(self) -> bool:
        """Whether that is so now."""
        return self._counts[_AWAY_US] > time.monotonic() * 1e6

    def looked(self, now: float) -> None:
        """A file was looked up. The holder says so."""
        self._counts[_LOOKED_US] = int(now * 1e6)

    @property
    def quiet_s(self) -> float:
        """How long none was."""
        return time.monotonic() - self._counts[_LOOKED_US] / 1e6


def available_bytes() -> int:
    """Memory that could be used now without taking any from programs: MemAvailable, or what this process's cgroups leave, if that is less;
    0 where it is not told."""
    found = []
    try:
        with open("/proc/meminfo") as file:
            found += [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:")]
    except OSError:
        return 0
    return min([*found, *_limits()]) if found else 0


def _limits() -> list[int]:
    """What is said of memory for the cgroups of this process and those above them, of either version (cgroups(7))."""
    found = []
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if not controllers:
                    found += _up("/sys/fs/cgroup", path, "memory.max")
                elif "memory" in controllers.split(","):
                    found += _up("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    except (OSError, ValueError):
        pass  # there is no limit that we know of
    return found


def _up(root: str, path: str, name: str) -> list[int]:
    found = []
    while True:
        where = f"{root}{path}/{name}"
        if os.path.exists(where):
            with open(where) as file:
                text = file.read().strip()
            found += [] if text == "max" else [int(text)]
        if path in ("/", ""):
            return found
        path = os.path.dirname(path)
