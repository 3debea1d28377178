"""Eviction: what goes of what is wanted, because the projects' own remotes were seen to hold it (DESIGN.md,
"Eviction").

As a sweep it belongs to one caller, and takes away his grants. What a project's remotes hold is his worker's word, for
his own projects. Verbs go on meanwhile: what they found here is claimed (claims.py), and each transaction looks at the
claims, projects and pins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ALGORITHMS, DIR_FLAG, ObjectName
from millpond.daemon.store.gc import Part, Progress, Sweep, cannot, root_of_key, rows
from millpond.daemon.store.index import Content, Index, evicted_key, grant_key, stamped, unpack_content
from millpond.daemon.store.records import Kind, Location, padded, unpack_location
from millpond.daemon.store.uses import ages

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# Contents removed in one transaction, and by one plan.
_BATCH = 2000
MAX_VICTIMS = 500_000
# And of projects that name these, each counted for each.
MAX_NAMED = 2_000_000
_TICK = 10_000
_MD5 = ALGORITHMS["md5"]

# Why contents stay, whatever remotes hold: see `Eviction`.
MANIFEST, SEVERAL, PINNED, IN_USE, UNNAMED, OTHERS, SHARED = (
    *("manifest", "several", "pinned", "in use", "unnamed", "others", "shared"),
)


class PlanIsOld(Exception):
    """Projects, pins or manifests in use are others than when the plan was made."""


@dataclass(slots=True)
class EvictReport:
    """`evicted` went, or would, with `freed` bytes of records; `evictable` might have. `kept` is what may not go, by
    reason; `lacking` by the path of a project whose remotes were not seen to hold it. `there`: bytes of all records
    before, `garbage` those of them that have no name, left by what was broken off; they go first."""

    dry: bool
    evicted: Part = field(default_factory=Part)
    evictable: Part = field(default_factory=Part)
    kept: dict[str, Part] = field(default_factory=dict)
    lacking: dict[str, Part] = field(default_factory=dict)
    freed: int = 0
    there: int = 0
    garbage: int = 0


@dataclass(slots=True)
class Victim:
    """A content that may go: its one name's key, the records that it needs, the projects that name it. `theirs`: others
    may read it, so only the caller's grant goes."""

    key: bytes
    content: Content
    records: list[bytes]
    projects: list[str]
    theirs: bool
    order: tuple[bool, bool, float, int, int] = (False, False, 0.0, 0, 0)

    @property
    def root(self) -> bytes:
        return root_of_key(self.key)


