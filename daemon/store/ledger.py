"""What keeps data from being garbage: projects with their roots, and pins. Notes in the journal, rows in the index.

    projects   uid u32be, BLAKE3 of the path (16) -> JSON {path, git, seen, read}
    roots      the same 20 bytes, root 17         -> empty
    pins       uid u32be, BLAKE3 of the pin (16)  -> JSON {project, target, commit, made, roots}

A **root** is an MD5 that a project's pointers name: one byte, 0x80 for a manifest, else 0, then the digest. It keeps what
has that name in any algorithm. Paths are percent-encoded (wirepath). `read` is when all of a project's revisions were read
last; what verbs have stored or used since is added to its roots one by one.

Notes, JSON: `{"op": "project", path, git, seen, read, roots: [hex], replace}`, `{"op": "forget", path}`, `{"op": "pin", id,
...}`, `{"op": "unpin", id}`, `{"op": "limit", bytes}` (of the whole store, 0 for none), and `{"op": "seal"}`, which says nothing. Each is one record, so a crash applies all of it or nothing. Replaying the end of a journal
over what it has made changes nothing. When a segment with notes goes, all that is true is noted again first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from millpond.daemon.errors import ProtocolError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.index import Index, stamped

if TYPE_CHECKING:
    from millpond.daemon.store.store import Store

ROOT_BYTES = 17
MANIFEST = 0x80
# In `meta`: when the index was made anew from the segments.
REBUILT = b"rebuilt"
# A project that was seen this long ago is noted again.
_SEEN_S = 86_400.0
# In `meta`: the size limit in bytes, u64, 0 for none.
_LIMIT = b"limit"
# Notes that change what is kept.
KEEPING = frozenset({"project", "forget", "pin", "unpin"})
MAX_PROJECTS = 10_000
MAX_PINS = 10_000
_DIGEST = re.compile(rb"(?<![0-9a-fA-F])([0-9a-f]{32})(?![0-9a-fA-F])(\.dir)?")


@dataclass(frozen=True, slots=True)
class Project:
    """A project of `uid`; times in seconds since the epoch, `read` 0 when its revisions were never read. `git` is the
    path of its Git directory, None without Git."""

    uid: int
    path: str
    git: str | None
    seen: float
    read: float
    roots: int = 0


@dataclass(frozen=True, slots=True)
class Pin:
    """A version that is kept whatever its project says; `roots` in hex."""

    id: str
    project: str
    target: str
    commit: str | None
    made: float
    roots: list[str]


def root_of(name: ObjectName) -> bytes:
    """The root that keeps an object."""
    return bytes([MANIFEST if name.is_dir else 0]) + bytes.fromhex(name.hex)


def roots_in(text: bytes) -> set[bytes]:
    """Every MD5 that a pointer or lock file names, also as a dependency, and also where it is broken: what may be meant is
    kept."""
    return {bytes([MANIFEST if end else 0]) + bytes.fromhex(hexed.decode()) for hexed, end in _DIGEST.findall(text)}


def unpacked(packed: bytes | memoryview) -> list[bytes]:
    """Roots that lie back to back. Raises ProtocolError."""
    data = bytes(packed)
    found = [data[start : start + ROOT_BYTES] for start in range(0, len(data), ROOT_BYTES)]
    if found and (len(found[-1]) != ROOT_BYTES or any(root[0] not in (0, MANIFEST) for root in found)):
        raise ProtocolError("a list of roots was sent that is none")
    return found


def apply(index: Index, txn: Any, uid: int, note: dict[str, Any]) -> None:
    """Make of a note what the index says. Unknown ones, of a newer version, change nothing."""
    op = note.get("op")
    if op == "project":
        key = _key(uid, note["path"])
        if note.get("replace"):
            _drop_roots(index, txn, key)
        before = _json(txn.get(key, db=index.projects))
        read = max(float(note.get("read") or 0), float(before.get("read") or 0))
        row = {"path": note["path"], "git": note.get("git"), "seen": note["seen"], "read": read}
        txn.put(key, json.dumps(row).encode(), db=index.projects)
        for root in note.get("roots") or ():
            txn.put(key + bytes.fromhex(root), b"", db=index.roots)
    elif op == "forget":
        key = _key(uid, note["path"])
        _drop_roots(index, txn, key)
        txn.delete(key, db=index.projects)
    elif op == "pin":
        row = {name: value for name, value in note.items() if name != "op"}
        txn.put(_key(uid, note["id"]), json.dumps(row).encode(), db=index.pins)
    elif op == "unpin":
        txn.delete(_key(uid, note["id"]), db=index.pins)
    elif op == "limit":
        txn.put(_LIMIT, int(note["bytes"]).to_bytes(8, "little"), db=index.meta)


def limit_note(size: int | None) -> dict[str, Any]:
    """The note that the store may have `size` bytes, or any number."""
    return {"op": "limit", "bytes": size or 0}


def limit_of(index: Index, txn: Any) -> int | None:
    """The size that the store may have; None for no limit."""
    return stamped(txn.get(_LIMIT, db=index.meta) or b"") or None


def _drop_roots(index: Index, txn: Any, key: bytes) -> None:
    with txn.cursor(db=index.roots) as cursor:
        there = cursor.set_range(key)
        while there and bytes(cursor.key()[: len(key)]) == key:
            there = cursor.delete()


class Ledger:
    """Projects and pins of an open store. Blocking; from any thread but the commit thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = store.reader.index

    def seen(self, uid: int, path: str, git: str | None, roots: Iterable[bytes]) -> bool:
        """A verb has worked in a project and found or stored these: note what is new. Whether anything was."""
        key, now = _key(uid, path), self._store.now()
        with self._index.begin() as txn:
            row = _json(txn.get(key, db=self._index.projects))
            fresh = [root for root in roots if txn.get(key + root, db=self._index.roots) is None]
        if row and not fresh and row.get("git") == git and 0 <= now - float(row["seen"]) < _SEEN_S:
            return False
        if not row and len(self.projects(uid)) >= MAX_PROJECTS:
            raise TargetError(f"{MAX_PROJECTS} projects are registered already", hint="millpond forget-project PATH")
        self._note_roots(uid, path, git, fresh, replace=False)
        return True

    def replace(self, uid: int, path: str, git: str | None, roots: Iterable[bytes]) -> None:
        """All revisions of a project were read: these are its roots now."""
        self._note_roots(uid, path, git, sorted(roots), replace=True)

    def projects(self, uid: int) -> list[Project]:
        """By path; `roots` is how many each has."""
        found = []
        with self._index.begin() as txn:
            for key, value in _rows(txn, self._index.projects, uid):
                row = _json(value)
                count = sum(1 for _ in _roots(self._index, txn, key))
                found.append(
                    Project(uid, row["path"], row.get("git"), float(row["seen"]), float(row.get("read") or 0), count)
                )
        return sorted(found, key=lambda project: project.path)

    def roots(self, uid: int, path: str) -> set[bytes]:
        """A project's roots as last known."""
        with self._index.begin() as txn:
            return set(_roots(self._index, txn, _key(uid, path)))

    def forget(self, uid: int, path: str) -> None:
        """A project keeps nothing any more. Raises TargetError when it is not known."""
        if path not in {project.path for project in self.projects(uid)}:
            raise TargetError(f"'{path}' is no registered project", path=path, hint="see `millpond cache info`")
        self._store.note(uid, {"op": "forget", "path": path})

    def pin(self, uid: int, pin: Pin) -> None:
        """Keep a version."""
        if len(self.pins(uid)) >= MAX_PINS:
            raise TargetError(f"there are {MAX_PINS} pins already", hint="millpond unpin")
        row = {name: getattr(pin, name) for name in Pin.__slots__}
        self._store.note(uid, {"op": "pin", **row})

    def unpin(self, uid: int, pin_id: str) -> None:
        """Let a version go. Safe twice."""
        self._store.note(uid, {"op": "unpin", "id": pin_id})

    def pins(self, uid: int) -> list[Pin]:
        """By project and target."""
        with self._index.begin() as txn:
            rows = [_json(value) for _, value in _rows(txn, self._index.pins, uid)]
        found = [Pin(**{name: row[name] for name in Pin.__slots__}) for row in rows]
        return sorted(found, key=lambda pin: (pin.project, pin.target, pin.made))

    def rebuilt(self) -> int:
        """When the index was made anew, in seconds since the epoch; 0 if it never was."""
        with self._index.begin() as txn:
            return stamped(txn.get(REBUILT, db=self._index.meta) or b"")

    def snapshot(self) -> None:
        """Write all into the journal again: older notes may be lost or thrown away now."""
        with self._index.begin() as txn:
            uids = sorted(
                {
                    int.from_bytes(key[:4], "big")
                    for db in (self._index.projects, self._index.pins)
                    for key in _keys(txn, db)
                }
            )
            limit = limit_of(self._index, txn)
        notes: list[tuple[int, dict[str, Any]]] = [] if limit is None else [(0, limit_note(limit))]
        for uid in uids:
            for project in self.projects(uid):
                roots = sorted(self.roots(uid, project.path))
                notes.append((uid, _project_note(project, roots, replace=True)))
            for pin in self.pins(uid):
                notes.append((uid, {"op": "pin", **{name: getattr(pin, name) for name in Pin.__slots__}}))
        self._store.note_all(notes)

    def _note_roots(self, uid: int, path: str, git: str | None, roots: list[bytes], *, replace: bool) -> None:
        now = self._store.now()
        project = Project(uid, path, git, now, now if replace else 0.0)
        self._store.note(uid, _project_note(project, roots, replace=replace))


