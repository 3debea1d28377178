"""A version as a program looks into it: a repository at a revision, or its workspace.

Folders are asked of the daemon when they are looked at. A revision is pinned to its commit at the first look; of the workspace
nothing is taken for known for longer than a moment, and its files are read where they lie.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from millpond.daemon import wirepath
from millpond.daemon.api.connections import connections
from millpond.daemon.api.contents import Content, ObjectContent, WholeContent
from millpond.daemon.errors import NotARepoError, ObjectMissingError, StoreDamagedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.rootdir import find_root

if TYPE_CHECKING:
    from millpond.fusefs.asking import SourceClient

FILE, FOLDER, LINK = 1, 2, 3
# Entries of folders that are kept, about 300 bytes each.
MAX_ENTRIES = 50_000
# The workspace's pointers may change: what they said holds for so long.
_FRESH_S = 1.0
# And what a branch or tag of a repository that is elsewhere means: each question is a fetch.
_FRESH_FAR_S = 10.0
# Versions and revisions that are remembered between calls.
_MAX_RECENT = 16
# Links that are followed one after the other.
_MAX_LINKS = 16


class Entry(NamedTuple):
    """What is at a path. `size` in bytes, None where nobody at hand knows it; `name` the object of a file, or of a tracked
    folder; `local` the file of the workspace that it is."""

    path: str
    type: int
    executable: bool
    size: int | None
    name: ObjectName | None
    local: str | None = None

    @property
    def base(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


class Version:
    """One version. `repo` is a folder's path (None: that of the current folder), or a url that Git takes; `rev` None: the
    workspace, of what is elsewhere the default branch. `remote` and `remote_config` are laid over its config. Used from any number of
    threads and after forks; pickled by its arguments, with the commit for the revision."""

    def __init__(
        self,
        repo: str | None = None,
        rev: str | None = None,
        remote: str | None = None,
        remote_config: Mapping[str, str] | None = None,
    ) -> None:
        self.from_cwd = repo is None and rev is None
        self.is_elsewhere = repo is not None and _is_elsewhere(repo)
        self.repo = repo if repo is not None and self.is_elsewhere else os.path.abspath(repo or ".")
        self.rev = rev
        self.remote = remote
        self.remote_config = dict(remote_config or {})
        # Of a clone: the revision is in it, and not in a workspace.
        self._is_clone = False
        self.root: str | None = None
        self._caches: list[str] = []
        self.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return Version, (self.repo, self.rev, self.remote, self.remote_config)

    @property
    def _environ(self) -> dict[str, str]:
        if not (self.remote or self.remote_config):
            return {}
        from millpond.daemon.project.importing.external import Settings  # late: most programs need it not

        return Settings(None, self.remote, self.remote_config).environ()

    def forget(self) -> None:
        """Look anew from now on."""
        # Tops of tracked folders with their trees; folders that were listed (None: there is no such folder); those in trees
        # that have too many entries for that.
        self._trees: dict[str, str] = {}
        self._folders: dict[str, dict[str, Entry] | None] = {}
        self._long: dict[str, None] = {}
        self._entries = 0
        self._since = time.monotonic()

    def resolve(self) -> None:
        """Find out which commit the revision is. Raises RevisionError, NotARepoError."""
        self._look("")

    def relative(self, path: str) -> str:
        """A path as it was given to this library, from the repository's root: relative ones begin there, or in the current folder
        when neither repository nor revision was named. Raises TargetError for one outside of it."""
        found = path.lstrip("/") if self.is_elsewhere else path
        if self.from_cwd or os.path.isabs(path):
            whole = os.path.abspath(os.path.join(self.repo, path))
            folder, name = os.path.split(whole)
            found = os.path.relpath(os.path.join(os.path.realpath(folder), name), self._root())
        found = posixpath.normpath(found) if found else ""
        if found == ".." or found.startswith("../"):
            raise TargetError("this is outside of the repository", path=path)
        return "" if found == "." else found

    def find(self, path: str) -> Entry:
        """What is at a path from the root; a link at its end is followed. Raises FileNotFoundError, and as the verb `look`."""
        wanted = path
        for _ in range(_MAX_LINKS):
            entry = self._find(wanted)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if entry.type != LINK:
                return entry._replace(path=path)
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(wanted), self._target(entry)))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def entries(self, path: str) -> list[Entry]:
        """The entries of a folder, by name; of a file it alone. Raises as `find`."""
        found = self._list(path)
        return [self.find(path)] if found is None else found

    def open(self, path: str) -> Content:
        """The content of the file at a path from the root. Raises as `find`, IsADirectoryError, PermissionError; ObjectMissingError,
        StoreDamagedError, RemoteError, CredentialsError."""
        entry = self.find(path)
        if entry.type == FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if entry.local is not None:
            return WholeContent(os.open(entry.local, os.O_RDONLY | os.O_CLOEXEC))
        if entry.name is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return ObjectContent(entry.name, entry.size, self._source)

    def url(self, path: str, remote: str | None) -> str:
        """Where the object of a tracked path from the root lies on a remote. Raises as the verb `url`."""
        params = {"url": wirepath.encode(self.repo), "path": wirepath.encode(path), "rev": self.rev, "remote": remote}
        return wirepath.decode(connections().verb("url", params, self._environ)["url"])

    # -- looking --------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> Entry | None:
        if not path:
            return Entry("", FOLDER, False, None, None)
        if self.rev is None and self.is_elsewhere:
            self._look("")  # which finds out what its default branch has
        if self.rev is None and (here := _in_workspace(os.path.join(self._root(), path), path)) is not None:
            return here
        folder, name = posixpath.split(path)
        place = self._folder(folder)
        if place.tree is not None and folder not in self._long:
            page = self._ask("folders.list", place.top, folder)
            if page["next"] is None:  # who wants one of few files will want others
                place = _Place("", None, self._keep(folder, page["rows"]))
            else:
                self._long[folder] = None
        if place.tree is None:
            return None if place.rows is None else place.rows.get(name)
        row = self._ask("folders.find", place.top, path)["row"]
        return None if row is None else _entry(folder, [wirepath.encode(name), *row[1:]])

    def _list(self, path: str) -> list[Entry] | None:
        place = self._folder(path)
        if place.tree is None:
            return None if place.rows is None else list(place.rows.values())
        found: list[Entry] = []
        start: int | None = 0
        while start is not None:
            page = self._ask("folders.list", place.top, path, start)
            if page["rows"] is None:
                return None
            found += [_entry(path, row) for row in page["rows"]]
            start = page["next"]
        return found

    def _keep(self, folder: str, rows: list[Any] | None) -> dict[str, Entry] | None:
        """Remember the entries of a folder, as the daemon told them."""
        found = None if rows is None else {(each := _entry(folder, row)).base: each for row in rows}
        if self._entries > MAX_ENTRIES:
            self._folders, self._long, self._entries = {}, {}, 0
        self._folders[folder] = found
        self._entries += 1 + len(found or ())
        return found

    def _ask(self, method: str, top: str, path: str, start: int = 0) -> dict[str, Any]:
        """Of the tree of a tracked folder, which is made once more when the index has lost it."""
        tree = self._trees.get(top)
        params = {"path": wirepath.encode(path[len(top) + 1 :]), "start": start}
        if tree is not None:
            try:
                return connections().call(method, {"root": tree, **params})[0]
            except StoreDamagedError:
                self._trees.pop(top, None)
        tree = self._look(top).tree
        if tree is None:
            raise ObjectMissingError(f"the files of '{top}' are not all to be had any more", hint="look again")
        return connections().call(method, {"root": tree, **params})[0]

    def _folder(self, folder: str) -> _Place:
        """Where the daemon says that a folder is, or has said."""
        if self.rev is None and time.monotonic() - self._since > _FRESH_S:
            self.forget()
        folders = self._folders  # another thread may put a new one in its place
        if folder in folders:
            return _Place("", None, folders[folder])
        top = folder
        while top:
            if (tree := self._trees.get(top)) is not None:
                return _Place(top, tree, None)
            top = posixpath.dirname(top)
        return self._look(folder)

    def _look(self, folder: str) -> _Place:
        params = {"url": wirepath.encode(self.repo), "path": wirepath.encode(folder), "rev": self.rev}
        told = connections().verb("look", params, self._environ)
        self.root, self._caches = wirepath.decode(told["root"]), [wirepath.decode(each) for each in told["caches"]]
        self.rev, self._is_clone = told["commit"], told["clone"]
        if told.get("tree") is not None:
            top = wirepath.decode(told["top"])
            self._trees[top] = told["tree"]
            return _Place(top, told["tree"], None)
        return _Place("", None, self._keep(folder, told["rows"]))

    def _root(self) -> str:
        """The repository's root: where `.dvc` is, or the daemon says."""
        if self.root is None:
            # What is no folder of this machine, a url perhaps, must not be taken for the repository around it.
            with contextlib.suppress(NotARepoError):
                self.root = find_root(self.repo) if os.path.isdir(self.repo) else None
        if self.root is None:
            self._look("")
        assert self.root is not None
        return self.root

    def _source(self) -> SourceClient:
        if not self._caches:  # the workspace's own files were all that was read so far
            self._look("")
        root = self._root()
        return connections().source(root, self._caches, self.rev if self._is_clone else None, self._environ)

    def _target(self, link: Entry) -> str:
        assert link.name is not None
        content = ObjectContent(link.name, link.size, self._source)
        try:
            return os.fsdecode(bytes(content.read(0, content.size)))
        finally:
            content.close()


