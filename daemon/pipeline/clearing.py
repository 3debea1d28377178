"""What must be gone, or be the workspace's own, before a stage's commands run."""

from __future__ import annotations

import os

from millpond.daemon.errors import ConflictError
from millpond.daemon.mounts.place import mount_around
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.places import is_outside, shown
from millpond.daemon.pipeline.stage import Stage, StageOut
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import remove_tree
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.unprotect import make_own


def clear(context: VerbContext, repo: Repo, contents: Contents, stage: Stage) -> None:
    """Remove the outputs that the commands make anew; what they build on stays, as files of the workspace's own. What lay there is
    looked at again.

    Raises ConflictError (an output is a mount, or lies in one), UsageError (one holds more than an output), DiskFullError,
    RemoteError and others of urls.
    """
    for out in stage.outs:
        if out.place is not None:
            _refuse_mounted(repo, out, repo.path(out.place))
    gone = [out for out in stage.outs if is_outside(out) and not out.persist]
    for out in gone:
        contents.urls.refuse_more(out)
    for out in gone:
        if out.place is None:
            contents.urls.remove(out)
    try:
        for out in stage.outs:
            if out.place is None:
                continue
            path = repo.path(out.place)
            if out.persist:
                if os.path.lexists(path):
                    make_own(context, [path])
            elif os.path.isdir(path) and not os.path.islink(path):
                remove_tree(path)
            elif os.path.lexists(path):
                os.unlink(path)
    except OSError as error:
        raise write_error(error, "run it again") from error
    contents.forget()


def _refuse_mounted(repo: Repo, out: StageOut, path: str) -> None:
    around = mount_around(path)
    if around is None:
        return
    where, mount = printable(shown(out, repo.seen)), printable(os.path.relpath(around, repo.cwd))
    inside = "is" if mount == where else f"lies in '{mount}', which is"
    raise ConflictError(
        f"output '{where}' {inside} a mount, which no command can write into",
        path=where,
        hint=f"take it away first: millpond umount {mount}; or have the stage write elsewhere, and declare that in `outs`",
    )
