"""`list` and `du`: what a repository holds, in its workspace or at a revision, in DVC's words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import NotARepoError, ObjectMissingError, RemoteConfigError, RevisionError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import ObjectStore
from millpond.daemon.project import browse
from millpond.daemon.project.browse import Item, Row, Tree
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.importing import external
from millpond.daemon.project.importing.external import Settings
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import Links
from millpond.daemon.remote.places import check


def list_(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev, recursive, level, tree, dvc_only, detail, config, remote, remote_config} -> {rows, missing}.

    Rows are [path, depth, isout, isdir, isexec, size, md5]: sorted by path, or with `tree` in the order of a tree that
    begins with what is listed itself. `size` is given with `detail` only, None where it is not known. `missing` are
    tracked folders whose files are not among the rows. Raises NotARepoError, RevisionError, TargetError, UsageError, RemoteError.
    """
    with _opened(context, params) as found:
        return _listed(found, params)


def _listed(opened: _Opened, params: dict[str, Any]) -> dict[str, Any]:
    tree, top, shown = opened.tree, opened.top, opened.shown
    level, recursive = params.get("level"), bool(params.get("recursive"))
    item = _item(tree, top, params)
    tracked_only = bool(params.get("dvc_only"))
    if params.get("tree"):
        name = shown or "."
        rows = [Row(name, 0, item)]
        if item.is_dir and level != 0:
            rows += tree.walk(top, depth=level, tracked_only=tracked_only)
    elif not item.is_dir or (recursive and level == 0):
        rows = [Row(os.path.basename(shown) or ".", 0, item)]
    else:
        depth = (level or None) if recursive else 1
        found = tree.walk(top, depth=depth, tracked_only=tracked_only)
        rows = sorted(row for row in found if not recursive or not row.item.is_dir or row.depth == depth)
        if not top and opened.above:
            rows = [row._replace(path=f"{opened.above}{row.path}") for row in rows]
    _refuse_missing(tree, top)
    if params.get("detail"):
        rows = tree.sized(rows)
    return {"rows": [_wire(row) for row in rows], "missing": [wirepath.encode(path) for path in tree.missing]}


def du(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev, summarize, config, remote, remote_config} -> {rows: [[path, bytes]]}: the entries of a folder, then itself. Pointers and lock
    files do not count, nor does what has no known size. Raises as `list_`, ObjectMissingError."""
    with _opened(context, {**params, "detail": True}) as found:
        return _summed(found, params)


def _summed(opened: _Opened, params: dict[str, Any]) -> dict[str, Any]:
    tree, top, shown = opened.tree, opened.top, opened.shown
    item = _item(tree, top, params)
    rows = tree.sized(tree.walk(top)) if item.is_dir else tree.sized([Row("", 0, item)])
    for path in tree.missing:
        raise browse.missing_error(path)
    sizes: dict[str, int] = {}
    for row in rows:
        first, _, _ = row.path.partition("/")
        if not browse.is_dvc_file(os.path.basename(row.path)):
            sizes[first] = sizes.get(first, 0) + (0 if row.item.is_dir else row.item.size or 0)
    found = [] if params.get("summarize") or not item.is_dir else sorted(sizes.items())
    told = [[wirepath.encode(os.path.join(shown, name)), size] for name, size in found]
    return {"rows": [*told, [wirepath.encode(shown), sum(sizes.values())]]}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A repository's tree, the path in it that is meant, and that path as it was given; `above` is how the root is seen from a folder
    in the repository."""

    tree: Tree
    top: str
    shown: str
    above: str = ""