class Recent:
    """The versions that were asked for last, so that who opens one file after the other need not look anew each time. What a
    revision means is asked again after a moment, unless it is a commit; the workspace's version sees to that itself."""

    def __init__(self) -> None:
        self._versions: dict[tuple[Any, ...], Version] = {}
        self._meant: dict[tuple[str, str | None], tuple[str, float]] = {}

    def get(
        self,
        repo: str | None,
        rev: str | None,
        remote: str | None = None,
        remote_config: Mapping[str, str] | None = None,
    ) -> Version:
        """The version of a repository (None: that of the current folder) at a revision (None: its workspace, or the default branch of what
        is elsewhere); see Version."""
        new = Version(repo, rev, remote, remote_config)
        if rev is None and not new.is_elsewhere:
            return self._kept(new)
        commit, since = self._meant.get((new.repo, rev), ("", float("-inf")))
        if commit == rev or time.monotonic() - since < (_FRESH_FAR_S if new.is_elsewhere else _FRESH_S):
            new.rev = commit
            return self._kept(new)
        new.resolve()
        assert new.rev is not None
        if len(self._meant) >= _MAX_RECENT:
            self._meant = {}
        self._meant[new.repo, rev] = new.rev, time.monotonic()
        return self._kept(new)

    def _kept(self, new: Version) -> Version:
        key = new.repo, new.rev, new.from_cwd, new.remote, tuple(sorted(new.remote_config.items()))
        if key not in self._versions and len(self._versions) >= _MAX_RECENT:
            self._versions = {}
        return self._versions.setdefault(key, new)


def _is_elsewhere(repo: str) -> bool:
    """Whether a repository's name is a url, and no folder of this machine."""
    path = repo.removeprefix("file://")
    return not os.path.isdir(path) and ("://" in path or ":" in path.partition("/")[0])


class _Place(NamedTuple):
    """Where a folder is: in the `tree` of the tracked folder `top`; else `rows` are its entries, None when there is no such folder."""

    top: str
    tree: str | None
    rows: dict[str, Entry] | None


def _in_workspace(local: str, path: str) -> Entry | None:
    """The file or folder that is at a path of the file system."""
    try:
        found = os.stat(local)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return Entry(path, FOLDER, False, None, None)
    return Entry(path, FILE, bool(found.st_mode & stat.S_IXUSR), found.st_size, None, local)


def _entry(folder: str, row: list[Any]) -> Entry:
    name, kind, executable, size, found = row
    path = posixpath.join(folder, wirepath.decode(name))
    algo, _, value = (found or "").partition(":")
    return Entry(path, kind, executable, None if kind == FOLDER else size, ObjectName(algo, value) if found else None)
