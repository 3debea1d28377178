"""A project's own DVC cache as a source of objects: found where config puts it, checked once, read in place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.hashing import digest_of

# Verified files remembered by one process.
_MAX_VERIFIED = 1_000_000


class DvcCache:
    """The cache folder: `files/md5/ab/cdef...` for md5 names (DVC 3), `ab/cdef...` for md5-dos2unix ones (DVC 1 and 2)."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._md5 = os.path.join(folder, "files", "md5")
        self._verified: dict[ObjectName, tuple[int, int, int, int]] = {}

    @property
    def is_used(self) -> bool:
        """Whether DVC has put objects here."""
        try:
            with os.scandir(os.path.join(self.folder, "files", "md5")) as entries:
                return any(len(entry.name) == 2 for entry in entries)
        except OSError:
            return False

    def path_of(self, name: ObjectName) -> str | None:
        """Where an object would lie; None for names that DVC's cache has no place for."""
        if name.algo == "md5":
            return f"{self._md5}/{name.value[:2]}/{name.value[2:]}"
        if name.algo == "md5-dos2unix":
            return f"{self.folder}/{name.value[:2]}/{name.value[2:]}"
        return None

    def size(self, name: ObjectName) -> int | None:
        """Bytes of an object that is there as a regular file; its content is not looked at."""
        path = self.path_of(name)
        if path is None:
            return None
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sizes(self, digests: Sequence[str]) -> list[int | None]:
        """`size` of many md5 objects, by their digests in hexadecimal: the folder is opened once, not gone to each time."""
        try:
            folder = os.open(self._md5, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return [None] * len(digests)
        found: list[int | None] = []
        try:
            for digest in digests:
                try:
                    status = os.stat(f"{digest[:2]}/{digest[2:]}", dir_fd=folder)
                except OSError:
                    found.append(None)
                else:
                    found.append(status.st_size if stat.S_ISREG(status.st_mode) else None)
        finally:
            os.close(folder)
        return found

    def open(self, name: ObjectName) -> tuple[int, int] | None:
        """(descriptor, size) of an object whose bytes were checked against its name; None when it is not there.

        The check is done once for each (inode, size, mtime, ctime). Raises StoreDamagedError for another content.
        """
        path = self.path_of(name)
        opened = None if path is None else _open_regular(path)
        if path is None or opened is None:
            return None
        fd, found = opened
        try:
            self._verify(name, path, fd, found)
        except BaseException:
            os.close(fd)
            raise
        return fd, found.st_size

    def read_unchecked(self, name: ObjectName) -> bytes | None:
        """An object's bytes, for who finds out their name by himself; None when it is not there."""
        path = self.path_of(name)
        opened = None if path is None else _open_regular(path)
        if opened is None:
            return None
        with os.fdopen(opened[0], "rb") as file:
            return file.read()

    def read(self, name: ObjectName) -> bytes | None:
        """A small object's bytes, checked; None when it is not there. Raises StoreDamagedError."""
        found = self.open(name)
        if found is None:
            return None
        with os.fdopen(found[0], "rb") as file:
            return file.read()

    def names(self) -> Iterator[ObjectName]:
        """All objects that are there, manifests included; in no order."""
        for algo, base in (("md5", os.path.join(self.folder, "files", "md5")), ("md5-dos2unix", self.folder)):
            try:
                heads = [head for head in os.listdir(base) if len(head) == 2]
            except OSError:
                continue
            for head in heads:
                for tail in os.listdir(os.path.join(base, head)):
                    name = ObjectName(algo, head + tail)
                    if len(name.hex) == 32 and not set(name.hex) - set("0123456789abcdef"):
                        yield name

    def _verify(self, name: ObjectName, path: str, fd: int, found: os.stat_result) -> None:
        seen = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self._verified.get(name) == seen:
            return
        with open(fd, "rb", closefd=False) as file:
            # A manifest is named by its bytes under both algorithms.
            digest = digest_of(file, "md5" if name.is_dir else name.algo)
        os.lseek(fd, 0, os.SEEK_SET)
        if digest != name.hex:
            raise misnamed(path, digest)
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()
        self._verified[name] = seen


def _open_regular(path: str) -> tuple[int, os.stat_result] | None:
    """(descriptor, status) of a regular file; None for what is none, or cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        return fd, found
    os.close(fd)
    return None


def misnamed(path: str, digest: str) -> StoreDamagedError:
    """The error for an object that has another digest."""
    return StoreDamagedError(
        f"'{path}' in the DVC cache is not what its name says: it hashes to {digest}",
        path=path,
        hint="remove it and fetch it again: dvc fetch, or restore the file and add it again",
    )
