"""Moving objects between a remote and this process: many requests at once, in order, in bounded memory.

What a remote fails to do is tried again a few times, with growing pauses of random length; what it refuses (no permission, no such
object) is not. Results come in the order in which they were asked for, so that neighbours of a folder stay neighbours.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from millpond.daemon.errors import CancelledError, ObjectMissingError, RemoteChangedError, RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import DELETE_KEYS, PART_BYTES, Backend, Data, Entry, Got
from millpond.daemon.remote.layout import key_of, keys_of
from millpond.daemon.remote.pace import Budget, Pace, Turns
from millpond.daemon.remote.partial import BLOCK_BYTES, Partial, Partials
from millpond.daemon.remote.presence import Presence

T = TypeVar("T")
# Bytes asked for at once, and so held for each request under way; whole blocks of partial.py.
RANGE_BYTES = 2 << 20
# Requests under way, unless the remote's `jobs` says less: with RANGE_BYTES each, 96 MiB.
MOST = 48
# Small objects written together, and how many such groups are under way.
GROUP_FILES, GROUP_BYTES, GROUPS = 512, 16 << 20, 3
# Small things that are no objects, written together.
_SMALL = 64
# Larger objects that come from afar are kept in part: a download that was cut goes on there.
RESUMED_BYTES = 32 << 20
# Small objects of an instant remote which one call brings, and such calls under way.
_GROUPED, _GROUPED_CALLS = 32, 4
# Ranges of one object under way at once.
_RANGES = 8
_TRIES = 4
_PAUSE_S = 0.3
# Time for all tries of one request.
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an object that come in; `last` ends it. `error` instead, where there is no such object."""

    name: ObjectName
    data: Data
    last: bool
    error: ObjectMissingError | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """An object that goes out: `size` bytes that `pieces` gives, once; to its name's place, or to `place`."""

    name: ObjectName
    size: int
    pieces: Iterable[Data]
    place: str | None = None

    @property
    def key(self) -> str:
        return self.place or key_of(self.name)


