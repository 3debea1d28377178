"""Streams whose MD5s are taken further together."""

from __future__ import annotations

import ctypes
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from millpond.daemon.md5.kernels import START, Kernels, padding
from millpond.daemon.md5.source import BLOCK_BYTES


class Stream:
    """What is known of one stream's MD5; the kernels are usable."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.state = array("I", START)
        self.length = 0
        # What is left of a block.
        self.tail = b""

    def hexdigest(self) -> str:
        """Of all that came; nothing may come behind it."""
        update([self], [memoryview(padding(self.length))])
        return self.state.tobytes().hex()


class Alone(Stream):
    """A stream that is hashed by itself."""

    def update(self, part: memoryview) -> None:
        """Hash one more part."""
        update([self], [part])


class Hasher(Protocol):
    """What a stream is hashed with by itself."""

    def update(self, part: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def single(kernels: Kernels | None) -> Hasher:
    """For a stream by itself: the kernel of one is a sixth quicker than the interpreter's, and used where kernels were made."""
    return Alone(kernels) if kernels is not None and kernels.tried else hashlib.md5(usedforsecurity=False)


def update(streams: Sequence[Stream], parts: Sequence[memoryview]) -> None:
    """Hash one more part of each of some streams, at most WIDEST."""
    with _addresses(parts) as addresses:
        places = []
        for stream, part, address in zip(streams, parts, addresses, strict=True):
            stream.length += len(part)
            lacking = -len(stream.tail) % BLOCK_BYTES
            stream.tail += bytes(part[:lacking])
            if stream.tail and len(stream.tail) == BLOCK_BYTES:
                with _addresses([memoryview(stream.tail)]) as (tail,):
                    _compress([stream], [tail], 1)
                stream.tail = b""
            rest = len(part) - lacking
            if rest > 0:
                places.append((stream, address + lacking, rest // BLOCK_BYTES))
                stream.tail = bytes(part[len(part) - rest % BLOCK_BYTES :]) if rest % BLOCK_BYTES else b""
        while places := [place for place in places if place[2]]:
            blocks = min(left for _, _, left in places)
            _compress([stream for stream, _, _ in places], [address for _, address, _ in places], blocks)
            places = [(stream, address + blocks * BLOCK_BYTES, left - blocks) for stream, address, left in places]


def _compress(streams: Sequence[Stream], addresses: Sequence[int], blocks: int) -> None:
    """By the kernel for so many; one after the other where it cannot be made."""
    kernels = streams[0].kernels
    if kernels.compress([stream.state for stream in streams], addresses, blocks):
        return
    for stream, address in zip(streams, addresses, strict=True):
        if not kernels.compress([stream.state], [address], blocks):
            raise RuntimeError("this processor's MD5 cannot be made")


class _View(ctypes.Structure):
    """Py_buffer, as CPython's documentation of the buffer protocol has it."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = [ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int]
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = [ctypes.POINTER(_View)]
_release.restype = None


@contextmanager
def _addresses(parts: Sequence[memoryview]) -> Iterator[list[int]]:
    """Where the bytes of views lie, read-only ones too; they stay there within the block."""
    views: list[_View] = []
    try:
        for part in parts:
            view = _View()
            _get(part, ctypes.byref(view), 0)
            views.append(view)
        yield [view.buf or 0 for view in views]
    finally:
        for view in views:
            _release(ctypes.byref(view))
