"""`gc`, `pin`, `unpin`, `pins`, `forget-project`: the caller's side of what is kept and what goes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pygit2

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import AccessError, MillpondError, NotARepoError, RevisionError, TargetError
from millpond.daemon.project import outputs
from millpond.daemon.project.cloudgc import CloudSweep, not_in_remote
from millpond.daemon.project.outputs import GitTree, Output, WorkTree
from millpond.daemon.project.repo import Repo, find_root
from millpond.daemon.project.roots import ProjectRoots, scope_of
from millpond.daemon.project.select import select
from millpond.daemon.project.sharing import Links, waiting

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# The lock of the store itself, beside those of projects: shared by verbs that use what is stored, alone for gc.
STORE_LOCK = ""
# Data granted later than so long ago stays.
GRACE_S = 86_400.0


def gc(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {workspace, all_branches, all_tags, all_commits, all_experiments, revs, num, since, projects, grace_s, dry, skip_failed, cloud,
    left_only, not_in_remote, remote, jobs} -> the sweep's report (store/gc.py), `unreadable` [{path, reason}], and `remotes`
    (CloudSweep.report), empty without `cloud`. With `left_only` nothing goes but what killed pushes left on remotes.

    The scope holds for the project that the caller is in and for `projects`; of all other projects that he has registered
    everything is kept. One that cannot be read keeps what it was last known to name; after the index was made anew that
    is not enough, and nothing is removed. Raises NotARepoError, UsageError, RevisionError, StoreDamagedError; with `cloud` or
    `not_in_remote` also RemoteConfigError, RemoteError, CredentialsError, ObjectMissingError, BusyError.
    """
    scope = scope_of(params)
    here = find_root(os.getcwd())
    asked = [find_root(os.path.join(os.getcwd(), wirepath.decode(path))) for path in params.get("projects") or ()]
    scoped = list(dict.fromkeys([here, *asked]))
    dry, left_only, elsewhere = (
        bool(params.get("dry")),
        bool(params.get("left_only")),
        bool(params.get("cloud") or params.get("not_in_remote")),
    )
    grace_s = GRACE_S if params.get("grace_s") is None else float(params["grace_s"])
    skipped: list[str] | None = [] if params.get("skip_failed") else None
    with contextlib.ExitStack() as stack:
        with context.lock(STORE_LOCK, "write"):
            opened, keep, unreadable = kept(context, scoped, lambda roots: roots.scoped(scope), skipped)
            cloud = None
            if elsewhere:
                repo = Repo.open(here, os.environ)
                outs = {path: list(roots.outputs(scope)) for path, roots in opened.items()}
                links = stack.enter_context(
                    Links(repo, params.get("remote"), params.get("jobs"), os.environ, tell=waiting(context, "gc"))
                )
                if params.get("cloud"):
                    cloud = CloudSweep(context, repo, links, params)
                    stack.callback(cloud.close)
                    cloud.plan(keep, outs, opened, others(context, scoped), grace_s)
                else:
                    keep = not_in_remote(context, repo, links, keep, outs)
            report = sweep(context, scoped, keep, grace_s=grace_s, dry=dry or left_only)
        if cloud is not None and not dry:
            cloud.remove()
        on_remotes = [] if cloud is None else cloud.report(opened[here])
    if skipped:
        context.log("warning", f"{len(set(skipped))} commits that cannot be read whole were passed over")
    return {**report, "unreadable": unreadable, "remotes": on_remotes}


def others(context: WorkerContext, scoped: Iterable[str]) -> list[str]:
    """The caller's registered projects that are not in scope."""
    known, _ = context.client.call("gc.projects", {})
    paths = [wirepath.decode(row["path"]) for row in known["projects"]]
    return [path for path in paths if path not in scoped]


def kept(
    context: WorkerContext,
    scoped: Sequence[str],
    roots_of: Callable[[ProjectRoots], set[bytes]],
    skipped: list[str] | None = None,
) -> tuple[dict[str, ProjectRoots], set[bytes], list[dict[str, str]]]:
    """The projects in scope, the roots that `roots_of` gives of them, and what could not be read of the others: [{path, reason}]. All
    of them are registered anew. With `skipped` commits that cannot be read are named there. The store's lock is held. Raises as `gc`."""
    known, _ = context.client.call("gc.projects", {})
    keep: set[bytes] = set()
    opened: dict[str, ProjectRoots] = {}
    unreadable: list[dict[str, str]] = []
    for path in scoped:
        roots = opened[path] = _open(path, skipped)
        _register(context, path, roots)
        keep |= roots_of(roots)
    for row in known["projects"]:
        path = wirepath.decode(row["path"])
        if path not in scoped:
            _read_other(context, row, path, int(known["rebuilt"]), unreadable)
    return opened, keep, unreadable


def sweep(
    context: WorkerContext,
    scoped: Sequence[str],
    keep: set[bytes],
    *,
    only: set[bytes] | None = None,
    grace_s: float = GRACE_S,
    dry: bool,
) -> dict[str, Any]:
    """The report of a sweep (store/gc.py); the store's lock is held."""
    request = {"scoped": [wirepath.encode(path) for path in scoped], "grace_s": grace_s, "dry": dry}
    if only is not None:
        request["only"] = len(only)
    with memfd.sent(b"".join([*keep, *(only or ())])) as fd:
        report, _ = context.client.call("gc.sweep", request, fds=[fd])
    return report


