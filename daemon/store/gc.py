"""Garbage: what is kept, what goes, and in which order it goes.

A sweep belongs to one caller: it takes away his grants to contents that no root of his keeps, then the names that nobody
may read any more, then the records that no name needs. Segments are rewritten later (compact.py). Nobody takes contents in
meanwhile: the daemon's lock of the store is held (DESIGN.md, "Garbage"); who did nevertheless finds out at his commit, which
checks every record again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ALGORITHMS, DIR_FLAG, ObjectName
from millpond.daemon.store.index import Content, Index, grant_key, stamped, unpack_content
from millpond.daemon.store.ledger import MANIFEST
from millpond.daemon.store.records import Kind, padded, unpack_location
from millpond.daemon.store.segments import segment_numbers, segment_path

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# (what is being done, steps done); may raise to cancel.
Progress = Callable[[str, int], None]

# Keys deleted in one transaction.
_BATCH = 20_000
_TICK = 10_000
_MD5S = (ALGORITHMS["md5"], ALGORITHMS["md5-dos2unix"])
_HEX = re.compile(rb"(?<![0-9a-fA-F])[0-9a-f]{32}(?![0-9a-fA-F])")
# Two pieces of a manifest overlap by as much as a digest and its neighbours can be cut.
_OVERLAP = 34
# A packed Content.
_CONTENT_BYTES = 41


@dataclass(slots=True)
class Part:
    """Objects that go, and their bytes before deduplication and compression."""

    objects: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.objects += 1
        self.bytes += size


@dataclass(slots=True)
class SweepReport:
    """What a sweep removes, or would: `removed` in all, `projects` by the project whose older roots name it, `other` what no
    project names; `freed` bytes of segments, `records` how many. `kept` are the objects that stay, `young` those of them
    that only the grace period keeps; `granted` are objects that stay because others may read them."""

    dry: bool
    removed: Part = field(default_factory=Part)
    projects: dict[str, Part] = field(default_factory=dict)
    other: Part = field(default_factory=Part)
    kept: Part = field(default_factory=Part)
    young: Part = field(default_factory=Part)
    granted: int = 0
    records: int = 0
    freed: int = 0


class Sweep:
    """One sweep for `uid`. `roots` are kept (ledger.py), and the contents of `objects` (what mounts show); `former` are the
    roots of projects that are not kept, by path, to say whose data goes. With `only`, a set of roots, nothing but the contents of
    these goes, however young they are."""

    def __init__(
        self,
        store: Store,
        uid: int,
        roots: Iterable[bytes],
        *,
        objects: Iterable[ObjectName] = (),
        former: Mapping[str, set[bytes]] | None = None,
        only: Iterable[bytes] | None = None,
        grace_s: float,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._index: Index = store.reader.index
        self._uid = uid
        self._keep = set(roots)
        self._keep.update(root_of_key(name.key()) for name in objects)
        self._former = former or {}
        self._only = None if only is None else set(only)
        self._since = store.now() - grace_s
        self._progress = progress or (lambda what, done: None)
        self._expanded: set[bytes] = set()
        self._dead: dict[bytes, Content] = {}

    def run(self, *, dry: bool) -> SweepReport:
        """Mark, and unless `dry` remove. Raises StoreDamagedError when a manifest or recipe that must be followed cannot be
        read: then nothing is removed; and what `progress` raises, after whole steps."""
        report = SweepReport(dry)
        self._store.flush()
        self._expand(self._keep)
        self._expand({root_of_key(key) for key in self._young_manifests()} - (self._only or set()))
        self._mark(report)
        gone = self._without_grants()
        report.granted = len(self._dead) - len(gone)
        records = self._needless(gone, report)
        self._attribute(report)
        if not dry:
            self._delete_grants()
            self._delete_names(gone)
            self._delete_records(records)
            self._delete_evicted()
            self._store.forget_complete()
        return report

    def members_too(self) -> set[bytes]:
        """The roots, and those of all that manifests among them name. Raises StoreDamagedError."""
        self._expand(set(self._keep))
        return self._keep

    # -- marking --------------------------------------------------------------------------------------------------

    def _expand(self, roots: set[bytes]) -> None:
        """Keep what the manifests among `roots` name."""
        for root in sorted(roots):
            if root[0] == MANIFEST and root not in self._expanded:
                self._expanded.add(root)
                self._keep.add(root)
                self._keep.update(self._members(root))
                self._progress("reading manifests", len(self._expanded))

    def _members(self, root: bytes) -> set[bytes]:
        """Roots of all that a manifest of the caller names, under both of DVC's algorithms. Nothing for one that is not
        here: its files cannot be had by it."""
        found: set[bytes] = set()
        for algo in _MD5S:
            name = ObjectName.from_key(bytes([algo | DIR_FLAG]) + root[1:])
            with self._index.begin() as txn:
                contents = [each for each in self._index.contents(txn, name) if self._granted(txn, each.id) is not None]
            for content in contents:
                found.update(b"\0" + bytes.fromhex(hexed.decode()) for hexed in self._digests(content, name))
        return found

    def _digests(self, content: Content, name: ObjectName) -> Iterator[bytes]:
        tail = b""
        try:
            for piece in self._store.reader.pieces(content):
                text = tail + piece
                # One that begins in the overlap is found again with the next piece, whole.
                yield from _HEX.findall(text)
                tail = text[-_OVERLAP:]
        except StoreDamagedError as error:
            raise cannot(f"manifest {name.value}", error) from error

    def _young_manifests(self) -> Iterator[bytes]:
        """Keys of the caller's manifests that the grace period keeps: what they name is kept with them."""
        for key, content in self._names():
            if key[0] & DIR_FLAG and self._is_young(content.id):
                yield key

    def _mark(self, report: SweepReport) -> None:
        """Find the caller's contents that nothing keeps."""
        alive: set[bytes] = set()
        for key, content in self._names():
            root = root_of_key(key)
            spared = self._only is not None and root not in self._only
            if key[0] & ~DIR_FLAG not in _MD5S or root in self._keep or spared:
                alive.add(content.id)
        for count, (key, content) in enumerate(self._names()):
            if not count % _TICK:
                self._progress("marking", count)
            with self._index.begin() as txn:
                given = self._granted(txn, content.id)
            if given is None:
                # Left without a grant by a sweep that was broken off: nobody can read it.
                if not self._is_granted(content.id):
                    self._dead[key + content.pack()] = content
                continue
            if content.id in alive:
                report.kept.add(content.size)
            elif given > self._since and self._only is None:
                report.kept.add(content.size)
                report.young.add(content.size)
            else:
                self._dead[key + content.pack()] = content
                report.removed.add(content.size)

    def _granted(self, txn: Any, content_id: bytes) -> int | None:
        value = txn.get(grant_key(self._uid, content_id), db=self._index.grants)
        return None if value is None else stamped(value)

    def _is_granted(self, content_id: bytes) -> bool:
        with self._index.begin() as txn:
            get, database = txn.get, self._index.grants
            return any(get(grant_key(uid, content_id), db=database) is not None for uid in self._index.uids(txn))

    def _is_young(self, content_id: bytes) -> bool:
        with self._index.begin() as txn:
            given = self._granted(txn, content_id)
        return given is not None and given > self._since

    def _names(self) -> Iterator[tuple[bytes, Content]]:
        for key, value in rows(self._index, self._index.objects):
            yield key, unpack_content(value)

    def _without_grants(self) -> set[bytes]:
        """Ids of the dead contents that nobody else may read."""
        ids = {content.id for content in self._dead.values()}
        with self._index.begin() as txn:
            others = [uid for uid in self._index.uids(txn) if uid != self._uid]
            get, database = txn.get, self._index.grants
            return {each for each in ids if all(get(grant_key(uid, each), db=database) is None for uid in others)}

    def _needless(self, gone: set[bytes], report: SweepReport) -> list[bytes]:
        """Records that nothing needs once `gone` has no names; the unnamed ones only where their segment is old, because an
        add that was broken off may go on."""
        alive: set[bytes] = set()
        freed: set[bytes] = set()
        for count, (_, content) in enumerate(self._names()):
            if not count % _TICK:
                self._progress("following", count)
            needs = freed if content.id in gone else alive
            if content.id not in needs:
                needs.add(content.id)
                if content.kind == Kind.RECIPE:
                    needs.update(self._chunks(content))
        young = self._young_segments()
        found = []
        for record_id, value in rows(self._index, self._index.records):
            if record_id in alive:
                continue
            at = unpack_location(value)
            if record_id in freed or at.segment not in young:
                found.append(record_id)
                report.freed += padded(at.stored)
        report.records = len(found)
        return found

    def _chunks(self, content: Content) -> list[bytes]:
        try:
            layout = self._store.reader.layout(content)
        except StoreDamagedError as error:
            raise cannot(f"recipe {content.id.hex()[:16]}", error) from error
        return layout.needed()

    def _young_segments(self) -> set[int]:
        folder = self._store.path / "segments"
        return {n for n in segment_numbers(folder) if segment_path(folder, n).stat().st_mtime > self._since}

    def _attribute(self, report: SweepReport) -> None:
        """Say whose older versions go."""
        left = dict(self._dead)
        for path, roots in self._former.items():
            named = set(roots)
            for root in roots:
                if root[0] == MANIFEST and root not in self._keep:
                    named |= self._members(root)
            part = Part()
            for key in [key for key in left if root_of_key(key[:-_CONTENT_BYTES]) in named]:
                part.add(left.pop(key).size)
            if part.objects:
                report.projects[path] = part
        objects = sum(part.objects for part in report.projects.values())
        size = sum(part.bytes for part in report.projects.values())
        report.other = Part(report.removed.objects - objects, report.removed.bytes - size)

    # -- removing -------------------------------------------------------------------------------------------------

    def _delete_grants(self) -> None:
        ids = sorted({content.id for content in self._dead.values()})
        index, uid = self._index, self._uid
        self._each(ids, lambda txn, each: txn.delete(grant_key(uid, each), db=index.grants))

    def _delete_names(self, gone: set[bytes]) -> None:
        """Names of contents that nobody may read, and the caller's listings of such manifests."""
        index, uid = self._index, self._uid.to_bytes(4, "big")

        def delete(txn: Any, row: bytes) -> None:
            key, value = row[:-_CONTENT_BYTES], row[-_CONTENT_BYTES:]
            txn.delete(key, value, db=index.objects)
            txn.delete(uid + key, db=index.listings)

        self._each([row for row, content in self._dead.items() if content.id in gone], delete)

    def _delete_records(self, ids: list[bytes]) -> None:
        index = self._index
        self._each(ids, lambda txn, each: txn.delete(each, db=index.records))

    def _delete_evicted(self) -> None:
        """Rows of what was evicted and nothing names any more."""
        index, uid = self._index, self._uid.to_bytes(4, "big")
        if self._only is None:
            keys = [key for key, _ in rows(index, index.evicted) if key[:4] == uid]
            gone = [key for key in keys if root_of_key(key[4:]) not in self._keep]
            self._each(gone, lambda txn, each: txn.delete(each, db=index.evicted))

    def _each(self, keys: list[bytes], delete: Callable[[Any, bytes], Any]) -> None:
        """Delete in transactions of bounded size. Names go before records, so that a crash leaves no name without its
        records."""

        def work(batch: list[bytes], txn: Any) -> None:
            for key in batch:
                delete(txn, key)

        for start in range(0, len(keys), _BATCH):
            self._progress("removing", start)
            self._store.write(functools.partial(work, keys[start : start + _BATCH]))


def rows(index: Index, database: Any) -> Iterator[tuple[bytes, bytes]]:
    """All rows of a database, a bounded transaction at a time, so that no old pages are held."""
    after: tuple[bytes, bytes] | None = None
    while True:
        found: list[tuple[bytes, bytes]] = []
        with index.begin() as txn, txn.cursor(db=database) as cursor:
            there = cursor.first() if after is None else cursor.set_range(after[0])
            while there and len(found) < _BATCH:
                row = (bytes(cursor.key()), bytes(cursor.value()))
                if after is None or row > after:
                    found.append(row)
                there = cursor.next()
        if not found:
            return
        yield from found
        after = found[-1]


def root_of_key(key: bytes) -> bytes:
    """The root that keeps a name of this key."""
    return bytes([key[0] & DIR_FLAG]) + key[1:]


def cannot(what: str, error: StoreDamagedError) -> StoreDamagedError:
    """The error for what must be followed and cannot be read."""
    return StoreDamagedError(
        f"nothing is removed, because {what} cannot be read, and so what it needs is not known: {error.message}",
        hint="run `millpond fsck --repair` first",
        details=error.details,
    )
