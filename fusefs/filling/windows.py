"""What a filler brings of a mount by the erofs engine: windows of its image, a NOTIFY_STORE for what lies side by side in one.

The holder says which. Files that are not in the store, or are damaged, are left out: who reads them asks the holder. A file belongs to the window
in which it begins.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.rpc import framing
from millpond.daemon.store import gather
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.gather import Run
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.fusefs.attributes import FileError
from millpond.fusefs.engines.protocol import NOTIFY_STORE, STORE_HEAD
from millpond.fusefs.filling import messages
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.image.format import BLOCK, BLOCK_BITS, IMAGE_INODE
from millpond.fusefs.image.image import Image, Whole
from millpond.fusefs.image.space import Space

# Windows that wait. The holder knows how many are not done, and tells no more than a few of those before them; what is beyond is left out.
_MOST_WAITING = 256
# Larger files the kernel reads ahead itself.
LARGEST = 1 << 20
# Parts of one write, beyond which they are joined (UIO_MAXIOV is 1,024).
_MOST_PARTS = 900
_ZEROS = memoryview(bytes(BLOCK))


@dataclass(frozen=True, slots=True)
class _Looked:
    """The files that begin in a window, and where they lie in the store: runs of those that are one chunk, and the others."""

    files: Sequence[Whole]
    runs: Sequence[Run]
    others: Sequence[tuple[int, Content]]


class Windows:
    """Of one mount's image. `uid`'s grants count."""

    def __init__(self, uid: int, tally: Tally) -> None:
        self._uid = uid
        self._tally = tally
        self._reader: StoreReader | None = None
        self._image: Image | None = None
        self._space: Space | None = None
        self._device = -1
        self._waiting: deque[range] = deque()
        # The one that is next, of which the segments are being read.
        self._next: _Looked | None = None

    def wake(self, reader: StoreReader) -> None:
        """See Bringer."""
        self._reader = reader

    def hear(self, kind: bytes, body: bytes) -> None:
        """See Bringer."""
        if kind != messages.WINDOW:
            return
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(messages.window_of(body))
        else:
            self._tally.finish()

    def begin(self, device: int, number: str, given: Sequence[int]) -> None:
        """See Bringer. The memory of the image's space comes with the device."""
        assert self._reader is not None
        self._device = device
        if not given:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # it came, and found no room
        try:
            self._space = Space(given[0])
        finally:
            framing.close_all(given)
        self._image = Image(FolderReader(self._reader.index), self._space, uid=self._uid, gid=self._uid, closed=True)

    @property
    def is_busy(self) -> bool:
        """See Bringer."""
        return self._image is not None and (self._next is not None or bool(self._waiting))

    def step(self) -> None:
        """See Bringer. While one window is brought the disk reads for the next."""
        if self._image is None or self._reader is None:
            return
        looked = self._next
        self._next = self._look(self._image, self._reader, self._waiting.popleft()) if self._waiting else None
        if looked is not None:
            self._bring(self._reader, looked)
            self._tally.finish()

    def end(self) -> None:
        """See Bringer."""

    def sleep(self) -> None:
        """See Bringer. There are windows left where no device has come: they count as done, or the holder would wait for them for ever."""
        self._tally.finish(len(self._waiting) + (self._next is not None))
        self._reader = self._image = self._space = self._next = None
        self._device = -1
        self._waiting.clear()

    def _look(self, image: Image, reader: StoreReader, window: range) -> _Looked:
        """Find what begins there, and have its segments read."""
        assert self._space is not None
        self._space.learn()
        try:
            files = image.files(window, LARGEST)
            small, others = gather.find(reader, [file.inode for file in files], self._uid)
        except (FileError, StoreDamagedError):  # a folder of before the index was made anew
            return _Looked((), (), ())
        runs = list(gather.side_by_side(small))
        gather.will_need(reader, runs)
        return _Looked(files, runs, others)

    def _bring(self, reader: StoreReader, looked: _Looked) -> None:
        """Write what is there of a window's files. Each write may wait until a READ of the same pages is answered. Raises OSError when the
        mount is gone."""
        contents: dict[int, Sequence[Bytes]] = {}
        for small, data in gather.read_runs(reader, looked.runs):
            if data is not None:
                contents[small.inode] = [data]
        for inode, content in looked.others:
            if content.size <= LARGEST:
                contents[inode] = _parts(reader, content)
        for first, parts, files in _runs(looked.files, contents):
            self._write(first, parts, files)

    def _write(self, first: int, parts: Sequence[Bytes], files: int) -> None:
        size = sum(map(len, parts))
        if len(parts) > _MOST_PARTS:
            parts = [b"".join(parts)]
        head = STORE_HEAD.pack(STORE_HEAD.size + size, NOTIFY_STORE, 0, IMAGE_INODE, first << BLOCK_BITS, size)
        try:
            os.writev(self._device, [head, *parts])
        except OSError as error:
            if error.errno in (
                errno.ENOENT,
                errno.ENOMEM,
                errno.EINTR,
            ):  # the image was forgotten, or there is no room for it just now
                return
            raise
        self._tally.add(size, files)


def _parts(reader: StoreReader, content: Content) -> list[Bytes]:
    """A content of several chunks; nothing if it is damaged: who reads it is told by READ."""
    try:
        layout = reader.layout(content)
        return reader.read_chunks([layout.id(number) for number in range(len(layout))])
    except StoreDamagedError:
        return []


def _runs(files: Sequence[Whole], contents: dict[int, Sequence[Bytes]]) -> Iterator[tuple[int, list[Bytes], int]]:
    """(first block, bytes in whole blocks, files) of what lies side by side and is there as long as it should be."""
    first = block = count = 0
    parts: list[Bytes] = []
    for file in files:
        found = contents.get(file.inode, ())
        if sum(map(len, found)) != file.size:
            continue
        if parts and block != file.block:
            yield first, parts, count
            parts, count = [], 0
        if not parts:
            first = file.block
        parts += found
        if rest := -file.size % BLOCK:
            parts.append(_ZEROS[:rest])
        block = file.block + -(-file.size // BLOCK)
        count += 1
    if parts:
        yield first, parts, count