def _read_other(
    context: WorkerContext, row: dict[str, Any], path: str, rebuilt: int, unreadable: list[dict[str, str]]
) -> None:
    """Take a registered project's roots anew; one that cannot be read is told of. Raises its error after a rebuild."""
    context.progress("reading projects", note=path)
    try:
        roots = _open(find_root(path) if os.path.isdir(os.path.join(path, ".dvc")) else "")
        _register(context, path, roots)
    except (MillpondError, OSError) as error:
        if float(row["read"]) < rebuilt:
            raise AccessError(
                f"project '{path}' cannot be read, and the store's index was made anew since it was read last, so what it "
                f"needs is not known: {error}",
                path=path,
                hint="bring it back, or give it up: millpond forget-project PATH",
            ) from error
        unreadable.append({"path": row["path"], "reason": str(error)})


def _open(path: str, skipped: list[str] | None = None) -> ProjectRoots:
    if not path or not os.path.isdir(os.path.join(path, ".dvc")):
        raise NotARepoError("there is no DVC repository there any more")
    found = pygit2.discover_repository(path)
    root = None
    if found is not None:
        try:
            repo = pygit2.Repository(found)
        except pygit2.GitError as error:
            raise AccessError(f"Git refuses the repository of '{path}': {error}", path=path) from error
        root = os.path.realpath(repo.workdir) if repo.workdir else repo.path
    return ProjectRoots(path, root, os.environ, skipped)


def _register(context: WorkerContext, path: str, roots: ProjectRoots) -> None:
    everything = roots.everything()
    if roots.skipped:
        return  # what could not be read is kept by what was known before
    git = roots.git_dir
    params = {"path": wirepath.encode(path), "git": None if git is None else wirepath.encode(git)}
    with memfd.sent(b"".join(sorted(everything))) as fd:
        context.client.call("gc.roots", params, fds=[fd])


def pin(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {target, rev} -> {id, target, commit, objects}: keep a version whatever happens to its project."""
    repo = Repo.open(os.getcwd(), os.environ)
    chosen, commit = _version(repo, params)
    names = [output.name for output in chosen if output.name is not None]
    if not names:
        raise TargetError("there is nothing to pin: it has no version yet", hint="add it first: millpond add")
    sizes = context.store.sizes(names)
    for output, size in zip([output for output in chosen if output.name is not None], sizes, strict=True):
        if size is None:
            context.log("warning", f"'{output.path}' is not in the store: a pin keeps it once it is")
    target = wirepath.encode(_shown(repo, params))
    values = {
        "project": wirepath.encode(repo.root),
        "target": target,
        "commit": commit,
        "names": [str(n) for n in names],
    }
    made, _ = context.client.call("pins.add", values)
    return {"id": made["id"], "target": target, "commit": commit, "objects": len(names)}


def unpin(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {target, rev, all} -> {removed: [pin]}: let versions go; all of the project's with `all`. Raises TargetError."""
    repo = Repo.open(os.getcwd(), os.environ)
    project = wirepath.encode(repo.root)
    found, _ = context.client.call("pins.list", {})
    mine = [row for row in found["pins"] if row["project"] == project]
    if not params.get("all"):
        commit = _commit(repo, params.get("rev"))
        target = wirepath.encode(_shown(repo, params))
        mine = [row for row in mine if row["target"] == target and row["commit"] == commit]
        if not mine:
            raise TargetError("there is no such pin", hint="see `millpond pins`")
    for row in mine:
        context.client.call("pins.remove", {"id": row["id"]})
    return {"removed": mine}


def forget_project(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {path} -> {path}: a project keeps nothing any more, until a verb is run in it. Raises TargetError."""
    path = os.path.realpath(os.path.join(os.getcwd(), wirepath.decode(params["path"])))
    context.client.call("projects.forget", {"path": wirepath.encode(path)})
    return {"path": wirepath.encode(path)}


def _shown(repo: Repo, params: dict[str, Any]) -> str:
    target = params.get("target")
    return (repo.relative(wirepath.decode(target)) or "") if target else ""


def _commit(repo: Repo, rev: str | None) -> str | None:
    if rev is None:
        return None
    if repo.git is None:
        raise RevisionError("this project is not in a Git repository, so it has no revisions")
    return repo.git.resolve(rev)


def _version(repo: Repo, params: dict[str, Any]) -> tuple[Iterable[Output], str | None]:
    commit = _commit(repo, params.get("rev"))
    if commit is None or repo.git is None:
        found = outputs.collect(WorkTree(repo.root, repo.rules))
    else:
        prefix = os.path.relpath(repo.root, repo.git.root or repo.root)
        found = outputs.collect(GitTree(repo.git, commit, "" if prefix == "." else prefix))
    target = params.get("target")
    chosen = select(repo, found, [wirepath.decode(target)] if target else [])
    return [choice.output for choice in chosen if choice.output.cache], commit


def day(text: str) -> float:
    """Seconds since the epoch when a day (YYYY-MM-DD) begins here. Raises ValueError."""
    return time.mktime(time.strptime(text, "%Y-%m-%d"))
