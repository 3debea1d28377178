"""`purge`: the data of outputs goes from the workspace and from the store; their pointers stay.

Order: the workspace, then the store: until its first transaction is done, `checkout` brings everything back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, StoreDamagedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import running
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.export import objects_of
from millpond.daemon.project.gc import STORE_LOCK, kept, sweep
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.remove import refuse_mounted, refuse_unstored, remove_data
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import select
from millpond.daemon.store.ledger import root_of

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext


def purge(context: WorkerContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, force, dry} -> {outs: [path], removed, lost: {objects, bytes}, stored, freed, unreadable}; `stored` objects of
    the targets were in the store.

    `removed` from the store; `lost` are those of them that DVC's cache does not have either. What other data of the project,
    in any revision, other projects, pins and mounts need stays in the store. Without `force`: ConflictError for data that is
    stored nowhere, and where anything is lost. Raises TargetError (a part of an output) and as `gc`; nothing was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    force, dry = bool(params.get("force")), bool(params.get("dry"))
    with context.lock(STORE_LOCK, "write"), context.lock(repo.root, "write"):
        outputs = repo.outputs()
        outs = _chosen(repo, outputs, params)
        refuse_mounted(repo, outs)
        running.refuse(repo, writes=[out.path for out in outs], env=os.environ)
        if not force:
            refuse_unstored(context, repo, outs)
        objects = Objects(context.store, repo.cache)
        names = list({name: None for out in outs for name, _ in objects_of(out, objects)})
        stored = [size for size in context.store.sizes(names) if size is not None]
        scoped, going = [repo.root], _roots(outs)
        staying = _roots(output for output in outputs if output not in set(outs))
        _, keep, unreadable = kept(context, scoped, lambda roots: (roots.everything() - going) | staying)
        # What the sweep of these alone would remove is nowhere afterwards.
        lost = {"objects": 0, "bytes": 0}
        if lacking := _lacking(context, repo, names):
            lost = sweep(context, scoped, keep, only={root_of(name) for name in lacking}, dry=True)["removed"]
        if lost["objects"] and not force:
            _refuse(repo, outs, lost["objects"])
        if not dry:
            try:
                remove_data(context, repo, outs)
            except OSError as error:
                raise write_error(error, hint="`millpond checkout` brings back what is gone") from error
        report = sweep(context, scoped, keep, only={root_of(name) for name in names}, dry=dry)
    return {
        "outs": [repo.wire(out.path) for out in outs],
        "removed": report["removed"],
        "lost": lost,
        "stored": len(stored),
        "freed": report["freed"],
        "unreadable": unreadable,
    }


def _chosen(repo: Repo, outputs: list[Output], params: dict[str, Any]) -> list[Output]:
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    chosen = select(repo, outputs, targets, recursive=bool(params.get("recursive")))
    for choice in chosen:
        if choice.inner:
            whole = printable(repo.seen(choice.output.path))
            part = printable(repo.seen(f"{choice.output.path}/{choice.inner}"))
            raise TargetError(f"'{part}' is a part of '{whole}'", path=whole, hint=f"purge all of it: {whole}")
    return [choice.output for choice in chosen if choice.output.cache and choice.output.name is not None]


def _roots(outputs: Iterable[Output]) -> set[bytes]:
    return {root_of(output.name) for output in outputs if output.name is not None}


def _lacking(context: WorkerContext, repo: Repo, names: list[ObjectName]) -> list[ObjectName]:
    """The objects of the store that DVC's cache does not have whole; what it has is hashed."""
    lacking = []
    for done, (name, size) in enumerate(zip(names, context.store.sizes(names), strict=True)):
        context.progress("checking DVC's cache", (done, len(names)))
        if size is None:
            continue
        try:
            found = repo.cache.open(name)
        except StoreDamagedError:
            found = None
        if found is None:
            lacking.append(name)
        else:
            os.close(found[0])
    return lacking


def _refuse(repo: Repo, outs: list[Output], objects: int) -> None:
    shown = ", ".join(f"'{printable(repo.seen(out.path))}'" for out in outs)
    raise ConflictError(
        f"{objects} object{'s' * (objects > 1)} of {shown} would be lost: the store alone has what they hold",
        path=printable(outs[0].path),
        hint="`millpond cache export` brings them into DVC's cache, --force removes them",
    )
