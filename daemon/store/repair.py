"""Mending what fsck found: quarantine, other copies in the segments, bytes from elsewhere, the journal written anew."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.fsck import MAX_LISTED, Fsck
from millpond.daemon.store.index import Content, Index
from millpond.daemon.store.journal import NameBatch
from millpond.daemon.store.records import Kind

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

# A content's bytes for its name from elsewhere, or None.
Source = Callable[[ObjectName], bytes | None]
# Names in one commit of the journal's rewriting.
_NAMES = 20_000


def sound_manifest(store: Store, uid: int, name: ObjectName) -> bytes | None:
    """A `Source`: a manifest that `uid` may read by another content than the damaged one, because he gave it again."""
    index = store.reader.index
    with index.begin() as txn:
        found = index.contents(txn, name) if name.is_dir else []
        granted = [each for each in found if index.is_granted(txn, uid, each)]
    for content in granted if len(found) > 1 else ():
        with contextlib.suppress(StoreDamagedError):
            data = store.reader.read_content(content)
            if hashlib.md5(data, usedforsecurity=False).hexdigest() == name.hex:
                return data
    return None


class Repair:
    """One repair after one check."""

    def __init__(self, store: Store, index: Index, folder: Path, check: Fsck) -> None:
        self._store = store
        self._index = index
        self._folder = folder
        self._check = check

    def run(self, source: Source | None) -> None:
        """Mend what can be mended and write into the report what cannot."""
        check, report = self._check, self._check.report
        report.quarantined = self._store.write(self._quarantine)
        self._store.forget_complete()
        self._find_again()
        if check.ranges:
            self._rewrite_journal()
        if source is not None:
            for name in dict.fromkeys(each.name for each in check.hurt):
                if self._is_hurt(name):
                    data = source(name)
                    if data is not None:
                        self._store_again(name, data)
        before = {each.name for each in check.hurt}
        left = [name for name in before if self._is_hurt(name)]
        report.repaired = len(before) - len(left)
        report.hurt = sorted(map(str, left))[:MAX_LISTED]
        report.ok = not left

    def _quarantine(self, txn: Any) -> int:
        """Put damaged records aside, so that the same bytes can be stored again; take away names of what has another
        digest; remember ranges that are no record. How many were put aside."""
        check = self._check
        for record_id, damage in check.bad.items():
            if damage.kind != "object":
                self._index.set_aside(txn, record_id, damage.reason, check.where.get(record_id))
        for named in check.misnamed:
            txn.delete(named.name.key(), named.content.pack(), db=self._index.objects)
        for each in check.ranges:
            self._index.set_aside_range(txn, *each, "damaged")
        return len(check.bad)

    def _is_hurt(self, name: ObjectName) -> bool:
        """Whether any content of a name lacks a record, now; or no content is left."""
        with self._index.begin() as txn:
            contents = self._index.contents(txn, name)
        return not contents or any(self._lacking(each) for each in contents)

    def _find_again(self) -> None:
        """Look for other copies in the segments; what a recipe needs is known when the recipe is found."""
        for _ in range(2):
            lacking = {each for named in self._check.hurt for each in self._lacking(named.content)}
            if not lacking or not self._store.find_again(lacking):
                return

    def _lacking(self, content: Content) -> set[bytes]:
        """The records that a content needs and has not now, as far as that can be known."""
        with self._index.begin() as txn:
            if self._index.location(txn, content.id) is None:
                return {content.id}
        if content.kind == Kind.CHUNK:
            return set()
        try:
            layout = self._store.reader.layout(content)
        except StoreDamagedError:
            return {content.id}
        with self._index.begin() as txn:
            return {chunk for chunk in layout.needed() if self._index.location(txn, chunk) is None}

    def _store_again(self, name: ObjectName, data: bytes) -> None:
        """Take a content in as if each who could read what is hurt added it: mending gives nobody a new right."""
        owners = self._owners(name)
        for owner in owners:
            session = self._store.session(owner)
            stored = session.feed(memoryview(data), [(len(data), True, name.is_dir)])[0]
            if stored.name != name:
                session.abort()
                return
            session.commit()
            self._replace(name, stored.content, owners)

    def _replace(self, name: ObjectName, whole: Content, owners: list[int]) -> None:
        """A manifest that was made of parts is stored whole now, as another content: what it was before goes, once all who could
        read that have the other."""

        def work(txn: Any) -> None:
            has_whole = {uid for uid in owners if self._index.is_granted(txn, uid, whole)}
            others = [uid for uid in self._index.uids(txn) if uid not in has_whole]
            for content in self._index.contents(txn, name):
                is_left = any(self._index.is_granted(txn, uid, content) for uid in others)
                if content != whole and self._lacking(content) and not is_left:
                    txn.delete(name.key(), content.pack(), db=self._index.objects)

        self._store.write(work)

    def _owners(self, name: ObjectName) -> list[int]:
        """All who may read a hurt content of this name."""
        with self._index.begin() as txn:
            contents = {each.content for each in self._check.hurt if each.name == name}
            uids = self._index.uids(txn)
            return [uid for uid in uids if any(self._index.is_granted(txn, uid, each) for each in contents)]

    def _rewrite_journal(self) -> None:
        """A damaged range may have been a journal record; the index still has what it said."""
        with self._index.begin() as txn:
            uids = self._index.uids(txn)
        batches = {uid: NameBatch(uid) for uid in uids}
        for named in self._check.names():
            with self._index.begin() as txn:
                owners = [uid for uid in uids if self._index.is_granted(txn, uid, named.content)]
            for uid in owners:
                batches[uid].add(named.name.key(), named.content)
                if len(batches[uid]) >= _NAMES:
                    self._store.commit_names(batches[uid], anew=True)
                    batches[uid] = NameBatch(uid)
        for batch in batches.values():
            if len(batch):
                self._store.commit_names(batch, anew=True)
