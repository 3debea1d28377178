"""The MD5s that a project's pointers name: in all of its revisions, or in those that were asked for.

Nothing is parsed for them: every MD5 in a pointer or lock file counts (ledger.roots_in), so a broken file keeps what it names. What
Git holds is read from all branches, tags, stashes, experiments and other references, all reflogs and all work trees. Only what
must be known of a root beside its MD5 (`outputs`, `paths`) is parsed.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pygit2

from millpond.daemon.errors import AccessError, InvalidFileError, RevisionError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import yamlio
from millpond.daemon.project.dvcfile import name_of_files
from millpond.daemon.project.ignore import IgnoreRules
from millpond.daemon.project.outputs import Output, WorkTree, is_pointer, outputs_of
from millpond.daemon.project.paths import printable
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.store.ledger import MANIFEST, root_of, roots_in

_NAMES = ("*.dvc", "*dvc.lock", "*dvc.yaml")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which revisions of a project are kept beside its workspace (`dvc gc`'s options); `since` in seconds since the epoch."""

    all_commits: bool = False
    all_branches: bool = False
    all_tags: bool = False
    all_experiments: bool = False
    revs: tuple[str, ...] = ()
    number: int = 1
    since: float | None = None


@dataclass(frozen=True, slots=True)
class _Pointer:
    """A pointer in Git: its path, its blob, and that of the dvc.yaml beside it."""

    path: str
    oid: Any
    stages: Any = None


