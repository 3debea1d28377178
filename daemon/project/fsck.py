"""`fsck`: the daemon checks its store; what it finds damaged is mended from the caller's own DVC cache and workspace, manifests also
from the project's remotes: versions of a directory have parts of each other's, so one damaged chunk may hurt many of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from millpond.daemon.errors import (
    FileChangedError,
    MillpondError,
    NotARepoError,
    ObjectMissingError,
    StoreDamagedError,
    TargetError,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.manifest import manifest_name, serialise, sort_key
from millpond.daemon.project.repo import Repo
from millpond.daemon.remote.places import Places

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext


def fsck(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {deep, repair} -> the report of `Store.fsck`, after mending with `repair`.

    What is found is offered to the store as any other bytes are: the daemon hashes it, so nothing is believed. It is looked for in
    the project that the caller is in, if he is in one.
    """
    deep, repair = bool(params.get("deep")), bool(params.get("repair"))
    report, _ = context.client.call("store.fsck", {"deep": deep, "repair": repair})
    if not repair or not report["hurt"]:
        return report
    try:
        repo = Repo.open(os.getcwd(), os.environ)
    except NotARepoError:
        return report
    hurt = {ObjectName(*text.split(":", 1)) for text in report["hurt"]}
    manifests = _mend_manifests(context, repo, [name for name in sorted(hurt, key=str) if name.is_dir])
    files = _mend_files(context, repo, hurt)
    context.store.commit()
    if not files + manifests:
        return report
    if manifests:  # they take the place of what is damaged, for all who could read that
        context.client.call("store.fsck", {"deep": False, "repair": True})
    after, _ = context.client.call("store.fsck", {"deep": deep, "repair": False})
    return {**after, "repaired": files + manifests, "quarantined": report["quarantined"]}


def _mend_files(context: WorkerContext, repo: Repo, hurt: set[ObjectName]) -> int:
    """Give the store files that should be these objects; how many were found."""
    found = list(_copies(repo, hurt))
    for path in found:
        context.progress("mending", note=path)
        try:
            for _ in context.store.put_files([path]):
                pass
        except (FileChangedError, TargetError) as error:
            context.log("warning", str(error))
    return len(found)


def _mend_manifests(context: WorkerContext, repo: Repo, hurt: list[ObjectName]) -> int:
    """Give the store these manifests, from where they are first found to be what their names say; how many were."""
    count, places = 0, Places(lambda: config.load(repo.dvc_dir, os.environ), os.environ)
    asks = bool(repo.config.remotes)
    known = dict(_listed(repo, set(hurt)))
    try:
        for name in hurt:
            context.progress("mending", note=str(name))
            cached = (cache.read_unchecked(name) for cache in _caches(repo))
            data = next((each for each in cached if each is not None and manifest_name(each) == name), known.get(name))
            try:
                data = places.read(name) if data is None and asks else data
            except ObjectMissingError:
                continue
            except MillpondError as error:
                context.log("warning", f"{name} is not had from a remote: {error.message}")
                # One whose copy is damaged may have the others; who does not answer is not waited for again.
                asks = isinstance(error, StoreDamagedError)
                continue
            if data is not None:
                context.store.put_bytes(data, is_dir=True)
                count += 1
    finally:
        places.close()
    return count


def _listed(repo: Repo, wanted: set[ObjectName]) -> Iterator[tuple[ObjectName, bytes]]:
    """Manifests of folders in the workspace, as they were when these were hashed last."""
    for output in repo.outputs() if wanted else ():
        snapshot = repo.stat_cache.load(repo.path(output.path)) if output.is_dir else None
        if snapshot is not None:
            digests = snapshot.digests.hex()
            rows = [(path, digests[32 * at : 32 * at + 32]) for at, path in enumerate(snapshot.paths)]
            data = serialise(sorted(rows, key=lambda row: sort_key(row[0])))
            if (name := manifest_name(data)) in wanted:
                yield name, data


def _caches(repo: Repo) -> list[DvcCache]:
    default = DvcCache(os.path.join(repo.dvc_dir, "cache"))
    return [repo.cache] if default.folder == repo.cache.folder else [repo.cache, default]


def _copies(repo: Repo, wanted: set[ObjectName]) -> Iterator[str]:
    """Files that should be these objects: in DVC's caches, or in the workspace by the stat cache."""
    left = set(wanted)
    for cache in _caches(repo):
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
