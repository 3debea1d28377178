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
from collections.abc import Iterator

from millpond.daemon.errors import ProtocolError

_LENGTH_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SEALS = fcntl.F_SEAL_WRITE | _LENGTH_SEALS
# Bytes a sender puts into one memfd; with a few in flight this bounds both sides' memory.
BATCH_BYTES = 16 << 20
# What a receiver accepts at most.
MAX_BYTES = 64 << 20


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
    fd = create()
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def sent(data: bytes) -> Iterator[int]:
    """A sealed memory file with this content, for one request."""
    fd = from_bytes(data)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def mapped(fd: int, own: int | None = None) -> Iterator[memoryview]:
    """The content of a received memory file, refused unless sealed and of at most MAX_BYTES. One that comes from a process of
    this user's own is taken without the seal against writing; `own` is how many of its bytes are meant.

    Closes `fd` in any case. The view must not be used after the block. Raises ProtocolError.
    """
    try:
        size = _sealed_size(fd, SEALS if own is None else _LENGTH_SEALS)
        if own is not None and not 0 <= own <= size:
            raise ProtocolError(f"a memory file of {size} bytes was sent as one of {own}")
        with viewed(fd, size if own is None else own) as view:
            yield view
    finally:
        os.close(fd)


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


@contextlib.contextmanager
def viewed(fd: int, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of a memory file, which stays open. The view must not be used after the block."""
    if size == 0:
        yield memoryview(b"")
        return
    # MAP_POPULATE: one call instead of a fault for every page, all of which are read. Not closed but let go of: a pool's
    # thread still holds its part of the view for a moment after its result is known.
    view = memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ))
    try:
        yield view
    finally:
        view.release()
