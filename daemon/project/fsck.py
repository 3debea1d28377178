"""`fsck`: the daemon checks its store; what it finds damaged is mended from the caller's own DVC cache and workspace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import FileChangedError, NotARepoError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.repo import Repo

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext


def fsck(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {deep, repair} -> the report of `Store.fsck`, after mending with `repair`.

    A file is offered to the store as any other is: the daemon hashes it, so nothing is believed. What it is looked for in
    are the caches and the workspace of the project that the caller is in, if he is in one.
    """
    deep, repair = bool(params.get("deep")), bool(params.get("repair"))
    report, _ = context.client.call("store.fsck", {"deep": deep, "repair": repair})
    if not repair or not report["hurt"]:
        return report
    hurt = {ObjectName(*text.split(":", 1)) for text in report["hurt"]}
    found = list(_copies(hurt))
    for path in found:
        context.progress("mending", note=path)
        try:
            for put in context.store.put_files([path]):
                hurt.discard(put.name)
        except (FileChangedError, TargetError) as error:
            context.log("warning", str(error))
    context.store.commit()
    if not found:
        return report
    after, _ = context.client.call("store.fsck", {"deep": deep, "repair": False})
    return {**after, "repaired": len(found), "quarantined": report["quarantined"]}


def _copies(wanted: set[ObjectName]) -> Iterator[str]:
    """Files that should be these objects: in DVC's caches, or in the workspace by the stat cache."""
    try:
        repo = Repo.open(os.getcwd(), os.environ)
    except NotARepoError:
        return
    left = set(wanted)
    for cache in {repo.cache.folder: repo.cache, repo.dvc_dir: DvcCache(os.path.join(repo.dvc_dir, "cache"))}.values():
        for name in sorted(left, key=str):
            path = cache.path_of(name)
            if path is not None and os.path.isfile(path) and not name.is_dir:
                left.discard(name)
                yield path
    by_value = {name.value for name in left}
    for output in repo.outputs():
        path = repo.path(output.path)
        if not output.is_dir and output.name is not None and output.name.value in by_value and os.path.isfile(path):
            yield path
        elif output.is_dir:
            snapshot = repo.stat_cache.load(path)
            for index, inner in enumerate(snapshot.paths if snapshot is not None else ()):
                assert snapshot is not None
                if snapshot.digests[index * 16 : index * 16 + 16].hex() in by_value:
                    yield os.path.join(path, inner)
