"""Writing the project's own small files: all of a command or none, and durable when it returns."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping

from millpond.daemon.errors import DiskFullError, InvalidFileError
from millpond.daemon.project.paths import printable
from millpond.daemon.project.scratch import scratch, sweep, temporary_name

# PATH_MAX without its NUL.
_MAX_PATH = 4095


def write_all(texts: Mapping[str, str], *, executable: bool = False) -> None:
    """Put files in place (absolute path: text). Raises OSError; nothing was changed then.

    All are written to temporary files (scratch.py) and fsynced, then renamed, then their folders fsynced: thousands of
    pointers share a few journal commits, and a full disk is met before the first rename. What was replaced before a rename
    failed is put back. A file that is there keeps its mode; with
    `executable` whoever may read it may run it.
    """
    umask = os.umask(0o022)  # it can only be read by setting it
    os.umask(umask)
    staged: dict[str, str] = {}
    former: dict[str, str | None] = {}
    try:
        folders = {folder: scratch(folder) for folder in {os.path.dirname(path) for path in texts}}
        for folder in set(folders.values()):
            sweep(folder)
        for path, text in texts.items():
            with writing(path):
                staged[path] = _stage(
                    path, text, (0o777 if executable else 0o666) & ~umask, folders[os.path.dirname(path)]
                )
        for path, name in staged.items():
            with writing(path):
                _sync(name, os.O_RDONLY)
        for number, path in enumerate(texts):
            _keep(path, temporary_name(folders[os.path.dirname(path)], f"{os.getpid()}-{number}"), former)
        for path in texts:
            with writing(path):
                os.rename(staged[path], path)
            del staged[path]
    except BaseException:
        _put_back({path: name for path, name in former.items() if path not in staged})
        raise
    finally:
        for each in (*staged.values(), *former.values()):
            if each is not None:
                with contextlib.suppress(OSError):
                    os.unlink(each)
    for folder in folders:
        sync_folder(folder)


def refuse_too_long(path: str) -> None:
    """Raise InvalidFileError for a path that Linux takes from nobody: a manifest may name one."""
    if (size := len(os.fsencode(path))) > _MAX_PATH:
        shown = printable(path)
        shown = f"{shown[:80]}...{shown[-80:]}"
        raise InvalidFileError(
            f"'{shown}' has {size} bytes, and no path may have more than {_MAX_PATH}",
            path=shown,
            hint="rename it where it was added, and add it again",
        )


def make_folders(path: str) -> list[str]:
    """Make a folder and those above it that are not there; those that were made, the outermost first. os.makedirs recurses, and so ends
    at 1,000 levels. Raises OSError."""
    lacking = []
    while not os.path.isdir(path):
        lacking.append(path)
        path = os.path.dirname(path)
    made = []
    for each in reversed(lacking):
        # Somebody else may be first; what is no folder is told of by what comes next.
        with contextlib.suppress(FileExistsError):
            os.mkdir(each)
            made.append(each)
    return made


def _keep(path: str, name: str, former: dict[str, str | None]) -> None:
    """Give the file at `path` a second name, noted in `former` (None: there is no file), where the file system can."""
    with contextlib.suppress(OSError):
        try:
            os.link(path, name, follow_symlinks=False)
            former[path] = name
        except FileNotFoundError:
            former[path] = None


def _put_back(former: Mapping[str, str | None]) -> None:
    for path, name in former.items():
        with contextlib.suppress(OSError):
            if name is None:
                os.unlink(path)
            else:
                os.rename(name, path)


def remove_all(paths: Iterable[str]) -> None:
    """Remove files (absolute paths), durably; those that are gone already are passed over. Raises OSError."""
    folders = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            folders.add(os.path.dirname(path))
    for folder in folders:
        sync_folder(folder)


def rename(old: str, new: str) -> None:
    """Give a file or folder another absolute path on the same disk, durably. Raises OSError."""
    os.rename(old, new)
    for folder in {os.path.dirname(old), os.path.dirname(new)}:
        sync_folder(folder)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Errors of what is done in it are about `path`: the kernel names the temporary file, or none."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def sync_file(path: str) -> None:
    """Have a file's bytes on disk. Raises OSError."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: str) -> None:
    """Have the names in a folder on disk. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file_system(place: int | str) -> None:
    """Have all that was written to the file system of an open file, or of a folder at a path, on disk. Raises OSError."""
    if isinstance(place, str):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    elif ctypes.CDLL(None, use_errno=True).syncfs(place):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "")


def _stage(path: str, text: str, mode: int, folder: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode & 0o7777 | mode & 0o111
    # Not the file's own name with an addition: that could be too long.
    fd, name = tempfile.mkstemp(prefix=".millpond-", suffix=".tmp", dir=folder)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            os.fchmod(fd, mode)
            file.write(text)
    except BaseException:
        os.unlink(name)
        raise
    return name


def _sync(path: str, flags: int) -> None:
    with writing(path):
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_error(error: OSError, hint: str = "the data is stored: add it again") -> DiskFullError | InvalidFileError:
    """The error for a file of the project that could not be written."""
    path = printable(str(error.filename or ""))
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return DiskFullError(f"no room left to write '{path}'", path=path, hint=hint)
    return InvalidFileError(f"cannot write '{path}': {error.strerror}", path=path)
