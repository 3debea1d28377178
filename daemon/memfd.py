"""Sealed memory files: how bulk bytes cross between daemon and worker.

A sealed memfd cannot change, shrink or block its reader, whoever made it; so the daemon may map one that comes from a
stranger (invariant P1 of DESIGN.md), and what it hashed is what it stores. Between processes of one user, who could do each
other worse, memory is used again instead of being sealed: making and freeing it costs more than reading a file into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from millpond.daemon.errors import ProtocolError
from millpond.daemon.objects import Data

_LENGTH_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SEALS = fcntl.F_SEAL_WRITE | _LENGTH_SEALS
# Python 3.11 has no name for it.
_F_SEAL_FUTURE_WRITE = 0x10
# Bytes a sender puts into one memfd; with a few in flight this bounds both sides' memory.
BATCH_BYTES = 16 << 20
# What a receiver accepts at most.
MAX_BYTES = 64 << 20
# Buffers of one call, as the kernel takes them.
_VECTOR = 1024
# Memory files that are used again and stay mapped; a sender has six, and three more where what was put is kept besides.
_KEPT = 10


def create() -> int:
    """A new, empty, sealable memory file; the caller closes it."""
    return os.memfd_create("millpond", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def create_reusable() -> tuple[int, memoryview]:
    """A memory file of BATCH_BYTES that is filled again and again, and its bytes: for a receiver of the same user, who
    takes it for sealed in length alone. The caller closes it."""
    fd = create()
    try:
        os.ftruncate(fd, BATCH_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _LENGTH_SEALS)
        return fd, memoryview(mmap.mmap(fd, BATCH_BYTES))
    except BaseException:
        os.close(fd)
        raise


def seal(fd: int) -> None:
    """Freeze content and length. There must be no writable mapping left."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def from_bytes(data: bytes | bytearray | memoryview) -> int:
    """A sealed memory file with this content; the caller closes it."""
    return from_buffers([data])


def from_buffers(buffers: Sequence[Data]) -> int:
    """A sealed memory file with all of these, one after the other; the caller closes it."""
    with Filling(None) as filling:
        filling.write(buffers)
        (fd,) = filling.sealed()
        return fd


class Filling:
    """A memory file that is filled from its beginning on: a new one, or one of this user's that was received and is used again. That one
    is refused unless its length is sealed and it can be written to, and is closed at the end. Raises ProtocolError."""

    def __init__(self, received: int | None) -> None:
        self._fd = create() if received is None else received
        self._is_new = received is None
        self._room: int | None = None
        self._done = 0

    def __enter__(self) -> Filling:
        if not self._is_new:
            try:
                self._room = _sealed_size(self._fd, _LENGTH_SEALS)
                if _is_read_only(self._fd):
                    raise ProtocolError("a memory file was sent to be filled that cannot be written to")
            except BaseException:
                os.close(self._fd)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def write(self, buffers: Sequence[Data]) -> None:
        """All of these, behind what is there. Raises ProtocolError when they do not fit."""
        for start in range(0, len(buffers), _VECTOR):
            part = buffers[start : start + _VECTOR]
            end = self._done + sum(map(len, part))
            if self._room is not None and end > self._room:
                raise ProtocolError(f"{end} bytes do not fit into a memory file of {self._room}")
            # Where it is read and written next is shared with whoever has it open.
            self._done += os.pwritev(self._fd, part, self._done)
            if self._done < end:
                view = memoryview(b"".join(part))[self._done - end :]
                while view:
                    done = os.pwrite(self._fd, view, self._done)
                    view, self._done = view[done:], self._done + done

    def sealed(self) -> list[int]:
        """The new one, sealed, which is the caller's now; none if it is one that was received."""
        if not self._is_new:
            return []
        seal(self._fd)
        fd, self._fd = self._fd, -1
        return [fd]


@contextlib.contextmanager
def sent(data: bytes) -> Iterator[int]:
    """A sealed memory file with this content, for one request."""
    fd = from_bytes(data)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def mapped(fd: int) -> Iterator[memoryview]:
    """The content of a received memory file, refused unless sealed and of at most MAX_BYTES.

    Closes `fd` in any case. The view must not be used after the block. Raises ProtocolError.
    """
    try:
        view = _map(fd, _sealed_size(fd, SEALS))
    finally:
        os.close(fd)
    # Not closed but let go of: a pool's thread still holds its part of the view for a moment after its result is known.
    with view:
        yield view


class Mappings:
    """Received memory files of this user's own processes: those that are used again stay mapped, because mapping and
    unmapping 16 MiB takes a tenth of the time of hashing them. One thread at a time."""

    def __init__(self) -> None:
        # By device and inode, which is no other file's as long as this one is mapped.
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def close(self) -> None:
        """Unmap all: milliseconds each, without the interpreter's lock."""
        while self._kept:
            with self._kept.popitem()[1] as view:
                memory = view.obj
            if isinstance(memory, mmap.mmap):
                # A pool's thread may still hold its part for a moment: then it goes away with that.
                with contextlib.suppress(BufferError):
                    memory.close()

    @contextlib.contextmanager
    def mapped(self, fd: int, size: int) -> Iterator[memoryview]:
        """The first `size` bytes of a memory file, refused unless its length is sealed. Closes `fd` in any case. The view must
        not be used after the block. Raises ProtocolError."""
        try:
            whole = _sealed_size(fd, _LENGTH_SEALS)
            if not 0 <= size <= whole:
                raise ProtocolError(f"a memory file of {whole} bytes was sent as one of {size}")
            found = os.fstat(fd)
            key = found.st_dev, found.st_ino
            kept = self._kept.pop(key, None)
            # One that is not half full may be the only one: to map all of it would make pages that nobody fills.
            if kept is None and 2 * size >= whole and not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
                kept = _map(fd, whole)
            if kept is not None:
                self._kept[key] = kept
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            view = _map(fd, size) if kept is None else kept[:size]
        finally:
            os.close(fd)
        with view:
            yield view


def _sealed_size(fd: int, wanted: int) -> int:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: not a memory file at all
        seals = 0
    if seals & wanted != wanted:
        raise ProtocolError("a descriptor was sent that is not a sealed memory file")
    size = os.fstat(fd).st_size
    if size > MAX_BYTES:
        raise ProtocolError(f"a memory file of {size} bytes was sent; the bound is {MAX_BYTES}")
    return size


def _is_read_only(fd: int) -> bool:
    sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE)
    return bool(sealed) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@contextlib.contextmanager
def viewed(fd: int, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of a memory file, which stays open. The view must not be used after the block."""
    with _map(fd, size) as view:
        yield view


def _map(fd: int, size: int) -> memoryview:
    if size == 0:
        return memoryview(b"")
    # MAP_POPULATE: one call instead of a fault for every page, all of which are read.
    return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ))
