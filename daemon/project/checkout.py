"""`checkout`: bring the workspace to what the pointers say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, TargetError, UsageError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.pipeline.upstream import with_needed
from millpond.daemon.project import manifest, running
from millpond.daemon.project.arrivals import Arrivals
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.outputs import Output, WorkTree
from millpond.daemon.project.paths import overlap
from millpond.daemon.project.placer import Placer
from millpond.daemon.project.plan import ADDED, DELETED, MODIFIED, Content, Plan, Planner
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes, select
from millpond.daemon.project.workspace import Workspace

# Paths in a refusal: named in the message, and listed for machines.
_NAMED, _LISTED = 3, 1000


def checkout(context: VerbContext, params: dict[str, Any], arrivals: Arrivals | None = None) -> dict[str, Any]:
    """Verb. {targets, force, recursive, with_deps, relink, allow_missing} -> {added, modified, deleted, failed, unchanged,
    files}.

    The first four are lists of paths seen from the caller's folder, a folder's with a slash at the end; `failed` are
    outputs whose data is not at hand (the others are brought nevertheless); `unchanged` is a number;
    `files` has the number of files by state. `relink` has nothing
    to do: files in the workspace are always copies or clones. Raises ConflictError when something saved nowhere would be
    lost and `force` is not set (nothing was changed then), and as `status`. `arrivals` may have folders ready.
    """
    if params.get("mount"):
        raise UsageError("this request cannot mount", hint="send it as checkout with the mount verbs of the daemon")
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    force, allow_missing = bool(params.get("force")), bool(params.get("allow_missing"))
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs, agreeing=True)
        chosen = select(repo, outputs, targets, recursive=bool(params.get("recursive")))
        if params.get("with_deps") and targets:
            tree = WorkTree(repo.root, repo.rules)
            chosen = with_needed(repo, dict(tree.pointer_files()), tree.content, outputs, chosen)
        chosen = [each for each in chosen if each.output.name is not None and each.output.cache]
        names = [each.output.name for each in chosen if each.output.name is not None]
        context.seen(repo.root, None if repo.git is None else repo.git.git_dir, names)
        workspace = Workspace(repo, context.store)

        def progress(files: int, all_files: int, done: int, total: int) -> None:
            context.progress("comparing", (files, all_files), (done, total))

        contents = [Content(each.output.path, each.output.name, each.output.isexec, each.inner) for each in chosen]
        if not targets:
            contents += _abandoned(workspace, outputs)
        plans = Planner(workspace, progress).plans(contents)
        _check_inner(workspace, plans)
        touched = [plan.content.path for plan in plans if plan.state is not None or plan.lost]
        running.refuse(repo, writes=touched, env=os.environ)
        if not force:
            refuse_loss(repo, plans)
        failed = [] if allow_missing else [plan for plan in plans if plan.missing]
        for plan in plans:
            if allow_missing:
                _do_without(plan)
        Placer(context, workspace, arrivals).apply([plan for plan in plans if not plan.missing])
    return _result(repo, plans, failed)


def _abandoned(workspace: Workspace, outputs: Sequence[Output]) -> list[Content]:
    """Data that was put in place here for pointers that are gone (another branch, say) and is unchanged and saved."""
    repo, loose = workspace.repo, workspace.loose()
    tracked = {output.path for output in outputs}
    found = []
    for key in list(loose.rows):
        path = key.rstrip("/")
        if path in tracked or path.startswith("/"):
            continue
        if not os.path.lexists(repo.path(path)):
            loose.drop(path)
        elif not _entangled(repo, path, tracked) and _is_saved(workspace, path, loose.rows[key][1], key.endswith("/")):
            found.append(Content(path, None))
    return found


def _entangled(repo: Repo, path: str, tracked: set[str]) -> bool:
    """Whether data at `path` is Git's now, or lies in or around another output."""
    if any(overlap(path, other) for other in tracked):
        return True
    return repo.git is not None and repo.git.tracked_below(repo.git_path(path)) is not None


