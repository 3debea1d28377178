"""A remote that is a directory of a server with ssh, by SFTP: no shell and nothing of ours is needed there.

Written as on a directory of this machine: a name of its own beside, fsync, rename, fsync of the folder, as far as the server can
(OpenSSH can all of it). Files get the modes that the server's umask gives, as DVC's, so that both may share one remote.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
import stat
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import asyncssh
from asyncssh import SFTPAttrs, SFTPClient, SFTPClientFile

from millpond.daemon.errors import CredentialsError, MillpondError, RemoteError
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import FINAL, Base, Counted, Entry, Got, Sent, parts
from millpond.daemon.remote.sshlink import LOST, Session, SSHLink
from millpond.daemon.remote.sshsettings import SSHSettings

_MANY = 16
# Read along with the question for the size, so that a small object needs no more.
_FIRST_BYTES = 32 << 10
# A stream's pieces, and how many are under way.
_PIECE_BYTES, _PIECES = 1 << 20, 4
# Folders that are listed at once.
_FOLDERS = 16
_TEMPORARY = ".millpond-"
# Less room than this on the server is none.
_ROOM_BYTES = 1 << 20
_ABSENT = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)
_DENIED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
# Version 3 has one code for all else.
_EXISTS = (asyncssh.SFTPFileAlreadyExists, asyncssh.SFTPFailure)

# Of a folder: its objects, and the keys of the folders in it.
_Folder = tuple[list[Entry], list[str]]


class SSHBackend(Base):
    """See Backend.

    `etag` is size and mtime, and the mtime that version 3 of SFTP tells has whole seconds. What is written here over another
    object of the same size is given a later one where they are equal; a writer of another kind that overwrites within a second
    what has just been read is not noticed until the whole object is hashed.
    """

    near = False

    def __init__(self, name: str, settings: SSHSettings) -> None:
        self.name = name
        self.url = settings.url
        self.many = _MANY
        self._top = settings.folder
        self._link = SSHLink(name, settings)
        # Below: for the loop's thread. Folders that were made here and are perhaps not on the disk yet.
        self._made: set[str] = set()
        self._seen_there = float("-inf")
        self._closing: set[asyncio.Task[None]] = set()

    def head(self, key: str) -> Entry | None:
        async def ask() -> Entry | None:
            async with self._using("look at", key) as client:
                found = await _stat(client, self._path(key))
                if found is None:
                    await self._check_there(client)
                return None if found is None else _entry(key, found)

        return self._link.run(ask)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        async def read() -> Got:
            async with self._using("read", key) as client:
                try:
                    file = await client.open(self._path(key), "rb")
                except _ABSENT:
                    await self._check_there(client)
                    raise self.absent(key) from None
                try:
                    return await self._read(key, file, start, size, etag)
                finally:
                    self._close(file)

        return self._link.run(read)

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        """With `create` by a rename that overwrites nothing, which OpenSSH makes of a hard link."""

        async def write() -> bool:
            if not await self._write(key, bytes(data), create):
                return False
            await self._sync([key])
            return True

        return self._link.run(write)

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        session, file, temporary = self._link.run(lambda: self._open(key))

        async def write(piece: bytes, at: int) -> None:
            async with self._using("write", key, session):
                await file.write(piece, at)

        async def finish() -> None:
            async with self._using("write", key, session) as client:
                await self._finish(client, file, temporary, key, size, await _stat(client, self._path(key)))
            await self._sync([key])

        flying: deque[tuple[Future[None], int]] = deque()
        done = 0

        def land(limit: int) -> None:
            while len(flying) > limit:
                task, length = flying.popleft()
                self._link.wait(task)
                if sent is not None:
                    sent(length)

        try:
            for piece in parts(Counted(pieces, size, key), _PIECE_BYTES):
                flying.append((self._link.submit(partial(write, piece, done)), len(piece)))
                done += len(piece)
                land(_PIECES - 1)
            land(0)
            self._link.run(finish)
        except BaseException:
            with contextlib.suppress(MillpondError):  # why it failed is told, not why it cannot be tidied
                self._link.run(lambda: self._abandon(session, file, temporary, key))
            raise

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        """Each is synced before it gets its name; their folders once for all of them."""

        async def write() -> None:
            room = asyncio.Semaphore(self.many)

            async def one(key: str, data: Data) -> None:
                async with room:
                    await self._write(key, bytes(data), False)

            await _all([one(key, data) for key, data in items])
            await self._sync([key for key, _ in items])

        self._link.run(write)

    def list(self, prefix: str) -> Iterator[Entry]:
        """A folder is a request; some are under way at once."""
        waiting = deque([prefix.strip("/")])
        flying: deque[Future[_Folder]] = deque()
        while waiting or flying:
            while waiting and len(flying) < _FOLDERS:
                flying.append(self._link.submit(partial(self._folder, waiting.popleft())))
            entries, folders = self._link.wait(flying.popleft())
            waiting.extend(folders)
            yield from entries

    def delete(self, key: str) -> None:
        async def remove() -> None:
            async with self._using("remove", key) as client:
                with contextlib.suppress(*_ABSENT):
                    await client.remove(self._path(key))

        self._link.run(remove)

    def close(self) -> None:
        self._link.close()

    # -- in the loop's thread -------------------------------------------------------------------------------------

    async def _read(self, key: str, file: SFTPClientFile, start: int, size: int | None, etag: str | None) -> Got:
        first = _FIRST_BYTES if size is None else min(size, _FIRST_BYTES)
        found, begin = await asyncio.gather(file.stat(), _part(file, start, first))
        entry = _entry(key, found)
        if entry is None:
            raise self.absent(key)
        if etag is not None and entry.etag != etag:
            raise self.changed(key)
        length = max(0, min(entry.size - start, entry.size if size is None else size))
        data = begin[:length]
        if len(data) < length:
            data += await _part(file, start + len(data), length - len(data))
        if len(data) < length:
            raise RemoteError(f"'{key}' on remote '{self.name}' became shorter while it was read", path=key)
        return Got(data, entry)

    def _close(self, file: SFTPClientFile) -> None:
        """Nobody waits for the end of a file that was only read."""

        async def close() -> None:
            with contextlib.suppress(asyncssh.Error, OSError):
                await file.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _write(self, key: str, data: bytes, create: bool) -> bool:
        """One small object; False where there is one that must not be replaced."""
        session, file, temporary = await self._open(key)
        try:
            async with self._using("write", key, session) as client:
                old, _ = await asyncio.gather(_stat(client, self._path(key)), _fill(file, data))
                if create and old is not None:
                    await file.close()
                    await client.remove(temporary)
                    return False
                return await self._finish(client, file, temporary, key, len(data), old, create)
        except BaseException:
            with contextlib.suppress(MillpondError):
                await self._abandon(session, file, temporary, key)
            raise

    async def _open(self, key: str) -> tuple[Session, SFTPClientFile, str]:
        """A temporary file beside a key's place."""
        folder = posixpath.dirname(self._path(key))
        temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(8)}.tmp"
        async with self._link.session() as session, self._telling(session, "write", key):
            try:
                file = await session.client.open(temporary, "xb")
            except _ABSENT:
                await self._check_there(session.client)
                await self._make(session.client, folder)
                file = await session.client.open(temporary, "xb")
            return session, file, temporary

    async def _finish(
        self,
        client: SFTPClient,
        file: SFTPClientFile,
        temporary: str,
        key: str,
        size: int,
        old: SFTPAttrs | None,
        create: bool = False,
    ) -> bool:
        """Have what was written on the server's disk, then under its name."""
        if old is not None and old.size == size and old.mtime is not None:
            mine = (await file.stat()).mtime or 0
            if mine <= old.mtime:  # or both would have one etag
                await file.setstat(SFTPAttrs(atime=old.mtime + 1, mtime=old.mtime + 1))
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):
            await file.fsync()
        await file.close()
        path = self._path(key)
        if create:
            try:
                await client.rename(temporary, path)
            except _EXISTS:
                if await _stat(client, path) is None:
                    raise
                await client.remove(temporary)
                return False
            return True
        try:
            await client.posix_rename(temporary, path)
        except asyncssh.SFTPOpUnsupported:
            if old is not None:  # a server without an overwriting rename: for a moment there is none
                await client.remove(path)
            await client.rename(temporary, path)
        return True

    async def _abandon(self, session: Session, file: SFTPClientFile, temporary: str, key: str) -> None:
        """Leave nothing behind, as far as the connection is there to do it."""
        async with self._using("write", key, session) as client:
            with contextlib.suppress(asyncssh.SFTPError):
                await file.close()
            with contextlib.suppress(*_ABSENT):
                await client.remove(temporary)

    async def _make(self, client: SFTPClient, folder: str) -> None:
        """A folder and those above it; others may make them at the same time."""
        lacking = [folder]
        for _ in range(3 * folder.count("/") + 3):  # more would be a folder that comes and goes
            try:
                await client.mkdir(lacking[-1])
                self._made.add(lacking[-1])
            except _ABSENT:
                lacking.append(posixpath.dirname(lacking[-1]))
                continue
            except _EXISTS:
                found = await _stat(client, lacking[-1])
                if found is None or not stat.S_ISDIR(found.permissions or 0):
                    raise
            lacking.pop()
            if not lacking:
                return
        raise asyncssh.SFTPFailure(f"the folder '{folder}' cannot be made")

    async def _sync(self, keys: Sequence[str]) -> None:
        """Have the new names of these on the server's disk; where a folder was made for them, its own name too."""
        folders: set[str] = set()
        for key in keys:
            folder = posixpath.dirname(self._path(key))
            folders.add(folder)
            while folder in self._made:
                folder = posixpath.dirname(folder)
                folders.add(folder)

        async def one(folder: str) -> None:
            async with self._using("write", folder) as client:
                try:
                    async with client.open(folder, "rb") as opened:
                        await opened.fsync()
                except LOST:
                    raise
                except asyncssh.SFTPError:  # not every server opens a folder, or syncs at all
                    return

        await _all([one(folder) for folder in sorted(folders)])
        self._made -= folders

    async def _folder(self, folder: str) -> _Folder:
        """The objects of a folder, and the folders in it."""
        entries: list[Entry] = []
        folders: list[str] = []
        async with self._using("list", folder) as client:
            try:
                found = await client.readdir(self._path(folder))
            except _ABSENT:
                await self._check_there(client)
                return [], []
            for each in found:
                file = str(each.filename)
                key = f"{folder}/{file}" if folder else file
                attrs: SFTPAttrs | None = each.attrs
                if file in (".", "..") or file.startswith(_TEMPORARY):
                    continue
                if stat.S_ISLNK(each.attrs.permissions or 0):
                    attrs = await _stat(client, self._path(key))
                elif stat.S_ISDIR(each.attrs.permissions or 0):
                    folders.append(key)
                if attrs is not None and (entry := _entry(key, attrs)) is not None:
                    entries.append(entry)
        return entries, folders

    async def _check_there(self, client: SFTPClient) -> None:
        """As for a directory of this machine: a disk that is not mounted is no remote without objects."""
        now = time.monotonic()
        if now - self._seen_there < 1.0:
            return
        if await _stat(client, self._top) is None and await _stat(client, posixpath.dirname(self._top)) is None:
            raise RemoteError(
                f"remote '{self.name}' cannot be reached: there is no folder '{self._top}' on the server",
                path=self.url,
                hint="make it or mount its disk there, or change the url: millpond remote modify",
                details=FINAL,
            )
        self._seen_there = now

    @contextlib.asynccontextmanager
    async def _using(self, doing: str, key: str, session: Session | None = None) -> AsyncIterator[SFTPClient]:
        """A session for one step, what the server refuses told."""
        async with self._link.session(session) as used, self._telling(used, doing, key):
            yield used.client

    @contextlib.asynccontextmanager
    async def _telling(self, session: Session, doing: str, key: str) -> AsyncIterator[None]:
        try:
            yield
        except LOST:
            raise
        except asyncssh.SFTPError as error:
            message = f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): "
            if isinstance(error, _DENIED):
                hint = "check who may read and write there"
                raise CredentialsError(f"{message}permission denied", path=key, hint=hint) from error
            if isinstance(error, _FULL) or (doing == "write" and await self._is_full(session.client)):
                hint = "make room there, then do it again"
                raise RemoteError(f"{message}no space is left there", path=key, hint=hint, details=FINAL) from error
            hint = "see the server's log, then do it again"
            raise RemoteError(f"{message}{error.reason or 'it failed'}", path=key, hint=hint, details=FINAL) from error

    async def _is_full(self, client: SFTPClient) -> bool:
        """Version 3 does not tell a full disk from other failures."""
        try:
            found = await client.statvfs(self._top)
        except LOST:
            raise
        except asyncssh.SFTPError:
            return False
        return found.bavail * found.frsize < _ROOM_BYTES or (found.files > 0 and found.favail == 0)

    def _path(self, key: str) -> str:
        return posixpath.join(self._top, key) if key else self._top


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of it at once; where one fails the others are ended."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fill(file: SFTPClientFile, data: bytes) -> None:
    if data:
        await file.write(data, 0)


async def _part(file: SFTPClientFile, start: int, size: int) -> bytes:
    data: bytes = await file.read(size, start)
    return data


async def _stat(client: SFTPClient, path: str) -> SFTPAttrs | None:
    """What is there, links followed; None if nothing."""
    try:
        return await client.stat(path)
    except _ABSENT:
        return None


def _entry(key: str, found: SFTPAttrs) -> Entry | None:
    """None for what is no file."""
    if not stat.S_ISREG(found.permissions or 0):
        return None
    size, seconds, rest = found.size or 0, found.mtime or 0, found.mtime_ns or 0
    return Entry(key, size, f"{size:x}-{seconds:x}.{rest:x}", None, seconds + rest / 1e9)
