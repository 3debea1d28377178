"""From names to folders: a manifest, or a revision's paths, made into a tree that a holder can serve.

A manifest that is in the store is read by the daemon. Sizes of objects that the store has not come from the caller's
worker, which looks into his own cache; they are his claim, so what is made of them is his alone.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence

import msgspec

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import ObjectMissingError, ProtocolError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.store.folders import FolderReader, Totals, TreeBuilder, TreeEntry, build_tree, save_listing
from millpond.daemon.store.service import parse_name
from millpond.daemon.store.store import Store

# Names resolved in one read transaction.
_BATCH = 10_000
# Files named in an error.
_NAMED = 5
# A size that the worker could not find out.
UNKNOWN = (1 << 64) - 1


class WireEntry(msgspec.Struct, array_like=True):
    """A path of a tree as a worker sends it (MessagePack): `folder` is a root id that `listing` gave."""

    path: bytes
    executable: bool
    size: int
    name: str | None
    target: bytes | None
    folder: bytes | None


_ENTRIES = msgspec.msgpack.Decoder(list[WireEntry])


class Unknown(Exception):
    """Objects of a manifest that the store has not for this caller: their names' keys, in order."""

    def __init__(self, names: list[ObjectName]) -> None:
        super().__init__(f"{len(names)} objects")
        self.names = names


def listing(store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None) -> Totals:
    """The tree of a manifest, made or remembered. `sizes` are those of the objects that an `Unknown` named.

    Raises Unknown, ObjectMissingError (the manifest, or files that nobody has), InvalidFileError.
    """
    reader = FolderReader(store.reader.index)
    found = reader.listing(uid, name)
    if found is not None and reader.has(found.root):
        return found
    entries = manifest.parse(read_object(store, uid, name), source=str(name), algo=_algo(name))
    totals = build_tree(store, _with_sizes(store, uid, name, entries, sizes))
    save_listing(store, uid, name, totals)
    return totals


def tree(store: Store, uid: int, packed: memoryview) -> Totals:
    """The tree of paths sent by a worker. Raises ProtocolError, TargetError."""
    try:
        entries = _ENTRIES.decode(packed)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a tree was sent that is none: {error}") from error
    entries.sort(key=lambda entry: entry.path.split(b"/"))
    reader = FolderReader(store.reader.index)
    builder = TreeBuilder(store)
    for entry in entries:
        name = parse_name(entry.name) if entry.name is not None else None
        folder = entry.folder
        if folder is not None and not reader.has(folder):
            raise ProtocolError("a tree names a folder that is not in the index")
        totals = Totals(folder, entry.size, 0) if folder is not None else None
        builder.add(TreeEntry(entry.path, entry.size, entry.executable, name, entry.target, folder), totals)
    return builder.finish()


def pack_entries(entries: list[WireEntry]) -> int:
    """A memory file with a tree's paths, for `tree`; the caller closes it. Raises ProtocolError when there are too many."""
    data = msgspec.msgpack.encode(entries)
    if len(data) > memfd.MAX_BYTES:
        raise ProtocolError(
            f"the revision has {len(entries)} files outside of tracked directories, too many to mount as a whole",
            hint="mount a folder of it",
        )
    return memfd.from_bytes(data)


def read_object(store: Store, uid: int, name: ObjectName) -> bytes:
    """A whole object. Raises ObjectMissingError, StoreDamagedError."""
    content = store.reader.resolve([name], uid)[0]
    if content is None:
        raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
    return store.reader.read_content(content)


def sizes_from(view: memoryview) -> array[int]:
    """Sizes as a worker sends them: u64 each, UNKNOWN for what it has not."""
    found = array("Q")
    if len(view) % found.itemsize:
        raise ProtocolError("a list of sizes was sent that is none")
    found.frombytes(view)
    return found


def _algo(name: ObjectName) -> str:
    """What a manifest's entries are named by: its own algorithm."""
    return name.algo


def _with_sizes(
    store: Store, uid: int, name: ObjectName, entries: list[ManifestEntry], sizes: Sequence[int] | None
) -> Iterator[TreeEntry]:
    known: list[int | None] = []
    for start in range(0, len(entries), _BATCH):
        batch = [entry.name for entry in entries[start : start + _BATCH]]
        known.extend(None if content is None else content.size for content in store.reader.resolve(batch, uid))
    unknown = [number for number, size in enumerate(known) if size is None]
    if unknown and sizes is None:
        raise Unknown([entries[number].name for number in unknown])
    missing = []
    for number, given in zip(unknown, sizes or (), strict=False):
        known[number] = None if given == UNKNOWN else given
        if given == UNKNOWN:
            missing.append(entries[number].relpath)
    if missing or (sizes is not None and len(sizes) != len(unknown)):
        raise _missing(name, missing)
    order = sorted(range(len(entries)), key=lambda number: os.fsencode(entries[number].relpath).split(b"/"))
    for number in order:
        entry, size = entries[number], known[number]
        yield TreeEntry(os.fsencode(entry.relpath), size or 0, name=entry.name)


def _missing(name: ObjectName, paths: list[str]) -> ObjectMissingError:
    if not paths:
        return ObjectMissingError(f"objects of {name} came and went meanwhile", hint="run the command again")
    shown = ", ".join(f"'{path}'" for path in paths[:_NAMED]) + (" ..." if len(paths) > _NAMED else "")
    count = f"{len(paths)} files of this version are" if len(paths) > 1 else "a file of this version is"
    return ObjectMissingError(
        f"{count} neither in the store nor in the project's cache: {shown}",
        hint="fetch them first: dvc fetch",
        details={"paths": [wirepath.encode(path) for path in paths[:1000]], "count": len(paths)},
    )
