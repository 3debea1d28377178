"""`lineage`: what made a file, back to its sources, or what was made from it, at any revision.

Hashes are those of dvc.lock and `.dvc` files at that revision, so they are there in every clone. A record of the run adds
who ran it, where, when and with which code; without one the code is that of the commit which the lock's entry came with.
"""

from __future__ import annotations

import os
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import RevisionError, TargetError
from millpond.daemon.pipeline import snapshot, targets
from millpond.daemon.pipeline.history import History
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo

# Places of @ in a target at which a revision may begin.
_MOST_SPLITS = 8


def lineage(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {target, rev, down} -> {path, rev, commit, down, roots, steps, measured, problems: [{step, kind, text}]}.

    `target` may end with @REV. `steps`: {id, kind (stage, data, import), name, file, cmd, params, metrics, outs: [{path, md5, size,
    nfiles, state}], deps: [{path, md5, size, nfiles, from: [{id, state}], source, state}], source, record, code, used_by}, ids as steps are called from
    the root; a dependency without `from` is a `source`: git, untracked, elsewhere; one with both is a folder of both. `roots`: the steps that the target is of, with `down` those
    that use it. `measured`: metrics of steps that use the target. Raises TargetError, RevisionError, InvalidFileError,
    OverlapError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    down = bool(params.get("down"))
    with context.lock(repo.root, "read"):
        target, found = _located(context, repo, wirepath.decode(str(params["target"])), params.get("rev"))
        history = History(context, repo, found)
        place_of, starts = history.start(target)
        if down:
            roots = history.users(place_of, starts)
            steps = history.below(roots)
        else:
            roots = starts
            steps = history.above(starts)
        rows = [history.row(stage) for stage in steps]
        history.tell_codes(steps, rows)
        measured = [] if down else list(history.measured(place_of, starts))
        history.contents.save()
    return {
        "path": repo.wire(place_of) if place_of is not None else wirepath.encode(target),
        "rev": found.label,
        "commit": found.commit,
        "down": down,
        "roots": [wirepath.encode(history.id_of(stage)) for stage in roots],
        "source": None if starts or place_of is None else history.source_of(place_of),
        "steps": rows,
        "measured": measured,
        "problems": [*history.problems, *history.unreadable()],
    }


def _located(context: VerbContext, repo: Repo, target: str, rev: str | None) -> tuple[str, Snapshot]:
    """The target without its revision, and the revision's files. Raises RevisionError, TargetError."""
    here = snapshot.named(context, repo, rev)
    if rev is not None or _known(repo, here, target):
        return target, here
    problem: RevisionError | None = None
    at = len(target)
    for _ in range(_MOST_SPLITS):
        at = target.rfind("@", 0, at)
        if at <= 0:
            break
        try:
            found = snapshot.named(context, repo, target[at + 1 :])
        except RevisionError as error:
            problem = problem or error
            continue
        return target[:at], found
    if problem is not None:
        raise problem
    return target, here


def _known(repo: Repo, at: Snapshot, target: str) -> bool:
    """Whether something is called that, with all that looks like a revision."""
    if "@" not in target:
        return True
    relative = repo.relative(target)
    if relative is not None and at.pipelines.content(relative) is not None:
        return True
    try:
        return bool(targets.meant(repo, at.pipelines, [target], outputs=True))
    except TargetError:
        return False