class ProjectRoots:
    """Reads one project's roots, as the caller. Raises RevisionError, AccessError when something cannot be read. With a list `skipped`
    commits that cannot be read whole are named there, and passed over."""

    def __init__(
        self, root: str, git_root: str | None, environ: Mapping[str, str], skipped: list[str] | None = None
    ) -> None:
        self._root = root
        self._git_root = git_root
        self.skipped = skipped
        self._environ = dict(environ)
        self._repo: Any = None if git_root is None else pygit2.Repository(git_root)
        self._blobs: dict[Any, set[bytes]] = {}

    @property
    def git_dir(self) -> str | None:
        """The Git directory that all work trees share."""
        if self._git_root is None:
            return None
        return os.path.realpath(os.path.join(self._git_root, self._lines("rev-parse", "--git-common-dir")[0]))

    def everything(self) -> set[bytes]:
        """All roots of the project, in whatever revision."""
        found = _workspace(self._root)
        if self._repo is None:
            return found
        for tree in self._work_trees():
            if os.path.isdir(tree):
                found |= _workspace(tree) | self._staged(tree)
        return found | self._of(self._lines("rev-list", "--all", "--reflog"))

    def scoped(self, scope: Scope) -> set[bytes]:
        """The roots of the workspace, of Git's index and of the revisions asked for."""
        found = _workspace(self._root)
        if self._repo is None:
            if scope != Scope():
                raise RevisionError("this project is not in a Git repository, so it has no revisions")
            return found
        return found | self._staged(self._git_root or self._root) | self._of(self._commits(scope))

    def _commits(self, scope: Scope) -> set[str]:
        found: set[str] = set()
        tips = [self._commit(rev) for rev in scope.revs]
        if scope.all_branches:
            tips += self._lines("for-each-ref", "--format=%(objectname)", "refs/heads")
        if scope.all_tags:
            tips += self._lines("rev-list", "--no-walk", "--tags")
        for tip in tips:
            number = ["-n", str(scope.number)] if scope.number >= 0 else []
            found.update(self._lines("rev-list", "--first-parent", *number, tip))
        if scope.all_experiments:
            found.update(self._lines("rev-list", "--no-walk", "--glob=refs/exps"))
            # The queue is a stash: all but its newest entry stand in its reflog only.
            found.update(self._lines("rev-list", "--no-walk", "--walk-reflogs", "--glob=refs/exps"))
        if scope.all_commits:
            found.update(self._lines("rev-list", "--all"))
        if scope.since is not None:
            for line in self._lines("log", "--all", "--format=%H %ct"):
                commit, _, when = line.partition(" ")
                if float(when) >= scope.since:
                    found.add(commit)
        return found

    def _commit(self, rev: str) -> str:
        try:
            return self._command("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}").strip()
        except AccessError as error:
            raise RevisionError(
                f"unknown Git revision '{printable(rev)}'", hint="see `git log` or `git tag`"
            ) from error

    def outputs(self, scope: Scope, text: bytes = b"") -> Iterator[Output]:
        """The project's own outputs in the workspace, Git's index and the revisions asked for, with their paths from its root; of
        a pointer that is broken each manifest that it names, as an output without a place. Only of pointers that hold `text`."""
        try:
            files = dict(WorkTree(self._root, IgnoreRules(self._root)).pointer_files())
        except InvalidFileError:
            files = dict(_all_pointers(self._root))
        for path, content in files.items():
            if text in content:
                yield from _parsed(path, content, files.get(_stages_beside(path)))
        if self._repo is None:
            return
        prefix = f"{self._prefix}/" if self._prefix else ""
        staged = [
            replace(each, path=each.path[len(prefix) :])
            for each in self._index_of(self._git_root or self._root)
            if each.path.startswith(prefix)
        ]
        seen: set[tuple[Any, Any]] = set()
        for pointer in [*staged, *self._pointers(self._commits(scope), self._prefix)]:
            if (pointer.oid, pointer.stages) not in seen:
                seen.add((pointer.oid, pointer.stages))
                if text in bytes(self._repo[pointer.oid].data):
                    yield from self._outputs_of(pointer)

    def paths(self, wanted: set[bytes]) -> dict[bytes, str]:
        """For roots that some revision of the project names as outputs, a path that they are at."""
        found: dict[bytes, str] = {}
        if self._repo is None:
            return found
        for pointer in self._pointers(self._lines("rev-list", "--all", "--reflog"), self._prefix):
            if self._blob(pointer.oid) & wanted:
                for output in self._outputs_of(pointer):
                    if output.name is not None and output.path and (root := root_of(output.name)) in wanted:
                        found.setdefault(root, output.path)
        return found

    @property
    def _prefix(self) -> str:
        """The project's root, from Git's; "" where it is that."""
        prefix = os.path.relpath(self._root, os.path.realpath(self._git_root or self._root))
        return "" if prefix == "." else prefix

    def _outputs_of(self, pointer: _Pointer) -> Iterator[Output]:
        stages = None if pointer.stages is None else bytes(self._repo[pointer.stages].data)
        return _parsed(pointer.path, bytes(self._repo[pointer.oid].data), stages)

    def _of(self, commits: Iterable[str]) -> set[bytes]:
        """Roots in commits."""
        found: set[bytes] = set()
        for pointer in self._pointers(commits):
            found |= self._blob(pointer.oid)
        return found

    def _pointers(self, commits: Iterable[str], prefix: str = "") -> Iterator[_Pointer]:
        """The pointers below `prefix` in commits, and their paths from there; a tree that several of them share is looked into
        once."""
        seen: set[Any] = set()
        for commit in commits:
            try:
                yield from self._pointers_in(commit, prefix, seen)
            except (KeyError, ValueError, pygit2.GitError) as error:
                if self.skipped is None:
                    raise RevisionError(
                        f"a commit of '{printable(self._root)}' cannot be read whole: {error}",
                        path=printable(self._root),
                        hint="see git fsck; a partial clone lacks contents: git fetch --refetch --no-filter",
                    ) from error
                self.skipped.append(commit)

    def _pointers_in(self, commit: str, prefix: str, seen: set[Any]) -> Iterator[_Pointer]:
        top = self._repo[commit].peel(pygit2.Tree)
        if prefix:
            if prefix not in top or not isinstance(top[prefix], pygit2.Tree):
                return
            top = top[prefix]
        todo = [("", top)]
        while todo:
            folder, tree = todo.pop()
            if tree.id in seen:
                continue
            stages = None
            pointers: list[tuple[str, Any]] = []
            for entry in tree:
                mode, path = int(entry.filemode), posixpath.join(folder, entry.name)
                if mode == stat.S_IFDIR:
                    todo.append((path, entry))
                elif stat.S_ISREG(mode) and is_pointer(entry.name):
                    stages = entry.id if entry.name == STAGES_FILE else stages
                    pointers.append((path, entry.id))
                    self._blob(entry.id)
            seen.add(tree.id)
            yield from (_Pointer(path, oid, stages) for path, oid in pointers)

    def _blob(self, oid: Any) -> set[bytes]:
        if oid not in self._blobs:
            self._blobs[oid] = _named_in(bytes(self._repo[oid].data))
        return self._blobs[oid]

    def _staged(self, tree: str) -> set[bytes]:
        """Roots in Git's index of a work tree."""
        found: set[bytes] = set()
        for pointer in self._index_of(tree):
            found |= self._blob(pointer.oid)
        return found

    def _index_of(self, tree: str) -> list[_Pointer]:
        """The pointers in Git's index of a work tree."""
        blobs: dict[tuple[str, str], Any] = {}
        for row in self._command("ls-files", "--full-name", "--stage", "-z", "--", *_NAMES, cwd=tree).split("\0"):
            head, _, path = row.partition("\t")
            fields = head.split(" ")
            if fields[0].startswith("100") and fields[1] in self._repo:
                blobs[path, fields[2]] = pygit2.Oid(hex=fields[1])
        return [_Pointer(path, oid, blobs.get((_stages_beside(path), "0"))) for (path, _), oid in blobs.items()]

    def _work_trees(self) -> list[str]:
        rows = self._command("worktree", "list", "--porcelain", "-z").split("\0")
        return [row.removeprefix("worktree ") for row in rows if row.startswith("worktree ")]

    def _lines(self, *argv: str) -> list[str]:
        return self._command(*argv).split("\n")[:-1]

    def _command(self, *argv: str, cwd: str | None = None) -> str:
        where = cwd or self._git_root
        try:
            done = subprocess.run(["git", *argv], cwd=where, env=self._environ, capture_output=True, check=False)
        except OSError as error:
            raise AccessError(f"cannot run git in '{where}': {error.strerror}", hint="install git") from error
        if done.returncode:
            said = printable(os.fsdecode(done.stderr.strip().split(b"\n")[0])).removeprefix("fatal: ")
            raise AccessError(f"`git {argv[0]}` failed in '{where}': {said}")
        return os.fsdecode(done.stdout)


