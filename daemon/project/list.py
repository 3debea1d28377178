"""`list` and `du`: what a repository holds, in its workspace or at a revision, in DVC's words."""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import NotARepoError, RevisionError, TargetError, UsageError
from millpond.daemon.project import browse
from millpond.daemon.project.browse import Item, Row, Tree
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo


def list_(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev, recursive, level, tree, dvc_only, detail} -> {rows, missing}.

    Rows are [path, depth, isout, isdir, isexec, size, md5]: sorted by path, or with `tree` in the order of a tree that
    begins with what is listed itself. `size` is given with `detail` only, None where it is not known. `missing` are
    tracked folders whose files are not among the rows. Raises NotARepoError, RevisionError, TargetError, UsageError.
    """
    repo, tree, top, shown = _open(context, params)
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
        if not top and not params.get("rev") and (above := _above(repo)):
            rows = [row._replace(path=f"{above}{row.path}") for row in rows]
    _refuse_missing(tree, top)
    if params.get("detail"):
        rows = tree.sized(rows)
    return {"rows": [_wire(row) for row in rows], "missing": [wirepath.encode(path) for path in tree.missing]}


def du(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {url, path, rev, summarize} -> {rows: [[path, bytes]]}: the entries of a folder, then itself. Pointers and lock
    files do not count, nor does what has no known size. Raises as `list_`, ObjectMissingError."""
    _, tree, top, shown = _open(context, {**params, "detail": True})
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


def _open(context: VerbContext, params: dict[str, Any]) -> tuple[Repo, Tree, str, str]:
    """The repository, its tree, the path that is meant (relative to the root), and that path as it was given."""
    url, revision = wirepath.decode(params.get("url") or "."), params.get("rev")
    shown = os.path.normpath(wirepath.decode(params["path"])) if params.get("path") else ""
    shown = "" if shown == "." else shown
    repo = open_repository(url)
    if revision or repo.relative(".") is None:
        top: str | None = shown.lstrip("/")  # from elsewhere a path begins at the root
        top = None if top == ".." or (top or "").startswith("../") else top
    else:
        top = repo.relative(shown) if shown else ""
    if top is None:
        raise TargetError(f"'{printable(shown)}' is outside of the repository", path=printable(shown))
    objects = Objects(context.store, repo.cache)
    detail = bool(params.get("detail"))
    if not revision:
        return repo, browse.workspace_tree(repo.root, repo.rules, objects, detail=detail), top, shown
    if repo.git is None:
        raise RevisionError(f"'{printable(repo.root)}' is not in a Git repository, so it has no revisions")
    prefix = repo.git_path("")
    prefix = "" if prefix == "." else prefix
    return repo, browse.revision_tree(repo.git, revision, prefix, objects, detail=detail), top, shown


def open_repository(url: str) -> Repo:
    """The repository at a path, or the one that holds it."""
    path = url.removeprefix("file://")
    if "://" in path or (":" in path.partition("/")[0] and not os.path.exists(path)):
        raise UsageError(
            f"'{printable(url)}' is not on this machine: this version lists local repositories only",
            hint="clone it first, or use `dvc list`",
        )
    if not os.path.isdir(path):
        raise TargetError(f"'{printable(url)}' is no folder with a repository", path=printable(url))
    try:
        repo = Repo.open(path, os.environ)
    except NotARepoError:
        repo = Repo.without_dvc(path, os.environ)
    repo.cwd = os.path.realpath(os.getcwd())
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


def _above(repo: Repo) -> str:
    """How the root is seen from a folder in the repository: DVC lists it so."""
    inside = repo.relative(".")
    return "" if not inside else f"{os.path.relpath(repo.root, repo.cwd)}/"


def _wire(row: Row) -> list[Any]:
    item = row.item
    value = None if item.name is None else item.name.value
    return [wirepath.encode(row.path), row.depth, item.is_out, item.is_dir, item.is_exec, item.size, value]
