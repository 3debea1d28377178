"""The store: open, take in, give out. The writer side, one process at a time; see committer.py for how it commits."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from millpond.daemon.errors import BusyError, MillpondError
from millpond.daemon.md5.kernels import Kernels
from millpond.daemon.names import ObjectName
from millpond.daemon.store import layout, ledger, manifests, records, recovery, scrub
from millpond.daemon.store.claims import Claims
from millpond.daemon.store.committer import Committer, Job
from millpond.daemon.store.files import Files, as_store_error
from millpond.daemon.store.format import ensure_format
from millpond.daemon.store.fsck import Fsck, FsckReport, Progress
from millpond.daemon.store.index import Content, Index
from millpond.daemon.store.journal import NameBatch, Names
from millpond.daemon.store.ledger import root_of
from millpond.daemon.store.reader import Damage, StoreReader
from millpond.daemon.store.records import Kind
from millpond.daemon.store.repair import Repair, Source
from millpond.daemon.store.scrubstate import ScrubState
from millpond.daemon.store.segments import Encoded, SegmentWriter
from millpond.daemon.store.session import IngestSession

T = TypeVar("T")

log = logging.getLogger("millpond.store")

# Memory that is kept for reading: what is read at once for a fetch, of a few callers.
_BUFFER_BYTES = 8 << 20
# Manifests remembered as complete.
_MAX_COMPLETE = 10_000
# Of the store's threads one of so many may hash what comes beside each other: it does the work of several.
_THREADS_A_HASHER = 4


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to open a store. `reserve_bytes` of the disk are left free (at most a twentieth of it); `group` is the gid
    that may read the store (system mode); `fsync=False` is for measuring only."""

    path: Path
    threads: int = max(2, min(8, os.cpu_count() or 2))
    segment_bytes: int = 64 << 20
    reserve_bytes: int = 256 << 20
    map_bytes: int = 16 << 30
    group: int | None = None
    fsync: bool = True


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Figures of a store, in bytes and counts: `logical` is the sum of all named contents, `unique` of all chunks."""

    path: str
    objects: int
    chunks: int
    segments: int
    logical: int
    unique: int
    stored: int
    free: int
    dedup_ratio: float
    compression_ratio: float


class Store:
    """An open store. All methods may be called from any thread."""

    def __init__(self, settings: StoreSettings, files: Files, lock_fd: int, index: Index, uuid: bytes) -> None:
        self._settings = settings
        self._files = files
        self._lock_fd = lock_fd
        self._index = index
        self._folder = settings.path / "segments"
        reserve = layout.reserve(settings.path, settings.reserve_bytes)
        self._segments = SegmentWriter(
            self._folder,
            files,
            uuid=uuid,
            segment_bytes=settings.segment_bytes,
            reserve=reserve,
            mode=layout.file_mode(settings.group),
        )
        self.reader = StoreReader(
            index, self._folder, records.key_of(uuid), self._note_damage, buffer_bytes=_BUFFER_BYTES
        )
        with index.begin() as txn:
            self._segments.limit = ledger.limit_of(index, txn)
        self.ledger = ledger.Ledger(self)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="store")
        # For contents that come beside each other; None where they cannot be.
        self.kernels = Kernels.of_here()
        # Checks and rewriting keep out of each other's way.
        self.maintenance = threading.Lock()
        self._complete: set[tuple[int, ObjectName]] = set()
        self.claims = Claims()
        self._commits = Committer(self._folder, files, index, self._segments, self.reader)

    @classmethod
    def open(cls, settings: StoreSettings, files: Files | None = None) -> Store:
        """Take the store's lock, check its format, repair what a crash left.

        Raises BusyError (another daemon has it), StoreFormatError (newer, on a network file system, not a store),
        DiskFullError.
        """
        if files is None:
            files = Files() if settings.fsync else layout.UnsyncedFiles()
        layout.prepare(settings.path, settings.group)
        lock_fd = _lock(settings.path / "lock")
        try:
            uuid = ensure_format(settings.path, files, layout.file_mode(settings.group)).uuid
            key = records.key_of(uuid)
            index = recovery.open_index(settings.path, files, key, settings.map_bytes, settings.group, settings.fsync)
            try:
                return cls(settings, files, lock_fd, index, uuid)
            except BaseException:
                index.close()
                raise
        except OSError as error:
            os.close(lock_fd)
            raise as_store_error(error, settings.path) from error
        except BaseException:
            os.close(lock_fd)
            raise

    @property
    def path(self) -> Path:
        return self._settings.path

    def session(self, uid: int, owner: int | None = None) -> IngestSession:
        """Begin to take in contents for a caller; what is found here is claimed for `owner` (see claims.py)."""
        names, threads = NameBatch(uid, self.path / "tmp"), self._settings.threads
        return IngestSession(self, self._pool, names, owner, self.kernels, max(1, threads // _THREADS_A_HASHER))

    def do_beside(self, work: Callable[[], None]) -> None:
        """Have something done by one of the store's threads, which nobody waits for; left out when the store closes."""
        with contextlib.suppress(RuntimeError):
            self._pool.submit(work)

    def write(self, work: Callable[[Any], T]) -> T:
        """Run `work` with a write transaction of the index, on the commit thread; it may run again when the map grows.

        Raises DiskFullError, StoreDamagedError and what `work` raises.
        """
        return self.write_behind(work).result()

    def write_behind(self, work: Callable[[Any], T]) -> Future[T]:
        """`write`, without waiting for it; what is written next is written behind it."""
        return self._commits.submit(Job(work=work))

    def write_unclaimed(self, work: Callable[[Any], T]) -> T:
        """`write`, with nobody claiming anything meanwhile."""

        def alone() -> T:
            with self.claims.lock:
                return self._index.write(self._files, work)

        return self._alone(alone)

    def known(self, ids: Sequence[bytes], owner: int | None = None) -> set[bytes]:
        """Those of `ids` that are stored, committed or not; they are claimed for `owner`."""
        with self.claims.lock:
            found = self._commits.pending(ids)
            with self._index.begin() as txn:
                get, database = txn.get, self._index.records
                found.update(record_id for record_id in ids if get(record_id, db=database) is not None)
            if owner is not None:
                self.claims.add(owner, found)
        return found

    def resolve(self, names: Sequence[ObjectName], uid: int, owner: int) -> list[Content | None]:
        """As `StoreReader.resolve`; what is found is claimed for `owner`."""
        with self.claims.lock:
            found = self.reader.resolve(names, uid)
            self.claims.add(owner, (content.id for content in found if content is not None))
        return found

    def encode(self, kind: Kind, record_id: bytes, data: bytes | memoryview) -> Encoded:
        """A record for `append`."""
        return Encoded(kind, record_id, len(data), records.encode(kind, record_id, data, self.reader.key))

    def append(self, batch: Sequence[Encoded]) -> None:
        """Write records; from now on `known` finds them. Raises DiskFullError, StoreDamagedError."""
        self._append(batch, free=False)
        self._commits.keep_up()

    def _append(self, batch: Sequence[Encoded], *, free: bool) -> None:
        self._segments.append(batch, functools.partial(self._commits.note, batch), free=free)
        if self._segments.is_full_written():
            # Full ones are made durable while others are filled: a commit waits for the last one only.
            with contextlib.suppress(queue.Full, BusyError):
                self._commits.submit(Job(work=lambda _: self._segments.sync_full(), alone=True), wait=False)

    def commit_names(self, names: NameBatch, *, anew: bool = False) -> list[ObjectName]:
        """See `IngestSession.commit`. With `anew` names that are there already are written into the journal, too."""
        lost: list[ObjectName] = []
        for part in names.parts():
            lost += self._commits.submit(Job(part, anew=anew)).result()
        return lost

    def note(self, uid: int, note: dict[str, Any]) -> None:
        """Write a note into the journal and apply it (see ledger.py), durably. Raises as `write`."""
        self.note_all([(uid, note)])

    def note_all(self, notes: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """`note` for several, in one commit."""
        self._commits.submit(Job(notes=notes)).result()

    def now(self) -> float:
        """Seconds since the epoch, by a clock that does not jump while the store is open."""
        return self._commits.now()

    def complete(self, name: ObjectName, uid: int) -> bool:
        """Whether a manifest and all that it names are here for `uid`. What was complete once stays so until records are
        removed (`forget_complete`), so it is looked up once."""
        key = (uid, name)
        if key in self._complete:
            return True
        content = self.reader.resolve([name], uid)[0] if name.is_dir else None
        if content is None:
            return False
        if not self._has_all(name.algo, content, uid):
            return False
        if len(self._complete) >= _MAX_COMPLETE:
            self._complete.clear()
        self._complete.add(key)
        return True

    def claim_complete(self, name: ObjectName, uid: int, owner: int) -> bool:
        """As `complete`; the manifest and what it names are claimed for `owner`."""
        # Before it is looked at: who evicts has seen the claim, or what he did is seen.
        with self.claims.lock:
            self.claims.add(owner, manifests=[root_of(name)])
        return self.complete(name, uid)

    def _has_all(self, algo: str, manifest: Content, uid: int) -> bool:
        rows = manifests.entries(self.reader.pieces(manifest))
        try:
            while batch := {ObjectName(algo, digest) for _, digest in itertools.islice(rows, 1000)}:
                if None in self.reader.resolve(list(batch), uid):
                    return False
        except (manifests.NotAManifest, ValueError):  # a user's bytes under a manifest's name
            return False
        return True

    @property
    def mark(self) -> tuple[int, int]:
        """(segment, offset) behind which the next record will be."""
        return self._segments.mark

    @property
    def noted(self) -> int:
        """How often projects and pins were noted since the store was opened."""
        return self._commits.noted

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, on the store's disk."""
        return self._settings.path / "tmp"

    def forget_complete(self) -> None:
        """Records were removed: look again."""
        self._complete.clear()

    def fsck(
        self,
        *,
        deep: bool = False,
        repair: bool = False,
        progress: Progress | None = None,
        source: Source | None = None,
    ) -> FsckReport:
        """Check the whole store (see fsck.py). With `repair`, damaged records are put in quarantine and mended from
        `source`, which gives a content's bytes for a name, or None."""
        check = Fsck(self, self._index, self._folder, deep=deep, progress=progress or (lambda done, total: None))
        with self.maintenance:
            report = check.run()
            if repair and not report.ok:
                Repair(self, self._index, self._folder, check).run(source)
                if check.ranges:
                    self.ledger.snapshot()
            # It has read all segments, as a pass of scrubbing does.
            with contextlib.suppress(MillpondError):
                scrub.note(self, ScrubState(passed=time.time(), passed_damaged=report.damaged_count))
        return report

    def hurt_by(self, ids: Sequence[bytes]) -> list[str]:
        """What cannot be read without these records: objects, and files where a manifest names them."""
        return Fsck(self, self._index, self._folder, deep=False, progress=lambda done, total: None).hurt_by(ids)

    def seal(self) -> None:
        """Go on in a new segment, so that the one written so far can be rewritten. Raises as `write`."""
        self._segments.seal()
        # The mark is to pass the old segment, so something must stand in the new one.
        self.note(0, {"op": "seal"})

    def keep_names(self, names: Names) -> None:
        """Write those of `names` that still are so into the journal again: the record that says it is going to go. The
        next commit makes the mark pass it. Raises as `write`."""

        def work(txn: Any) -> None:
            left = Names(names.uid)
            for key, content in names:
                granted = self._index.is_granted(txn, names.uid, content)
                if granted and content in self._index.contents(txn, ObjectName.from_key(key)):
                    left.add(key, content)
            if len(left):
                payload = left.payload()
                self._segments.append([self.encode(Kind.JOURNAL, records.content_id(payload), payload)], free=True)
                self._segments.sync()

        self._commits.submit(Job(work=work)).result()

    def drop_segment(self, number: int, ids: Sequence[bytes]) -> bool:
        """Remove a segment whose records `ids` were all copied elsewhere, durably; False when the index still needs it, or
        it is being written. Raises StoreDamagedError."""

        def work(txn: Any) -> bool:
            if number >= self._index.committed(txn)[0] or self._segments.is_open(number):
                return False
            for record_id in ids:
                location = self._index.location(txn, record_id)
                if location is not None and location.segment == number:
                    return False
            self._index.forget_ranges(txn, number)
            return True

        if not self._commits.submit(Job(work=work)).result():
            return False
        self._segments.remove(number)
        self.reader.let_go()
        return True

    def copy_records(self, batch: Sequence[Encoded]) -> None:
        """Append records that are there already; the next commit has the index point at the copies. Raises as `append`."""
        self._append(batch, free=True)

    def flush(self) -> None:
        """Index everything appended so far. Raises as a commit."""
        if self._commits.is_pending:
            self.commit()

    def commit(self) -> None:
        """Make everything appended so far durable, index it, and move the mark behind it. Raises as `write`."""
        self._commits.submit(Job()).result()

    def find_again(self, wanted: set[bytes]) -> int:
        """Index sound records of these ids that lie unindexed in segments; how many were found."""
        key = self.reader.key
        return self._alone(lambda: recovery.find_again(self._index, self._files, self._folder, key, wanted))

    def rebuild_index(self) -> int:
        """Make the index anew from the segments, in place; how many records there are. Folders and listings stay."""
        self.flush()
        count = self._alone(lambda: recovery.rebuild(self._index, self._files, self._folder, self.reader.key))
        self.forget_complete()
        return count

    def _alone(self, work: Callable[[], T]) -> T:
        """Run `work`, which writes the index in its own transactions, on the commit thread."""
        return self._commits.submit(Job(work=lambda txn: work(), alone=True)).result()  # type: ignore[no-any-return]

    @property
    def limit(self) -> int | None:
        """Bytes that the segments may have together; None for no limit but the disk's."""
        return self._segments.limit

    @property
    def stored(self) -> int:
        """Bytes of all segments."""
        return self._segments.total

    def set_limit(self, size: int | None) -> None:
        """Set the limit, for good. Raises as `write`."""

        self.note(0, ledger.limit_note(size))
        self._segments.limit = size

    def stats(self) -> StoreStats:
        """Figures, by a walk over the index."""
        objects = logical = chunks = unique = 0
        with self._index.begin() as txn:
            with txn.cursor(db=self._index.objects) as cursor:
                for _, value in cursor:
                    objects += 1
                    logical += int.from_bytes(value[33:41], "little")
            with txn.cursor(db=self._index.records) as cursor:
                for _, value in cursor:
                    if value[0] == Kind.CHUNK:
                        chunks += 1
                        unique += int.from_bytes(value[20:24], "little")
        files = list(self._folder.glob("*.seg"))
        stored = sum(path.stat().st_size for path in files)
        free = os.statvfs(self.path)
        return StoreStats(
            path=os.fspath(self.path),
            objects=objects,
            chunks=chunks,
            segments=len(files),
            logical=logical,
            unique=unique,
            stored=stored,
            free=free.f_bavail * free.f_frsize,
            dedup_ratio=round(logical / unique, 3) if unique else 1.0,
            compression_ratio=round(unique / stored, 3) if stored else 1.0,
        )

    def close(self) -> None:
        """Commit what is pending and let the lock go. Safe twice."""
        if not self._commits.close():
            return
        self._pool.shutdown()
        self._segments.close()
        self.reader.close()
        with contextlib.suppress(OSError):
            (self.path / "index" / recovery.OPEN).unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _note_damage(self, damage: Damage) -> None:
        """Bytes on disk are wrong: put the record into quarantine, so that adding the same bytes heals it. What could not
        be read at all may be there tomorrow, so it stays."""
        log.error("record %s: %s", damage.id.hex(), damage.reason)
        if damage.location is None:
            return

        def work(txn: Any) -> None:
            if self._index.location(txn, damage.id) == damage.location:
                self._index.set_aside(txn, damage.id, damage.reason, damage.location)
                self._complete.clear()

        with contextlib.suppress(queue.Full, BusyError):
            self._commits.submit(Job(work=work), wait=False)


def _lock(path: Path) -> int:
    """The life lock, held as long as the descriptor is open. Raises BusyError naming who has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise BusyError(
            f"another daemon (pid {holder}) has the store '{path.parent}'",
            path=str(path.parent),
            hint="use that one, or stop it: millpond daemon stop",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
