"""`look` and `url`: where a path of a version is, for a program that reads it without a mount.

Inside of a tracked folder the answer is the root of that folder's tree in the daemon's index, the same that a mount of it
would show; elsewhere, and where not every file of a tracked folder can be had, it is the listing of one folder.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    CredentialsError,
    ObjectMissingError,
    RemoteConfigError,
    RemoteError,
    RevisionError,
    TargetError,
)
from millpond.daemon.mounts.plan import Planner
from millpond.daemon.mounts.project import Project
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import ObjectStore
from millpond.daemon.project import browse, outputs
from millpond.daemon.project.browse import Item, Tree
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.importing import external
from millpond.daemon.project.list import open_repository
from millpond.daemon.project.outputs import GitTree
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.remote import remotes
from millpond.daemon.remote.layout import key_of
from millpond.daemon.store.folders import FILE, FOLDER, LINK

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext


class ReachingObjects(Objects):
    """Objects, and manifests that only a remote has."""

    def __init__(self, store: ObjectStore, repo: Repo, project: Project) -> None:
        super().__init__(store, repo.cache)
        self._project = project

    def manifest(self, name: ObjectName) -> bytes | None:
        """As Objects.manifest. Raises RemoteError, CredentialsError."""
        found = super().manifest(name)
        if found is None and self._project.config.remotes:
            try:
                found = self._project.remote_manifest(name, str(name))
            except ObjectMissingError:
                return None
        return found


@dataclass(slots=True)
class Version:
    """A repository at a revision, or (`commit` None) its workspace."""

    repo: Repo
    project: Project
    commit: str | None
    tree: Tree
    is_clone: bool = False

    @classmethod
    @contextlib.contextmanager
    def opened(cls, context: WorkerContext, url: str, rev: str | None) -> Iterator[Version]:
        """Of a repository that is elsewhere the version is a clone's, `rev` None its default branch. Raises NotARepoError, RevisionError,
        InvalidFileError, RemoteConfigError; RemoteError, and as clones.clone."""
        here = os.path.realpath(os.getcwd())
        settings = external.Settings.of_environ(os.environ)
        path = external.local_path(url, (here,))
        if path is not None:
            yield cls._local(context, open_repository(path, here), settings, here, rev)
            return
        with external.opened(context, url, rev, settings, os.environ, folders=(here,)) as other:
            repo, git, commit = other.project(), other.git, other.commit
            project = Project(repo.root, repo.config, lambda: outputs.collect(GitTree(git, commit)))
            objects = ReachingObjects(context.store, repo, project)
            yield cls(repo, project, commit, browse.revision_tree(git, commit, "", objects, detail=True), True)

    @classmethod
    def _local(
        cls, context: WorkerContext, repo: Repo, settings: external.Settings, here: str, rev: str | None
    ) -> Version:
        settings.lay_over(repo.config, here)
        project = Project(repo.root, repo.config)
        objects = ReachingObjects(context.store, repo, project)
        if not rev:
            return cls(repo, project, None, browse.workspace_tree(repo.root, repo.rules, objects, detail=True))
        if repo.git is None:
            raise RevisionError(f"'{printable(repo.root)}' is not in a Git repository, so it has no revisions")
        commit = repo.git.resolve(rev)
        prefix = repo.git_path("")
        tree = browse.revision_tree(repo.git, commit, "" if prefix == "." else prefix, objects, detail=True)
        return cls(repo, project, commit, tree)

    def item(self, path: str) -> Item | None:
        """What is at a path. Raises ObjectMissingError where that cannot be told."""
        found = self.tree.item(path)
        self._refuse_missing(path)
        return found

    def entries(self, folder: str) -> dict[str, Item]:
        """The entries of a folder. Raises as `item`."""
        found = self.tree.entries(folder)
        self._refuse_missing(folder)
        return found

    def _refuse_missing(self, path: str) -> None:
        for missing in self.tree.missing:
            if path == missing or path.startswith(f"{missing}/"):
                raise browse.missing_error(missing)


def look(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev} -> {root, commit, caches, clone, top, tree} or {root, commit, caches, clone, rows}; `clone`: `root` is that of a
    clone of a repository which is elsewhere.

    `path` is a folder's, from the repository's root. `tree` is the id of the tree of the tracked folder `top` that it is or lies in;
    `rows` are its entries, as those of `folders.list`, null when there is no such folder. Raises NotARepoError, RevisionError,
    ObjectMissingError, RemoteError, CredentialsError.
    """
    with Version.opened(context, wirepath.decode(params.get("url") or "."), params.get("rev")) as version:
        return _look(context, version, wirepath.decode(params.get("path") or ""))


def _look(context: WorkerContext, version: Version, path: str) -> dict[str, Any]:
    repo = version.repo
    if not version.is_clone:
        context.seen(repo.root, None if repo.git is None else repo.git.git_dir, [])
    told = {
        "root": wirepath.encode(repo.root),
        "commit": version.commit,
        "clone": version.is_clone,
        "caches": [wirepath.encode(cache.folder) for cache in version.project.caches],
    }
    top = version.tree.tracked_folder(path)
    if top is not None and (version.commit or not os.path.lexists(repo.path(top.path))):
        try:
            plan = Planner(version.project, context.client, context.store).plan(top.path, version.commit)
            return {**told, "top": wirepath.encode(top.path), "tree": plan.root}
        except (ObjectMissingError, RemoteError, CredentialsError):
            pass  # some files may be there nevertheless
    return {**told, "rows": _rows(version, path)}


def url(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev, remote} -> {url}: where the object of a tracked path lies on its remote, or would.
    Raises as `look`, TargetError for what is not tracked, RemoteConfigError."""
    path = wirepath.decode(params.get("path") or "")
    with Version.opened(context, wirepath.decode(params.get("url") or "."), params.get("rev")) as version:
        return _url(version, path, params.get("remote"))


def _url(version: Version, path: str, name: str | None) -> dict[str, Any]:
    item = version.item(path)
    if item is None or item.name is None:
        inside = " by itself: the folder that it is in is" if item is not None and item.is_out else ""
        raise TargetError(f"'{printable(path)}' is not tracked{inside}", path=printable(path))
    remote = remotes.find(version.project.config, name or version.tree.remote_of(path))
    return {"url": wirepath.encode(posixpath.join(remote.url, key_of(item.name)))}


def _rows(version: Version, folder: str) -> list[Any] | None:
    item = version.item(folder)
    if item is None or not item.is_dir:
        return None
    entries = version.entries(folder)
    names = [each.name for each in entries.values() if _lacks_size(each) and each.name is not None]
    sizes = dict(zip(names, version.tree.objects.sizes(names), strict=True))
    lacking = [name for name, size in sizes.items() if size is None]
    if lacking:
        try:
            found = version.project.remote_sizes(lacking, f"files of '{printable(folder)}'")
            sizes |= dict(zip(lacking, found, strict=True))
        except (ObjectMissingError, RemoteConfigError, RemoteError, CredentialsError):
            pass  # they are told when such a file is read
    return [_row(name, each, sizes) for name, each in entries.items()]


def _lacks_size(item: Item) -> bool:
    return item.size is None and not item.is_dir


def _row(name: str, item: Item, sizes: dict[ObjectName, int | None]) -> list[Any]:
    kind = FOLDER if item.is_dir else LINK if item.is_link else FILE
    size = sizes.get(item.name) if _lacks_size(item) and item.name is not None else item.size
    found = item.blob or item.name
    return [wirepath.encode(name), kind, item.is_exec, size, None if found is None else str(found)]
