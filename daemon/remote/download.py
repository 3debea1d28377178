"""The bytes of objects on their way from a remote: small ones several in a call, large ones in ranges, kept in part where they come
from afar. They come in the order in which they were asked for, so that neighbours of a folder stay neighbours.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from millpond.daemon.errors import ObjectMissingError, RemoteChangedError, RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import Backend, Entry, Got
from millpond.daemon.remote.flow import RANGE_BYTES, Flow
from millpond.daemon.remote.layout import keys_of
from millpond.daemon.remote.partial import BLOCK_BYTES, Partial, Partials

# Larger objects that come from afar are kept in part: a download that was cut goes on there.
RESUMED_BYTES = 32 << 20
# Small objects of an instant remote which one call brings, and such calls under way.
_GROUPED, _GROUPED_CALLS = 32, 4
# Ranges of one object under way at once.
_RANGES = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an object that come in; `last` ends it. `error` instead, where there is no such object."""

    name: ObjectName
    data: Data
    last: bool
    error: ObjectMissingError | None = None


class Downloads:
    """What comes from one remote. Large objects are kept in `partials` until `stored` is called, so that a download that was cut goes
    on where it was."""

    def __init__(self, backend: Backend, flow: Flow, partials: Partials | None) -> None:
        self._backend = backend
        self._flow = flow
        self._partials = partials
        # Large objects that came, and whose files are kept until what was read of them is stored.
        self._spooled: list[Partial] = []

    def objects(self, names: Iterable[ObjectName]) -> Iterator[Part]:
        """The bytes of objects, one after the other."""
        for name, got in self._instant_firsts(names) if self._backend.instant else self._firsts(names):
            if got is None:
                missing = ObjectMissingError(f"object {name} is not on remote '{self._backend.name}'")
                yield Part(name, b"", True, missing)
                continue
            yield Part(name, got.data, len(got.data) >= got.entry.size)
            kept = self._spool(name, got)
            for data, last in self._rest(got) if kept is None else self._resumed(got, kept):
                yield Part(name, data, last)

    def stored(self) -> None:
        """What came so far is stored, or not what its name says: it need not be kept any more."""
        for each in self._spooled:
            each.remove()
        self._spooled.clear()

    def contents(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Data, bool]]:
        """The bytes of what lies at these entries' keys, one after the other, each with its entry's index and whether they end it.
        Raises ObjectMissingError, RemoteChangedError for what is not as its entry says."""

        def first(entry: Entry) -> Got:
            got = self._backend.get(entry.key, 0, RANGE_BYTES, etag=entry.etag)
            if got.entry.size != entry.size:
                raise RemoteChangedError(f"'{entry.key}' on remote '{self._backend.name}' was changed", path=entry.key)
            return got

        for index, got in enumerate(self._flow.in_order(partial(first, entry) for entry in entries)):
            yield index, got.data, len(got.data) >= got.entry.size
            for data, last in self._rest(got):
                yield index, data, last

    def _firsts(self, names: Iterable[ObjectName]) -> Iterator[tuple[ObjectName, Got | None]]:
        """The first bytes of objects, None for those that are not there."""
        asked: deque[ObjectName] = deque()

        def calls() -> Iterator[Callable[[], Got | None]]:
            for name in names:
                asked.append(name)
                yield partial(self._first, name)

        for got in self._flow.in_order(calls()):
            yield asked.popleft(), got

    def _instant_firsts(self, names: Iterable[ObjectName]) -> Iterator[tuple[ObjectName, Got | None]]:
        """As `_firsts`, several in a call: where an object is read in less time than threads take to hand it over."""
        source = iter(names)
        asked: deque[list[ObjectName]] = deque()

        def calls() -> Iterator[Callable[[], list[Got | None]]]:
            while group := list(islice(source, _GROUPED)):
                asked.append(group)
                yield partial(self._several, group)

        for found in self._flow.in_order(calls(), _GROUPED_CALLS):
            group = asked.popleft()
            yield from zip(group, found, strict=False)
            yield from self._firsts(group[len(found) :])

    def _several(self, names: Sequence[ObjectName]) -> list[Got | None]:
        """The first bytes of these objects, of as many as are RANGE_BYTES together."""
        found: list[Got | None] = []
        size = 0
        for name in names:
            if size >= RANGE_BYTES:
                break
            got = self._first(name)
            found.append(got)
            size += 0 if got is None else len(got.data)
        return found

    def _first(self, name: ObjectName) -> Got | None:
        for key in keys_of(name):
            try:
                return self._backend.get(key, 0, RANGE_BYTES)
            except ObjectMissingError:
                continue
        return None

    def _rest(self, first: Got) -> Iterator[tuple[Data, bool]]:
        """The further ranges of a large object, which must not change meanwhile; each with whether it ends it."""
        key, etag, total = first.entry.key, first.entry.etag, first.entry.size

        def ask(start: int) -> Got:
            return self._backend.get(key, start, RANGE_BYTES, etag=etag)

        starts = range(len(first.data), total, RANGE_BYTES)
        for start, got in zip(starts, self._flow.in_order((partial(ask, at) for at in starts), _RANGES), strict=True):
            if len(got.data) != min(RANGE_BYTES, total - start):
                raise RemoteError(f"remote '{self._backend.name}' gave too few bytes of '{key}'", path=key)
            yield got.data, start + len(got.data) == total

    def _spool(self, name: ObjectName, first: Got) -> Partial | None:
        """Where a large object is kept while it comes; None for others, and where that cannot be."""
        entry = first.entry
        if self._partials is None or entry.size < RESUMED_BYTES or self._backend.near:
            return None
        try:
            found = self._partials.open(name, entry.size, entry.etag or "")
        except OSError:  # another process is at it, or the disk is full: it comes without
            return None
        self._spooled.append(found)
        return found

    def _resumed(self, first: Got, kept: Partial) -> Iterator[tuple[Data, bool]]:
        """As `_rest`, without what is here from a time before."""
        key, etag, total = first.entry.key, first.entry.etag, first.entry.size

        def take(start: int) -> Got:
            size = min(RANGE_BYTES, total - start)
            blocks = range(start // BLOCK_BYTES, -(-(start + size) // BLOCK_BYTES))
            if all(kept.has(block) for block in blocks):
                return Got(os.pread(kept.fd, size, start), first.entry)
            got = self._backend.get(key, start, size, etag=etag)
            if len(got.data) != size:
                raise RemoteError(f"remote '{self._backend.name}' gave too few bytes of '{key}'", path=key)
            view = memoryview(got.data).cast("B")
            with contextlib.suppress(OSError):  # a disk that is full: then this is not kept
                for number, block in enumerate(blocks):
                    kept.fill(block, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])
            return got

        starts = range(len(first.data), total, RANGE_BYTES)
        for start, got in zip(starts, self._flow.in_order((partial(take, at) for at in starts), _RANGES), strict=True):
            yield got.data, start + len(got.data) == total
