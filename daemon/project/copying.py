"""Writing files of the workspace: staged in `.dvc/tmp`, cloned where the file system can, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from types import TracebackType

from millpond.daemon.errors import FileChangedError

# linux/fs.h: _IOW(0x94, 9, int), share the source's extents.
_FICLONE = 0x40049409
_COPY_BYTES = 1 << 26
# Staged files get a mtime this far back: any later write, even within one tick of the clock, then shows another one.
_BACK_NS = 20_000_000
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})


class Staging:
    """A folder below `.dvc/tmp` for files on their way; gone with its content when the block ends."""

    def __init__(self, temporary: str) -> None:
        self._temporary = temporary
        self._folder = ""
        self._count = 0
        umask = os.umask(0o022)  # it can only be read by setting it
        os.umask(umask)
        self._umask = umask

    def __enter__(self) -> Staging:
        self._folder = tempfile.mkdtemp(prefix="millpond-", dir=self._temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self) -> tuple[int, str]:
        """A new empty file: descriptor and path."""
        self._count += 1
        path = os.path.join(self._folder, str(self._count))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def place(
        self, fd: int, staged: str, path: str, *, isexec: bool = False, mode: int | None = None
    ) -> os.stat_result:
        """Close the staged file and put it at `path`, in place of a file or link there; its stat before the rename.

        Permissions: `mode`, or 0666 (0777 if `isexec`) less the umask.
        """
        try:
            os.fchmod(fd, mode if mode is not None else (0o777 if isexec else 0o666) & ~self._umask)
            back = time.time_ns() - _BACK_NS
            os.utime(fd, ns=(back, back))
            found = os.fstat(fd)
        finally:
            os.close(fd)
        try:
            os.rename(staged, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _rename_across(staged, path)
            found = os.stat(path)
        return found


def _rename_across(staged: str, path: str) -> None:
    """The rename for a destination on another file system: by a copy beside it."""
    folder, name = os.path.split(path)
    fd, beside = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=folder)
    os.close(fd)
    try:
        shutil.copy2(staged, beside)
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    os.unlink(staged)


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


def replace_link(path: str, temporary: str) -> os.stat_result:
    """Put a copy of the file that the link at `path` points to in the link's place; the copy's stat.

    Raises FileChangedError when that file changes meanwhile.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(source)
        with Staging(temporary) as staging:
            fd, staged = staging.open()
            copy_into(source, fd, before.st_size)
            after = os.fstat(source)
            if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
                before.st_size,
                before.st_mtime_ns,
                before.st_ctime_ns,
            ):
                os.close(fd)
                raise FileChangedError(f"'{path}' changed while it was copied", path=path, hint="add it again")
            staging.place(fd, staged, path, mode=before.st_mode & 0o777)
    finally:
        os.close(source)
    return os.stat(path)
