"""Contents read whole, to see whether they have the digests that they are named by: large ones several beside each other, where MD5 of
several takes less time than of one after the other (md5/kernels.py), by two threads.

Memory is bounded by the contents that are read at once, whatever their sizes are.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from millpond.daemon.errors import CancelledError, StoreDamagedError
from millpond.daemon.md5.kernels import WIDEST, Kernels
from millpond.daemon.md5.streams import Stream, update
from millpond.daemon.names import ObjectName
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import StoreReader

# Threads that hash, and groups of contents under way.
_THREADS, _WINDOW = 2, 8
# Small contents of one group: so many, and so many bytes.
_GROUP, _GROUP_BYTES = 64, 8 << 20
# Contents of so many bytes wait for others; they are hashed together when they have so many in all, because it takes a tenth of a second to make the
# kernels.
_LARGE_BYTES, _WORTH_BYTES = 8 << 20, 256 << 20
# Bytes of each content that are hashed at once with those of the others.
_STEP_BYTES = 1 << 20
# Seconds between two reports of what was read.
_TICK_S = 0.1


class Named(NamedTuple):
    """A name and one content of it."""

    name: ObjectName
    content: Content


class Rehash:
    """One pass over contents. `advance` is told, in the thread that asks, of so many bytes more; it may raise to cancel."""

    def __init__(self, reader: StoreReader, kernels: Kernels | None, advance: Callable[[int], None]) -> None:
        self._reader = reader
        self._kernels = kernels
        self._advance = advance
        self._lock = threading.Lock()
        self._read = 0
        self._stop = threading.Event()

    def check(self, contents: Iterable[Named]) -> Generator[tuple[Named, list[bytes]], None, None]:
        """Each content with the ids of what turns out to be damaged, or its own when it has another digest; large ones behind small ones. To be
        closed. Raises what `advance` raises."""
        flying: deque[tuple[Sequence[Named], Future[list[list[bytes]]]]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="rehash") as pool:
            try:
                for group in self._groups(contents):
                    flying.append((group, pool.submit(self._hash, group)))
                    if len(flying) >= _WINDOW:
                        yield from self._taken(*flying.popleft())
                while flying:
                    yield from self._taken(*flying.popleft())
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _groups(self, contents: Iterable[Named]) -> Iterator[Sequence[Named]]:
        """Contents that one thread is given at once."""
        small: list[Named] = []
        large: list[Named] = []
        size = 0
        for named in contents:
            if self._kernels is not None and named.content.size >= _LARGE_BYTES:
                large.append(named)
                if len(large) == _THREADS * WIDEST:
                    yield from self._dealt(large)
                    large = []
                continue
            small.append(named)
            size += named.content.size
            if len(small) == _GROUP or size >= _GROUP_BYTES:
                yield small
                small, size = [], 0
        if small:
            yield small
        yield from self._dealt(large)

    def _dealt(self, large: list[Named]) -> Iterator[Sequence[Named]]:
        """Large contents for each thread, two at least and of like sizes; one by one where it is not worth it to hash them together."""
        total = sum(named.content.size for named in large)
        is_worth_it = self._kernels is not None and (self._kernels.tried or total >= _WORTH_BYTES)
        if len(large) < 2 or not is_worth_it:
            yield from ([named] for named in large)
            return
        large = sorted(large, key=lambda named: named.content.size, reverse=True)
        threads = min(_THREADS, len(large) // 2)
        yield from (large[first::threads] for first in range(threads))

    def _taken(self, group: Sequence[Named], task: Future[list[list[bytes]]]) -> Iterator[tuple[Named, list[bytes]]]:
        """What came of a group, waited for; what is read meanwhile is told."""
        while not task.done():
            wait([task], _TICK_S)
            self._tell()
        found = task.result()
        self._tell()
        yield from zip(group, found, strict=True)

    def _tell(self) -> None:
        with self._lock:
            size, self._read = self._read, 0
        self._advance(size)

    def _took(self, size: int) -> None:
        """So many bytes were hashed; in a thread. Raises CancelledError when nobody waits for them any more."""
        if self._stop.is_set():
            raise CancelledError("the check was cancelled")
        with self._lock:
            self._read += size

    def _hash(self, group: Sequence[Named]) -> list[list[bytes]]:
        """The result of each content; runs in a thread."""
        kernels = self._kernels
        if kernels is not None and len(group) > 1 and group[0].content.size >= _LARGE_BYTES and kernels.are_usable():
            return self._together(group, kernels)
        return [self._alone(named) for named in group]

    def _alone(self, named: Named) -> list[bytes]:
        if named.name.algo != "md5":
            self._took(named.content.size)
            return []  # md5-dos2unix names a changed text, Git's names have a header: neither is made here
        digest = hashlib.md5(usedforsecurity=False)
        try:
            for piece in self._reader.pieces(named.content):
                digest.update(piece)
                self._took(len(piece))
        except StoreDamagedError as error:
            return [bytes.fromhex(error.details["id"])]
        return _compared(named, digest.hexdigest())

    def _together(self, group: Sequence[Named], kernels: Kernels) -> list[list[bytes]]:
        """A part of each of several contents in turns."""
        found: dict[Named, list[bytes]] = {}
        going: list[_Reading] = []
        for named in group:
            if named.name.algo == "md5":
                going.append(_Reading(named, self._reader, kernels))
            else:
                found[named] = self._alone(named)
        while going:
            parts: list[memoryview] = []
            for reading in list(going):
                try:
                    parts.append(reading.next())
                except StoreDamagedError as error:
                    found[reading.named] = [bytes.fromhex(error.details["id"])]
                    going.remove(reading)
            update([reading.stream for reading in going], parts)
            self._took(sum(map(len, parts)))
            for reading in [reading for reading, part in zip(going, parts, strict=True) if not part]:
                found[reading.named] = _compared(reading.named, reading.stream.hexdigest())
                going.remove(reading)
        return [found[named] for named in group]


class _Reading:
    """A content that is hashed beside others."""

    def __init__(self, named: Named, reader: StoreReader, kernels: Kernels) -> None:
        self.named = named
        self.stream = Stream(kernels)
        self._pieces = reader.pieces(named.content)
        self._buffer = memoryview(bytearray(_STEP_BYTES))
        self._rest = memoryview(b"")

    def next(self) -> memoryview:
        """The next bytes, as many as the others' but at the end; none behind that. Valid until it is called again. Raises StoreDamagedError."""
        done = 0
        while done < len(self._buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            taken = self._rest[: len(self._buffer) - done]
            self._buffer[done : done + len(taken)] = taken
            self._rest = self._rest[len(taken) :]
            done += len(taken)
        return self._buffer[:done]


def _compared(named: Named, value: str) -> list[bytes]:
    return [] if value == named.name.hex else [named.content.id]
