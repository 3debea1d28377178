"""Small contents by the hundred: looked up by functions that loop in C, read in runs, with few objects made for each.

For who brings many of them into the page cache (fusefs/filling/). A content that is not one chunk, or that is damaged, is none of these: reader.py
has all that is to be done for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from millpond.daemon.store import records
from millpond.daemon.store.folders import INODE, IS_LINK
from millpond.daemon.store.index import Content, grant_key, unpack_content
from millpond.daemon.store.reader import GAP_BYTES, RUN_BYTES, Bytes, StoreReader
from millpond.daemon.store.records import LOCATION, BadRecord, Kind


class Small(NamedTuple):
    """A file's content that is one chunk of `size` bytes, and where that lies. They sort by place."""

    segment: int
    offset: int
    stored: int
    size: int
    id: bytes
    inode: int

    @property
    def end(self) -> int:
        """Behind its record."""
        return self.offset + records.padded(self.stored)


def find(reader: StoreReader, inodes: Sequence[int], uid: int) -> tuple[list[Small], list[tuple[int, Content]]]:
    """Those of these files that are in the store and that `uid` may read: single chunks in the order of their places, then (inode, content) of the others."""
    index = reader.index
    with index.begin() as txn:

        def rows(database: object, keys: list[bytes]) -> Iterator[tuple[memoryview, memoryview]]:
            with txn.cursor(db=database) as cursor:
                yield from cursor.getmulti(sorted(keys))  # neighbours lie on the same pages

        named: list[tuple[int, int, bytes]] = []
        for number, value in rows(index.inodes, [inode.to_bytes(8, "big") for inode in inodes]):
            flags, size = INODE.unpack_from(value)
            if not flags & IS_LINK:
                named.append((int.from_bytes(number, "big"), size, bytes(value[INODE.size :])))
        contents = {
            bytes(key): unpack_content(value) for key, value in rows(index.objects, [key for _, _, key in named])
        }
        ids = [content.id for content in contents.values()]
        granted = {bytes(key[4:]) for key, _ in rows(index.grants, [grant_key(uid, each) for each in ids])}
        places = {bytes(key): LOCATION.unpack(value) for key, value in rows(index.records, ids)}
        found: list[Small] = []
        others: list[tuple[int, Content]] = []
        for inode, size, key in named:
            content = contents.get(key)
            if content is None:
                continue
            if content.id not in granted:
                known = reader.located(key, uid)  # perhaps another of its contents
                if known is None:
                    continue
                content, place = known[0], tuple(known[1])
            else:
                place = places.get(content.id, ())
            if content.size != size or not place:
                continue
            if content.kind == Kind.CHUNK:
                found.append(Small(place[2], place[3], place[4], size, content.id, inode))
            else:
                others.append((inode, content))
    found.sort()
    return found, others


def will_need(reader: StoreReader, batch: Sequence[Small]) -> None:
    """Have the kernel begin to read what `read` will. What it cannot, `read` will see."""
    for first, _, end in _side_by_side(batch):
        begin = batch[first]
        with contextlib.suppress(OSError):
            reader.read_ahead(begin.segment, begin.offset, end - begin.offset)


def read(reader: StoreReader, batch: Sequence[Small], *, waiting: bool = True) -> Iterator[tuple[Small, Bytes | None]]:
    """Each one's bytes, checked; None for what is damaged or has moved, and without `waiting` for what is not in the page cache. `batch` is
    sorted; what lies side by side is read at once."""
    read_range = reader.read_range if waiting else reader.peek
    for first, behind, end in _side_by_side(batch):
        yield from _run(read_range, reader.key, batch[first:behind], end)


def _side_by_side(batch: Sequence[Small]) -> Iterator[tuple[int, int, int]]:
    """(first, the one behind, the place in the segment where they end) of what lies side by side in a sorted batch, or nearly."""
    first = 0
    while first < len(batch):
        begin, behind = batch[first], first + 1
        end = begin.end
        while behind < len(batch):
            here = batch[behind]
            following = here.end
            if here.segment != begin.segment or here.offset - end > GAP_BYTES or following - begin.offset > RUN_BYTES:
                break
            end, behind = max(end, following), behind + 1
        yield first, behind, end
        first = behind


def _run(
    read_range: Callable[[int, int, int], memoryview], key: int, run: Sequence[Small], end: int
) -> Iterator[tuple[Small, Bytes | None]]:
    begin = run[0].offset
    try:
        view = read_range(run[0].segment, begin, end - begin)
    except OSError:
        view = memoryview(b"")
    for small in run:
        try:
            yield small, records.chunk_at(view, small.offset - begin, key, small.id, small.size)
        except BadRecord:
            yield small, None
