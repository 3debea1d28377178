"""Content written into the kernel's page cache: FUSE_NOTIFY_STORE, a write for each file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store import gather
from millpond.daemon.store.gather import Small
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.records import Kind
from millpond.fusefs.engines.protocol import NOTIFY_STORE, STORE_HEAD
from millpond.fusefs.filling.tally import Tally

# Content read and written at once, in bytes.
BATCH_BYTES = 1 << 20
# Files that are looked up before it is known whether they are wanted, a few hundred bytes of memory each.
MOST_AHEAD = 8192


class Pusher:
    """`device` is a clone of the mount's descriptor; `uid`'s grants count."""

    def __init__(self, reader: StoreReader, uid: int, device: int, tally: Tally) -> None:
        self._reader = reader
        self._uid = uid
        self._device = device
        self._tally = tally
        # Files that the kernel did not know, since this was set to 0.
        self.unknown = 0
        # Where files lie that may be written one day.
        self._ahead: dict[int, Small] = {}
        self.is_full = False

    def look_up(self, inodes: Sequence[int]) -> None:
        """Learn where files lie, for a later `push`; no more of them when it `is_full`."""
        found, _ = gather.find(self._reader, inodes, self._uid)
        self._ahead.update((small.inode, small) for small in found)
        self.is_full = len(self._ahead) >= MOST_AHEAD

    def forget(self) -> None:
        """What was learnt may not be true any more."""
        self._ahead.clear()
        self.is_full = False

    def push(self, inodes: Sequence[int], was_read: Callable[[int], bool]) -> Iterator[None]:
        """Write these files' content, in batches that lie together in the store, with a pause for the caller after each: forwards, as then the kernel
        reads the segments far ahead, in large pages. Files that `was_read` by then, are not in the store, or damaged are left out. Each
        write may wait until a READ of the same file is answered. Raises OSError when the mount is gone."""
        known = [small for inode in inodes if (small := self._ahead.pop(inode, None)) is not None]
        there = {small.inode for small in known}
        others: list[tuple[int, Content]] = []
        if len(there) < len(inodes):
            single, others = gather.find(self._reader, [inode for inode in inodes if inode not in there], self._uid)
            known += single
        for batch in _batches(sorted(known)):
            self._write_all([small for small in batch if not was_read(small.inode)])
            yield
        for inode, content in others:
            if not was_read(inode):
                self._write_parts(inode, content)
        if others:
            yield

    def _write_all(self, batch: Sequence[Small]) -> None:
        for small, data in gather.read(self._reader, batch):
            if data is not None:
                self._write(small.inode, small.size, [data])
            else:
                self._write_parts(small.inode, Content(Kind.CHUNK, small.id, small.size))

    def _write_parts(self, inode: int, content: Content) -> None:
        try:
            layout = self._reader.layout(content)
            parts = self._reader.read_chunks([layout.id(number) for number in range(len(layout))])
        except StoreDamagedError:
            return  # who reads it is told by READ
        if sum(map(len, parts)) == content.size:
            self._write(inode, content.size, parts)

    def _write(self, inode: int, size: int, parts: Sequence[Bytes]) -> None:
        try:
            os.writev(self._device, [STORE_HEAD.pack(STORE_HEAD.size + size, NOTIFY_STORE, 0, inode, 0, size), *parts])
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.unknown += 1
                return
            if error.errno in (errno.ENOMEM, errno.EINTR):  # there is no room for it just now
                return
            raise
        self._tally.add(size)


def _batches(files: Sequence[Small]) -> Iterator[list[Small]]:
    """Files in parts of BATCH_BYTES."""
    batch: list[Small] = []
    size = 0
    for file in files:
        if batch and size + file.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch
