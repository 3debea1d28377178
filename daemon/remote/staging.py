"""Files on their way into a directory: each is written under a temporary name, and gets its own when its bytes are on the disk.

It asks for no links, no locks and no nameless files, which NFS and SMB lack. Many files share the syncs of the file system: one sync has
the bytes of some, and the names of those before them, on the disk. A few are synced one by one, which waits for nobody else's writing; and
many, too, where the file system does not hand on a sync of all (disks.py).

Files of a folder that is not there yet can be written, by their own names, into one with a temporary name: then one rename names all of
them. Where somebody else makes the folder meanwhile they are renamed into his, one by one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, NoReturn

from millpond.daemon.objects import Data
from millpond.daemon.project.durable import make_folders, sync_file
from millpond.daemon.remote.backend import write_all, wrong_size
from millpond.daemon.remote.disks import Disks, sync_names

TEMPORARY = ".millpond-"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# So few files are synced one by one.
_FEW = 8
# A directory where making a file takes longer, in seconds, judged by so many files, is on a network: there many are made at once.
_SLOW_S, _JUDGED = 2e-3, 32
# Names in a folder that was not changed for so long, in seconds, are on the disk: also where a laptop's is woken every ten minutes only.
_SETTLED_S = 900.0


class Staged(NamedTuple):
    """A file that waits for its name, `path`, and has a temporary one; `new` is the temporary folder that it is in, if it is in one."""

    key: str
    path: str
    temporary: str
    new: str | None


class Staging:
    """Below one directory; used from any thread. `check_there` raises where it is not mounted; `fail` raises what an OSError means: it
    is given the error, what was being done, and the key."""

    def __init__(
        self, top: str, check_there: Callable[[], None], fail: Callable[[OSError, str, str], NoReturn]
    ) -> None:
        self._top = top
        self._disks = Disks(top)
        self._check_there = check_there
        self._fail = fail
        # Nobody else chooses this, and no two files of ours have the same number.
        self._token = secrets.token_hex(8)
        self._numbers = count()
        self._folders: set[str] = set()
        # Folders that were made here and are perhaps not on the disk yet.
        self._made: set[str] = set()
        # Files that came in one piece, and the seconds that making them took.
        self._timed = 0
        self._took_s = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether the making of files is waited for, so that many should be made at once."""
        return self._timed >= _JUDGED and self._took_s > _SLOW_S * self._timed

    def stage(self, key: str, pieces: Iterable[Data], size: int, new_folders: dict[str, str] | None = None) -> Staged:
        """Write `size` bytes under a temporary name. Raises RemoteError when the pieces are not that many, and what they raise;
        nothing is left then. `new_folders`: those that are not there yet, each with a temporary one that its files are in, and to which
        more may be added; all that is in them is settled together, and nothing is added then."""
        source = iter(pieces)
        first = next(source, b"")
        done = alone = len(first)
        path = f"{self._top}/{key}"
        cut = path.rindex("/")
        folder = path[:cut]
        new = None if new_folders is None else new_folders.get(folder)
        try:
            if new is None and folder not in self._folders:
                new = self._make(folder, new_folders)
        except OSError as error:
            self._fail(error, "write", key)
        temporary = f"{folder}/{self._temporary()}" if new is None else f"{new}{path[cut:]}"
        staged = Staged(key, path, temporary, new)
        try:
            began = time.monotonic()
            fd = os.open(staged.temporary, _FLAGS, 0o666)
            try:
                # It may be gone when the next one is asked for.
                write_all(fd, first)
                for piece in source:
                    done += len(piece)
                    write_all(fd, piece)
            finally:
                os.close(fd)
            if done != size:
                raise wrong_size(key, done, size)
        except BaseException as error:
            self._undo([staged], error)
            raise
        if alone == size:
            self._timed += 1
            self._took_s += time.monotonic() - began
        return staged

    def commit(self, files: Sequence[Staged], rename: Callable[[str, str], None] | None = None) -> None:
        """Give them their names, by `rename` in place of os.rename; all of it is on the disk when this returns."""
        if len(files) > _FEW:
            self.settle(files)
            self.sync()
            return
        self._commit_each(files, rename or os.rename)

    def settle(self, files: Sequence[Staged]) -> None:
        """Have their bytes on the disk, and all that was settled before; then give them their names."""
        if self._disks.one_by_one:
            # It may be so only since a while ago: those before have names that nothing else has on the disk.
            self.sync()
            self._commit_each(files, os.rename)
            return
        with self.kept(files):
            self.sync()
            self._name(files, os.rename)

    def sync(self) -> None:
        """Have all that was settled on the disk."""
        made = set(self._made)
        try:
            self._disks.sync()
        except OSError as error:
            self._fail(error, "sync", "")
        if not self._disks.one_by_one:
            self._made -= made

    def sync_found(self, keys: Iterable[str]) -> None:
        """Have files that were found there on the disk for good, whoever wrote them: he may not have come to that yet. Where none of their
        folders was changed lately nothing is done."""
        recent = time.time() - _SETTLED_S
        is_recent = False
        for inside in {key[: key.rfind("/") + 1] for key in keys}:
            folder = f"{self._top}/{inside}"
            try:
                # A rename changes the folder it is in, and a folder that is renamed.
                if os.stat(folder).st_ctime > recent:
                    self._disks.write_to(folder)
                    is_recent = True
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._fail(error, "sync", "")
        if is_recent:
            self.sync()

    def _name(self, files: Iterable[Staged], rename: Callable[[str, str], None]) -> None:
        """Give files their names. Raises OSError."""
        new: dict[str, list[Staged]] = {}
        for each in files:
            if each.new is None:
                rename(each.temporary, each.path)
            else:
                new.setdefault(each.new, []).append(each)
        for folder, inside in new.items():
            self._name_folder(folder, inside)

    def _name_folder(self, new: str, files: Sequence[Staged]) -> None:
        """Give a folder its name, and so all of its files; or these theirs, where there is a folder by now. Raises OSError."""
        folder = os.path.dirname(files[0].path)
        try:
            os.rename(new, folder)
        except OSError:
            # If anything else is wrong it is met again.
            self._made.update(make_folders(folder))
            for each in files:
                os.rename(each.temporary, each.path)
            with contextlib.suppress(OSError):
                os.rmdir(new)
        else:
            self._made.add(folder)
            inside = set(os.listdir(folder))
            for each in files:
                # Removed before, as what a killed push left: renamed by itself it would be missed.
                if os.path.basename(each.path) not in inside:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), each.temporary)
        self._folders.add(folder)

    def _commit_each(self, files: Sequence[Staged], rename: Callable[[str, str], None]) -> None:
        with self.kept(files):
            for each in files:
                sync_file(each.temporary)
            self._name(files, rename)
            for folder in {os.path.dirname(each.path) for each in files}:
                self._sync_up(folder)

    def close(self) -> None:
        """Nothing is written any more."""
        self._disks.close()

    def drop(self, files: Iterable[Staged]) -> None:
        """They are not wanted any more; those that have their names keep them."""
        new = set()
        for each in files:
            if each.new is not None:
                new.add(each.new)
            with contextlib.suppress(OSError):
                os.unlink(each.temporary)
        for folder in new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def left(self, folder: str, before: float) -> Iterator[tuple[str, int]]:
        """(path, bytes) of what writers that were killed have left in a folder below the top, if nothing of it was changed since `before`
        (seconds since 1970). Raises OSError."""
        for path, found in self._old(folder, before):
            if stat.S_ISDIR(found.st_mode):
                yield from _left_in(path, before)
            elif stat.S_ISREG(found.st_mode):
                yield path, found.st_size

    def sweep(self, folder: str, before: float) -> Iterator[int]:
        """Remove that; the bytes of each file that is gone. Raises OSError."""
        new = [path for path, found in self._old(folder, before) if stat.S_ISDIR(found.st_mode)]
        for path, size in list(self.left(folder, before)):
            with contextlib.suppress(OSError):  # another's, or gone
                os.unlink(path)
                yield size
        for path in new:
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def _old(self, folder: str, before: float) -> Iterator[tuple[str, os.stat_result]]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{self._top}/{folder}") as entries:
            for each in entries:
                if each.name.startswith(TEMPORARY) and each.name.endswith(".tmp"):
                    with contextlib.suppress(OSError):  # another's, or gone
                        found = each.stat(follow_symlinks=False)
                        if found.st_mtime < before:
                            yield each.path, found

    @contextlib.contextmanager
    def kept(self, files: Sequence[Staged]) -> Iterator[None]:
        """Files that are dropped when the block fails; what an OSError means is raised then."""
        try:
            yield
        except BaseException as error:
            self._undo(files, error)
            raise

    def _undo(self, files: Sequence[Staged], error: BaseException) -> None:
        self.drop(files)
        if isinstance(error, OSError):
            paths = error.filename, error.filename2
            about = next((each for each in files if each.temporary in paths), files[-1])
            self._fail(error, "write", about.key)

    def _make(self, folder: str, new_folders: dict[str, str] | None = None) -> str | None:
        """Make a file's folder if it is not there; or a temporary one in its place, among `new_folders`. Raises OSError."""
        self._check_there()
        if new_folders is not None and folder != self._top and not os.path.isdir(folder):
            above = os.path.dirname(folder)
            if above not in self._folders:
                self._make(above)
            if self._disks.is_local:
                new = new_folders[folder] = f"{above}/{self._temporary()}"
                os.mkdir(new)
                return new
        made = make_folders(folder)
        # Before a sync by another thread takes them for those of a file system that is synced whole.
        self._disks.write_to(folder)
        self._made.update(made)
        self._folders.add(folder)
        return None

    def _temporary(self) -> str:
        return f"{TEMPORARY}{self._token}-{next(self._numbers)}.tmp"

    def _sync_up(self, folder: str) -> None:
        """Have a folder's new names on the disk, and where it was made here its own name too, and so on."""
        sync_names(folder)
        if folder in self._made:
            self._sync_up(os.path.dirname(folder))
            self._made.discard(folder)


def _left_in(new: str, before: float) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the files of a temporary folder, if none of them was changed since `before`."""
    with contextlib.suppress(OSError), os.scandir(new) as entries:  # another's, or gone
        inside = [(each.path, each.stat(follow_symlinks=False)) for each in entries]
        if all(found.st_mtime < before for _, found in inside):
            yield from ((path, found.st_size) for path, found in inside)
