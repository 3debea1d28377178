"""What a repository holds, Git's files and tracked data in one tree: in its workspace, or at a revision.

Nothing is copied or checked out: a revision's files come from Git's trees, tracked files from pointers and manifests.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from millpond.daemon.errors import ObjectMissingError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest, outputs
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.ignore import DVC_DIR, IgnoreRules
from millpond.daemon.project.outputs import GitTree, Output, WorkTree, is_pointer
from millpond.daemon.project.paths import printable


class Item(NamedTuple):
    """An entry of a folder. `size` in bytes, None where it is not known; `name` the object of what is tracked, None for a
    folder inside tracked data; `blob` the object of a commit's file."""

    is_dir: bool
    is_out: bool = False
    is_exec: bool = False
    size: int | None = None
    name: ObjectName | None = None
    blob: ObjectName | None = None
    is_link: bool = False


_FOLDER = Item(True)


class Row(NamedTuple):
    """An entry of a listing: its path below what was listed, and how many folders lead to it."""

    path: str
    depth: int
    item: Item


class Base(Protocol):
    """Files that are not DVC's."""

    def entries(self, folder: str) -> dict[str, Item] | None:
        """A folder's entries, None if there is no such folder."""
        ...


class WorkFiles:
    """The workspace; what `.dvcignore` rules out is not there. With `detail` sizes and modes are looked up."""

    def __init__(self, root: str, rules: IgnoreRules, *, detail: bool) -> None:
        self._root = root
        self._rules = rules
        self._detail = detail

    def entries(self, folder: str) -> dict[str, Item] | None:
        rules = self._rules.at(folder)
        if rules is None:
            return None
        path = os.path.join(self._root, folder)
        try:
            with os.scandir(path) as found:
                return {
                    entry.name: self._item(entry)
                    for entry in found
                    if not rules.ignores(entry.name, entry.is_dir(follow_symlinks=False))
                }
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # a manifest may name folders that nobody can have
                return None
            raise TargetError(f"cannot read '{printable(path)}': {error.strerror}", path=printable(path)) from error

    def _item(self, entry: os.DirEntry[str]) -> Item:
        if entry.is_dir(follow_symlinks=False):
            return Item(True)
        if not self._detail:
            return Item(False)
        try:
            found = entry.stat()
        except OSError:  # a link to nothing
            return Item(False, size=0)
        return Item(False, False, bool(found.st_mode & stat.S_IXUSR) and not entry.is_symlink(), found.st_size)


class GitFiles:
    """The files of a commit below `prefix`."""

    def __init__(self, git: GitRepo, commit: str, prefix: str, *, detail: bool) -> None:
        self._folders: dict[str, dict[str, Item]] = {"": {}}
        algo = git.hash_algo
        for file in git.files(commit, prefix, sizes=detail):
            path = file.path[len(prefix) + 1 :] if prefix else file.path
            folder, _, name = path.rpartition("/")
            if DVC_DIR not in folder.split("/"):
                is_exec = file.is_exec and not file.is_link
                blob = ObjectName(algo, file.oid)
                _make(self._folders, folder)[name] = Item(
                    False, False, is_exec, file.size, blob=blob, is_link=file.is_link
                )

    def entries(self, folder: str) -> dict[str, Item] | None:
        return self._folders.get(folder)


