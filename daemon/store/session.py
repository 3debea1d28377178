"""Taking contents in: hash, cut, compress, append; then name them in one commit.

MD5 is the floor of this work, because DVC names objects by it; it runs beside cutting, BLAKE3 and compression of the
same bytes on the store's threads (all of these release the interpreter's lock). Contents that come beside each other, each on a
strand of its own, are hashed together (see md5/kernels.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from millpond.daemon.errors import BusyError, ProtocolError, StoreDamagedError
from millpond.daemon.md5.digests import Digest, Lanes, SingleDigest
from millpond.daemon.md5.kernels import WIDEST, Kernels
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.objects import Slice
from millpond.daemon.store import records
from millpond.daemon.store.chunking import MIN_BYTES, Cutter
from millpond.daemon.store.index import Content
from millpond.daemon.store.journal import NameBatch
from millpond.daemon.store.parts import Follower, PartReader, is_worth_following
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.recipes import PartsBuilder, RecipeBuilder
from millpond.daemon.store.records import Kind
from millpond.daemon.store.segments import Encoded

T = TypeVar("T")

# Bytes and contents of one task for the threads: large enough to be worth a switch, small enough to balance.
_TASK_BYTES = 1 << 20
_TASK_ITEMS = 64
_MANIFESTS = 16
# Strands there are; contents of so many bytes are worth one of their own.
STRANDS, LEAST_BYTES = WIDEST, 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A content taken in, not named yet: `new_bytes` were added to segments for it (its recipe and headers included)."""

    name: ObjectName
    size: int
    content: Content
    new_bytes: int


class Sink(Protocol):
    """What a session needs of the store."""

    @property
    def reader(self) -> StoreReader:
        """For a manifest that another one is like."""
        ...

    def known(self, ids: Sequence[bytes], owner: int | None = None) -> set[bytes]:
        """Those of `ids` that are stored, and claimed for `owner`."""
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
    """A content that is larger than a chunk, or comes in several parts; with a `follower` it is a manifest that is described by
    another one."""

    def __init__(self, is_dir: bool, digest: Digest, follower: Follower | None = None) -> None:
        self.is_dir = is_dir
        self.digest = digest
        self.follower = follower
        self.cutter = Cutter()
        self.recipe = RecipeBuilder()
        self.first = b""
        # Bytes that came.
        self.length = 0
        self.new_bytes = 0


@dataclass(slots=True)
class _Part:
    """One part of a stream on its way: what is still to be done with it, and whether it is the last one."""

    stream: _Stream
    last: bool
    hashing: Future[None]
    jobs: list[Future[list[tuple[bytes, int, int]]]]


@dataclass(slots=True)
class Feed:
    """What `begin` handed to the threads, for `finish`."""

    tasks: list[Future[list[Stored]] | _Part] = field(default_factory=list)

    def settle(self) -> None:
        """Wait until no thread looks at the caller's bytes any more, whatever came of them."""
        for task in self.tasks:
            _settle([task] if isinstance(task, Future) else [task.hashing, *task.jobs])


