"""Keeps what a holder has mapped of the index small.

The index is read through a memory map, whose pages count as the holder's once they were touched: after a `find` over a
million files that is all of its folders. They belong to the page cache, so letting go of them costs nothing but a minor
fault when they are wanted again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

# Pages of files that may be resident before the map is let go.
MAX_BYTES = 32 << 20
# Looks at the index between two checks: each touches a few pages.
_EVERY = 1024
_MADV_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")


class MapTrimmer:
    """Counts looks at the index; now and then checks what is resident, and lets go of the map when that is much."""

    def __init__(self, index: Path, max_bytes: int = MAX_BYTES) -> None:
        self._file = os.path.realpath(index / "data.mdb")
        self._max_bytes = max_bytes
        self._left = _EVERY
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self.trims = 0

    def looked(self, looks: int = 1) -> None:
        """The index was looked at `looks` times."""
        self._left -= looks
        if self._left <= 0:
            self._left = _EVERY
            # What cannot be looked at just now, for want of a descriptor, is no reason to fail who reads.
            with contextlib.suppress(OSError):
                if resident_file_bytes() > self._max_bytes:
                    self.trim()

    def trim(self) -> None:
        """Let go of every page of the index's map. Threads that read it meanwhile only fault them in again. Raises OSError."""
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) == 6 and os.fsdecode(fields[5]) == self._file:
                    begin, end = (int(part, 16) for part in fields[0].split(b"-"))
                    self._madvise(begin, end - begin, _MADV_DONTNEED)
        self.trims += 1


def resident_file_bytes() -> int:
    """Bytes of mapped files that this process has resident (proc_pid_statm(5), field 3). Raises OSError."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[2]) * _PAGE
