"""Contents for a program to read: whole ones by a descriptor, large ones of the store by windows, and what only a remote has as
it comes.

Reads say where they read from, so that a content that was opened before a fork is read by parent and children side by side.
"""

from __future__ import annotations

import io
import mmap
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from millpond.daemon import memfd
from millpond.daemon.api.connections import connections
from millpond.daemon.errors import ObjectMissingError, ProtocolError, RemoteError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc import framing

if TYPE_CHECKING:
    from millpond.fusefs.asking import SourceClient

Bytes = bytes | memoryview
# A content up to here comes whole.
WHOLE_BYTES = memfd.BATCH_BYTES
# Bytes of a window: twice as many each time while it is read in order.
WINDOW_MIN, WINDOW_MAX = 256 << 10, memfd.BATCH_BYTES


class Content(Protocol):
    """An open content of `size` bytes."""

    size: int

    def read(self, offset: int, size: int) -> Bytes:
        """At least one byte of [offset, offset + size), which begins within the content."""

    def fileno(self) -> int:
        """A descriptor that has all of it. Raises io.UnsupportedOperation where there is none."""

    def close(self) -> None:
        """No more reads come."""


class WholeContent:
    """All of it is behind a descriptor, which this object owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        """See Content.read."""
        return os.pread(self._fd, size, offset)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


class WindowedContent:
    """A large object of the store, of which a window is here. Threads that share one may read it twice, never wrongly."""

    def __init__(self, name: ObjectName, size: int) -> None:
        self.size = size
        self._name = name
        # Where it begins, and what is in it.
        self._window: tuple[int, Bytes] = 0, b""
        self._next_bytes = WINDOW_MIN

    def read(self, offset: int, size: int) -> Bytes:
        """See Content.read. Raises ObjectMissingError when the store has lost it meanwhile."""
        start, window = self._window
        if not start <= offset < start + len(window):
            in_order = offset == start + len(window)
            self._next_bytes = min(self._next_bytes * 2, WINDOW_MAX) if in_order else WINDOW_MIN
            total, fd = stored(self._name, offset, max(self._next_bytes, min(size, WINDOW_MAX)))
            _require_size(self._name, total, self.size, fd)
            start, window = self._window = offset, _mapped(fd)
        return window[offset - start : offset - start + size]

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a large file is read in parts: it has no descriptor")

    def close(self) -> None:
        self._window = 0, b""


class ComingContent:
    """A large object that only a remote has: a sparse file that its source fills where it is read."""

    def __init__(self, source: SourceClient, name: ObjectName, size: int, fd: int) -> None:
        self.size = size
        self._source = source
        self._name = name
        self._fd = fd
        self._inode = os.fstat(fd).st_ino
        self._pid = os.getpid()
        # The range that is there for certain.
        self._there = 0, 0

    def read(self, offset: int, size: int) -> bytes:
        """See Content.read. Raises ObjectMissingError when the source is gone, or another process's; RemoteError, CredentialsError,
        StoreDamagedError."""
        start, end = self._there
        if not start <= offset < end:
            if self._pid != os.getpid():
                raise ObjectMissingError(f"object {self._name} was opened by another process")
            start, end = self._there = self._brought(offset, min(size, self.size - offset))
        return os.pread(self._fd, min(size, end - offset), offset)

    def _brought(self, offset: int, size: int) -> tuple[int, int]:
        """The range around what is asked for that is there. What is checked as a whole first, under a name of DVC 2, is waited for as long
        as more of it comes."""
        from millpond.fusefs.asking import SILENCE_S

        seen, since = -1, time.monotonic()
        while True:
            found = self._source.ensure(self._name, self.size, self._inode, offset, size)
            if not isinstance(found, int):
                return found
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > SILENCE_S:
                raise RemoteError(f"nothing of object {self._name} came from the remote in {SILENCE_S:g} s")

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file that is still coming has no descriptor")

    def close(self) -> None:
        os.close(self._fd)


class ObjectContent:
    """An object, wherever it is: looked for once more when it is not any more where it was."""

    def __init__(self, name: ObjectName, size: int | None, source: Callable[[], SourceClient]) -> None:
        """`source` gives this process's source. Raises ObjectMissingError, StoreDamagedError, RemoteError, CredentialsError."""
        self._name = name
        self._source = source
        self._inner = self._opened(size)
        self.size = self._inner.size

    def read(self, offset: int, size: int) -> Bytes:
        """See Content.read. Raises as the constructor."""
        try:
            return self._inner.read(offset, size)
        except ObjectMissingError:
            old, self._inner = self._inner, self._opened(self.size)
            old.close()
            return self._inner.read(offset, size)

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()

    def _opened(self, size: int | None) -> Content:
        if not self._name.algo.startswith("git-"):
            try:
                total, fd = stored(self._name, 0, WHOLE_BYTES if size is None or size <= WHOLE_BYTES else 0)
                if size is not None:
                    _require_size(self._name, total, size, fd)
                if total <= WHOLE_BYTES:
                    return WholeContent(fd)
                os.close(fd)
                return WindowedContent(self._name, total)
            except ObjectMissingError:
                pass
        source = self._source()
        fd, total, whole = source.open(self._name, size)
        if size is not None:
            _require_size(self._name, total, size, fd)
        return WholeContent(fd) if whole else ComingContent(source, self._name, total, fd)


def stored(name: ObjectName, offset: int, length: int) -> tuple[int, int]:
    """(size of an object of the store, memory file with a range of it). Raises ObjectMissingError, StoreDamagedError."""
    result, fds = connections().call("store.read", {"name": str(name), "offset": offset, "length": length})
    if len(fds) != 1:
        framing.close_all(fds)
        raise ProtocolError("the daemon answered a read without its memory file")
    return int(result["size"]), fds[0]


def _mapped(fd: int) -> memoryview:
    """The bytes of a memory file, which is closed; they live as long as somebody looks at them."""
    try:
        return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
    finally:
        os.close(fd)


def _require_size(name: ObjectName, found: int, expected: int, fd: int) -> None:
    """Raise StoreDamagedError, and close the file, unless it is of the size that its version's listing says."""
    if found != expected:
        os.close(fd)
        raise StoreDamagedError(f"object {name} has {found} bytes, and {expected} were expected")