class Eviction:
    """One plan for `uid`. `held`: for each project's path the size of each of its objects' roots that its remotes hold.
    Unless `shared`, what others may read too stays. `to`: bytes that all records may have in the end; at most
    MAX_VICTIMS contents go.

    What stays in any case: manifests; names with several contents, and contents with several names; what pins keep;
    what is claimed, or was granted since the oldest of those began who put; what no project names; and what has no
    record to itself.
    """

    def __init__(
        self,
        store: Store,
        uid: int,
        held: Mapping[str, Mapping[bytes, int]],
        *,
        to: int,
        shared: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._index: Index = store.reader.index
        self._uid = uid
        self._held = held
        self._to = to
        self._shared = shared
        self._progress = progress or (lambda what, done: None)
        # How many victims, or what might be one, need a record that nothing else needs; what these records take.
        self._needs: Counter[bytes] = Counter()
        self._sizes: dict[bytes, int] = {}
        # Records without names, and where they are.
        self._garbage: dict[bytes, Location] = {}
        self._plan_of: tuple[int, int] = (0, 0)
        self.victims: list[Victim] = []
        self.report = EvictReport(True)

    def run(self, *, dry: bool) -> EvictReport:
        """Find what may go (`victims`), and unless `dry` remove it. Raises StoreDamagedError when a manifest or recipe
        cannot be read: then nothing is removed; PlanIsOld, and what `progress` raises, after whole steps."""
        report = self.report = EvictReport(dry)
        with self._store.claims.frozen():
            self._store.flush()
            self._plan_of = self._state()
            self._choose(report)
            if not dry:
                report.evicted, report.freed = Part(), 0
                garbage = list(self._garbage)
                for start in range(0, len(garbage), _BATCH):
                    self._remove_garbage(garbage[start : start + _BATCH])
                for start in range(0, len(self.victims), _BATCH):
                    self._progress("evicting", start)
                    self._remove(self.victims[start : start + _BATCH], report)
                self._store.forget_complete()
        return report

    def _state(self) -> tuple[int, int]:
        return self._store.noted, self._store.claims.generation

    # -- what may go ----------------------------------------------------------------------------------------------

    def _choose(self, report: EvictReport) -> None:
        ledger = self._store.ledger
        named = {each.path: self._expanded(ledger.roots(self._uid, each.path)) for each in ledger.projects(self._uid)}
        pinned = self._expanded({bytes.fromhex(root) for pin in ledger.pins(self._uid) for root in pin.roots})
        claimed = self._expanded(self._store.claims.manifests)
        alive: set[bytes] = set()
        found: list[Victim] = []
        for count, (key, content, alone) in enumerate(self._contents()):
            if not count % _TICK:
                self._progress("looking for what may go", count)
            root = root_of_key(key)
            each = Victim(key, content, [content.id, *self._chunks(content)], [], False)
            each.projects = [path for path, roots in named.items() if root in roots]
            why = self._why_not(each, alone, root in pinned, root in claimed)
            if why is None:
                lacking = next((path for path in each.projects if not self._is_held(path, each)), None)
                if lacking is None:
                    found.append(each)
                    if each.theirs:
                        alive.update(each.records)
                    continue
                report.lacking.setdefault(lacking, Part()).add(content.size)
            elif why:
                report.kept.setdefault(why, Part()).add(content.size)
            alive.update(each.records)
        self._weigh(found, alive, report)
        self._first(found, report)

    def _why_not(self, each: Victim, alone: bool, pinned: bool, claimed: bool) -> str | None:
        """Why a content stays whatever remotes hold, "" if it is not the caller's; None when they matter."""
        with self._index.begin() as txn:
            given = txn.get(grant_key(self._uid, each.content.id), db=self._index.grants)
            if given is None:
                return ""
            since = stamped(given)
            each.theirs = self._is_others(txn, each.content.id)
        if each.key[0] != _MD5:
            return MANIFEST if each.key[0] & DIR_FLAG else SEVERAL
        if not alone:
            return SEVERAL
        if pinned:
            return PINNED
        if claimed or self._is_claimed(each, since):
            return IN_USE
        if not each.projects:
            return UNNAMED
        return OTHERS if each.theirs and not self._shared else None

    def _is_claimed(self, each: Victim, granted: int) -> bool:
        claims = self._store.claims
        return claims.all or granted >= int(min(claims.since, 1 << 62)) or claims.has(each.records)

    def _is_others(self, txn: Any, content_id: bytes) -> bool:
        get, grants = txn.get, self._index.grants
        return any(
            get(grant_key(uid, content_id), db=grants) is not None for uid in self._index.uids(txn) if uid != self._uid
        )

    def _is_held(self, path: str, each: Victim) -> bool:
        return self._held.get(path, {}).get(each.root) == each.content.size

    def _expanded(self, roots: set[bytes]) -> set[bytes]:
        return Sweep(self._store, self._uid, roots, grace_s=0).members_too()

    def _contents(self) -> list[tuple[bytes, Content, bool]]:
        """(key of a name, content, whether both have no other) of everything, each content once; a manifest's name
        first."""
        found: dict[bytes, tuple[bytes, Content, bool]] = {}
        last = b"", b""
        for key, value in rows(self._index, self._index.objects):
            content = unpack_content(value)
            several = key == last[0]
            if several:
                before = found[last[1]]
                found[last[1]] = (before[0], before[1], False)
            known = found.get(content.id)
            if known is None:
                found[content.id] = (key, content, not several)
            else:
                found[content.id] = (max(key, known[0]), content, False)
            last = key, content.id
        return list(found.values())

    def _chunks(self, content: Content) -> list[bytes]:
        if content.kind != Kind.RECIPE:
            return []
        try:
            layout = self._store.reader.layout(content)
        except StoreDamagedError as error:
            raise cannot(f"recipe {content.id.hex()[:16]}", error) from error
        return layout.needed()

    # -- what goes first ------------------------------------------------------------------------------------------

    def _weigh(self, found: list[Victim], alive: set[bytes], report: EvictReport) -> None:
        """Note what each record takes that only these need, and by that in which order they go; and what nobody
        needs."""
        for each in found:
            if not each.theirs:
                self._needs.update(record_id for record_id in set(each.records) if record_id not in alive)
        times, mark = ages(self._store), self._store.claims.mark
        places: dict[bytes, tuple[bool, float, int, int]] = {}
        for record_id, value in rows(self._index, self._index.records):
            at = unpack_location(value)
            report.there += padded(at.stored)
            is_new = mark is not None and (at.segment, at.offset) >= mark
            if record_id in self._needs:
                self._sizes[record_id] = padded(at.stored)
                places[record_id] = (*times.get(at.segment, (True, 0.0)), at.segment, at.offset)
            elif record_id not in alive and not is_new:
                self._garbage[record_id] = at
                report.garbage += padded(at.stored)
        for record_id in self._needs:
            self._sizes.setdefault(record_id, 0)  # damaged, and set aside by fsck: a remote has what it was a part of
        nowhere = (False, 0.0, 0, 0)
        for each in found:
            each.order = (each.theirs, *max((places[one] for one in each.records if one in places), default=nowhere))

    def _first(self, found: list[Victim], report: EvictReport) -> None:
        """Choose those that were used longest ago."""
        left = Counter(self._needs)
        named = 0
        for each in sorted(found, key=lambda each: each.order):
            if not each.theirs and not any(record_id in self._needs for record_id in each.records):
                report.kept.setdefault(SHARED, Part()).add(each.content.size)
                continue
            report.evictable.add(each.content.size)
            is_enough = report.there - report.garbage - report.freed <= self._to
            if is_enough or len(self.victims) >= MAX_VICTIMS or named >= MAX_NAMED:
                continue
            named += len(each.projects)
            self.victims.append(each)
            report.evicted.add(each.content.size)
            report.freed += self._take(left, each)

    def _take(self, left: Counter[bytes], each: Victim) -> int:
        """One victim less needs its records: the bytes of those that nobody needs then."""
        return sum(self._sizes[one] for one in self._unneeded(left, each))

    def _unneeded(self, left: Counter[bytes], each: Victim) -> list[bytes]:
        found = []
        for record_id in set(each.records) if not each.theirs else ():
            if record_id in self._needs:
                left[record_id] -= 1
                if not left[record_id]:
                    found.append(record_id)
        return found

    # -- removing -------------------------------------------------------------------------------------------------

    def _remove_garbage(self, batch: Sequence[bytes]) -> None:
        def work(txn: Any) -> None:
            mark = self._store.claims.mark
            for record_id in batch:
                at = self._index.location(txn, record_id)
                is_new = at is not None and mark is not None and (at.segment, at.offset) >= mark
                if at == self._garbage[record_id] and not is_new and not self._store.claims.has([record_id]):
                    txn.delete(record_id, db=self._index.records)

        self._store.write_unclaimed(work)

    def _remove(self, batch: Sequence[Victim], report: EvictReport) -> None:
        done: list[Victim] = []
        left: Counter[bytes] = Counter()

        def work(txn: Any) -> int:
            if self._state() != self._plan_of:
                raise PlanIsOld
            done.clear()
            left.clear()
            left.update(self._needs)
            freed = 0
            for each in batch:
                if self._is_as_planned(txn, each):
                    done.append(each)
                    freed += self._remove_one(txn, each, left)
            self._store.forget_complete()
            return freed

        report.freed += self._store.write_unclaimed(work)
        self._needs = left
        for each in done:
            report.evicted.add(each.content.size)

    def _is_as_planned(self, txn: Any, each: Victim) -> bool:
        given = txn.get(grant_key(self._uid, each.content.id), db=self._index.grants)
        if given is None or self._is_claimed(each, stamped(given)):
            return False
        only = self._index.contents(txn, ObjectName.from_key(each.key)) == [each.content]
        return only and self._is_others(txn, each.content.id) == each.theirs

    def _remove_one(self, txn: Any, each: Victim, left: Counter[bytes]) -> int:
        index, content = self._index, each.content
        txn.delete(grant_key(self._uid, content.id), db=index.grants)
        txn.put(evicted_key(self._uid, each.key), content.size.to_bytes(8, "little"), db=index.evicted)
        if each.theirs:
            return 0
        txn.delete(each.key, content.pack(), db=index.objects)
        freed = 0
        for record_id in self._unneeded(left, each):
            txn.delete(record_id, db=index.records)
            freed += self._sizes[record_id]
        return freed


def evicted(store: Store, uid: int) -> Part:
    """What only remotes have of what the caller's projects name."""
    found = Part()
    for key, value in rows(store.reader.index, store.reader.index.evicted):
        if key[:4] == uid.to_bytes(4, "big"):
            found.add(int.from_bytes(value, "little"))
    return found
