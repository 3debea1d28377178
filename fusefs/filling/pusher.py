"""Content written into the kernel's page cache: FUSE_NOTIFY_STORE, a write for each file."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.records import Kind, Location
from millpond.fusefs.engines.protocol import NOTIFY_STORE, OUT_HEADER, STORE_OUT
from millpond.fusefs.filling.tally import Tally

# Content read and written at once, in bytes.
BATCH_BYTES = 1 << 20
_HEAD = struct.Struct(OUT_HEADER.format + STORE_OUT.format.removeprefix("="))


class _File(NamedTuple):
    """What is to be written, and where it lies."""

    inode: int
    content: Content
    location: Location


class Pusher:
    """`device` is a clone of the mount's descriptor; `uid`'s grants count."""

    def __init__(self, reader: StoreReader, uid: int, device: int, tally: Tally) -> None:
        self._reader = reader
        self._folders = FolderReader(reader.index)
        self._uid = uid
        self._device = device
        self._tally = tally
        # Files that the kernel did not know, since this was set to 0.
        self.unknown = 0

    def push(self, inodes: Sequence[int], was_read: Callable[[int], bool]) -> Iterator[None]:
        """Write these files' content, batches that lie together in the store, with a pause for the caller after each. The last ones come first: who
        reads in order would be met again and again otherwise, always at the file that is just being written. Files that `was_read` by then, are not in the store, or
        damaged are left out. Each write may wait until a READ of the same file is answered. Raises OSError when the mount is gone."""
        batches = list(_batches(sorted(self._found(inodes), key=_place)))[::-1]
        for batch, following in pairwise([*batches, []]):
            if following:
                self._reader.will_need(following[0].content.id, BATCH_BYTES)
            self._write_all([file for file in batch if not was_read(file.inode)])
            yield

    def _found(self, inodes: Sequence[int]) -> Iterator[_File]:
        """Those of the files that are in the store, with their places."""
        with self._reader.index.begin():
            for inode in inodes:
                known = self._folders.object_key(inode)
                if known is None:
                    continue
                size, key = known
                found = self._reader.located(key, self._uid)
                if found is not None and found[0].size == size:
                    yield _File(inode, *found)

    def _write_all(self, batch: Sequence[_File]) -> None:
        single = [file for file in batch if file.content.kind == Kind.CHUNK]
        try:
            contents = self._reader.read_chunks(
                [file.content.id for file in single], [file.location for file in single]
            )
        except StoreDamagedError:  # one of them: each by itself, then
            for file in single:
                self._write_alone(file)
        else:
            for file, data in zip(single, contents, strict=True):
                self._write(file, [data])
        for file in batch:
            if file.content.kind != Kind.CHUNK:
                self._write_alone(file)

    def _write_alone(self, file: _File) -> None:
        try:
            layout = self._reader.layout(file.content)
            parts = self._reader.read_chunks([layout.id(number) for number in range(len(layout))])
        except StoreDamagedError:
            return  # who reads it is told by READ
        self._write(file, parts)

    def _write(self, file: _File, parts: Sequence[Bytes]) -> None:
        size = file.content.size
        if sum(map(len, parts)) != size:
            return
        head = _HEAD.pack(_HEAD.size + size, NOTIFY_STORE, 0, file.inode, 0, size)
        try:
            os.writev(self._device, [head, *parts])
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.unknown += 1
                return
            if error.errno in (errno.ENOMEM, errno.EINTR):  # there is no room for it just now
                return
            raise
        self._tally.add(size)


def _place(file: _File) -> tuple[int, int]:
    return file.location.segment, file.location.offset


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Files in parts of BATCH_BYTES."""
    batch: list[_File] = []
    size = 0
    for file in files:
        if batch and size + file.content.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.content.size
    if batch:
        yield batch
