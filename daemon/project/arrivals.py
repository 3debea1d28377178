"""Folders that a pull is to bring and that are not in the workspace yet, written while their files arrive.

What the store has hashed is still in this process's hands: written then, beside the fetch, it need not be unpacked, handed over and
written by the checkout once more. The tree lies in `.dvc/tmp`, in a folder that nobody else may look into, and gets its place by
one rename, in the checkout. Only files that arrived in one piece are in it; the checkout brings the others, and does all by itself
where there is no tree. A file in the folder is locked (flock) as long as its pull lives, so the next pull removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project.copying import BACK_NS, remove_tree, written_new
from millpond.daemon.project.durable import make_folders
from millpond.daemon.project.manifest import ManifestEntry
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.scratch import PREFIX, SUFFIX, scratch

# How often the trees' folder is touched: one that was not for a day is taken for leavings (scratch.py).
_TOUCH_NS = 60 * 10**9
_PREFIX = f"{PREFIX}pull-"
# A file: NFS locks nothing that is not open for writing.
_LOCK = "lock"
_DEFAULT_ACL = "system.posix_acl_default"


@dataclass(slots=True)
class Tree:
    """A tracked folder on its way: `top` is where it lies, `files` what is in it, by path below it."""

    name: ObjectName
    top: str
    files: dict[str, tuple[ObjectName, os.stat_result]] = field(default_factory=dict)


class Arrivals:
    """A context manager: what has not got its place by its end is removed. One thread at a time."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._expected: dict[str, ObjectName] = {}
        # Where trees lie, made with the first of them, and the descriptor that has its lock.
        self._folder: str | None = None
        self._lock = -1
        self._trees: dict[str, Tree] = {}
        self._wanted: dict[ObjectName, list[tuple[Tree, str]]] = {}
        self._made: set[str] = set()
        self._last = self._touched = 0

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.clear()
        self._trees.clear()
        if self._folder is not None:
            _remove(self._folder)
            os.close(self._lock)
            self._folder = None

    def look(self) -> None:
        """See which folders may come: those that the workspace's pointers name; what pulls that were killed left is removed. Raises
        InvalidFileError."""
        _remove_left(self._repo.temporary)
        for output in self._repo.outputs():
            if output.name is not None and output.name.is_dir:
                self._expected[output.path] = output.name

    def expect(self, path: str, name: ObjectName, entries: Iterable[ManifestEntry]) -> None:
        """The files of a folder may come: they are taken if it is to be in the workspace, and nothing is in its place."""
        place = self._repo.path(path)
        if self._expected.get(path) != name or path in self._trees or os.path.lexists(place):
            return
        with contextlib.suppress(OSError):
            # Only where a rename leads from one to the other, and what is made in either gets the same group and rights.
            above = _nearest(place)
            if scratch(above) == self._repo.temporary and _handed_on(above) == _handed_on(self._repo.temporary):
                if self._folder is None:
                    self._folder, self._lock = _locked_folder(self._repo.temporary)
                tree = self._trees[path] = Tree(name, os.path.join(self._folder, str(len(self._trees))))
                for entry in entries:
                    self._wanted.setdefault(entry.name, []).append((tree, entry.relpath))

    def take(self, name: ObjectName, data: Data) -> None:
        """A whole content, as the store has hashed it. An error is not told: the checkout meets it again, if it lasts."""
        places = self._wanted.pop(name, None)
        if places is None:
            return
        try:
            for tree, relpath in places:
                path = f"{tree.top}/{relpath}"
                folder = os.path.dirname(path)
                if folder not in self._made:
                    make_folders(folder)
                    self._made.add(folder)
                tree.files[relpath] = name, written_new(path, data)
            self._last = time.time_ns()
            if self._last - self._touched > _TOUCH_NS and self._folder is not None:
                os.utime(self._folder)
                self._touched = self._last
        except OSError:
            self.__exit__()

    def place(
        self, path: str, name: ObjectName, wanted: Mapping[str, ObjectName]
    ) -> dict[str, tuple[ObjectName, os.stat_result]]:
        """Give a folder its place: at `path`, where nothing is; its files, by path below it. None of them where there is no tree
        of that name, or one with files that are not `wanted` (path below it: name), or no rename leads there."""
        tree = self._trees.pop(path, None)
        if tree is None or tree.name != name or not tree.files.keys() <= wanted.keys():
            return {}
        # So a write by somebody else shows another mtime, as the one that checkout puts back does.
        time.sleep(max(0, self._last + BACK_NS - time.time_ns()) / 1e9)
        place = self._repo.path(path)
        try:
            make_folders(os.path.dirname(place))
            os.rename(tree.top, place)
        except OSError:
            return {}
        return tree.files


def _locked_folder(parent: str) -> tuple[str, int]:
    """A new folder in `parent`, and the descriptor by which it is locked. Raises OSError."""
    made = tempfile.mkdtemp(prefix=_PREFIX, suffix=SUFFIX, dir=parent)
    fd = -1
    try:
        fd = os.open(os.path.join(made, _LOCK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return made, fd
    except BaseException:
        if fd >= 0:
            os.close(fd)
        _remove(made)
        raise


def _remove_left(parent: str) -> None:
    """Remove the folders of pulls that do not live any more, as far as that can be told."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if not (name.startswith(_PREFIX) and name.endswith(SUFFIX)):
                continue
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
                finally:
                    os.close(fd)


def _handed_on(folder: str) -> tuple[int | None, bytes | None]:
    """What a folder gives to all that is made in it: its group, with the setgid bit, and an ACL. Raises OSError."""
    found = os.stat(folder)
    acl = None
    with contextlib.suppress(OSError):  # there is none, or the file system has none
        acl = os.getxattr(folder, _DEFAULT_ACL)
    return found.st_gid if found.st_mode & stat.S_ISGID else None, acl


def _remove(folder: str) -> None:
    """As far as it goes: what is left goes with the next pull."""
    with contextlib.suppress(OSError):
        remove_tree(folder)


def _nearest(path: str) -> str:
    """The folder above a path that is there."""
    path = os.path.dirname(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
