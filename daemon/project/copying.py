"""Writing files of the workspace: cloned where the file system can, complete before they have their name."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType

from millpond.daemon.errors import FileChangedError
from millpond.daemon.objects import Data
from millpond.daemon.project.durable import writing
from millpond.daemon.project.scratch import scratch, temporary_name

# linux/fs.h: _IOW(0x94, 9, int), share the source's extents.
_FICLONE = 0x40049409
_COPY_BYTES = 1 << 26
# Staged files get a mtime this far back: any later write, even within one tick of the clock, then shows another one.
BACK_NS = 20_000_000
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})


@dataclass(frozen=True, slots=True)
class Staged:
    """A file being written: its descriptor, where it will be, and its name until then (None: it has none)."""

    fd: int
    path: str
    name: str | None


class Staging:
    """Files on their way: nameless until complete (O_TMPFILE), where the file system can; else under a name of ours.

    They are made in the folder they go to: ext4 looks for a free inode near the parent, and a single parent for ten
    thousand files costs ten times as much. A process that dies leaves at most a file `.millpond-*.tmp`, in `.dvc/tmp`
    (scratch.py) where the file system has nameless files.
    """

    def __init__(self) -> None:
        self._count = 0
        self._nameless = True
        self._descriptors = -1
        # The folder that was asked for last, and where its temporary files are.
        self._scratch = "", ""
        umask = os.umask(0o022)  # it can only be read by setting it
        os.umask(umask)
        self._umask = umask

    def __enter__(self) -> Staging:
        self._descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptors)

    def open(self, path: str) -> Staged:
        """A new empty file on its way to `path`, whose folder is there."""
        folder = os.path.dirname(path)
        if self._nameless:
            try:
                return Staged(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), path, None)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._nameless = False
        name = self._name(folder)
        return Staged(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path, name)

    def write(self, staged: Staged, data: memoryview) -> None:
        """The next bytes of a file."""
        with writing(staged.path):
            while data:
                data = data[os.write(staged.fd, data) :]

    def place(self, staged: Staged, *, isexec: bool = False, mode: int | None = None) -> os.stat_result:
        """Close the file and put it in place, of a file or link there too; its stat from just before.

        Permissions: `mode`, or 0666 (0777 if `isexec`) less the umask.
        """
        with writing(staged.path):
            return self._place(staged, mode if mode is not None else (0o777 if isexec else 0o666) & ~self._umask)

    def _place(self, staged: Staged, mode: int) -> os.stat_result:
        try:
            os.fchmod(staged.fd, mode)
            back = time.time_ns() - BACK_NS
            os.utime(staged.fd, ns=(back, back))
            found = os.fstat(staged.fd)
            name = staged.name
            if name is None:
                if self._link(staged.fd, staged.path):
                    return found
                name = self._link_anywhere(staged)
            try:
                os.rename(name, staged.path)
            except BaseException:
                os.unlink(name)
                raise
            return found
        finally:
            os.close(staged.fd)

    def drop(self, staged: Staged) -> None:
        """Give up a file that is not complete."""
        os.close(staged.fd)
        if staged.name is not None:
            os.unlink(staged.name)

    def _link_anywhere(self, staged: Staged) -> str:
        """Give a nameless file a name from which it can be renamed to its place."""
        folder = os.path.dirname(staged.path)
        if self._scratch[0] != folder:
            self._scratch = folder, scratch(folder)
        name = self._name(self._scratch[1])
        self._link(staged.fd, name)
        return name

    def _link(self, fd: int, path: str) -> bool:
        """Give a nameless file its name; False where something has that name."""
        try:
            os.link(str(fd), path, src_dir_fd=self._descriptors, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def _name(self, folder: str) -> str:
        self._count += 1
        return temporary_name(folder, f"{os.getpid()}-{self._count}")


def written_new(path: str, data: Data) -> os.stat_result:
    """Write a file that is not there, where nobody looks for it yet; its stat. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        return os.fstat(fd)
    finally:
        os.close(fd)


def below(top: str) -> tuple[list[str], list[str]]:
    """All that is in a folder, at any depth (os.walk would recurse): files and links; folders, parents first."""
    files, folders = [], []
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    waiting.append(entry.path)
                else:
                    files.append(entry.path)
    return files, folders


def remove_tree(top: str) -> None:
    """Remove a folder and all in it. Raises OSError."""
    files, folders = below(top)
    for file in files:
        os.unlink(file)
    for folder in [*reversed(folders), top]:
        os.rmdir(folder)


def copy_into(source: int, target: int, size: int) -> None:
    """The first `size` bytes of an open file into an empty one: shared extents where possible, else a copy."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError:
        pass
    done = 0
    try:
        while done < size:
            count = os.copy_file_range(source, target, min(_COPY_BYTES, size - done), done, done)
            if count == 0:
                break
            done += count
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    while done < size:
        part = os.pread(source, min(1 << 20, size - done), done)
        if not part:
            break
        done += os.pwrite(target, part, done)


def can_clone(folder: str) -> bool:
    """Whether files in `folder` can share extents. Raises OSError when it cannot be written."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
        source.write(bytes(4096))
        source.flush()
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError:
            return False
        return True


def replace_link(path: str, *, mode: int | None = None) -> os.stat_result:
    """Put a copy of the file that the link at `path` points to in the link's place (`mode`: else the file's); the copy's stat.

    Raises FileChangedError when that file changes meanwhile.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(source)
        with Staging() as staging:
            staged = staging.open(path)
            with writing(path):
                copy_into(source, staged.fd, before.st_size)
            after = os.fstat(source)
            if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
                before.st_size,
                before.st_mtime_ns,
                before.st_ctime_ns,
            ):
                staging.drop(staged)
                raise FileChangedError(f"'{path}' changed while it was copied", path=path, hint="try again")
            staging.place(staged, mode=before.st_mode & 0o777 if mode is None else mode)
    finally:
        os.close(source)
    return os.stat(path)
