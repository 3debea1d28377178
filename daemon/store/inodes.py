"""Numbers of files' inodes: a function of what the inode is, so that equal files share one across versions (see folders.py).

What a million files need is done for many at once, by functions that loop in C.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any

from blake3 import blake3

from millpond.daemon.errors import InternalError
from millpond.daemon.store.folders import FILE_INODE_BIT, INODE
from millpond.daemon.store.store import Store

# Objects whose numbers are made before a tree wants them, about 300 bytes each.
MOST_AHEAD = 120_000
# Of these so many new ones are written together, while sizes of others are still on their way.
_WRITTEN_AHEAD = 30_000
_BITS = FILE_INODE_BIT - 1
_KEY = struct.Struct("8s")


class Inodes:
    """Numbers for one tree, or for several tries at it; rows of those that the index has not are gathered, to be written with the tree's
    folders. One thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = store.reader.index
        # Rows that are not written, and those that are on their way.
        self._rows: dict[int, bytes] = {}
        self._writing: dict[int, bytes] = {}
        self._task: Future[None] | None = None
        # Of objects, by key, that were told before a tree wanted them: their bytes, and the numbers that go with these.
        self._ahead: dict[bytes, int] = {}
        self._numbers: dict[bytes, int] = {}

    @property
    def unwritten(self) -> int:
        """How many rows are gathered."""
        return len(self._rows)

    @property
    def ahead(self) -> Mapping[bytes, int]:
        """Sizes that `prepare` was told, by key."""
        return self._ahead

    def prepare(self, sizes: Mapping[bytes, int]) -> Mapping[bytes, int]:
        """Sizes of objects (by key) that a tree may want soon: make their numbers. Those that are taken, MOST_AHEAD in all. Raises
        DiskFullError."""
        room = MOST_AHEAD - len(self._ahead)
        if len(sizes) > room:
            sizes = dict(islice(sizes.items(), room))
        if not sizes:
            return sizes
        self._numbers.update(zip(sizes, self._made(sizes), strict=True))
        self._ahead.update(sizes)
        # Rows that nothing names yet harm nobody, and the tree's last transaction, which somebody waits for, has the fewer.
        if len(self._rows) >= _WRITTEN_AHEAD:
            self.settle()
            rows, self._writing, self._rows = self._rows, self._rows, {}
            self._task = self._store.write_behind(lambda txn: self._put(txn, rows))
        return sizes

    def settle(self) -> None:
        """Wait for what is on its way. Raises DiskFullError."""
        if self._task is not None:
            task, self._task = self._task, None
            task.result()
        self._writing = {}

    def numbers(self, sizes: Mapping[bytes, int]) -> Mapping[bytes, int]:
        """A number for each object's key at least, none of them executable."""
        if not self._ahead:
            return dict(zip(sizes, self._made(sizes), strict=True))
        if sizes.items() <= self._ahead.items():
            return self._numbers
        prepared = dict(sizes.items() & self._ahead.items())
        rest = {key: size for key, size in sizes.items() if key not in prepared}
        found = {key: self._numbers[key] for key in prepared}
        found.update(zip(rest, self._made(rest), strict=True))
        return found

    def number(self, value: bytes) -> int:
        """The number of a row, which is not there yet, or is: the first from its hash on that is free or its own."""
        [number] = _hashed([value])
        with self._index.begin() as txn:
            while True:
                there = self._gathered(number) or txn.get(number.to_bytes(8, "big"), db=self._index.inodes)
                if there is None or there == value:
                    break
                number = (number + 1) & _BITS | FILE_INODE_BIT
        if there is None:
            self._rows[number] = value
        return number

    def write(self, txn: Any) -> None:
        """Write what is gathered, behind `settle`; it may be called again, until `written` is."""
        self._put(txn, self._rows)

    def _put(self, txn: Any, rows: Mapping[int, bytes]) -> None:
        numbers = sorted(rows)
        items = list(zip(_keys(numbers), map(rows.__getitem__, numbers), strict=True))
        with txn.cursor(db=self._index.inodes) as cursor:
            _, added = cursor.putmulti(items, overwrite=False)
            if added < len(items) and any(bytes(cursor.get(key)) != value for key, value in items):
                raise InternalError("two builds chose the same inode number", hint="run the command again")

    def written(self) -> None:
        """What `write` wrote is committed."""
        self._rows = {}

    def _made(self, sizes: Mapping[bytes, int]) -> list[int]:
        """Numbers of objects that are not executable, in their order."""
        pack = INODE.pack
        values = [pack(0, size) + key for key, size in sizes.items()]
        numbers = _hashed(values)
        # What is on its way is looked for first: what it was before it is in the index, too.
        there, rows = self._writing | self._there(numbers), self._rows
        for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
            known = rows.setdefault(number, value) if number not in there else there[number]
            if known is not value and known != value:
                numbers[index] = self.number(value)
        return numbers

    def _gathered(self, number: int) -> bytes | None:
        return self._rows.get(number) or self._writing.get(number)

    def _there(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Those of the numbers that are in the index, with their values."""
        with self._index.begin() as txn, txn.cursor(db=self._index.inodes) as cursor:
            return {int.from_bytes(key, "big"): bytes(value) for key, value in cursor.getmulti(_keys(sorted(numbers)))}


def _hashed(values: Iterable[bytes]) -> list[int]:
    """Where the search for each inode's number begins."""
    words = array("Q", b"".join([blake3(value).digest(8) for value in values]))
    return [word & _BITS | FILE_INODE_BIT for word in words]


def _keys(numbers: Iterable[int]) -> list[bytes]:
    """As the index has them: big endian."""
    words = array("Q", numbers)
    words.byteswap()
    return list(chain.from_iterable(_KEY.iter_unpack(words.tobytes())))
