"""A remote that is a directory: of this machine or of a mounted network file system.

An object is written under a name of its own, synced, and renamed (staging.py). So two writers of one key both end with a whole object,
and one that is killed leaves a `.millpond-*.tmp`, a file or a folder of files.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from millpond.daemon.errors import CredentialsError, RemoteError
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import FINAL, Base, Entry, Got, Sent, told
from millpond.daemon.remote.staging import TEMPORARY, Staged, Staging

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


class LocalBackend(Base):
    """See Backend. `etag` is made of inode, size and mtime: a rename brings another inode."""

    near = True
    instant = True
    many = 1

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.url = folder
        self._staging = Staging(folder, self._check_there, self._fail)
        self._seen_there = float("-inf")

    @property
    def staging(self) -> Staging:
        return self._staging

    def head(self, key: str) -> Entry | None:
        found = self._stat(key, self._path(key))
        return None if found is None else _entry(key, found)

    def sizes_of(self, keys: Sequence[str]) -> builtins.list[int | None]:
        """A folder that is not there is looked for once, not once for each of its objects; nor are those in it."""
        there: dict[str, bool] = {}
        found: builtins.list[int | None] = []
        for key in keys:
            folder = key[: max(0, key.rfind("/"))]
            if there.get(folder) or (folder not in there and self._has_folder(folder, key, there)):
                entry = self._stat(key, f"{self.url}/{key}")
                found.append(None if entry is None else entry.st_size)
            else:
                found.append(None)
        if not all(there.values()):
            self._check_there()
        return found

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
        if not create:
            self.put_stream(key, [data], len(data))
            return True
        if self.head(key) is not None:
            return False
        won = True

        def claim(temporary: str, path: str) -> None:
            """Where there are no links this fails: a rename would overwrite."""
            nonlocal won
            try:
                os.link(temporary, path)
            except FileExistsError:
                won = False

        staged = self._staging.stage(key, [data], len(data))
        self._staging.commit([staged], claim)
        self._staging.drop([staged])
        return won

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        pieces = pieces if sent is None else told(pieces, sent)
        self._staging.commit([self._staging.stage(key, pieces, size)])

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        staged: list[Staged] = []
        with self._staging.kept(staged):
            for key, data in items:
                staged.append(self._staging.stage(key, [data], len(data)))
        self._staging.commit(staged)

    def list(self, prefix: str) -> Iterator[Entry]:
        top = os.path.join(self.url, prefix.rstrip("/"))
        if not os.path.isdir(top):
            self._check_there()
            return

        def failed(error: OSError) -> None:
            if error.errno not in _ABSENT:
                self._fail(error, "list", prefix)

        for folder, folders, files in os.walk(top, onerror=failed):
            folders[:] = [each for each in folders if not each.startswith(TEMPORARY)]
            for file in files:
                path = os.path.join(folder, file)
                if file.startswith(TEMPORARY):
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
        self._staging.sync()

    def close(self) -> None:
        self._staging.close()

    def _stat(self, key: str, path: str) -> os.stat_result | None:
        """What is known of an object's file, None if there is none."""
        try:
            found = os.stat(path)
        except OSError as error:
            if error.errno in _ABSENT:
                self._check_there()
                return None
            self._fail(error, "look at", key)
        return found if stat.S_ISREG(found.st_mode) else None

    def _has_folder(self, folder: str, key: str, there: dict[str, bool]) -> bool:
        """Whether objects can be in a folder ("" for the remote's own); noted in `there`, as of those above it. One that cannot be looked at is
        no absent one."""
        if folder not in there:
            there[folder] = False
            if not folder or self._has_folder(folder[: max(0, folder.rfind("/"))], key, there):
                try:
                    there[folder] = stat.S_ISDIR(os.stat(f"{self.url}/{folder}").st_mode)
                except OSError as error:
                    if error.errno not in _ABSENT:
                        self._fail(error, "look at", key)
        return there[folder]

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

    def _fail(self, error: OSError, doing: str, key: str) -> NoReturn:
        what = f"{doing} '{key}' on" if key else doing
        message = f"cannot {what} remote '{self.name}' ('{self.url}'): {error.strerror or error}"
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
