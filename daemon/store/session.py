"""Taking contents in: hash, cut, compress, append; then name them in one commit.

MD5 is the floor of this work, because DVC names objects by it; it runs beside cutting, BLAKE3 and compression of the
same bytes on the store's threads (all of these release the interpreter's lock).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from millpond.daemon.errors import BusyError, ProtocolError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.store import records
from millpond.daemon.store.chunking import MIN_BYTES, Cutter
from millpond.daemon.store.index import Content
from millpond.daemon.store.journal import NameBatch
from millpond.daemon.store.recipes import RecipeBuilder
from millpond.daemon.store.records import Kind
from millpond.daemon.store.segments import Encoded

T = TypeVar("T")

# Bytes and contents of one task for the threads: large enough to be worth a switch, small enough to balance.
_TASK_BYTES = 1 << 20
_TASK_ITEMS = 64
_MANIFESTS = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A content taken in, not named yet: `new_bytes` were added to segments for it (its recipe and headers included)."""

    name: ObjectName
    size: int
    content: Content
    new_bytes: int


class Sink(Protocol):
    """What a session needs of the store."""

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of `ids` that are stored."""
        ...

    def encode(self, kind: Kind, record_id: bytes, data: bytes | memoryview) -> Encoded:
        """A record for `append`."""
        ...

    def append(self, batch: Sequence[Encoded]) -> None:
        """Write records and remember where they are."""
        ...

    def commit_names(self, names: NameBatch) -> list[ObjectName]:
        """Make everything durable and name what is complete; the names that are not."""
        ...


class _Stream:
    """A content that is larger than a chunk, or comes in several parts."""

    def __init__(self, is_dir: bool) -> None:
        self.is_dir = is_dir
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.cutter = Cutter()
        self.recipe = RecipeBuilder()
        self.first = b""
        self.new_bytes = 0


class IngestSession:
    """One caller's contents on their way in. Used by one thread at a time; `feed` uses the store's threads."""

    def __init__(self, sink: Sink, pool: ThreadPoolExecutor, names: NameBatch) -> None:
        self._sink = sink
        self._pool = pool
        self._names = names
        self._stream: _Stream | None = None
        self._failed = False
        # Manifests taken in, the last of them: a caller may want their folders soon.
        self.manifests: deque[ObjectName] = deque(maxlen=_MANIFESTS)

    def feed(self, data: memoryview, pieces: Sequence[tuple[int, bool, bool]]) -> list[Stored]:
        """Take in `data`, the concatenation of pieces (length, last, is_dir); the contents that ended, in order.

        A content runs on over pieces until one that is `last`, also from one feed to the next. Raises DiskFullError,
        StoreDamagedError, BusyError when the store closes, ProtocolError behind a feed that failed: what came of its contents is not known.
        """
        self._check()
        tasks: list[Future[list[Stored]] | _Stream] = []
        group: list[tuple[memoryview, bool]] = []
        size = position = 0

        def flush() -> None:
            nonlocal group, size
            if group:
                tasks.append(self._submit(self._store_small, group))
                group, size = [], 0

        try:
            for length, last, is_dir in pieces:
                part = data[position : position + length]
                position += length
                if self._stream is None and last and length <= MIN_BYTES:
                    group.append((part, is_dir))
                    size += length
                    if size >= _TASK_BYTES or len(group) >= _TASK_ITEMS:
                        flush()
                    continue
                flush()
                stream = self._stream = self._stream or _Stream(is_dir)
                self._feed_stream(stream, part, last)
                if last:
                    tasks.append(stream)
                    self._stream = None
            flush()
            return self._collect(tasks)
        except BaseException:
            self._failed = True
            raise
        finally:
            _settle(task for task in tasks if isinstance(task, Future))

    def commit(self) -> list[ObjectName]:
        """Make all of it durable, named and granted. The names of contents that are no longer whole, because their
        chunks were removed or lost meanwhile: these must be fed again. Raises as `feed`."""
        self._check()
        return self._sink.commit_names(self._names) if len(self._names) else []

    def abort(self) -> None:
        """Give up: nothing is named. What was written is without names, and garbage."""
        self._names = NameBatch(self._names.uid)
        self._stream = None

    def _submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        try:
            return self._pool.submit(work, *args)
        except RuntimeError as error:  # the pool takes no more
            raise BusyError("the store is closing", hint="run the command again") from error

    def _check(self) -> None:
        if self._failed:
            raise ProtocolError("this session of puts has failed", hint="begin another one")

    def _collect(self, tasks: list[Future[list[Stored]] | _Stream]) -> list[Stored]:
        done: list[Stored] = []
        for task in tasks:
            done.extend(task.result() if isinstance(task, Future) else [self._finish(task)])
        for stored in done:
            self._names.add(stored.name.key(), stored.content)
            if stored.name.is_dir:
                self.manifests.append(stored.name)
        return done

    def _store_small(self, group: list[tuple[memoryview, bool]]) -> list[Stored]:
        """Contents of one chunk each; runs in a thread."""
        md5 = hashlib.md5
        ids = [records.content_id(part) for part, _ in group]
        known = self._sink.known(ids)
        fresh: list[Encoded] = []
        done = []
        for (part, is_dir), chunk_id in zip(group, ids, strict=True):
            added = 0
            if chunk_id not in known:
                known.add(chunk_id)
                record = self._sink.encode(Kind.CHUNK, chunk_id, part)
                fresh.append(record)
                added = record.size
            value = md5(part, usedforsecurity=False).hexdigest() + (DIR_SUFFIX if is_dir else "")
            content = Content(Kind.CHUNK, chunk_id, len(part))
            done.append(Stored(ObjectName("md5", value), len(part), content, added))
        if fresh:
            self._sink.append(fresh)
        return done

    def _feed_stream(self, stream: _Stream, part: memoryview, last: bool) -> None:
        """One part of a large content: MD5 in one thread, the chunks' work in the others."""
        hashing: Future[None] = self._submit(stream.md5.update, part)
        chunks = list(stream.cutter.feed(part, last))
        jobs = [self._submit(self._store_chunks, group) for group in _groups(chunks)]
        try:
            for job in jobs:
                for chunk_id, length, added in job.result():
                    stream.recipe.add(chunk_id, length)
                    stream.new_bytes += added
                    stream.first = stream.first or chunk_id
            hashing.result()
        finally:
            _settle([hashing, *jobs])

    def _store_chunks(self, chunks: list[memoryview]) -> list[tuple[bytes, int, int]]:
        """(id, length, bytes added) of each chunk; runs in a thread."""
        ids = [records.content_id(chunk) for chunk in chunks]
        known = self._sink.known(ids)
        fresh, done = [], []
        for chunk, chunk_id in zip(chunks, ids, strict=True):
            added = 0
            if chunk_id not in known:
                known.add(chunk_id)
                record = self._sink.encode(Kind.CHUNK, chunk_id, chunk)
                fresh.append(record)
                added = record.size
            done.append((chunk_id, len(chunk), added))
        if fresh:
            self._sink.append(fresh)
        return done

    def _finish(self, stream: _Stream) -> Stored:
        size = stream.recipe.size
        name = ObjectName("md5", stream.md5.hexdigest() + (DIR_SUFFIX if stream.is_dir else ""))
        if size <= MIN_BYTES:
            if not size:
                return self._store_small([(memoryview(b""), stream.is_dir)])[0]
            return Stored(name, size, Content(Kind.CHUNK, stream.first, size), stream.new_bytes)
        payload = stream.recipe.payload()
        recipe_id = records.content_id(payload)
        added = stream.new_bytes
        if not self._sink.known([recipe_id]):
            record = self._sink.encode(Kind.RECIPE, recipe_id, payload)
            self._sink.append([record])
            added += record.size
        return Stored(name, size, Content(Kind.RECIPE, recipe_id, size), added)


def _groups(chunks: list[memoryview]) -> list[list[memoryview]]:
    groups: list[list[memoryview]] = []
    size = _TASK_BYTES
    for chunk in chunks:
        if size >= _TASK_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(chunk)
        size += len(chunk)
    return groups


def _settle(futures: Iterable[Future[Any]]) -> None:
    """Wait until no thread looks at the caller's buffer any more, whatever came of it."""
    for future in futures:
        if not future.cancel():
            future.exception()
