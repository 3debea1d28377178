"""A large object on its way: a sparse file that fills in blocks as they are read, and a map that says which are there.

Both lie in the caller's own cache, so that what was read is not fetched again after a reboot. The map is a header and 8 bytes a
block, the XXH3-64 of the block with its lowest bit set, zero for one that is not there. A block is written before its entry; neither
is synced: a block of an earlier process counts when it hashes to its entry. The object is pinned by its ETag: another one empties it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from array import array

import xxhash

from millpond.daemon.names import ObjectName

# Up to here an object comes whole, and is never here in part.
WHOLE_BYTES = 4 << 20
BLOCK_BYTES = 1 << 20
# What is in part and was not read on for a week goes.
KEPT_S = 7 * 86_400.0
# Magic, bytes of the object, length of the ETag, the ETag.
_HEADER = struct.Struct("<8sQH110s")
_MAGIC = b"MPpart01"
_MAP = ".map"
# Objects opened between two looks at how much there is.
_SWEEP_EVERY = 32


class Partial:
    """One object of `size` bytes. Used from several threads, each block filled by one of them."""

    def __init__(self, folder: str, name: ObjectName, size: int, etag: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.name = name
        self.size = size
        self.etag = etag
        self.path = os.path.join(folder, name.value)
        self.fd = self._map_fd = -1
        self._lock = threading.Lock()
        self.blocks = -(-size // BLOCK_BYTES)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._map_fd = os.open(f"{self.path}{_MAP}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            # Another mount of the same user may be at it: then this one keeps to itself.
            fcntl.flock(self._map_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (os.fstat(self.fd).st_nlink and os.fstat(self._map_fd).st_nlink):
                raise BlockingIOError(errno.EWOULDBLOCK, "it was removed just now")
        except OSError:
            self.close()
            raise
        tag = etag.encode()[:110]
        header = _HEADER.pack(_MAGIC, size, len(tag), tag)
        raw = os.pread(self._map_fd, _HEADER.size + 8 * self.blocks, 0)
        if raw[: _HEADER.size] != header or os.fstat(self.fd).st_size != size:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)
            os.ftruncate(self._map_fd, 0)
            os.pwrite(self._map_fd, header, 0)
            raw = header
        self._sums = array("Q", raw[_HEADER.size : _HEADER.size + (len(raw) - _HEADER.size) // 8 * 8])
        self._sums.extend([0] * (self.blocks - len(self._sums)))
        # Blocks that this process has written or checked.
        self._sure = bytearray(self.blocks)

    def has(self, block: int) -> bool:
        """Whether a block is there and right."""
        if self._sure[block]:
            return True
        if not self._sums[block]:
            return False
        data = os.pread(self.fd, BLOCK_BYTES, block * BLOCK_BYTES)
        if _sum(data) != self._sums[block]:
            self._sums[block] = 0
            return False
        self._sure[block] = 1
        return True

    def is_sure(self, block: int) -> bool:
        """Whether a block is known to be there, without a look at the disk."""
        return bool(self._sure[block])

    def fill(self, block: int, data: memoryview) -> None:
        """Put a block in place. Raises OSError."""
        start, rest = block * BLOCK_BYTES, data
        while rest:
            done = os.pwrite(self.fd, rest, start)
            start, rest = start + done, rest[done:]
        with self._lock:
            self._sums[block] = _sum(data)
            os.pwrite(self._map_fd, struct.pack("<Q", self._sums[block]), _HEADER.size + 8 * block)
            self._sure[block] = 1

    @property
    def is_whole(self) -> bool:
        return 0 not in self._sure

    def run(self, block: int) -> tuple[int, int]:
        """The bytes [start, end) around a block that are all there for certain."""
        first = self._sure.rfind(0, 0, block) + 1
        end = self._sure.find(0, block + 1)
        return first * BLOCK_BYTES, self.size if end < 0 else end * BLOCK_BYTES

    def remove(self) -> None:
        """It is stored, or wrong: descriptors that were handed out stay good."""
        for path in (self.path, f"{self.path}{_MAP}"):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def unlock(self) -> None:
        """Let another process go on with it."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._map_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the files; done for whoever forgets, when nobody uses the object any more."""
        for fd in (self.fd, self._map_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._map_fd = -1

    def __del__(self) -> None:
        self.close()


class Partials:
    """The folder of what is here in part, for one mount. Another mount of the same user may be at the same object: then this one has a
    file of its own, below `own`, which whoever follows it in this mount finds again."""

    def __init__(self, folder: str, own: str) -> None:
        self._folder = folder
        self._own = os.path.join(folder, own)
        self._lock = threading.Lock()
        self._opened = 0

    def open(self, name: ObjectName, size: int, etag: str) -> Partial:
        """An object's file. Raises OSError."""
        with self._lock:
            if self._opened % _SWEEP_EVERY == 0:
                sweep(self._folder)
            self._opened += 1
        if not os.path.lexists(os.path.join(self._own, name.value)):
            with contextlib.suppress(BlockingIOError):
                return Partial(self._folder, name, size, etag)
        return Partial(self._own, name, size, etag)


def sweep(folder: str, older_s: float = KEPT_S, most_bytes: int | None = None) -> None:
    """Remove what nobody has read on for so long; and of the rest, the oldest first, what is beyond a quarter of the disk's room, unless
    somebody is at it."""
    limit = time.time() - older_s
    found: list[tuple[float, int, str]] = []
    for place, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(place, file)
            with contextlib.suppress(OSError):
                seen = os.lstat(path)
                if seen.st_mtime < limit:
                    os.unlink(path)  # its descriptors, if there are any, stay good
                elif not file.endswith(_MAP):
                    found.append((seen.st_mtime, seen.st_blocks * 512, path))
    held = sum(size for _, size, _ in found)
    if most_bytes is None and found:
        room = os.statvfs(folder)
        most_bytes = (room.f_bavail * room.f_frsize + held) // 4
    for _, size, path in sorted(found):
        if held <= (most_bytes or 0):
            return
        if _remove_unused(path):
            held -= size


def _remove_unused(path: str) -> bool:
    """Remove a file and its map, unless a process fills it."""
    try:
        map_fd = os.open(f"{path}{_MAP}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(map_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        os.unlink(f"{path}{_MAP}")
        return True
    except OSError:
        return False
    finally:
        os.close(map_fd)


def _sum(data: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data) | 1
