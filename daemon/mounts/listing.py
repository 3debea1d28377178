"""From names to folders: a manifest, or a revision's paths, made into a tree that a holder can serve.

A manifest that is in the store is read by the daemon. Sizes of objects that the store has not come from the caller's
worker, which looks into his own cache; they are his claim, so what is made of them is his alone.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from typing import NamedTuple, cast

import msgspec

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import BusyError, InvalidFileError, ObjectMissingError, ProtocolError, TargetError
from millpond.daemon.mounts.sorting import RowSorter
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.store import manifests
from millpond.daemon.store.files import as_store_error
from millpond.daemon.store.folders import FolderReader, Totals, save_listing
from millpond.daemon.store.inodes import Inodes
from millpond.daemon.store.service import parse_name
from millpond.daemon.store.store import Store
from millpond.daemon.store.trees import Files, OutOfOrder, Run, TreeBuilder, TreeEntry, runs

# Names resolved in one read transaction.
_BATCH = 20_000
# Batches, about 8 MB each, that are read while the caller looks for sizes.
_AHEAD = 5
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


class _Batch(NamedTuple):
    """Files side by side in a manifest, and what is known of their objects' sizes."""

    paths: list[bytes]
    keys: list[bytes]
    sizes: dict[bytes, int | None]
    runs: list[Run]

    @property
    def lacking(self) -> list[bytes]:
        return [key for key, size in self.sizes.items() if size is None]


def remembered(store: Store, uid: int, name: ObjectName) -> Totals | None:
    """The tree that a manifest was made into for `uid`, if it is still there; not one with sizes that somebody claimed, once all of its
    files are in the store, which knows better."""
    reader = FolderReader(store.reader.index)
    found = reader.listing(uid, name)
    if found is None or not reader.has(found.root):
        return None
    return None if reader.is_claimed(uid, name) and store.complete(name, uid) else found


