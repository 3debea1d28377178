"""From names to folders: a manifest, or a revision's paths, made into a tree that a holder can serve.

A manifest that is in the store is read by the daemon. Sizes of objects that the store has not come from the caller's
worker, which looks into his own cache; they are his claim, so what is made of them is his alone.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import InvalidFileError, ObjectMissingError, ProtocolError
from millpond.daemon.mounts.sorting import FileRow, RowSorter
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.store import manifests
from millpond.daemon.store.files import as_store_error
from millpond.daemon.store.folders import FolderReader, OutOfOrder, Totals, TreeBuilder, TreeEntry, save_listing
from millpond.daemon.store.service import parse_name
from millpond.daemon.store.store import Store

# Names resolved in one read transaction.
_BATCH = 10_000
# Files named in an error, and in its details.
_NAMED, _LISTED = 5, 1000
# Bytes of a name's key: MD5.
KEY_BYTES = 17
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
    """Objects of a manifest that the store has not for this caller: their names' keys, back to back, in order."""

    def __init__(self, keys: bytes) -> None:
        super().__init__(f"{len(keys) // KEY_BYTES} objects")
        self.keys = keys


def listing(
    store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None, *, all_unknown: bool = True
) -> Totals:
    """The tree of a manifest, made or remembered. `sizes` are those of the objects that an `Unknown` named; without
    `all_unknown` it names the first ones only, and soon.

    The manifest is read as a stream and built as it comes. Its order is that of whole paths, a tree's that of their parts,
    which differ when a name goes on with a character below `/` (`a-b` beside `a/`): only then are paths sorted, on disk.

    Raises Unknown, ObjectMissingError (the manifest, or files that nobody has), InvalidFileError.
    """
    reader = FolderReader(store.reader.index)
    found = reader.listing(uid, name)
    if found is not None and reader.has(found.root):
        return found
    try:
        totals = _built(store, _files(store, uid, name, sizes, all_unknown))
    except OutOfOrder:
        totals = _sorted(store, uid, name, sizes)
    save_listing(store, uid, name, totals)
    return totals


def _sorted(store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None) -> Totals:
    try:
        with RowSorter(store.scratch) as sorter:
            for batch in _files(store, uid, name, sizes, True):
                for row in batch:
                    sorter.add(row)
            rows = sorter.rows()
            return _built(store, iter(lambda: list(itertools.islice(rows, _BATCH)), []))
    except OSError as error:
        raise as_store_error(error, store.scratch) from error


def _built(store: Store, batches: Iterable[list[FileRow]]) -> Totals:
    builder = TreeBuilder(store)
    for batch in batches:
        builder.add_files(batch)
    return builder.finish()


def _files(
    store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None, all_unknown: bool
) -> Iterator[list[FileRow]]:
    """The files of a manifest in its order, in batches. Raises Unknown when sizes are missing that were not given."""
    content = store.reader.resolve([name], uid)[0]
    if content is None:
        raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
    entries = manifests.entries(store.reader.pieces(content))
    tag = ObjectName(name.algo, "").key()
    given, unknown, missing = iter(sizes or ()), bytearray(), _Missing(name)
    try:
        while batch := list(itertools.islice(entries, _BATCH)):
            problem = manifest.problem([path for path, _ in batch], [digest for _, digest in batch])
            if problem is not None:
                raise InvalidFileError(f"manifest '{name}' {problem}", path=str(name))
            keys = [tag + bytes.fromhex(digest) for _, digest in batch]
            known = dict(zip(keys, store.reader.sizes(keys, uid), strict=True))
            for key in [key for key, size in known.items() if size is None]:
                if sizes is None:
                    unknown += key
                else:
                    known[key] = next(given, None)
            if unknown and not all_unknown:
                break
            if unknown:
                continue  # nothing can be built, but all that is unknown is told at once
            rows: list[FileRow] = []
            for (path, _), key in zip(batch, keys, strict=True):
                size = known[key]
                if size is None or size == UNKNOWN:
                    missing.add(path, size)
                else:
                    rows.append((os.fsencode(path), size, key))
            yield rows
    except manifests.NotAManifest as error:
        raise InvalidFileError(f"'{name}' is not a manifest: {error}", path=str(name)) from error
    if unknown:
        raise Unknown(bytes(unknown))
    if missing.count or next(given, None) is not None:
        raise missing.error()


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


def sizes_from(view: memoryview) -> array[int]:
    """Sizes as a worker sends them: u64 each, UNKNOWN for what it has not."""
    found = array("Q")
    if len(view) % found.itemsize:
        raise ProtocolError("a list of sizes was sent that is none")
    found.frombytes(view)
    return found


class _Missing:
    """Files of a manifest that nobody has: how many, and the first of them."""

    def __init__(self, name: ObjectName) -> None:
        self._name = name
        self._paths: list[str] = []
        self._changed = False
        self.count = 0

    def add(self, path: str, size: int | None) -> None:
        """`size` is UNKNOWN, or None when sizes were given for other objects than those."""
        self.count += 1
        self._changed |= size is None
        if len(self._paths) < _LISTED:
            self._paths.append(path)

    def error(self) -> ObjectMissingError:
        if self._changed or not self.count:
            return ObjectMissingError(f"objects of {self._name} came and went meanwhile", hint="run the command again")
        shown = ", ".join(f"'{path}'" for path in self._paths[:_NAMED]) + (" ..." if self.count > _NAMED else "")
        count = f"{self.count} files of this version are" if self.count > 1 else "a file of this version is"
        return ObjectMissingError(
            f"{count} neither in the store nor in the project's cache: {shown}",
            hint="fetch them first: dvc fetch",
            details={"paths": [wirepath.encode(path) for path in self._paths], "count": self.count},
        )
