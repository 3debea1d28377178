"""From names to folders: a manifest, or a revision's paths, made into a tree that a holder can serve.

A manifest that is in the store is read by the daemon. Sizes of objects that the store has not come from the caller's
worker, which looks into his own cache; they are his claim, so what is made of them is his alone.
"""

from __future__ import annotations

import itertools
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import cast

import msgspec

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import InvalidFileError, ObjectMissingError, ProtocolError, TargetError
from millpond.daemon.mounts.sorting import FileRow, RowSorter
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.store import manifests
from millpond.daemon.store.files import as_store_error
from millpond.daemon.store.folders import FolderReader, Totals, save_listing
from millpond.daemon.store.service import parse_name
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import Files, OutOfOrder, TreeBuilder, TreeEntry

# Names resolved in one read transaction.
_BATCH = 10_000
# Files named in an error, and in its details.
_NAMED, _LISTED = 5, 1000
# Bytes of a name's key: MD5.
KEY_BYTES = 17
_KEY = struct.Struct(f"{KEY_BYTES}s")
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
        try:
            totals = _built(store, _files(store, uid, name, sizes, all_unknown))
        except OutOfOrder:
            totals = _sorted(store, uid, name, sizes)
    except TargetError as error:
        raise InvalidFileError(f"manifest '{name}' is no tree: {error.message}", path=str(name)) from error
    save_listing(store, uid, name, totals)
    return totals


def _sorted(store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None) -> Totals:
    try:
        with RowSorter(store.scratch) as sorter:
            for files in _files(store, uid, name, sizes, True):
                for path, key in zip(files.paths, files.keys, strict=True):
                    sorter.add((path, files.sizes[key], key))
            rows = sorter.rows()
            return _built(store, map(_columns, iter(lambda: list(itertools.islice(rows, _BATCH)), [])))
    except OSError as error:
        raise as_store_error(error, store.scratch) from error


def _columns(rows: list[FileRow]) -> Files:
    paths, sizes, keys = zip(*rows, strict=True)
    return Files(paths, keys, dict(zip(keys, sizes, strict=True)))


def _built(store: Store, batches: Iterable[Files]) -> Totals:
    builder = TreeBuilder(store)
    for files in batches:
        builder.add_files(files)
    return builder.finish()


def _files(store: Store, uid: int, name: ObjectName, sizes: Sequence[int] | None, all_unknown: bool) -> Iterator[Files]:
    """The files of a manifest in its order, in batches. Raises Unknown when sizes are missing that were not given."""
    given, unknown, missing = iter(sizes or ()), bytearray(), _Missing(name)
    for paths, keys in _named(store, uid, name):
        objects = list(dict.fromkeys(keys))
        known = dict(zip(objects, store.reader.sizes(objects, uid), strict=True))
        lacking = [key for key, size in known.items() if size is None]
        if sizes is None:
            unknown += b"".join(lacking)
            if unknown and not all_unknown:
                break
            if unknown:
                continue  # nothing can be built, but all that is unknown is told at once
        known.update((key, next(given, None)) for key in lacking)
        if any(known[key] in (None, UNKNOWN) for key in lacking):
            for path, key in zip(paths, keys, strict=True):
                if known[key] in (None, UNKNOWN):
                    missing.add(path, known[key])
        elif not missing.count:
            yield Files(os.fsencode("\0".join(paths)).split(b"\0"), keys, cast(dict[bytes, int], known))
    if unknown:
        raise Unknown(bytes(unknown))
    if missing.count or next(given, None) is not None:
        raise missing.error()


def _named(store: Store, uid: int, name: ObjectName) -> Iterator[tuple[list[str], list[bytes]]]:
    """Paths and their objects' keys, as a manifest has them, in batches. Raises as `listing`."""
    content = store.reader.resolve([name], uid)[0]
    if content is None:
        raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
    tag = ObjectName(name.algo, "").key().hex()
    try:
        for paths, digests in _gathered(manifests.batches(store.reader.pieces(content))):
            problem = manifest.text_problem(paths, digests)
            if problem is not None:
                raise InvalidFileError(f"manifest '{name}' {problem}", path=str(name))
            yield paths, list(chain.from_iterable(_KEY.iter_unpack(bytes.fromhex(tag + tag.join(digests)))))
    except manifests.NotAManifest as error:
        raise InvalidFileError(f"'{name}' is not a manifest: {error}", path=str(name)) from error


def _gathered(parts: Iterable[manifests.Rows]) -> Iterator[manifests.Rows]:
    """The same entries in parts that are not small, but for the last."""
    rows = manifests.Rows([], [])
    for part in parts:
        rows.relpaths.extend(part.relpaths)
        rows.digests.extend(part.digests)
        if len(rows.relpaths) >= _BATCH:
            yield rows
            rows = manifests.Rows([], [])
    if rows.relpaths:
        yield rows


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
