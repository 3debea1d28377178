"""What each project keeps in the store: counted from its roots as last known, by the manifests that they name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millpond.daemon.names import ALGORITHMS, DIR_FLAG, ObjectName
from millpond.daemon.store.gc import Sweep
from millpond.daemon.store.index import Content
from millpond.daemon.store.ledger import MANIFEST

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

_MD5 = ALGORITHMS["md5"]
# Names looked up in one transaction.
_BATCH = 1000
# A root, and its content's size.
ROW_BYTES = 17 + 8


@dataclass(slots=True)
class Usage:
    """Objects that a project's versions consist of, their bytes before deduplication and compression, and the bytes of
    those that no other project of the same user needs."""

    path: str
    objects: int = 0
    bytes: int = 0
    alone: int = 0


def usage(store: Store, uid: int) -> list[Usage]:
    """For each of a caller's projects. Raises StoreDamagedError for a manifest that cannot be read."""
    found: dict[bytes, tuple[int, int]] = {}
    uses: list[Usage] = []
    for number, project in enumerate(store.ledger.projects(uid)):
        use = Usage(project.path)
        for _, content in contents(store, uid, project.path):
            use.objects += 1
            use.bytes += content.size
            # Whose it is alone, so far; -1 for several.
            owner, _ = found.get(content.id, (number, 0))
            found[content.id] = (number if owner == number else -1, content.size)
        uses.append(use)
    for owner, size in found.values():
        if owner >= 0:
            uses[owner].alone += size
    return uses


def contents(store: Store, uid: int, path: str) -> Iterator[tuple[bytes, Content]]:
    """(root, content) of each object that a project's roots lead to and the caller may read."""
    roots = store.ledger.roots(uid, path)
    todo = iter(sorted(Sweep(store, uid, roots, grace_s=0).members_too()))
    while batch := list(itertools.islice(todo, _BATCH)):
        for root, content in zip(batch, store.reader.resolve([_name(root) for root in batch], uid), strict=True):
            if content is not None:
                yield root, content


def _name(root: bytes) -> ObjectName:
    return ObjectName.from_key(bytes([_MD5 | (DIR_FLAG if root[0] == MANIFEST else 0)]) + root[1:])


def packed(store: Store, uid: int, path: str) -> bytes:
    """`contents` as rows of 25 bytes: root, size u64 little endian."""
    return b"".join(root + content.size.to_bytes(8, "little") for root, content in contents(store, uid, path))
