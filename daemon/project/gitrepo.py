"""Git, by pygit2: revisions, trees, what is tracked and what is ignored. Runs as the repo's user, in workers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pygit2

from millpond.daemon.errors import NotARepoError, RevisionError

_HEADS, _TAGS = "refs/heads/", "refs/tags/"


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file of a Git tree: `path` relative to the tree's root, `mode` as in Git (0o100644, 0o100755, 0o120000), the blob's
    id in hex, its size in bytes. A submodule has mode 0o160000 and size 0."""

    path: str
    mode: int
    oid: str
    size: int

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_exec(self) -> bool:
        return bool(self.mode & 0o100)


class GitRepo:
    """An open repository. Paths are relative to its work tree, with `/`."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo

    @classmethod
    def discover(cls, path: str) -> GitRepo | None:
        """The repository that holds `path`, or None. Raises NotARepoError when Git refuses it (another owner's)."""
        found = pygit2.discover_repository(path)
        if found is None:
            return None
        try:
            return cls(pygit2.Repository(found))
        except pygit2.GitError as error:
            raise NotARepoError(f"Git refuses the repository of '{path}': {error}", path=path) from error

    @property
    def root(self) -> str | None:
        """The work tree without a slash at the end; None for a bare repository."""
        return None if self._repo.workdir is None else os.path.realpath(self._repo.workdir)

    @property
    def git_dir(self) -> str:
        return str(self._repo.path)

    @property
    def hash_algo(self) -> str:
        """The algorithm of object names: git-sha1 or git-sha256."""
        head = self._repo.config
        return (
            "git-sha256"
            if "extensions.objectformat" in head and head["extensions.objectformat"] == "sha256"
            else "git-sha1"
        )

    def resolve(self, revision: str) -> str:
        """The commit's hex id of anything that `git rev-parse` takes. Raises RevisionError."""
        try:
            found = self._repo.revparse_single(revision)
            return str(found.peel(pygit2.Commit).id)
        except (KeyError, ValueError, pygit2.GitError, pygit2.InvalidSpecError) as error:
            hint = (
                "is the clone shallow? git fetch --unshallow" if self._repo.is_shallow else "see `git log` or `git tag`"
            )
            if self._repo.is_empty:
                hint = "the repository has no commits yet"
            raise RevisionError(f"unknown Git revision '{revision}'", hint=hint) from error

    def refs(self) -> dict[str, str]:
        """Branches and tags by short name (a branch wins over a tag of its name), each with its commit's hex id."""
        found: dict[str, str] = {}
        for prefix in (_TAGS, _HEADS):
            for ref in self._repo.references:
                if ref.startswith(prefix):
                    try:
                        found[ref.removeprefix(prefix)] = str(self._repo.references[ref].peel(pygit2.Commit).id)
                    except (pygit2.GitError, pygit2.InvalidSpecError, KeyError):
                        continue  # a tag of something that is no commit, or a dangling ref
        return found

    def head(self) -> str | None:
        """The commit checked out, None before the first one."""
        try:
            return str(self._repo.head.peel(pygit2.Commit).id)
        except (pygit2.GitError, KeyError):
            return None

    def files(self, commit: str, prefix: str = "", *, sizes: bool = True) -> Iterator[TreeFile]:
        """All files of a commit below `prefix`, in Git's order; sizes (0 without `sizes`) by headers, no blob is read."""
        tree = self._repo[commit].peel(pygit2.Tree)
        if prefix:
            try:
                tree = tree[prefix]
            except KeyError:
                return
            if not isinstance(tree, pygit2.Tree):
                return
        yield from self._walk(tree, prefix, sizes)

    def blob(self, commit: str, path: str) -> bytes | None:
        """A file's content at a commit; None when it is not there."""
        try:
            entry = self._repo[commit].peel(pygit2.Tree)[path]
        except KeyError:
            return None
        return bytes(entry.data) if isinstance(entry, pygit2.Blob) else None

    def read(self, oid: str) -> bytes | None:
        """A blob by its hex id; None when there is none."""
        try:
            found = self._repo[oid]
        except (KeyError, ValueError):
            return None
        return bytes(found.data) if isinstance(found, pygit2.Blob) else None

    def tracked_below(self, path: str) -> str | None:
        """A path at or below `path` that is in the index, or None."""
        index = self._repo.index
        index.read(False)
        if path in index:
            return path
        prefix = os.fsencode(path.rstrip("/") + "/")
        low, high = 0, len(index)
        while low < high:  # entries are sorted by the bytes of their paths
            middle = (low + high) // 2
            if os.fsencode(index[middle].path) < prefix:
                low = middle + 1
            else:
                high = middle
        if low == len(index) or not os.fsencode(index[low].path).startswith(prefix):
            return None
        return str(index[low].path)

    def is_ignored(self, path: str) -> bool:
        """Whether .gitignore rules leave `path` out."""
        return bool(self._repo.path_is_ignored(path))

    def stage(self, paths: Iterable[str]) -> None:
        """`git add` of files that are there; removes those that are not."""
        index = self._repo.index
        index.read(False)
        root = self.root or ""
        for path in paths:
            if os.path.lexists(os.path.join(root, path)):
                index.add(path)
            elif path in index:
                index.remove(path)
        index.write()

    def _walk(self, tree: Any, prefix: str, sizes: bool) -> Iterator[TreeFile]:
        odb = self._repo.odb
        for entry in tree:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if isinstance(entry, pygit2.Tree):
                yield from self._walk(entry, path, sizes)
            elif int(entry.filemode) == 0o160000:
                yield TreeFile(path, 0o160000, str(entry.id), 0)
            else:
                size = int(odb.read_header(entry.id)[1]) if sizes else 0
                yield TreeFile(path, int(entry.filemode), str(entry.id), size)
