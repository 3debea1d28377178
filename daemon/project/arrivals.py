"""Folders that a pull is to bring and that are not in the workspace yet, written while their files arrive.

What the store has hashed is still in this process's hands: written then, beside the fetch, it need not be unpacked, handed over and
written by the checkout once more. The tree lies in `.dvc/tmp`, in a folder that nobody else may look into, and gets its place by
one rename, in the checkout. Only files that arrived in one piece are in it; the checkout brings the others, and does all by itself
where there is no tree.
"""

from __future__ import annotations

import contextlib
import os
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
        # Where trees lie, made with the first of them.
        self._folder: str | None = None
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
            with contextlib.suppress(OSError):  # what is left goes after a day
                remove_tree(self._folder)
            self._folder = None

    def look(self) -> None:
        """See which folders may come: those that the workspace's pointers name. Raises InvalidFileError."""
        for output in self._repo.outputs():
            if output.name is not None and output.name.is_dir:
                self._expected[output.path] = output.name

    def expect(self, path: str, name: ObjectName, entries: Iterable[ManifestEntry]) -> None:
        """The files of a folder may come: they are taken if it is to be in the workspace, and nothing is in its place."""
        place = self._repo.path(path)
        if self._expected.get(path) != name or path in self._trees or os.path.lexists(place):
            return
        with contextlib.suppress(OSError):
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=self._repo.temporary)
            # Only where a rename leads from one to the other.
            if scratch(_nearest(place)) == self._repo.temporary:
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


def _nearest(path: str) -> str:
    """The folder above a path that is there."""
    path = os.path.dirname(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