class Transfer:
    """One remote in use, to be closed. `requests` and `bytes` count what was moved. Large objects that come are kept in `partials` until
    `stored` is called, so that a download that was cut goes on where it was."""

    def __init__(
        self,
        backend: Backend,
        *,
        jobs: int | None = None,
        rate: float | None = None,
        partials: Partials | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`budget`: one that several share, in place of a `rate` of its own."""
        self.backend = backend
        self._partials = partials
        # Large objects that came, and whose files are kept until what was read of them is stored.
        self._spooled: list[Partial] = []
        if jobs is not None:
            backend.many = min(backend.many, jobs)
        self._groups = min(GROUPS, jobs or GROUPS)
        self._pace = Pace(min(jobs or MOST, MOST), least=min(jobs or 2, 2))
        # A page of a listing is small, and who lists waits for the last one: all at once, unless the remote asks for less.
        self._listing = Pace(self._pace.most, least=min(jobs or 2, 2), first=self._pace.most)
        self._pool = ThreadPoolExecutor(self._pace.most, thread_name_prefix="transfer")
        self._budget = Budget(rate) if rate is not None else budget
        self._turns = Turns(jobs, self._budget)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._presence = Presence(self.heads, self._sizes, lists=backend.lists and not backend.near)
        self.requests = 0
        self.bytes = 0

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.backend.close()

    def heads(self, names: Sequence[ObjectName]) -> Iterator[Entry | None]:
        """What lies under each name, in either layout."""
        return self._in_order(partial(self._head, name) for name in names)

    def get(
        self, key: str, start: int, size: int | None, *, etag: str | None = None, patience_s: float = DEADLINE_S
    ) -> Got:
        """A range of an object, tried again as all else, but not when `patience_s` are over; from any thread, in its turn. Raises
        ObjectMissingError, RemoteChangedError."""
        with self._turns.turn(self._stop) as took:
            got = self._try(lambda: self.backend.get(key, start, size, etag=etag), patience_s=patience_s)
            took(len(got.data))
        with self._lock:
            self.requests += 1
            self.bytes += len(got.data)
        return got

    def present(
        self, names: Sequence[ObjectName], tick: Callable[[int, int], None] | None = None, *, more: bool = False
    ) -> dict[ObjectName, int]:
        """Which of these are there, with their sizes: by listing where that takes fewer requests than asking for each. With `more`
        others are asked for soon: a listing is kept for them."""
        return self._presence.of(names, tick, more=more)

    def expect(self, count: int) -> None:
        """So many names are asked for soon, with `more`."""
        self._presence.begin(count)

    def listed(self, values: Sequence[str]) -> list[int | None]:
        """Sizes of the objects with these values, as far as a listing since `expect` tells them."""
        return self._presence.listed(values)

    def ask(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Answers to questions to the backend, in order, many asked at once, each tried again."""
        return self._in_order(calls)

    def listings(self, prefixes: Iterable[str]) -> Iterator[list[Entry]]:
        """All that lies below each prefix."""
        return self._in_order((partial(self._list, prefix) for prefix in prefixes), pace=self._listing)

    def _sizes(
        self, prefixes: Iterable[str], wanted: Callable[[str, str], bool] | None = None
    ) -> Iterator[list[tuple[str, int]]]:
        def calls() -> Iterator[Callable[[], list[tuple[str, int]]]]:
            for prefix in prefixes:
                yield partial(self.backend.sizes, prefix, None if wanted is None else partial(wanted, prefix))

        return self._in_order(calls(), pace=self._listing)

    def delete(self, keys: Sequence[str], before: Callable[[], None]) -> Iterator[int]:
        """Remove objects, `before` being called ahead of each request; how many are gone for good, again and again."""

        def remove(start: int) -> None:
            before()
            self.backend.delete_many(keys[start : start + DELETE_KEYS])

        starts = range(0, len(keys), DELETE_KEYS)
        for number, _ in enumerate(self._in_order(partial(remove, start) for start in starts), 1):
            yield min(number * DELETE_KEYS, len(keys))

    def put_small(self, items: Iterable[tuple[str, Data]]) -> Iterator[int]:
        """Write small things that are no objects, some together; how many are there for good, again and again."""
        done = 0
        source = iter(items)
        groups = iter(lambda: list(islice(source, _SMALL)), [])

        def put(group: list[tuple[str, Data]]) -> int:
            self.backend.put_many(group)
            return len(group)

        for count in self._in_order(partial(put, group) for group in groups):
            done += count
            yield done

    def get_small(self, keys: Iterable[str]) -> Iterator[Data]:
        """Things that are no objects, each whole, in order. Raises ObjectMissingError."""
        return (got.data for got in self._in_order(partial(self.backend.get, key) for key in keys))

    def read(self, name: ObjectName) -> bytes:
        """A whole object that is small, or that somebody waits for. Raises ObjectMissingError."""
        found = bytearray()
        for part in self.download([name]):
            if part.error is not None:
                raise part.error
            found += part.data
        return bytes(found)

    def download(self, names: Iterable[ObjectName]) -> Iterator[Part]:
        """The bytes of objects, one after the other."""
        for name, got in self._instant_firsts(names) if self.backend.instant else self._firsts(names):
            if got is None:
                missing = ObjectMissingError(f"object {name} is not on remote '{self.backend.name}'")
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
            got = self.backend.get(entry.key, 0, RANGE_BYTES, etag=entry.etag)
            if got.entry.size != entry.size:
                raise RemoteChangedError(f"'{entry.key}' on remote '{self.backend.name}' was changed", path=entry.key)
            return got

        for index, got in enumerate(self._in_order(partial(first, entry) for entry in entries)):
            yield index, got.data, len(got.data) >= got.entry.size
            for data, last in self._rest(got):
                yield index, data, last

    def upload(self, objects: Iterable[Upload], *, created: Callable[[Sequence[Upload]], None]) -> None:
        """Write objects; `created` is told of those that are there for good, in order."""
        if self.backend.singly:
            self._upload_singly(objects, created)
        else:
            self._upload_groups(objects, created)

    def _upload_singly(self, objects: Iterable[Upload], created: Callable[[Sequence[Upload]], None]) -> None:
        """As many at once as still bring more."""
        flying: deque[tuple[Future[bool], Upload]] = deque()
        landed: list[Upload] = []
        held = 0

        def land(limit: int, most_bytes: int) -> None:
            nonlocal held
            while len(flying) > limit or (flying and held > most_bytes):
                task, sent = flying.popleft()
                task.result()
                held -= sent.size
                self._count(1, sent.size)
                landed.append(sent)
            if len(landed) >= GROUP_FILES:
                created(landed)
                landed.clear()

        try:
            for each in objects:
                if each.size > RANGE_BYTES:
                    land(0, 0)
                    self._stream(each)
                    landed.append(each)
                    continue
                data = b"".join(bytes(piece) for piece in each.pieces)
                flying.append((self._submit(partial(self.backend.put, each.key, data)), each))
                held += each.size
                land(self._pace.limit, GROUPS * GROUP_BYTES)
            land(0, 0)
        finally:
            if landed:
                created(landed)

    def _upload_groups(self, objects: Iterable[Upload], created: Callable[[Sequence[Upload]], None]) -> None:
        flying: deque[tuple[Future[None], list[Upload]]] = deque()
        group: list[tuple[Upload, bytes]] = []
        size = 0

        def send(limit: int) -> None:
            nonlocal group, size
            if group:
                items = [(each.key, data) for each, data in group]
                task = self._submit(lambda: self.backend.put_many(items))
                flying.append((task, [each for each, _ in group]))
                group, size = [], 0
            while len(flying) > limit:
                task, sent = flying.popleft()
                task.result()
                self._count(len(sent), sum(each.size for each in sent))
                created(sent)

        for each in objects:
            if each.size > RANGE_BYTES:
                send(0)
                self._stream(each)
                created([each])
                continue
            group.append((each, b"".join(bytes(piece) for piece in each.pieces)))
            size += each.size
            if len(group) >= GROUP_FILES or size >= GROUP_BYTES:
                send(self._groups - 1)
        send(0)

    def _list(self, prefix: str) -> list[Entry]:
        return list(self.backend.list(prefix))

    def _head(self, name: ObjectName) -> Entry | None:
        for key in keys_of(name):
            entry = self.backend.head(key)
            if entry is not None:
                return entry
        return None

    def _firsts(self, names: Iterable[ObjectName]) -> Iterator[tuple[ObjectName, Got | None]]:
        """The first bytes of objects, None for those that are not there."""
        asked: deque[ObjectName] = deque()

        def calls() -> Iterator[Callable[[], Got | None]]:
            for name in names:
                asked.append(name)
                yield partial(self._first, name)

        for got in self._in_order(calls()):
            yield asked.popleft(), got

    def _instant_firsts(self, names: Iterable[ObjectName]) -> Iterator[tuple[ObjectName, Got | None]]:
        """As `_firsts`, several in a call: where an object is read in less time than threads take to hand it over."""
        source = iter(names)
        asked: deque[list[ObjectName]] = deque()

        def calls() -> Iterator[Callable[[], list[Got | None]]]:
            while group := list(islice(source, _GROUPED)):
                asked.append(group)
                yield partial(self._several, group)

        for found in self._in_order(calls(), _GROUPED_CALLS):
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
                return self.backend.get(key, 0, RANGE_BYTES)
            except ObjectMissingError:
                continue
        return None

    def _rest(self, first: Got) -> Iterator[tuple[Data, bool]]:
        """The further ranges of a large object, which must not change meanwhile; each with whether it ends it."""
        key, etag, total = first.entry.key, first.entry.etag, first.entry.size

        def ask(start: int) -> Got:
            return self.backend.get(key, start, RANGE_BYTES, etag=etag)

        starts = range(len(first.data), total, RANGE_BYTES)
        for start, got in zip(starts, self._in_order((partial(ask, at) for at in starts), _RANGES), strict=True):
            if len(got.data) != min(RANGE_BYTES, total - start):
                raise RemoteError(f"remote '{self.backend.name}' gave too few bytes of '{key}'", path=key)
            yield got.data, start + len(got.data) == total

    def _spool(self, name: ObjectName, first: Got) -> Partial | None:
        """Where a large object is kept while it comes; None for others, and where that cannot be."""
        entry = first.entry
        if self._partials is None or entry.size < RESUMED_BYTES or self.backend.near:
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
            got = self.backend.get(key, start, size, etag=etag)
            if len(got.data) != size:
                raise RemoteError(f"remote '{self.backend.name}' gave too few bytes of '{key}'", path=key)
            view = memoryview(got.data).cast("B")
            with contextlib.suppress(OSError):  # a disk that is full: then this is not kept
                for number, block in enumerate(blocks):
                    kept.fill(block, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])
            return got

        starts = range(len(first.data), total, RANGE_BYTES)
        for start, got in zip(starts, self._in_order((partial(take, at) for at in starts), _RANGES), strict=True):
            yield got.data, start + len(got.data) == total

    def _stream(self, each: Upload) -> None:
        """Write one large object while its bytes are read; a few pieces wait between the two. When that fails here nobody waits for
        what is on its way."""
        pieces: queue.Queue[bytes | None] = queue.Queue(4)
        given_up = threading.Event()

        def taken() -> Iterator[bytes]:
            while (piece := pieces.get()) is not None:
                if given_up.is_set():  # nothing half-written gets the object's name
                    raise CancelledError("the transfer was cancelled")
                yield piece

        task = self._submit(lambda: self.backend.put_stream(each.key, taken(), each.size), tries=1)
        try:
            for piece in each.pieces:
                self._put(pieces, bytes(piece), task)
                self._pause(len(piece))
                if task.done():
                    break
            # Too few pieces are an error of the stream.
            self._put(pieces, None, task)
            task.result()
        except BaseException:
            given_up.set()
            with contextlib.suppress(queue.Empty):
                pieces.get_nowait()
            with contextlib.suppress(queue.Full):
                pieces.put_nowait(b"")  # it may wait for one
            raise
        self._count(1 + each.size // PART_BYTES, each.size, pause=False)

    def _put(self, pieces: queue.Queue[bytes | None], piece: bytes | None, task: Future[None]) -> None:
        while not task.done():
            try:
                pieces.put(piece, timeout=0.2)
                return
            except queue.Full:
                continue

    def _in_order(self, work: Iterable[Callable[[], T]], most: int = MOST, *, pace: Pace | None = None) -> Iterator[T]:
        """Run calls, as many at once as the pace (of transfers, or a given one) allows; results in order. What is begun and not asked
        for ends with the pool."""
        pace = pace or self._pace
        flying: deque[Future[T]] = deque()
        source = iter(work)
        more = True
        while more or flying:
            while more and len(flying) < min(pace.limit, most):
                call = next(source, None)
                if call is None:
                    more = False
                else:
                    flying.append(self._submit(call))
            if flying:
                result = flying.popleft().result()
                self._count(*_moved(result), pace=pace)
                yield result

    def _submit(self, call: Callable[[], T], tries: int = _TRIES) -> Future[T]:
        return self._pool.submit(lambda: self._try(call, tries))

    def _count(self, requests: int, size: int, *, pause: bool = True, pace: Pace | None = None) -> None:
        self.requests += requests
        self.bytes += size
        (pace or self._pace).done(size)
        if pause:
            self._pause(size)

    def _pause(self, size: int) -> None:
        if self._budget is not None and (wait := self._budget.wait_s(size)):
            self._stop.wait(wait)

    def _try(self, call: Callable[[], T], tries: int = _TRIES, *, patience_s: float = DEADLINE_S) -> T:
        deadline = time.monotonic() + patience_s
        for number in range(1, tries + 1):
            if self._stop.is_set():
                raise CancelledError("the transfer was cancelled")
            try:
                return call()
            except RemoteError as error:
                pause = _PAUSE_S * 2**number * random.uniform(0.5, 1.0)
                if number == tries or time.monotonic() + pause > deadline or error.details.get("again") is False:
                    raise
                self._pace.refused()
                self._listing.refused()
                self._stop.wait(pause)
        raise AssertionError


def _moved(result: object) -> tuple[int, int]:
    """Requests and bytes that a call's result stands for."""
    if isinstance(result, Got):
        return 1, len(result.data)
    if isinstance(result, list) and any(isinstance(each, Got) for each in result):
        return len(result), sum(len(each.data) for each in result if isinstance(each, Got))
    return 1, 0
