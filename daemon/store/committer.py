"""The commit thread: the only writer of the index, which commits for all who wait, as one group.

Threads append records and note them in `_pending`. A commit takes all jobs that wait: it indexes what is pending,
checks every chunk that a new name needs, appends the journal, syncs the segments, then commits the index. So records
are found by others as soon as they are written, and a name is never there before everything it means is durable.

Keys are hashes: a hundred names touch a hundred pages each of `records`, `grants` and `objects`. LMDB writes these elsewhere,
and what they leave can be used in the transaction after the next. So a commit of many names is three transactions, one
a database: the third goes where the first one's pages were. Names come last: one that nobody may read is garbage, and a sweep
that looks between two transactions would take it away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millpond.daemon.errors import BusyError
from millpond.daemon.names import DIR_FLAG, ObjectName
from millpond.daemon.store import journal as journals
from millpond.daemon.store import ledger, records, recovery
from millpond.daemon.store.files import Files, as_store_error
from millpond.daemon.store.index import Content, Index, evicted_key, grant_key, stamp, stamped
from millpond.daemon.store.journal import Names
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.records import Kind, Location
from millpond.daemon.store.segments import Encoded, SegmentLost, SegmentWriter

log = logging.getLogger("millpond.store")

# Records that may wait for the next commit before one is made for them alone; with four times as many, adding waits.
MAX_PENDING = 10_000
# Names in one transaction.
_MAX_NAMES = 20_000
_MAX_WAITING = 256
# Times that a commit looks again when others' failures take segments from under it.
_MAX_TRIES = 4
# Pages of one database, touched by names, from which on their commit is three transactions instead of one.
_MANY_PAGES = 48
# A grant is renewed when it is given again after this time: gc's grace counts from it.
_FRESH_S = 3600.0


class Job:
    """Names to commit (`anew`: also those that are there), notes (uid, note) for the journal, or work for the commit
    thread (`alone`: it gets no transaction), or (none of these) a commit of what is pending."""

    def __init__(
        self,
        names: Names | None = None,
        work: Callable[[Any], Any] | None = None,
        *,
        alone: bool = False,
        anew: bool = False,
        notes: Sequence[tuple[int, dict[str, Any]]] = (),
    ) -> None:
        self.names = names
        self.anew = anew
        self.notes = notes
        self.work = work
        self.alone = alone
        self.done: Future[Any] = Future()


@dataclass(slots=True)
class _Checked:
    """What the first transaction of a commit found: for each job the names that are not whole; the names to write, (uid, key,
    content) each; where the segments ended that were synced; whether names are left to transactions of their own."""

    lost: list[list[ObjectName]] = field(default_factory=list)
    entries: list[tuple[int, bytes, Content]] = field(default_factory=list)
    end: tuple[int, int] = (0, 0)
    apart: bool = False


class Committer:
    """The commit thread of an open store and what waits for it. From any thread."""

    def __init__(self, folder: Path, files: Files, index: Index, segments: SegmentWriter, reader: StoreReader) -> None:
        self._folder = folder
        self._files = files
        self._index = index
        self._segments = segments
        self._reader = reader
        # How often projects and pins were noted.
        self.noted = 0
        self._epoch = time.time() - time.monotonic()
        self._pending: dict[bytes, Location] = {}
        self._pending_lock = threading.Lock()
        self._queue: queue.Queue[Job | None] = queue.Queue(_MAX_WAITING)
        self._submit_lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store-commit", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Seconds since the epoch, by a clock that does not jump while the store is open."""
        return self._epoch + time.monotonic()

    def pending(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of `ids` that are appended and not committed."""
        with self._pending_lock:
            return {record_id for record_id in ids if record_id in self._pending}

    @property
    def is_pending(self) -> bool:
        """Whether anything is appended and not committed."""
        return bool(self._pending)

    def note(self, batch: Sequence[Encoded], locations: list[Location]) -> None:
        """Records were appended."""
        with self._pending_lock:
            for record, location in zip(batch, locations, strict=True):
                self._pending[record.id] = location

    def keep_up(self) -> None:
        """Have what is pending committed when it is much; wait for that when it is too much. Raises as a commit."""
        if len(self._pending) > MAX_PENDING and self._queue.empty():
            with contextlib.suppress(queue.Full, BusyError):
                self.submit(Job(), wait=False)
        if len(self._pending) > 4 * MAX_PENDING:
            self.submit(Job()).result()

    def close(self) -> bool:
        """Commit what is pending and end; False when that was done before."""
        with self._submit_lock:
            if self._closing:
                return False
            self._closing = True
            self._queue.put(None)
        self._thread.join()
        return True

    def submit(self, job: Job, *, wait: bool = True) -> Future[Any]:
        """Hand work to the commit thread. Raises BusyError when the store is closing, queue.Full unless `wait`."""
        # The commit thread waits until readers have left when it makes the map larger.
        assert not (wait and self._index.is_reading), "not from inside a read transaction"
        if not self._submit_lock.acquire(blocking=wait):
            raise queue.Full
        try:
            if self._closing:
                raise BusyError(f"the store '{self._folder.parent}' is closing", hint="run the command again")
            self._queue.put(job, block=wait)
        finally:
            self._submit_lock.release()
        return job.done

    def _run(self) -> None:
        """The commit thread."""
        open_ = True
        while open_:
            jobs = [self._queue.get()]
            while len(jobs) < _MAX_WAITING:
                try:
                    jobs.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            open_ = None not in jobs
            group = [job for job in jobs if job is not None and job.work is None]
            if not group and not open_ and self._pending:
                self._commit([])
            for part in _bounded(group):
                self._commit(part)
            for job in jobs:
                if job is not None and job.work is not None:
                    _resolve([job], functools.partial(self._write_one, job.work, job.alone))

    def _write_one(self, work: Callable[[Any], Any], alone: bool) -> list[Any]:
        return [work(None) if alone else self._index.write(self._files, work)]

    def _commit(self, group: list[Job]) -> None:
        """Commit what is pending, and the names of a group of callers; each gets the names that are not whole."""
        pending: dict[bytes, Location] = {}
        failed: list[tuple[int, int, int]] = []
        done = False

        def work() -> list[Any]:
            nonlocal done
            for _ in range(_MAX_TRIES):
                with self._pending_lock:
                    pending.clear()
                    pending.update(self._pending)
                failed.clear()
                with contextlib.suppress(SegmentLost):
                    lost = self._write_all(pending, failed, group)
                    done = True
                    return lost
            raise as_store_error(OSError(errno.EIO, os.strerror(errno.EIO)), self._folder)

        _resolve(group, work)
        if done:
            self.noted += any(note.get("op") in ledger.KEEPING for job in group for _, note in job.notes)
            del self._segments.failed[: len(failed)]
        poisoned = self._segments.poisoned
        with self._pending_lock:
            for record_id, location in pending.items():
                if (done or location.segment in poisoned) and self._pending.get(record_id) == location:
                    del self._pending[record_id]

    def _write_all(
        self, pending: dict[bytes, Location], failed: list[tuple[int, int, int]], group: list[Job]
    ) -> list[list[ObjectName]]:
        """The transactions of `_commit`. Raises SegmentLost when all must be done again."""
        write = functools.partial(self._index.write, self._files)
        checked = write(lambda txn: self._commit_in(txn, pending, failed, group))
        if checked.apart:
            write(lambda txn: self._grant(txn, checked.entries))
            write(lambda txn: self._name(txn, checked, pending, failed, group))
        return checked.lost

    def _commit_in(
        self, txn: Any, pending: dict[bytes, Location], failed: list[tuple[int, int, int]], group: list[Job]
    ) -> _Checked:
        """The first transaction, and the only one where few names come. Raises SegmentLost."""
        index = self._index
        # Before the journal says what is not going to be.
        self._segments.check()
        poisoned = self._segments.poisoned
        used = {location.segment for location in pending.values()} - poisoned
        healing = txn.stat(db=index.quarantine)["entries"] > 0
        for record_id, location in pending.items():
            if location.segment in used:
                txn.put(record_id, location.pack(), db=index.records)
                if healing:
                    txn.delete(record_id, db=index.quarantine)
        checked = _Checked()
        journal: list[Encoded] = []
        for job in group:
            for payload in itertools.starmap(journals.note_payload, job.notes):
                journal.append(self._journal(payload))
            whole = Names(job.names.uid if job.names else 0)
            lost: list[ObjectName] = []
            for key, content in job.names or ():
                if not job.anew and self._is_named(txn, whole.uid, key, content):
                    continue
                if recovery.is_whole(self._reader, index, txn, content):
                    whole.add(key, content)
                    checked.entries.append((whole.uid, key, content))
                else:
                    lost.append(ObjectName.from_key(key))
            if len(whole):
                payload = whole.payload()
                journal.append(self._journal(payload))
            checked.lost.append(lost)
        if journal:
            # What they name has passed the limit.
            self._segments.append(journal, free=not any(len(job.names or ()) for job in group), limited=False)
        checked.end = self._segments.sync()
        if used & poisoned:  # by a failed write of someone else, after the check above
            raise SegmentLost
        checked.apart = min(len(checked.entries), txn.stat(db=index.objects)["leaf_pages"]) >= _MANY_PAGES
        if not checked.apart:
            self._grant(txn, checked.entries)
            self._name(txn, checked, pending, failed, group)
        return checked

    def _grant(self, txn: Any, entries: Sequence[tuple[int, bytes, Content]]) -> None:
        """Grant what is going to be named: until then the grant is for nothing."""
        now = stamp(self.now())
        for uid, _, content in entries:
            txn.put(grant_key(uid, content.id), now, db=self._index.grants)

    def _name(
        self,
        txn: Any,
        checked: _Checked,
        pending: dict[bytes, Location],
        failed: list[tuple[int, int, int]],
        group: list[Job],
    ) -> None:
        """Write names, apply notes, move the mark: the end of a commit, which notes `failed` writes too."""
        index = self._index
        has_evicted = txn.stat(db=index.evicted)["entries"] > 0
        for uid, key, content in checked.entries:
            value = content.pack()
            other = txn.get(key, db=index.objects)
            # A manifest's may be several: it is stored by parts of the former one of who stores it.
            if other is not None and other != value and not key[0] & DIR_FLAG:
                log.warning("object %s has more than one content", ObjectName.from_key(key))
            txn.put(key, value, db=index.objects)
            if has_evicted:
                txn.delete(evicted_key(uid, key), db=index.evicted)
        for uid, note in itertools.chain.from_iterable(job.notes for job in group):
            ledger.apply(index, txn, uid, note)
        if checked.end[0]:
            # The mark first: a write that fails after it was looked at is not behind it.
            index.set_committed(txn, *self._mark(checked.end, pending))
            failed[:] = self._segments.failed
            for each in failed:
                index.set_aside_range(txn, *each, "a write failed")

    def _is_named(self, txn: Any, uid: int, key: bytes, content: Content) -> bool:
        """Whether a name and its grant are durable already, the grant given so lately that it need not be renewed, and
        the content whole. Who adds a folder again has mostly such names, and writing them again would cost more than
        what is new."""
        index = self._index
        first, value = txn.get(key, db=index.objects), content.pack()
        if first is None:
            return False
        if first != value:
            with txn.cursor(db=index.objects) as cursor:
                if not cursor.set_key_dup(key, value):
                    return False
        given = txn.get(grant_key(uid, content.id), db=index.grants)
        fresh = given is not None and 0 <= self.now() - stamped(given) < _FRESH_S
        return fresh and recovery.is_whole(self._reader, index, txn, content)

    def _mark(self, end: tuple[int, int], indexed: dict[bytes, Location]) -> tuple[int, int]:
        """Up to where the index knows everything once `indexed` is in it: not behind a record that another thread is
        writing or has just noted. Those being written are looked at first, because they are noted next."""
        unnoted = self._segments.unnoted()
        with self._pending_lock:
            later = [(at.segment, at.offset) for key, at in self._pending.items() if indexed.get(key) != at]
        return min([end, *later] if unnoted is None else [end, unnoted, *later])

    def _journal(self, payload: bytes) -> Encoded:
        record_id = records.content_id(payload)
        parts = records.encode(Kind.JOURNAL, record_id, payload, self._reader.key)
        return Encoded(Kind.JOURNAL, record_id, len(payload), parts)


def _bounded(jobs: list[Job]) -> Iterator[list[Job]]:
    """Groups of jobs with at most _MAX_NAMES names, or one job: what LMDB keeps of a transaction in memory is
    bounded."""
    group: list[Job] = []
    names = 0
    for job in jobs:
        count = len(job.names) if job.names else 0
        if group and names + count > _MAX_NAMES:
            yield group
            group, names = [], 0
        group.append(job)
        names += count
    if group:
        yield group


def _resolve(jobs: list[Job], work: Callable[[], list[Any]]) -> None:
    try:
        for job, result in zip(jobs, work(), strict=True):
            job.done.set_result(result)
    except Exception as error:  # the thread must live on; every waiter gets the error
        if not jobs:
            log.error("cannot commit what is pending: %s", error)
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(error)
