"""What a holder and its servers have in common: memory for the directories' folders, and each server's request and counters."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from enum import IntEnum

_PLACES = 1 << 17
# number u64, folder 32 bytes
_PLACE = struct.Struct("=Q32s")
_NUMBER = struct.Struct("=Q")

_COUNTERS_BYTES = 4096
# The kernel gives no request to a smaller buffer than 8 KiB; ours have the length of a name at most, or hold forgets.
_REQUEST_BYTES = 16 << 10
_LENGTH = struct.Struct("=I")


class Directories:
    """Folders of the directories that the kernel knows, by number: told and dropped by the holder, looked up by servers."""

    def __init__(self, fd: int) -> None:
        """`fd` from `create`; it may be closed afterwards."""
        self._map = mmap.mmap(fd, _PLACES * _PLACE.size)

    @staticmethod
    def create() -> int:
        """A memory file for a new table; the caller closes it."""
        return _memory("millpond-directories", _PLACES * _PLACE.size)

    def tell(self, inode: int, folder: bytes) -> None:
        """A number is about to be told to the kernel. One whose place is taken is not in the table."""
        at = self._at(inode)
        if _NUMBER.unpack_from(self._map, at)[0] in (0, inode):
            self._map[at + _NUMBER.size : at + _PLACE.size] = folder
            _NUMBER.pack_into(self._map, at, inode)

    def drop(self, inode: int) -> None:
        """The kernel forgot a number."""
        at = self._at(inode)
        if _NUMBER.unpack_from(self._map, at)[0] == inode:
            _NUMBER.pack_into(self._map, at, 0)

    def folder(self, inode: int) -> bytes | None:
        """The folder of a number; None for one that is not in the table."""
        number, folder = _PLACE.unpack_from(self._map, self._at(inode))
        return folder if number == inode else None

    @staticmethod
    def _at(inode: int) -> int:
        return inode % _PLACES * _PLACE.size


class Counter(IntEnum):
    """Counters of a slot, by their place."""

    REQUESTS = 0
    HANDED_OVER = 1
    OPENS = 2
    READS = 3
    READ_BYTES = 4


class Slot:
    """The request that a server is at work on, where the kernel puts it, and what it has counted. It outlives the server."""

    def __init__(self, fd: int) -> None:
        """`fd` from `create`; it may be closed afterwards."""
        self._map = mmap.mmap(fd, _COUNTERS_BYTES + _REQUEST_BYTES)
        # Where a request is read to.
        self.room = memoryview(self._map)[_COUNTERS_BYTES:]

    @staticmethod
    def create() -> int:
        """A memory file for a new slot; the caller closes it."""
        return _memory("millpond-slot", _COUNTERS_BYTES + _REQUEST_BYTES)

    def lock(self) -> None:
        """Keep the memory where the kernel finds it: then nothing comes between its copy of a request here and its believing
        that we have it. Without the right to do so it is only made sure that the memory is there now."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(self._map)))
        for page in range(0, len(self._map), mmap.PAGESIZE):
            self._map[page] = self._map[page]

    def clear(self) -> None:
        """Nothing is being worked on."""
        _LENGTH.pack_into(self._map, _COUNTERS_BYTES, 0)

    def request(self) -> bytes:
        """The request that is being worked on; empty when there is none."""
        return bytes(self.room[: min(_LENGTH.unpack_from(self.room)[0], _REQUEST_BYTES)])

    def count(self, counter: Counter, number: int) -> None:
        """Add to a counter. One process at a time does."""
        at = counter * _NUMBER.size
        _NUMBER.pack_into(self._map, at, _NUMBER.unpack_from(self._map, at)[0] + number)

    def counted(self, counter: Counter) -> int:
        """A counter's value, of all servers that had this slot."""
        return int(_NUMBER.unpack_from(self._map, counter * _NUMBER.size)[0])


def _memory(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
