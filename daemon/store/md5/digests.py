"""The MD5 of streams whose parts come faster than they can be hashed: by one thread each, or several in one call (`Lanes`)."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

from millpond.daemon.store.md5.kernels import BLOCK_BYTES, START, WIDEST, Kernels, padding

Submit = Callable[[Callable[[], None]], object]
_Waiting = deque[tuple[memoryview, "Future[None]"]]


class Digest(Protocol):
    """A stream's MD5. Parts are added by one thread, in order."""

    def add(self, part: memoryview) -> Future[None]:
        """Hash one more part; done when nobody looks at it any more."""
        ...

    def hexdigest(self) -> str:
        """Of the parts that are done; nothing may come behind it."""
        ...


class SingleDigest:
    """One thread at a time works off what has come of the stream. `also` is given each part behind that."""

    def __init__(self, submit: Submit, also: Callable[[memoryview], None] | None = None) -> None:
        self._submit = submit
        self._also = also
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._lock = threading.Lock()
        self._parts: _Waiting = deque()
        self._working = False

    def add(self, part: memoryview) -> Future[None]:
        """See Digest."""
        done: Future[None] = Future()
        with self._lock:
            self._parts.append((part, done))
            starts, self._working = not self._working, True
        if starts:
            try:
                self._submit(self._work)
            except BaseException:
                self._drop()
                raise
        return done

    def hexdigest(self) -> str:
        """See Digest."""
        return self._md5.hexdigest()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._parts:
                    self._working = False
                    return
                part, done = self._parts.popleft()
            try:
                if done.set_running_or_notify_cancel():
                    self._md5.update(part)
                    if self._also is not None:
                        self._also(part)
                    done.set_result(None)
            except Exception as error:  # told to who waits for it
                done.set_exception(error)
            del part

    def _drop(self) -> None:
        with self._lock:
            self._working = False
            _cancel(self._parts)


class LaneDigest:
    """A stream beside others; made by `Lanes.digest`."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.state = array("I", START)
        self.length = 0
        # What is left of a block.
        self.tail = b""
        self.parts: _Waiting = deque()

    def add(self, part: memoryview) -> Future[None]:
        """See Digest. Not begun before `Lanes.start`."""
        return self._lanes.add(self, part)

    def hexdigest(self) -> str:
        """See Digest."""
        update(self._lanes.kernels, [self], [memoryview(padding(self.length))])
        return self.state.tobytes().hex()


class Lanes:
    """Streams of one session, hashed beside each other: what is at hand of them is taken together, a part of each, by as many
    threads as `threads` says (more of them share the streams)."""

    def __init__(self, kernels: Kernels, submit: Submit, threads: int) -> None:
        self.kernels = kernels
        self._submit = submit
        self._threads = threads
        self._lock = threading.Lock()
        # Streams of which parts wait, and none is being hashed.
        self._ready: deque[LaneDigest] = deque()
        self._busy: set[LaneDigest] = set()
        self._working = 0

    def digest(self) -> LaneDigest:
        """A new stream."""
        return LaneDigest(self)

    def add(self, stream: LaneDigest, part: memoryview) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            if not stream.parts and stream not in self._busy:
                self._ready.append(stream)
            stream.parts.append((part, done))
        return done

    def start(self) -> None:
        """Have the parts hashed that were added: more of them are better together."""
        with self._lock:
            fresh = min(self._threads - self._working, len(self._ready))
            self._working += fresh
        for begun in range(fresh):
            try:
                self._submit(self._work)
            except BaseException:
                with self._lock:
                    self._working -= fresh - begun
                    if not self._working:
                        self._drop()
                raise

    def _work(self) -> None:
        while group := self._take():
            wanted = [(stream, part, done) for stream, part, done in group if done.set_running_or_notify_cancel()]
            try:
                update(self.kernels, [stream for stream, _, _ in wanted], [part for _, part, _ in wanted])
            except Exception as error:  # told to who waits for it
                for _, _, done in wanted:
                    done.set_exception(error)
            else:
                for _, _, done in wanted:
                    done.set_result(None)
            with self._lock:
                self._busy.difference_update(stream for stream, _, _ in group)
                self._ready.extend(stream for stream, _, _ in group if stream.parts)
            del group, wanted

    def _take(self) -> list[tuple[LaneDigest, memoryview, Future[None]]]:
        """A part of each of some streams, which are busy then; at the end the thread is done with, in the same moment."""
        with self._lock:
            share = min(WIDEST, -(-len(self._ready) // self._threads))
            streams = [self._ready.popleft() for _ in range(share)]
            self._busy.update(streams)
            self._working -= not streams
            return [(stream, *stream.parts.popleft()) for stream in streams]

    def _drop(self) -> None:
        while self._ready:
            _cancel(self._ready.popleft().parts)


def update(kernels: Kernels, streams: Sequence[LaneDigest], parts: Sequence[memoryview]) -> None:
    """Hash one more part of each stream. Raises RuntimeError where no kernel can be made."""
    with _addresses(parts) as addresses:
        places = []
        for stream, part, address in zip(streams, parts, addresses, strict=True):
            stream.length += len(part)
            lacking = -len(stream.tail) % BLOCK_BYTES
            stream.tail += bytes(part[:lacking])
            if stream.tail and len(stream.tail) == BLOCK_BYTES:
                with _addresses([memoryview(stream.tail)]) as (tail,):
                    _compress(kernels, [stream], [tail], 1)
                stream.tail = b""
            rest = len(part) - lacking
            if rest > 0:
                places.append((stream, address + lacking, rest // BLOCK_BYTES))
                stream.tail = bytes(part[len(part) - rest % BLOCK_BYTES :]) if rest % BLOCK_BYTES else b""
        while places := [place for place in places if place[2]]:
            blocks = min(left for _, _, left in places)
            _compress(kernels, [stream for stream, _, _ in places], [address for _, address, _ in places], blocks)
            places = [(stream, address + blocks * BLOCK_BYTES, left - blocks) for stream, address, left in places]


def _compress(kernels: Kernels, streams: Sequence[LaneDigest], addresses: Sequence[int], blocks: int) -> None:
    """By the kernel for so many; one after the other where it cannot be made."""
    if kernels.compress([stream.state for stream in streams], addresses, blocks):
        return
    for stream, address in zip(streams, addresses, strict=True):
        if not kernels.compress([stream.state], [address], blocks):
            raise RuntimeError("this processor's MD5 cannot be made")


def _cancel(parts: _Waiting) -> None:
    for _, done in parts:
        done.cancel()
    parts.clear()


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
