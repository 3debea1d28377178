"""Git, by pygit2: revisions, trees, what is tracked and what is ignored. Runs as the repo's user, in workers."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pygit2

from millpond.daemon.errors import AccessError, LockTimeoutError, NotARepoError, RevisionError
from millpond.daemon.project.paths import printable

_HEADS, _TAGS = "refs/heads/", "refs/tags/"
_SUBMODULE = 0o160000


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
            shown, top = printable(path), found.rstrip("/")
            top = os.path.dirname(top) if os.path.basename(top) == ".git" else top
            hint = "see what `git status` says there"
            if "owned" in str(error):
                hint = f"if you trust it: git config --global --add safe.directory {shlex.quote(printable(top))}"
            raise NotARepoError(
                f"Git refuses the repository of '{shown}': {error}", path=shown, hint=hint, details={"refused": True}
            ) from error

    @property
    def root(self) -> str | None:
        """The work tree without a slash at the end; None for a bare repository."""
        return None if self._repo.workdir is None else os.path.realpath(self._repo.workdir)

    @property
    def has_no_commits(self) -> bool:
        return bool(self._repo.head_is_unborn)

    @property
    def git_dir(self) -> str:
        return str(self._repo.path)

    @property
    def hash_algo(self) -> str:
        """The algorithm of object names: git-sha1 or git-sha256."""
        config = self._repo.config
        key = "extensions.objectformat"
        return "git-sha256" if key in config and config[key] == "sha256" else "git-sha1"

    def resolve(self, revision: str) -> str:
        """The commit's hex id of anything that `git rev-parse` takes. Raises RevisionError."""
        problem: Exception | None = None
        try:
            if "\0" not in revision:
                return str(self._repo.revparse_single(revision).peel(pygit2.Commit).id)
        except (KeyError, ValueError, pygit2.GitError, pygit2.InvalidSpecError) as error:
            problem = error
        if not revision.isascii():  # libgit2's parser takes UTF-8 only
            found = self.refs().get(revision)
            if found is not None:
                return found
        hint = "is the clone shallow? git fetch --unshallow" if self._repo.is_shallow else "see `git log` or `git tag`"
        if self._repo.is_empty:
            hint = "the repository has no commits yet"
        raise RevisionError(f"unknown Git revision '{printable(revision)}'", hint=hint) from problem

    def has_commit(self, sha: str) -> bool:
        """Whether a commit of this whole hex id is here."""
        try:
            return isinstance(self._repo.get(sha), pygit2.Commit)
        except (ValueError, pygit2.GitError):
            return False

    def refs(self) -> dict[str, str]:
        """Branches and tags by short name (a tag wins over a branch of its name, as in `resolve`), each with its commit's
        hex id."""
        return self.branches() | self.tags()

    def branches(self) -> dict[str, str]:
        """Branches by short name, each with its commit's hex id."""
        return self._refs(_HEADS)

    def tags(self) -> dict[str, str]:
        """Tags of commits by short name, each with its commit's hex id."""
        return self._refs(_TAGS)

    def history(self) -> list[str]:
        """All commits that branches, tags, other references and HEAD lead to, the newest first."""
        tips = {target for name in self._repo.references if (target := self._commit_of(name)) is not None}
        if not self._repo.head_is_unborn:
            tips.add(self._repo.head.target)
        if not tips:
            return []
        walker = self._repo.walk(None, pygit2.enums.SortMode.TIME)
        for tip in tips:
            walker.push(tip)
        return [str(commit.id) for commit in walker]

    def first_parents(self, commit: str, most: int) -> Iterator[str]:
        """A commit, its first parent, and so on: at most so many."""
        for _ in range(most):
            yield commit
            above = self.parents(commit)
            if not above:
                return
            commit = above[0]

    def parents(self, commit: str) -> list[str]:
        """The parents of a commit that are in this clone (a shallow one ends somewhere)."""
        return [sha for each in self._repo[commit].parent_ids if self.has_commit(sha := str(each))]

    def is_first(self, commit: str) -> bool:
        """Whether a commit has no parents, in this clone or elsewhere."""
        return not self._repo.is_shallow and not self._repo[commit].parent_ids

    def _commit_of(self, reference: str) -> Any:
        try:
            return self._repo.references[reference].peel(pygit2.Commit).id
        except (KeyError, ValueError, pygit2.GitError, pygit2.InvalidSpecError):
            return None  # of something that is no commit, or dangling

    def _refs(self, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in self._repo.references:
            if name.startswith(prefix) and (commit := self._commit_of(name)) is not None:
                found[name.removeprefix(prefix)] = str(commit)
        return found

    def head(self) -> str | None:
        """The commit checked out, None before the first one."""
        try:
            return str(self._repo.head.peel(pygit2.Commit).id)
        except (pygit2.GitError, KeyError):
            return None

    def files(self, commit: str, prefix: str = "", *, sizes: bool = True) -> Iterator[TreeFile]:
        """All files of a commit below `prefix`, in Git's order; sizes (0 without `sizes`) by headers, no blob is read.

        Raises RevisionError for a tree that cannot be read, or has names that no file can have.
        """
        with self._reading():
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
        """A file's content at a commit; None when it is not there. Raises RevisionError when it cannot be read."""
        try:
            entry = self._repo[commit].peel(pygit2.Tree)[path]
        except KeyError:
            return None
        with self._reading():
            return bytes(entry.data) if isinstance(entry, pygit2.Blob) else None

    def blob_id(self, commit: str, path: str) -> str | None:
        """The hex id of a file's content at a commit; None when it is not there."""
        try:
            entry = self._repo[commit].peel(pygit2.Tree)[path]
        except KeyError:
            return None
        return str(entry.id) if isinstance(entry, pygit2.Blob) else None

    def read(self, oid: str) -> bytes | None:
        """A blob by its hex id; None when there is none. Raises RevisionError when it cannot be read."""
        try:
            with self._reading(False):
                found = self._repo[oid]
                return bytes(found.data) if isinstance(found, pygit2.Blob) else None
        except (KeyError, ValueError):
            return None

    def tracked_below(self, path: str) -> str | None:
        """A path at or below `path` ("" for all) that is in the index, or None."""
        try:
            return self._tracked_below(path.rstrip("/"))
        except (pygit2.GitError, UnicodeError):
            return self._first_listed(path)

    def is_ignored(self, path: str) -> bool:
        """Whether .gitignore rules leave `path` out."""
        try:
            return bool(self._repo.path_is_ignored(path))
        except UnicodeEncodeError:  # libgit2's binding takes UTF-8 only
            return bool(self._command("check-ignore", "-z", "--stdin", stdin=os.fsencode(path), fine=(0, 1)))

    def changes(self, untracked: str) -> tuple[list[str], list[str]]:
        """(paths that differ from the index or the last commit, untracked paths if `untracked` is "all"): `git status`."""
        told = self._command("status", "--porcelain=v1", "-z", "--no-renames", f"--untracked-files={untracked}")
        changed: list[str] = []
        others: list[str] = []
        for entry in told.split(b"\0"):
            if entry:
                (others if entry.startswith(b"?? ") else changed).append(os.fsdecode(entry[3:]))
        return changed, others

    def dirty(self) -> dict[str, str | None]:
        """Files that differ from the last commit and are in the index or were in it, each with the (SHA-1) blob id of what is
        there now, None for what is no file any more. Raises LockTimeoutError, AccessError."""
        try:
            paths = list(self._repo.status(untracked_files="no"))
        except (pygit2.GitError, UnicodeError):
            paths = self.changes("no")[0]
        return {path: _blob_id(os.path.join(self.root or "", path)) for path in paths}

    @property
    def hooks_dir(self) -> str:
        """The absolute folder in which Git looks for hooks: by core.hooksPath, else the one that all work trees share."""
        found = os.fsdecode(self._command("rev-parse", "--git-path", "hooks").rstrip(b"\n"))
        return os.path.join(self.root or self.git_dir, found)

    def configure(self, settings: Mapping[str, str]) -> None:
        """Set keys of the repository's own config. Raises AccessError."""
        for key, value in settings.items():
            self._command("config", "--local", key, value)

    def stage(self, paths: Iterable[str]) -> None:
        """`git add` of files that are there; removes those that are not. Raises LockTimeoutError, AccessError."""
        names = list(paths)
        try:
            index = self._repo.index
            index.read(False)
            root = self.root or ""
            for path in names:
                if os.path.lexists(os.path.join(root, path)):
                    index.add(path)
                elif path in index:
                    index.remove(path)
            index.write()
        except pygit2.GitError:
            # A kind of index that libgit2 cannot read (split, sparse), a lock, or a real problem: Git knows which.
            names_read = b"".join(os.fsencode(name) + b"\0" for name in names)
            self._command("update-index", "--add", "--remove", "-z", "--stdin", stdin=names_read)

    def _tracked_below(self, path: str) -> str | None:
        index = self._repo.index
        index.read(False)
        if path and path in index:
            return path
        prefix = os.fsencode(f"{path}/") if path else b""
        low, high = 0, len(index)
        while low < high:  # entries are sorted by the bytes of their paths
            middle = (low + high) // 2
            if _entry_path(index[middle]) < prefix:
                low = middle + 1
            else:
                high = middle
        if low == len(index) or not _entry_path(index[low]).startswith(prefix):
            return None
        return str(index[low].path)

    def _first_listed(self, path: str) -> str | None:
        """`tracked_below` by Git itself, for an index that libgit2 cannot read or names that it cannot give."""
        listed = self._command("--literal-pathspecs", "ls-files", "-z", "--", path or ".")
        return os.fsdecode(listed.split(b"\0", 1)[0]) or None

    def _command(self, *argv: str, stdin: bytes = b"", fine: tuple[int, ...] = (0,)) -> bytes:
        """Run Git in the work tree; `fine` are exit codes. Raises LockTimeoutError, AccessError."""
        command = ["git", *argv]
        try:
            done = subprocess.run(command, cwd=self.root, input=stdin, capture_output=True, check=False)
        except OSError as error:
            raise AccessError(f"cannot run git: {error.strerror}", hint="install git") from error
        if done.returncode not in fine:
            said = printable(os.fsdecode(done.stderr.strip().split(b"\n")[0])).removeprefix("fatal: ")
            if b"index.lock" in done.stderr:
                hint = "wait for the other Git command, or remove the lock if there is none; then `git add` the files"
                raise LockTimeoutError(f"Git's index is locked: {said}", hint=hint)
            raise AccessError(f"`git {argv[0]}` failed: {said}")
        return done.stdout

    @contextmanager
    def _reading(self, missing: bool = True) -> Iterator[None]:
        """Objects that are broken (or, with `missing`, not there) become RevisionError."""
        try:
            yield
        except KeyError as error:
            if not missing:
                raise
            hint = "a partial clone lacks contents: git fetch --refetch --no-filter; otherwise see git fsck"
            raise RevisionError(f"Git's object {error.args[0]} is not in this clone", hint=hint) from error
        except pygit2.GitError as error:
            raise RevisionError(f"Git's object cannot be read: {error}", hint="see git fsck") from error

    def _walk(self, top: Any, prefix: str, sizes: bool) -> Iterator[TreeFile]:
        odb = self._repo.odb
        folders: list[tuple[str, Iterator[Any]]] = [(prefix, iter(top))]
        with self._reading():
            while folders:
                folder, entries = folders[-1]
                entry = next(entries, None)
                if entry is None:
                    folders.pop()
                    continue
                name, mode = entry.name, int(entry.filemode)
                if name in ("", ".", "..") or "/" in name:
                    raise RevisionError(f"the tree of '{printable(folder)}' has a name that no file can have")
                path = f"{folder}/{name}" if folder else name
                if mode == stat.S_IFDIR:
                    folders.append((path, iter(entry)))
                    continue
                size = int(odb.read_header(entry.id)[1]) if sizes and mode != _SUBMODULE else 0
                yield TreeFile(path, mode, str(entry.id), size)


def _blob_id(path: str) -> str | None:
    try:
        if os.path.islink(path):
            return str(pygit2.hash(os.fsencode(os.readlink(path))))
        return str(pygit2.hashfile(path)) if os.path.isfile(path) else None
    except (OSError, pygit2.GitError):
        return None


def _entry_path(entry: Any) -> bytes:
    """The bytes of an index entry's path. Raises UnicodeError when libgit2's binding has replaced some of them."""
    path = str(entry.path)
    if "\ufffd" in path:
        raise UnicodeError(path)
    return os.fsencode(path)
