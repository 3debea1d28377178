"""`remove`: stop tracking; with `outs` the data in the workspace goes too.

Order, so that whatever a crash leaves can be repeated or undone: data, `.gitignore` lines, pointers. While the pointer is
there, `checkout` brings the data back; data is removed only when the store or DVC's cache has it.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, TargetError, UsageError
from millpond.daemon.mounts.place import mounted_at, require_mounted
from millpond.daemon.project import dvcfile, gitignore
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import remove_all, write_all, write_error
from millpond.daemon.project.outputs import Output, pointer_outputs
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import select
from millpond.daemon.project.status import unstored


def remove(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, outs, force} -> {removed: [pointer], outs: [path]}, paths as seen from the caller's folder.

    Targets are `.dvc` files. With `outs` data that is stored nowhere is not removed unless `force`d. Raises TargetError,
    ConflictError, UsageError (a stage), InvalidFileError, NotMountedError; nothing was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    if not targets:
        raise UsageError("nothing to remove: give a .dvc file")
    with context.lock(repo.root, "write"):
        pointers = {_pointer(repo, target): None for target in targets}
        outs: list[Output] = []
        for pointer in pointers:
            outs += pointer_outputs(dvcfile.read(repo.path(pointer)), pointer)
        try:
            if params.get("outs"):
                _remove_data(context, repo, outs, force=bool(params.get("force")))
            ignoring = gitignore.without(repo, [out.path for out in outs if out.cache])
            write_all({repo.path(path): text for path, text in ignoring.items() if text})
            remove_all([repo.path(path) for path, text in ignoring.items() if not text])
            remove_all([repo.path(pointer) for pointer in pointers])
        except OSError as error:
            raise write_error(error) from error
    return {
        "removed": [repo.wire(pointer) for pointer in pointers],
        "outs": [repo.wire(out.path) for out in outs] if params.get("outs") else [],
    }


def _pointer(repo: Repo, target: str) -> str:
    """The pointer that a target names, relative."""
    relative, shown = repo.relative(target), printable(target)
    if relative is not None and relative.endswith(dvcfile.SUFFIX) and os.path.isfile(repo.path(relative)):
        return relative
    if os.path.isfile(os.path.join(repo.cwd, target + dvcfile.SUFFIX)):
        raise TargetError(
            f"'{shown}' is tracked data, not a .dvc file", path=shown, hint=f"did you mean '{shown}{dvcfile.SUFFIX}'?"
        )
    if target.endswith(dvcfile.SUFFIX):
        raise TargetError(f"'{shown}' does not exist", path=shown)
    select(repo, repo.outputs(), [target])
    raise UsageError(
        f"'{shown}' is a stage or made by one, and this version has no pipelines yet", hint="use `dvc remove`"
    )


def refuse_mounted(repo: Repo, outs: list[Output]) -> None:
    """Raise ConflictError for data that is mounted in its place, NotMountedError where it should be."""
    for out in outs:
        shown = printable(repo.seen(out.path))
        if mounted_at(repo.path(out.path)) is not None:
            raise ConflictError(f"'{shown}' is mounted", path=shown, hint=f"end that first: millpond umount {shown}")
        require_mounted(repo.path(out.path))


def _remove_data(context: VerbContext, repo: Repo, outs: list[Output], *, force: bool) -> None:
    refuse_mounted(repo, outs)
    if not force and (lost := unstored(context, repo, outs)):
        shown = ", ".join(f"'{printable(repo.seen(out.path))}'" for out in lost)
        raise ConflictError(
            f"{shown} would be lost: it is stored nowhere",
            path=printable(lost[0].path),
            hint="`millpond commit` stores it, --force removes it",
        )
    for out in outs:
        path = repo.path(out.path)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        context.progress("removing", note=posixpath.basename(out.path))