class Building:
    """A manifest on its way to be a tree, in steps: each ends where a size is wanted that the store has not.

    The manifest is read as a stream and built as it comes. Its order is that of whole paths, a tree's that of their parts,
    which differ when a name goes on with a character below `/` (`a-b` beside `a/`): only then is it read once more, and
    its paths are sorted, on disk. One thread at a time.
    """

    def __init__(self, store: Store, uid: int, name: ObjectName) -> None:
        self._store, self._uid, self._name = store, uid, name
        # Holds the sorter's files.
        self._stack = ExitStack()
        self._sorter: RowSorter | None = None
        self._inodes = Inodes(store)
        self._begin()
        # Sizes that the next step brings; what waits for them, if it has not begun again since; what waits to be built.
        self._wanted = 0
        self._asked: _Batch | None = None
        self._ready: _Batch | None = None
        self._error: Exception | None = None
        # Whether sizes came that the store does not know.
        self._claimed = False
        # Set by who wants the next step: reading ahead has to wait.
        self.is_wanted = False
        self._closed = False

    def step(self, sizes: Sequence[int] | None = ()) -> Totals | bytes:
        """The tree; or the names' keys (KEY_BYTES each, back to back) of objects whose sizes the next step must bring, in
        this order, UNKNOWN for those that nobody has; None: those that were foretold. The first error is the end.

        Raises ObjectMissingError (the manifest, or files that nobody has), InvalidFileError, ProtocolError.
        """
        try:
            answer = self._step(sizes)
        except TargetError as error:
            self.close()
            raise InvalidFileError(
                f"manifest '{self._name}' is no tree: {error.message}", path=str(self._name)
            ) from error
        except BaseException:
            self.close()
            raise
        if isinstance(answer, Totals):
            self.close()
        return answer

    def foretell(self, sizes: Mapping[bytes, int]) -> None:
        """Sizes of objects, by key, that may be asked for: what they are needed for is done as far as it can be. An error is told by the
        next step."""
        if self._closed or self._error is not None:
            return
        try:
            taken = self._inodes.prepare(sizes)
            for batch in self._ahead:
                self._inform(batch, taken)
        except Exception as error:
            self._error = error

    def catch_up(self) -> None:
        """Do what the last step left, and read on, while its caller looks for sizes. An error is told by the next step."""
        try:
            self._build()
            while not (self.is_wanted or self._closed) and len(self._ahead) < _AHEAD:
                batch = self._read_next()
                if batch is None:
                    break
                self._ahead.append(batch)
        except Exception as error:
            self._error = error

    def close(self) -> None:
        """Let go of files on disk. Nothing is built from then on."""
        self._ready, self._closed = None, True
        with suppress(OSError):  # what could not be written to them was told before
            self._stack.close()

    def _begin(self) -> None:
        self._missing = _Missing()
        self._builder = TreeBuilder(self._store, self._inodes)
        self._batches = _named(self._store, self._uid, self._name)
        self._ahead: deque[_Batch] = deque()

    def _step(self, sizes: Sequence[int] | None) -> Totals | bytes:
        if self._closed:  # for want of room, while this step was on its way
            raise BusyError("other versions are being mounted for the first time", hint="run the command again")
        if self._error is not None:
            raise self._error
        if sizes is not None and len(sizes) != self._wanted:
            raise ProtocolError(f"{len(sizes)} sizes were sent for {self._wanted} objects")
        if self._build() and self._asked is not None:
            if sizes is None:
                self._inform(self._asked, self._inodes.ahead)
            else:
                self._asked.sizes.update(zip(self._asked.lacking, sizes, strict=True))
                self._claimed = True
            self._ahead.appendleft(self._asked)
        self._wanted, self._asked = 0, None
        while True:
            batch = self._read()
            lacking = [] if batch is None else batch.lacking
            if lacking:
                self._wanted, self._asked = len(lacking), batch
                return b"".join(lacking)
            if self._build():
                if batch is None:
                    return self._finish()
                self._ready = batch

    def _read(self) -> _Batch | None:
        """The next files, with the sizes that are known."""
        return self._ahead.popleft() if self._ahead else self._read_next()

    def _read_next(self) -> _Batch | None:
        found = next(self._batches, None)
        if found is None:
            return None
        paths, keys = os.fsencode("\0".join(found[0])).split(b"\0"), found[1]
        objects = list(dict.fromkeys(keys))
        sizes = self._store.reader.sizes(objects, self._uid, evicted=True)
        batch = _Batch(paths, keys, dict(zip(objects, sizes, strict=True)), runs(paths))
        self._inform(batch, self._inodes.ahead)
        return batch

    def _inform(self, batch: _Batch, told: Mapping[bytes, int]) -> None:
        """Add sizes that were foretold and that the store does not know."""
        found = {key: told[key] for key in batch.sizes.keys() & told.keys() if batch.sizes[key] is None}
        if found:
            batch.sizes.update(found)
            self._claimed = True

    def _build(self) -> bool:
        """Build what is ready; False when all has to begin again, to be sorted."""
        batch, self._ready = self._ready, None
        if batch is None:
            return True
        sizes = cast(dict[bytes, int], batch.sizes)
        if UNKNOWN in sizes.values():
            for path, key in zip(batch.paths, batch.keys, strict=True):
                if sizes[key] == UNKNOWN:
                    self._missing.add(os.fsdecode(path))
        if self._missing.count:
            return True
        files = Files(batch.paths, batch.keys, sizes, batch.runs)
        try:
            if self._sorter is None:
                self._builder.add_files(files)
            else:
                self._sorter.add_files(files)
        except OutOfOrder:
            self._sorter = self._stack.enter_context(RowSorter(self._store.scratch))
            self._asked = None
            self._begin()
            return False
        except OSError as error:
            raise as_store_error(error, self._store.scratch) from error
        return True

    def _finish(self) -> Totals:
        if self._missing.count:
            raise self._missing.error()
        try:
            for files in self._sorter.files(_BATCH) if self._sorter is not None else ():
                self._builder.add_files(files)
        except OSError as error:
            raise as_store_error(error, self._store.scratch) from error
        totals = self._builder.finish()
        save_listing(self._store, self._uid, self._name, totals, claimed=self._claimed)
        return totals


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


def told_in(view: memoryview) -> dict[bytes, int]:
    """Sizes by key as a worker foretells them: n keys (KEY_BYTES each), then n sizes, u64. Raises ProtocolError."""
    count, rest = divmod(len(view), KEY_BYTES + 8)
    if rest:
        raise ProtocolError("sizes were foretold that are none")
    keys = chain.from_iterable(_KEY.iter_unpack(view[: count * KEY_BYTES]))
    return dict(zip(keys, sizes_from(view[count * KEY_BYTES :]), strict=True))


class _Missing:
    """Files of a manifest that nobody has: how many, and the first of them."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self.count = 0

    def add(self, path: str) -> None:
        self.count += 1
        if len(self._paths) < _LISTED:
            self._paths.append(path)

    def error(self) -> ObjectMissingError:
        shown = ", ".join(f"'{path}'" for path in self._paths[:_NAMED]) + (" ..." if self.count > _NAMED else "")
        count = f"{self.count} files of this version are" if self.count > 1 else "a file of this version is"
        return ObjectMissingError(
            f"{count} neither in the store nor in the project's cache nor on a remote: {shown}",
            hint="push them from where they still are, then: millpond fetch",
            details={"paths": [wirepath.encode(path) for path in self._paths], "count": self.count},
        )