def _workspace(root: str) -> set[bytes]:
    try:
        contents = [content for _, content in WorkTree(root, IgnoreRules(root)).pointer_files()]
    except InvalidFileError:
        contents = [content for _, content in _all_pointers(root)]
    return {found for content in contents for found in _named_in(content)}


def _all_pointers(root: str) -> Iterator[tuple[str, bytes]]:
    """Pointers of a workspace in which one is broken, so that it is not known what is tracked and what is ignored."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".dvc")]
        for name in files:
            path = os.path.join(folder, name)
            if is_pointer(name) and os.path.isfile(path):
                with open(path, "rb") as file:
                    yield os.path.relpath(path, root), yamlio.read(file)


def _named_in(content: bytes) -> set[bytes]:
    """The roots in a pointer, with the manifests of directories that have their files in it (see fileversions.py)."""
    found = roots_in(content)
    if b"files:" in content and b"relpath:" in content:
        with contextlib.suppress(InvalidFileError):
            todo: list[Any] = [yamlio.load(yamlio.decode(content, ""), "")]
            while todo:
                each = todo.pop()
                if isinstance(each, dict) and isinstance(each.get("files"), list):
                    name = name_of_files(each["files"])
                    found |= set() if name is None else {root_of(name)}
                todo += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    return found


def _stages_beside(path: str) -> str:
    return posixpath.join(posixpath.dirname(path), STAGES_FILE)


def _parsed(path: str, content: bytes, stages: bytes | None) -> Iterator[Output]:
    """The outputs of a pointer; of a broken one the manifests that it names."""
    try:
        yield from outputs_of(path, content, stages)
    except InvalidFileError:
        for root in sorted(roots_in(content)):
            if root[0] == MANIFEST:
                yield Output("", path, ObjectName("md5", f"{root[1:].hex()}.dir"), None, None, False)


def scope_of(params: Mapping[str, Any]) -> Scope:
    """The scope of a request. Raises UsageError when it names none."""
    scope = Scope(
        all_commits=bool(params.get("all_commits")),
        all_branches=bool(params.get("all_branches")),
        all_tags=bool(params.get("all_tags")),
        all_experiments=bool(params.get("all_experiments")),
        revs=tuple(str(rev) for rev in params.get("revs") or ()),
        number=int(params.get("num") or 1),
        since=None if params.get("since") is None else float(params["since"]),
    )
    if scope == Scope() and not params.get("workspace"):
        raise UsageError(
            "say what is to be kept: one of -w/--workspace, -a/--all-branches, -T/--all-tags, -A/--all-commits, "
            "--all-experiments, --date or --rev"
        )
    return scope