@contextlib.contextmanager
def _opened(context: VerbContext, params: dict[str, Any]) -> Iterator[_Opened]:
    url, revision = wirepath.decode(params.get("url") or "."), params.get("rev")
    settings, here = Settings.of(params), os.path.realpath(os.getcwd())
    detail = bool(params.get("detail"))
    path = external.local_path(url, (here,))
    with contextlib.ExitStack() as using:
        if path is None:
            shown, top = _shown(params), _top_from_elsewhere(params)
            other = using.enter_context(external.opened(context, url, revision, settings, os.environ, folders=(here,)))
            objects = using.enter_context(_Manifests(context.store, other.project()))
            tree = browse.revision_tree(other.git, other.commit, "", objects, detail=detail)
            yield _Opened(tree, top, shown)
            return
        repo = open_repository(path, here)
        settings.lay_over(repo.config, here)
        shown = _shown(params)
        inside = repo.relative(".")
        if revision or inside is None:
            top = _top_from_elsewhere(params)
        else:
            found = repo.relative(shown) if shown else ""
            if found is None:
                raise _outside(shown)
            top = found
        objects = using.enter_context(_Manifests(context.store, repo))
        if not revision:
            tree = browse.workspace_tree(repo.root, repo.rules, objects, detail=detail)
            yield _Opened(tree, top, shown, f"{os.path.relpath(repo.root, repo.cwd)}/" if inside else "")
            return
        if repo.git is None:
            raise RevisionError(f"'{printable(repo.root)}' is not in a Git repository, so it has no revisions")
        prefix = repo.git_path("")
        tree = browse.revision_tree(repo.git, revision, "" if prefix == "." else prefix, objects, detail=detail)
        yield _Opened(tree, top, shown)


class _Manifests(Objects):
    """Objects at hand, and manifests that only the repository's default remote has."""

    def __init__(self, store: ObjectStore, repo: Repo) -> None:
        super().__init__(store, repo.cache)
        self._links = Links(repo, None, None, os.environ, versioned=True)

    def __enter__(self) -> _Manifests:
        return self

    def __exit__(self, *_: object) -> None:
        self._links.__exit__()

    def manifest(self, name: ObjectName) -> bytes | None:
        found = super().manifest(name)
        if found is not None:
            return found
        try:
            raw = self._links.of(self._links.remote_of(None)).transfer.read(name)
        except (RemoteConfigError, ObjectMissingError):
            return None
        check(name, raw)
        return raw


def _shown(params: dict[str, Any]) -> str:
    shown = os.path.normpath(wirepath.decode(params["path"])) if params.get("path") else ""
    return "" if shown == "." else shown


def _top_from_elsewhere(params: dict[str, Any]) -> str:
    """From elsewhere a path begins at the root."""
    shown = _shown(params)
    top = shown.lstrip("/")
    if top == ".." or top.startswith("../"):
        raise _outside(shown)
    return top


def _outside(shown: str) -> TargetError:
    return TargetError(f"'{printable(shown)}' is outside of the repository", path=printable(shown))


def open_repository(path: str, here: str) -> Repo:
    """The repository at a path, or the one that holds it, seen from the folder `here`. Raises NotARepoError."""
    try:
        repo = Repo.open(path, os.environ)
    except NotARepoError:
        repo = Repo.without_dvc(path, os.environ)
    repo.cwd = here
    return repo


def _item(tree: Tree, top: str, params: dict[str, Any]) -> Item:
    item = tree.item(top)
    if item is None:
        _refuse_missing(tree, top)
        shown = printable(wirepath.decode(params["path"]))
        at = f" at {params['rev']}" if params.get("rev") else ""
        raise TargetError(f"'{shown}' is not in the repository{at}", path=shown)
    return item


def _refuse_missing(tree: Tree, top: str) -> None:
    """Raise ObjectMissingError when nothing at all can be said of what is asked for."""
    for path in tree.missing:
        if top == path or top.startswith(f"{path}/"):
            raise browse.missing_error(path)


def _wire(row: Row) -> list[Any]:
    item = row.item
    value = None if item.name is None else item.name.value
    return [wirepath.encode(row.path), row.depth, item.is_out, item.is_dir, item.is_exec, item.size, value]
