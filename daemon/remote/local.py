"""A remote that is a directory: of this machine or of a mounted network file system.

It asks for no links, no locks and no nameless files, which NFS and SMB lack: an object is written under a name of its own, synced,
and renamed. So two writers of one key both end with a whole object, and one that is killed leaves a `.millpond-*.tmp`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from millpond.daemon.errors import CredentialsError, RemoteError
from millpond.daemon.project.durable import sync_file_system, sync_folder
from millpond.daemon.remote.backend import FINAL, Base, Counted, Data, Entry, Got, write_all

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_TEMPORARY = ".millpond-"


class LocalBackend(Base):
    """See Backend. `etag` is made of inode, size and mtime: a rename brings another inode."""

    near = True
    instant = True
    many = 1

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.url = folder
        self._folders: set[str] = set()
        # Folders that were made here and are perhaps not on the disk yet.
        self._made: set[str] = set()
        self._seen_there = float("-inf")

    def head(self, key: str) -> Entry | None:
        try:
            return _entry(key, os.stat(self._path(key)))
        except OSError as error:
            if error.errno in _ABSENT:
                self._check_there()
                return None
            self._fail(error, "look at", key)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        try:
            # Opening a pipe in an object's place would wait for a writer.
            fd = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                entry = _entry(key, found)
                if entry is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if etag is not None and entry.etag != etag:
                    raise self.changed(key)
                length = max(0, min(found.st_size - start, found.st_size if size is None else size))
                return Got(self._read(fd, key, start, length), entry)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _ABSENT:
                self._check_there()
                raise self.absent(key) from None
            self._fail(error, "read", key)

    def _read(self, fd: int, key: str, start: int, length: int) -> bytes | bytearray:
        first = os.pread(fd, length, start)
        if len(first) == length:
            return first
        data = bytearray(first)
        while len(data) < length and (more := os.pread(fd, length - len(data), start + len(data))):
            data += more
        if len(data) < length:
            raise RemoteError(f"'{key}' on remote '{self.name}' became shorter while it was read", path=key)
        return data

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        if create and self.head(key) is not None:
            return False
        with self._writing(key) as (fd, temporary):
            write_all(fd, data)
            os.fsync(fd)
            if not create:
                os.rename(temporary, self._path(key))
            elif not _claim(temporary, self._path(key)):
                return False
            self._sync_up(os.path.dirname(temporary))
        return True

    def put_stream(self, key: str, pieces: Iterable[Data], size: int) -> None:
        with self._writing(key) as (fd, temporary):
            for piece in Counted(pieces, size, key):
                write_all(fd, piece)
            os.fsync(fd)
            os.rename(temporary, self._path(key))
            self._sync_up(os.path.dirname(temporary))

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        """One sync of the file system for all of them, before the first gets its name, and one after the last."""
        written: list[tuple[str, str]] = []
        key = ""
        try:
            for key, data in items:
                fd, temporary = self._begin(key)
                written.append((temporary, key))
                try:
                    write_all(fd, data)
                finally:
                    os.close(fd)
            sync_file_system(self.url)
            for temporary, key in written:
                os.rename(temporary, self._path(key))
            written.clear()
            sync_file_system(self.url)
        except OSError as error:
            self._fail(error, "write", key)
        finally:
            for temporary, _ in written:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def list(self, prefix: str) -> Iterator[Entry]:
        top = os.path.join(self.url, prefix.rstrip("/"))
        if not os.path.isdir(top):
            self._check_there()
            return

        def failed(error: OSError) -> None:
            if error.errno not in _ABSENT:
                self._fail(error, "list", prefix)

        for folder, _, files in os.walk(top, onerror=failed):
            for file in files:
                path = os.path.join(folder, file)
                if file.startswith(_TEMPORARY):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    entry = _entry(os.path.relpath(path, self.url), os.stat(path))
                    if entry is not None:
                        yield entry

    def delete(self, key: str) -> None:
        try:
            os.unlink(self._path(key))
        except OSError as error:
            if error.errno not in _ABSENT:
                self._fail(error, "remove", key)

    def delete_many(self, keys: Sequence[str]) -> None:
        super().delete_many(keys)
        sync_file_system(self.url)

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, key: str) -> str:
        return os.path.join(self.url, key)

    def _check_there(self) -> None:
        """A disk that is not mounted must not look like a remote without objects; one that was never written to is empty. Looked
        at once a second: ten thousand objects that are not there are no reason to ask more often."""
        now = time.monotonic()
        if now - self._seen_there < 1.0:
            return
        parent = os.path.dirname(self.url.rstrip("/")) or "/"
        if not os.path.isdir(self.url) and not os.path.isdir(parent):
            raise RemoteError(
                f"remote '{self.name}' cannot be reached: there is no folder '{self.url}'",
                path=self.url,
                hint="mount its disk, or change the url: millpond remote modify",
                details=FINAL,
            )
        self._seen_there = now

    def _begin(self, key: str) -> tuple[int, str]:
        path = self._path(key)
        folder = os.path.dirname(path)
        try:
            if folder not in self._folders:
                self._check_there()
                if not os.path.isdir(folder):
                    os.makedirs(folder, exist_ok=True)
                    self._made.add(folder)
                self._folders.add(folder)
            temporary = os.path.join(folder, f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
        except OSError as error:
            self._fail(error, "write", key)

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[tuple[int, str]]:
        """A temporary file for a key, and its name: what is not renamed in the block is removed."""
        fd, temporary = self._begin(key)
        try:
            yield fd, temporary
        except OSError as error:
            self._fail(error, "write", key)
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _sync_up(self, folder: str) -> None:
        """Have a folder's new names on the disk, and where it was made here its own name too."""
        sync_folder(folder)
        if folder in self._made:
            self._made.discard(folder)
            while len(folder) > len(self.url):
                folder = os.path.dirname(folder)
                sync_folder(folder)

    def _fail(self, error: OSError, doing: str, key: str) -> NoReturn:
        message = f"cannot {doing} '{key}' on remote '{self.name}' ('{self.url}'): {error.strerror or error}"
        if error.errno in _DENIED:
            raise CredentialsError(message, path=key, hint="check who may read and write there") from error
        hint = (
            "make room there, then do it again" if error.errno in _FULL else "see that it is mounted, then do it again"
        )
        raise RemoteError(message, path=key, hint=hint, details=FINAL) from error


def _entry(key: str, found: os.stat_result) -> Entry | None:
    if not stat.S_ISREG(found.st_mode):
        return None
    etag = f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"
    # A copy may have kept an older mtime.
    return Entry(key, found.st_size, etag, None, max(found.st_mtime, found.st_ctime))


def _claim(temporary: str, path: str) -> bool:
    """Give a file its name if nobody has it. Raises OSError where there are no links: rename would overwrite."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