def _project_note(project: Project, roots: list[bytes], *, replace: bool) -> dict[str, Any]:
    return {
        "op": "project",
        "path": project.path,
        "git": project.git,
        "seen": project.seen,
        "read": project.read,
        "roots": [root.hex() for root in roots],
        "replace": replace,
    }


def _key(uid: int, text: str) -> bytes:
    return uid.to_bytes(4, "big") + blake3(text.encode()).digest(16)


def _json(value: Any) -> dict[str, Any]:
    return {} if value is None else json.loads(bytes(value))


def _keys(txn: Any, database: Any) -> Iterator[bytes]:
    with txn.cursor(db=database) as cursor:
        for key in cursor.iternext(values=False):
            yield bytes(key)


def _rows(txn: Any, database: Any, uid: int) -> Iterator[tuple[bytes, bytes]]:
    prefix = uid.to_bytes(4, "big")
    with txn.cursor(db=database) as cursor:
        there = cursor.set_range(prefix)
        while there and bytes(cursor.key()[:4]) == prefix:
            yield bytes(cursor.key()), bytes(cursor.value())
            there = cursor.next()


def _roots(index: Index, txn: Any, key: bytes) -> Iterator[bytes]:
    with txn.cursor(db=index.roots) as cursor:
        there = cursor.set_range(key)
        while there and bytes(cursor.key()[: len(key)]) == key:
            yield bytes(cursor.key()[len(key) :])
            there = cursor.next()
