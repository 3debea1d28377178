"""Small contents by the hundred: looked up by functions that loop in C, read in runs, with few objects made for each.

For who brings many of them into the page cache (fusefs/filling/). A content that is not one chunk, or that is damaged, is none of these: reader.py
has all that is to be done for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from millpond.daemon.store import records
from millpond.daemon.store.folders import INODE, IS_LINK
from millpond.daemon.store.index import Content, grant_key, unpack_content
from millpond.daemon.store.reader import GAP_BYTES, RUN_BYTES, Bytes, StoreReader
from millpond.daemon.store.records import LOCATION, BadRecord, Kind

_CHUNK = Kind.CHUNK.value


class Small(NamedTuple):
    """A file's content that is one chunk of `size` bytes, and where its record lies: from `offset` to `end`. They sort by place."""

    segment: int
    offset: int
    end: int
    size: int
    id: bytes
    inode: int


def find(reader: StoreReader, inodes: Sequence[int], uid: int) -> tuple[list[Small], list[tuple[int, Content]]]:
    """Those of these files that are in the store and that `uid` may read: single chunks in the order of their places, then (inode, content) of the others."""
    index = reader.index
    with index.begin() as txn:

        def rows(database: object, keys: Iterable[bytes]) -> list[tuple[memoryview, memoryview]]:
            with txn.cursor(db=database) as cursor:
                told: list[tuple[memoryview, memoryview]] = cursor.getmulti(
                    sorted(keys)
                )  # neighbours lie on the same pages
                return told

        named: list[tuple[int, int, bytes]] = []
        for number, value in rows(index.inodes, [inode.to_bytes(8, "big") for inode in inodes]):
            flags, size = INODE.unpack_from(value)
            if not flags & IS_LINK:
                named.append((int.from_bytes(number, "big"), size, bytes(value[INODE.size :])))
        contents = {
            bytes(key): unpack_content(value) for key, value in rows(index.objects, {key for _, _, key in named})
        }
        ids = {content.id for content in contents.values()}
        granted = rows(index.grants, [grant_key(uid, each) for each in ids])
        # Nearly always all of them.
        allowed = ids if len(granted) == len(ids) else {bytes(key[4:]) for key, _ in granted}
        places = {bytes(key): LOCATION.unpack(value) for key, value in rows(index.records, ids)}
        found: list[Small] = []
        others: list[tuple[int, Content]] = []
        for inode, size, key in named:
            content = contents.get(key)
            if content is None:
                continue
            kind, content_id, there = content
            if content_id not in allowed:
                known = reader.located(key, uid)  # perhaps another of its contents
                if known is None:
                    continue
                content, place = known[0], tuple(known[1])
                kind, content_id, there = content
            else:
                place = places.get(content_id, ())
            if there != size or not place:
                continue
            if kind == _CHUNK:
                _, _, segment, offset, stored, _ = place
                found.append(Small(segment, offset, offset + records.padded(stored), size, content_id, inode))
            else:
                others.append((inode, content))
    found.sort()
    return found, others


def will_need(reader: StoreReader, runs: Sequence[Run]) -> None:
    """Have the kernel begin to read what `read_runs` will. What it cannot, that will see."""
    for run in runs:
        with contextlib.suppress(OSError):
            reader.read_ahead(run.files[0].segment, run.begin, run.end - run.begin)


def read(reader: StoreReader, batch: Sequence[Small], *, waiting: bool = True) -> Iterator[tuple[Small, Bytes | None]]:
    """Each one's bytes, checked; None for what is damaged or has moved, and without `waiting` for what is not in the page cache. `batch` is
    sorted; what lies side by side is read at once."""
    read_range = reader.read_range if waiting else reader.peek
    for run in side_by_side(batch):
        yield from _run(read_range, reader.key, run)


def read_runs(reader: StoreReader, runs: Sequence[Run]) -> Iterator[tuple[Small, Bytes | None]]:
    """The same for what `side_by_side` found."""
    for run in runs:
        yield from _run(reader.read_range, reader.key, run)


class Run(NamedTuple):
    """What lies in one segment, side by side or nearly, from `begin` to `end`."""

    files: Sequence[Small]
    begin: int
    end: int


def side_by_side(batch: Sequence[Small]) -> Iterator[Run]:
    """A sorted batch in runs of up to RUN_BYTES."""
    first = 0
    while first < len(batch):
        segment, begin, end, *_ = batch[first]
        behind = first + 1
        while behind < len(batch):
            where, offset, following, *_ = batch[behind]
            if where != segment or offset - end > GAP_BYTES or following - begin > RUN_BYTES:
                break
            end, behind = max(end, following), behind + 1
        yield Run(batch[first:behind], begin, end)
        first = behind


def _run(read_range: Callable[[int, int, int], memoryview], key: int, run: Run) -> Iterator[tuple[Small, Bytes | None]]:
    begin = run.begin
    try:
        view = read_range(run.files[0].segment, begin, run.end - begin)
    except OSError:
        view = memoryview(b"")
    for small in run.files:
        try:
            yield small, records.chunk_at(view, small.offset - begin, key, small.id, small.size)
        except BadRecord:
            yield small, None