@dataclass(slots=True)
class Tree:
    """A repository's files and tracked data as one tree. `missing`: tracked folders that were to be listed and whose
    manifest is nowhere at hand."""

    base: Base
    objects: Objects
    missing: list[str]
    _folders: dict[str, dict[str, Item]]
    _outs: dict[str, Output]
    _remotes: dict[str, str]

    @classmethod
    def of(cls, base: Base, found: Iterable[Output], objects: Objects) -> Tree:
        tree = cls(base, objects, [], {"": {}}, {}, {})
        for out in found:
            if out.cache and not out.stale:
                folder, _, name = out.path.rpartition("/")
                _make(tree._folders, folder)[name] = Item(out.is_dir, True, out.isexec, out.size, out.name)
                if out.is_dir:
                    tree._outs[out.path] = out
                if out.remote is not None:
                    tree._remotes[out.path] = out.remote
        return tree

    def item(self, path: str) -> Item | None:
        """What is at `path` ("" for the root); None if nothing is."""
        if not path:
            return Item(True)
        folder, _, name = path.rpartition("/")
        return self.entries(folder).get(name)

    def entries(self, folder: str, *, tracked_only: bool = False) -> dict[str, Item]:
        """A folder's entries by name, sorted; with `tracked_only` no others than tracked data and what leads to it."""
        self._expand(folder)
        tracked = self._folders.get(folder, {})
        there = self.base.entries(folder) or {}
        found = {} if tracked_only else dict(there)
        for name, item in tracked.items():
            actual = there.get(name)
            if actual is None:
                found[name] = item
            else:
                size = item.size if actual.size is None else actual.size
                found[name] = actual._replace(is_out=item.is_out, size=size, name=item.name)
        return dict(sorted(found.items()))

    def tracked_folder(self, path: str) -> Output | None:
        """The tracked folder that is at or above `path`, unless it was looked into already."""
        return next((self._outs[top] for top in _at_or_above(path) if top in self._outs), None)

    def remote_of(self, path: str) -> str | None:
        """The one remote that the tracked data at `path` goes to, where its pointer names one."""
        return next((self._remotes[top] for top in _at_or_above(path) if top in self._remotes), None)

    def walk(self, top: str, *, depth: int | None = None, tracked_only: bool = False) -> Iterator[Row]:
        """All entries below a folder, each folder before what is in it, at most `depth` levels of them."""
        pending = [iter(self.entries(top, tracked_only=tracked_only).items())]
        folders = [""]
        while pending:
            name, item = next(pending[-1], (None, None))
            if name is None or item is None:
                pending.pop()
                folders.pop()
                continue
            path = f"{folders[-1]}{name}"
            yield Row(path, len(pending), item)
            if item.is_dir and (depth is None or len(pending) < depth):
                inner = f"{top}/{path}" if top else path
                pending.append(iter(self.entries(inner, tracked_only=tracked_only).items()))
                folders.append(f"{path}/")

    def sized(self, rows: Iterable[Row]) -> list[Row]:
        """The rows with the sizes of tracked files that the store or DVC's cache knows, also of those that were
        evicted."""
        rows = list(rows)
        unknown = [(at, row.item.name) for at, row in enumerate(rows) if row.item.size is None and not row.item.is_dir]
        wanted = [(at, name) for at, name in unknown if name is not None]
        sizes = self.objects.sizes([name for _, name in wanted])
        lacking = [number for number, size in enumerate(sizes) if size is None]
        evicted = self.objects.store.sizes([wanted[number][1] for number in lacking], evicted=True)
        for number, size in zip(lacking, evicted, strict=True):
            sizes[number] = size
        for (at, _), size in zip(wanted, sizes, strict=True):
            rows[at] = rows[at]._replace(item=rows[at].item._replace(size=size))
        return rows

    def _expand(self, folder: str) -> None:
        """Read the manifest of the tracked folder that `folder` is or lies in, once."""
        if not self._outs:
            return
        for top in _at_or_above(folder):
            out = self._outs.pop(top, None)
            if out is None or out.name is None:
                continue
            raw = self.objects.manifest(out.name)
            if raw is None:
                self.missing.append(out.path)
                return
            for row in manifest.parse(raw, source=str(out.name), algo=out.name.algo):
                inner, _, name = f"{out.path}/{row.relpath}".rpartition("/")
                there = self._folders.get(inner)
                if there is None:
                    there = _make(self._folders, inner, Item(True, True))
                there[name] = Item(False, True, name=row.name)


def _at_or_above(path: str) -> Iterator[str]:
    """The folders on the way to a path, and itself."""
    parts = path.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _make(folders: dict[str, dict[str, Item]], folder: str, new: Item = _FOLDER) -> dict[str, Item]:
    """The entries of a folder, which is made with all above it, as `new` ones; at any depth."""
    if folder in folders:
        return folders[folder]
    found, is_known = folders.setdefault(folder, {}), False
    while not is_known:
        folder, _, name = folder.rpartition("/")
        is_known = folder in folders
        folders.setdefault(folder, {}).setdefault(name, new)
    return found


def missing_error(path: str) -> ObjectMissingError:
    """The error for a tracked folder whose files cannot be listed."""
    shown = printable(path)
    return ObjectMissingError(
        f"the files of '{shown}' cannot be listed: its manifest is neither in the store nor in DVC's cache",
        path=shown,
        hint="fetch it first: millpond fetch, or `millpond add` the data again",
    )


def is_dvc_file(name: str) -> bool:
    """Whether a file's name is that of a pointer, a lock file or a file of stages."""
    return is_pointer(name)


def workspace_tree(root: str, rules: IgnoreRules, objects: Objects, *, detail: bool) -> Tree:
    """The tree of a workspace. Raises InvalidFileError."""
    return Tree.of(WorkFiles(root, rules, detail=detail), outputs.collect(WorkTree(root, rules)), objects)


def revision_tree(git: GitRepo, revision: str, prefix: str, objects: Objects, *, detail: bool) -> Tree:
    """The tree of a revision. Raises RevisionError, InvalidFileError."""
    commit = git.resolve(revision)
    return Tree.of(GitFiles(git, commit, prefix, detail=detail), outputs.collect(GitTree(git, commit, prefix)), objects)