class IngestSession:
    """One caller's contents on their way in. `begin` is called by one thread at a time, and so is `finish`; the work is done by
    the store's threads, so that the next feed is cut while the one before is hashed, packed and written."""

    def __init__(
        self,
        sink: Sink,
        pool: ThreadPoolExecutor,
        names: NameBatch,
        owner: int | None = None,
        kernels: Kernels | None = None,
        hashing: int = 1,
    ) -> None:
        """`hashing`: threads that may hash strands by `kernels`."""
        self._sink = sink
        self._owner = owner
        self._pool = pool
        self._names = names
        self._streams: dict[int, _Stream] = {}
        self._lanes = None if kernels is None else Lanes(kernels, self._submit, hashing)
        self._former: Content | None = None
        self._failed = False
        # Chunks that threads are storing now.
        self._storing: set[bytes] = set()
        self._lock = threading.Lock()
        # Manifests taken in, the last of them: a caller may want their folders soon.
        self.manifests: deque[ObjectName] = deque(maxlen=_MANIFESTS)

    def feed(self, data: memoryview, pieces: Sequence[Slice]) -> list[Stored]:
        """`begin` and `finish` in one."""
        return self.finish(self.begin(data, pieces))

    def follow(self, former: Content | None) -> None:
        """The next manifest that begins is mostly the same as this content, which its caller may read. Called as `begin`."""
        self._former = former

    def break_off(self) -> None:
        """Contents that were begun will not end: what comes next is no part of them. Called as `begin`."""
        self._streams.clear()

    def begin(self, data: memoryview, pieces: Sequence[Slice]) -> Feed:
        """Take in `data`, the concatenation of pieces. It must stay as it is until `finish`.

        A content runs on over pieces of its strand until one that is `last`, also from one feed to the next. Raises BusyError when
        the store closes, ProtocolError behind a feed that failed: what came of its contents is not known.
        """
        self._check()
        feed = Feed()
        group: list[tuple[memoryview, bool]] = []
        size = position = 0

        def flush() -> None:
            nonlocal group, size
            if group:
                feed.tasks.append(self._submit(self._store_small, group))
                group, size = [], 0

        try:
            for length, last, is_dir, *strands in pieces:
                part = data[position : position + length]
                position += length
                strand = strands[0] if strands else 0
                stream = self._streams.get(strand)
                if stream is None and last and length <= MIN_BYTES:
                    group.append((part, is_dir))
                    size += length
                    if size >= _TASK_BYTES or len(group) >= _TASK_ITEMS:
                        flush()
                    continue
                flush()
                if stream is None:
                    stream = self._streams[strand] = self._begin_stream(is_dir, length, strand)
                self._begin_part(feed, stream, part, last)
                if last:
                    self._streams.pop(strand, None)  # gone, when this was given up meanwhile
            flush()
            if self._lanes is not None:
                self._lanes.start()
            return feed
        except BaseException:
            self.fail(feed)
            raise

    def finish(self, feed: Feed) -> list[Stored]:
        """Wait for a feed; the contents that ended in it, in order. Feeds are finished in the order in which they began.
        Raises DiskFullError, StoreDamagedError, ProtocolError as `begin`."""
        try:
            self._check()
            done: list[Stored] = []
            for task in feed.tasks:
                done.extend(task.result() if isinstance(task, Future) else self._finish_part(task))
        except BaseException:
            self.fail(feed)
            raise
        for stored in done:
            self._names.add(stored.name.key(), stored.content)
            if stored.name.is_dir:
                self.manifests.append(stored.name)
        return done

    def fail(self, feed: Feed) -> None:
        """Give a feed up, and the session with it; its bytes are no longer looked at."""
        self._failed = True
        feed.settle()

    def commit(self) -> list[ObjectName]:
        """Make all of it durable, named and granted. The names of contents that are no longer whole, because their
        chunks were removed or lost meanwhile: these must be fed again. Raises as `feed`."""
        self._check()
        return self._sink.commit_names(self._names) if len(self._names) else []

    def abort(self) -> None:
        """Give up: nothing is named. What was written is without names, and garbage."""
        self._names = NameBatch(self._names.uid)
        self._streams.clear()

    def _submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        try:
            return self._pool.submit(work, *args)
        except RuntimeError as error:  # the pool takes no more
            raise BusyError("the store is closing", hint="run the command again") from error

    def _check(self) -> None:
        if self._failed:
            raise ProtocolError("this session of puts has failed", hint="begin another one")

    def _store_small(self, group: list[tuple[memoryview, bool]]) -> list[Stored]:
        """Contents of one chunk each; runs in a thread."""
        md5 = hashlib.md5
        ids, added = self._store([part for part, _ in group])
        done = []
        for (part, is_dir), chunk_id, size in zip(group, ids, added, strict=True):
            value = md5(part, usedforsecurity=False).hexdigest() + (DIR_SUFFIX if is_dir else "")
            done.append(Stored(ObjectName("md5", value), len(part), Content(Kind.CHUNK, chunk_id, len(part)), size))
        return done

    def _store(self, chunks: Sequence[memoryview]) -> tuple[list[bytes], list[int]]:
        """Have chunks stored: their ids, and the bytes that each added. A chunk that another thread of this session is storing
        is left to it: should that fail, the session does."""
        ids = [records.content_id(chunk) for chunk in chunks]
        with self._lock:
            mine = set(ids) - self._storing
            self._storing |= mine
        try:
            todo = mine - self._sink.known(list(mine), self._owner)
            fresh: list[Encoded] = []
            added = [0] * len(ids)
            for at, (chunk, chunk_id) in enumerate(zip(chunks, ids, strict=True)):
                if chunk_id in todo:
                    todo.remove(chunk_id)
                    record = self._sink.encode(Kind.CHUNK, chunk_id, chunk)
                    fresh.append(record)
                    added[at] = record.size
            if fresh:
                self._sink.append(fresh)
        finally:
            with self._lock:
                self._storing -= mine
        return ids, added

    def _begin_stream(self, is_dir: bool, length: int, strand: int) -> _Stream:
        """A stream whose first part has `length` bytes."""
        if not 0 <= strand <= STRANDS:
            raise ProtocolError(f"there is no strand {strand}")
        if strand and self._lanes is not None and self._lanes.kernels.are_usable():
            return _Stream(is_dir, self._lanes.digest())
        former, self._former = self._former, None
        if not (is_dir and former is not None and former.kind == Kind.RECIPE and length > MIN_BYTES):
            kernels = None if self._lanes is None or length < LEAST_BYTES else self._lanes.kernels
            return _Stream(is_dir, SingleDigest(self._submit, kernels=kernels))
        try:
            layout = self._sink.reader.layout(former)
        except StoreDamagedError:  # who reads it is told; this one is stored whole
            return _Stream(is_dir, SingleDigest(self._submit))
        needed = layout.needed()
        # Claimed before they are read, as whatever is found here.
        if not is_worth_following(layout) or len(self._sink.known(needed, self._owner)) < len(needed):
            return _Stream(is_dir, SingleDigest(self._submit))
        follower = Follower(layout, PartReader(self._sink.reader, layout).pieces(), self._store_fresh)
        return _Stream(is_dir, SingleDigest(self._submit, follower.feed), follower)

    def _store_fresh(self, data: bytes) -> tuple[bytes, int]:
        """(id, bytes added) of a chunk."""
        ids, added = self._store([memoryview(data)])
        return ids[0], added[0]

    def _begin_part(self, feed: Feed, stream: _Stream, part: memoryview, last: bool) -> None:
        """One part of a large content: MD5 in one thread, the chunks' work in the others."""
        stream.length += len(part)
        started = _Part(stream, last, stream.digest.add(part), [])
        feed.tasks.append(started)
        if stream.follower is not None:
            return
        for group in _groups(list(stream.cutter.feed(part, last))):
            started.jobs.append(self._submit(self._store_chunks, group))

    def _finish_part(self, part: _Part) -> list[Stored]:
        stream = part.stream
        for job in part.jobs:
            for chunk_id, length, added in job.result():
                stream.recipe.add(chunk_id, length)
                stream.new_bytes += added
                stream.first = stream.first or chunk_id
        part.hashing.result()
        return [self._finish(stream)] if part.last else []

    def _store_chunks(self, chunks: list[memoryview]) -> list[tuple[bytes, int, int]]:
        """(id, length, bytes added) of each chunk; runs in a thread."""
        ids, added = self._store(chunks)
        return list(zip(ids, map(len, chunks), added, strict=True))

    def _finish(self, stream: _Stream) -> Stored:
        recipe: RecipeBuilder | PartsBuilder = stream.recipe
        if stream.follower is not None:
            recipe = stream.follower.finish()
            stream.new_bytes = stream.follower.new_bytes
        size = recipe.size
        if size != stream.length:
            raise StoreDamagedError(
                f"of a content of {stream.length} bytes {size} would be stored: nothing of it was",
                hint="this is a fault of millpond's own: please report it",
            )
        name = ObjectName("md5", stream.digest.hexdigest() + (DIR_SUFFIX if stream.is_dir else ""))
        if size <= MIN_BYTES:
            if not size:
                return self._store_small([(memoryview(b""), stream.is_dir)])[0]
            return Stored(name, size, Content(Kind.CHUNK, stream.first, size), stream.new_bytes)
        payload = recipe.payload()
        recipe_id = records.content_id(payload)
        added = stream.new_bytes
        if not self._sink.known([recipe_id], self._owner):
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
    """Cancel what has not begun, wait for the rest."""
    for future in futures:
        if not future.cancel():
            future.exception()
