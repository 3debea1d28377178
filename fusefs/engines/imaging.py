"""What the kernel is answered that mounts a version's image: one file, whose bytes are made as they are asked for.

Another file is for trying the kernel (image/trial.py). Nothing else is there.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from millpond.daemon.errors import MountError
from millpond.daemon.store import gather
from millpond.daemon.store.reader import Bytes
from millpond.fusefs.attributes import FOREVER_S, FileError
from millpond.fusefs.engines import protocol, signals
from millpond.fusefs.engines.answers import Handler, Later
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.contents import Contents
from millpond.fusefs.engines.protocol import Init, Op
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.filesystem import MAX_WHOLE, Filesystem
from millpond.fusefs.image import trial
from millpond.fusefs.image.format import BLOCK, IMAGE_INODE
from millpond.fusefs.image.image import Image, Piece
from millpond.fusefs.image.patience import Patience
from millpond.fusefs.image.space import IMAGE_BYTES, Kind

ROOT, TRIAL = 1, 3
# Threads that read many small files at once which are not in the page cache; from so many of one request on they do.
_THREADS, _TOGETHER = 2, 4
# Files that take a moment; requests that are answered slowly at once.
_LITTLE, _MOST_BEHIND = 24, 16
# Looks at the index for one file, or one block of names or inodes, about.
_LOOKS_A_PART = 8
# Parts of one answer, beyond which they are joined.
_MOST_PARTS = 900
_WANTED = Init.ASYNC_READ | Init.NO_OPEN_SUPPORT | Init.MAX_PAGES | Init.EXPLICIT_INVAL_DATA
_ZEROS = memoryview(bytes(BLOCK))
Part = Bytes | Piece


@dataclass(slots=True)
class _Request:
    """What a request is answered, as far as it is here; `missing` are the places of what must be waited for."""

    size: int
    parts: list[Part] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)


class ImageAnswers:
    """The handlers, in `table`, as in Answers; the image is called `name`. `read(pid, offset, size)` is told of each request for it but
    those of who reads ahead, as `is_ahead(pid)` tells, which are answered by `idle`, a little at a time between all others."""

    def __init__(
        self,
        filesystem: Filesystem,
        image: Image,
        channel: Channel,
        later: Later,
        ahead: ReadAhead,
        *,
        name: bytes,
        pid: Callable[[], int],
        read: Callable[[int, int, int], None] | None = None,
        is_ahead: Callable[[int], bool] | None = None,
    ) -> None:
        self._fs = filesystem
        self._image = image
        self._reply = channel.reply
        self._error = channel.error
        self._later = later
        self._contents = Contents(filesystem, ahead)
        self._patience = Patience(channel.error)
        self._threads = trio.CapacityLimiter(_THREADS)
        self._names = {name: IMAGE_INODE, trial.NAME: TRIAL}
        self._sizes = {IMAGE_INODE: IMAGE_BYTES, TRIAL: trial.BYTES}
        self._pid = pid
        self._told = read
        self._is_ahead = is_ahead
        # Requests that are answered slowly.
        self._behind: deque[tuple[int, Iterator[None]]] = deque()
        self.initialised = False
        self.table: dict[int, Handler] = {
            Op.INIT: self._init,
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READ: self._read,
            Op.STATFS: self._statfs,
            Op.FORGET: _ignore,
            Op.BATCH_FORGET: _ignore,
            Op.DESTROY: self._destroy,
        }

    def takes_back(self, pid: int) -> bool:
        """As in Handlers. The kernel makes EIO of EINTR, so it is for those who will not see it."""
        return signals.is_ended(pid)

    def _init(self, unique: int, inode: int, body: memoryview) -> None:
        if why := protocol.why_too_old(body):
            self._error(unique, errno.EPROTO)
            raise MountError(why)
        self._reply(unique, protocol.agreement(body, protocol.offered(body) & _WANTED))
        self.initialised = protocol.is_ours(body)

    def _destroy(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique)

    def _lookup(self, unique: int, inode: int, body: memoryview) -> None:
        found = self._names.get(bytes(body[:-1])) if inode == ROOT else None
        if found is None:
            raise FileError(errno.ENOENT)
        forever = int(FOREVER_S)
        self._reply(unique, protocol.ENTRY_OUT.pack(found, 0, forever, forever, 0, 0, *self._attributes(found)))

    def _getattr(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique, protocol.ATTR_OUT.pack(int(FOREVER_S), 0, 0, *self._attributes(inode)))

    def _statfs(self, unique: int, inode: int, body: memoryview) -> None:
        self._reply(unique, protocol.STATFS_OUT.pack(0, 0, 0, len(self._names), 0, BLOCK, 255, BLOCK, 0))

    def _attributes(self, inode: int) -> tuple[int, ...]:
        """For root alone, who mounts."""
        size = self._sizes.get(inode, 0)
        mode = stat.S_IFREG | 0o400 if inode in self._sizes else stat.S_IFDIR | 0o500
        return (inode, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 1 << 17, 0)

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, unique: int, inode: int, body: memoryview) -> None:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        size = min(size, protocol.MAX_ANSWER)
        if inode == TRIAL:
            self._reply(unique, trial.read(offset, size))
            return
        if self._is_ahead is not None and self._is_ahead(self._pid()) and len(self._behind) < _MOST_BEHIND:
            self._behind.append((unique, self._slowly(unique, offset, size)))
            return
        request = _Request(size)
        self._take(request, self._image.read(offset, size))
        self._finish(unique, request)
        if self._told is not None:
            self._told(self._pid(), offset, size)

    def _slowly(self, unique: int, offset: int, size: int) -> Iterator[None]:
        """Answer a request for what nobody waits for, a little at a time."""
        request = _Request(size)
        if self._image.given(offset // BLOCK)[0] is Kind.DATA:
            parts = self._image.read(offset, size)
            yield
            for first in range(0, len(parts), _LITTLE):
                self._take(request, parts[first : first + _LITTLE])
                yield
        else:
            for at in range(offset, offset + size, BLOCK):
                self._take(request, self._image.read(at, BLOCK))
                yield
        self._finish(unique, request)

    @property
    def is_behind(self) -> bool:
        """Whether something is being answered slowly."""
        return bool(self._behind)

    def idle(self) -> bool:
        """A little of what is answered slowly, else as Filesystem.idle; whether there is more of it."""
        if not self._behind:
            self._fs.idle()
            return False
        unique, work = self._behind[0]
        try:
            with self._fs.reading():
                next(work)
        except StopIteration:
            self._behind.popleft()
        except Exception as error:
            self._behind.popleft()
            failure = error
            self._later(unique, lambda: _fail(failure))
        return bool(self._behind)

    def _take(self, request: _Request, found: Sequence[Part]) -> None:
        """Add what lies there to what a request is answered, as far as it can be had without waiting."""
        self._fs.looked(_LOOKS_A_PART * len(found))
        wholes = self._wholes(found, waiting=False)
        for part in found:
            if not isinstance(part, Piece):
                request.parts.append(part)
                continue
            whole = wholes.get(part.inode)
            if whole is None:
                ready = self._contents.ready(part.inode, part.offset, part.size)
            else:
                ready = _cut(whole, part)
                self._fs.gave_whole(part.size)
            if ready is None:
                request.missing.append(len(request.parts))
                request.parts.append(part)
            else:
                request.parts += ready
                _complete(request.parts, ready, part)

    def _finish(self, unique: int, request: _Request) -> None:
        if request.missing:
            self._later(unique, lambda: self._read_patiently(unique, request.size, request.parts, request.missing))
        else:
            self._send(unique, request.parts)

    async def _read_patiently(self, unique: int, size: int, parts: list[Part], missing: list[int]) -> None:
        """As _read_later; but of an image in the page cache, requests of more than a block are no reader's, who need not wait for what is
        elsewhere."""
        wanted = {part.inode for part in parts if isinstance(part, Piece)} if size > BLOCK and self._told else ()
        elsewhere = [inode for inode in wanted if self._fs.stored(inode) is None]
        if elsewhere:
            await self._patience.of(unique, elsewhere, lambda: self._read_later(unique, parts, missing))
        else:
            await self._read_later(unique, parts, missing)

    async def _read_later(self, unique: int, parts: list[Part], missing: list[int]) -> None:
        """`missing` are the places of what must be waited for."""
        wholes: dict[int, Bytes] = {}
        if len(missing) >= _TOGETHER:
            wanted = [parts[at] for at in missing]
            wholes = await trio.to_thread.run_sync(self._waited, wanted, limiter=self._threads)
        told: list[Part] = []
        for part in parts:
            if not isinstance(part, Piece):
                told.append(part)
                continue
            whole = wholes.get(part.inode)
            if whole is None:
                ready = await self._contents.read(part.inode, part.offset, part.size)
            else:
                ready = _cut(whole, part)
                self._fs.gave_whole(part.size)
            told += ready
            _complete(told, ready, part)
        self._send(unique, told)

    def _wholes(self, parts: Sequence[Part], *, waiting: bool) -> dict[int, Bytes]:
        """If there are many small files whole among these parts: those that are one chunk each, read in the order of their places."""
        inodes = [part.inode for part in parts if isinstance(part, Piece) and _is_small(part)]
        if len(inodes) < _TOGETHER:
            return {}
        small, _ = gather.find(self._fs.reader, inodes, self._fs.uid)
        read = gather.read(self._fs.reader, small, waiting=waiting)
        return {each.inode: data for each, data in read if data is not None}

    def _waited(self, parts: Sequence[Part]) -> dict[int, Bytes]:
        return self._wholes(parts, waiting=True)

    def _send(self, unique: int, parts: list[Part]) -> None:
        told = [part for part in parts if not isinstance(part, Piece)]
        if len(told) > _MOST_PARTS:
            told = [b"".join(told)]
        self._reply(unique, *told)


def _complete(parts: list[Part], ready: list[Bytes], piece: Piece) -> None:
    """Zeros to the end of a file's last block. Raises FileError where the file is not as long as it is said to be: those behind it
    would not be at their places."""
    if sum(map(len, ready)) != piece.size:
        raise FileError(errno.EIO)
    if piece.zeros:
        parts.append(_ZEROS[: piece.zeros])


def _cut(whole: Bytes, piece: Piece) -> list[Bytes]:
    """The piece of a file that is here whole."""
    return [whole if len(whole) == piece.size else whole[piece.offset : piece.offset + piece.size]]


def _is_small(piece: Piece) -> bool:
    return piece.offset == 0 and piece.size <= MAX_WHOLE


async def _fail(error: Exception) -> None:
    """In the place of who waits, whose error is told."""
    raise error


def _ignore(unique: int, inode: int, body: memoryview) -> None:
    """There are so few inodes that they are not counted."""