def _is_saved(workspace: Workspace, path: str, digest: bytes, is_dir: bool) -> bool:
    """Whether what is at `path` is what was put there, by the stat cache alone, and is at hand."""
    full = workspace.repo.path(path)
    if os.path.islink(full) or os.path.isdir(full) != is_dir or not (is_dir or os.path.isfile(full)):
        return False
    if is_dir:
        group = workspace.folder(path)
        name = ObjectName("md5", digest.hex() + DIR_SUFFIX)
        if not group.whole or group.listing.odd or group.listing.skipped or group.tree() != name:
            return False
    else:
        group, name = workspace.files([path]), ObjectName("md5", digest.hex())
        if group.digests[0] != digest:
            return False
    names = [name, *(group.name(index) for index in range(len(group.listing.paths)))]
    return None not in workspace.objects.sizes(names)


def _check_inner(workspace: Workspace, plans: Sequence[Plan]) -> None:
    """Raise TargetError for a path inside a tracked folder that its manifest does not have."""
    for plan in plans:
        inner, name = plan.content.inner, plan.content.name
        if not inner or plan.missing or plan.writes or plan.deletes or name is None:
            continue
        raw = workspace.objects.manifest(name)
        paths = [entry.relpath for entry in manifest.parse(raw or b"[]", source=str(name), algo=name.algo)]
        if not any(path == inner or path.startswith(f"{inner}/") for path in paths):
            shown = printable(workspace.repo.seen(plan.full(inner)))
            raise TargetError(f"'{shown}' is not in '{printable(workspace.repo.seen(plan.content.path))}'", path=shown)


def refuse_loss(repo: Repo, plans: Sequence[Plan], hint: str = "add them first, or use --force to lose them") -> None:
    """Raise ConflictError where plans would lose what is saved nowhere."""
    lost = [repo.seen(plan.full(inner)) for plan in plans if not plan.missing for inner in dict.fromkeys(plan.lost)]
    if not lost:
        return
    lost.sort()
    named = ", ".join(f"'{printable(path)}'" for path in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    raise ConflictError(
        f"{'a file that is' if len(lost) == 1 else 'files that are'} saved nowhere would be lost: {named}{more}",
        path=printable(lost[0]),
        hint=hint,
        details={"paths": [wirepath.encode(path) for path in lost[:_LISTED]], "total": len(lost)},
    )


def _do_without(plan: Plan) -> None:
    if plan.content.name in plan.missing:
        plan.state, plan.missing = None, []
        plan.writes, plan.deletes, plan.clear = {}, [], []
    else:
        plan.drop_missing()


def _result(repo: Repo, plans: Sequence[Plan], failed: Sequence[Plan]) -> dict[str, Any]:
    def named(plan: Plan) -> str:
        return repo.wire(plan.content.path) + ("/" if _is_folder(plan) else "")

    done = [plan for plan in plans if not plan.missing]
    return {
        "added": sorted(named(plan) for plan in done if plan.state == ADDED),
        "modified": sorted(named(plan) for plan in done if plan.state == MODIFIED),
        "deleted": sorted(named(plan) for plan in done if plan.state == DELETED),
        "failed": sorted(repo.wire(plan.content.path) for plan in failed),
        "unchanged": sum(plan.state is None for plan in done),
        "files": _count_files(done),
    }


def _count_files(plans: Sequence[Plan]) -> dict[str, int]:
    """Files, not outputs, by what happened to them: what DVC's summary counts."""
    counts = {MODIFIED: 0, ADDED: 0, DELETED: 0}
    for plan in plans:
        there = set() if plan.group is None else {""} if plan.index is not None else set(plan.group.listing.paths)
        replaced = sum(path in there for path in plan.writes)
        counts[MODIFIED] += replaced
        counts[ADDED] += len(plan.writes) - replaced
        counts[DELETED] += sum(path not in plan.writes for path in plan.deletes)
        if plan.state == MODIFIED and not plan.writes and not plan.deletes:
            counts[MODIFIED] += 1  # its executable bit
    return counts


def _is_folder(plan: Plan) -> bool:
    if plan.content.name is None:
        return plan.index is None
    return plan.content.is_dir
