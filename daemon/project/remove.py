"""`remove`: stop tracking; with `outs` the data in the workspace goes too.

Order, so that whatever a crash leaves can be repeated or undone: data, `.gitignore` lines, a stage's entry in dvc.lock, in dvc.yaml,
pointers. While the pointer is there, `checkout` brings the data back; data is removed only when the store or DVC's cache
has it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, InvalidFileError, TargetError, UsageError
from millpond.daemon.mounts.place import mounted_at, require_mounted
from millpond.daemon.project import dvcfile, gitignore, running, stagefile
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import remove_tree
from millpond.daemon.project.durable import remove_all, write_all, write_error
from millpond.daemon.project.outputs import LOCK_FILE, Output, pointer_outputs, stage_outputs
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.stages import STAGES_FILE
from millpond.daemon.project.status import unstored
from millpond.daemon.project.unprotect import make_own


@dataclass(slots=True)
class _Removal:
    """What goes: `names` as asked for; `outs`; files with the text that they get, "" for one that goes, in the order in
    which they are written."""

    names: list[str] = field(default_factory=list)
    outs: dict[str, Output] = field(default_factory=dict)
    locks: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def remove(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, outs, force} -> {removed: [pointer or stage], outs: [path]}, paths as seen from the caller's folder.

    Targets are `.dvc` files, stages (`name`, `FILE:name`) and dvc.yaml files (all of their stages). With `outs` data that is
    stored nowhere is not removed unless `force`d; data that stays shares nothing with DVC's cache any more. Raises TargetError,
    ConflictError, UsageError (a stage that a template makes), InvalidFileError, NotMountedError; nothing was changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    targets = [wirepath.decode(target) for target in params.get("targets") or []]
    if not targets:
        raise UsageError("nothing to remove: give a .dvc file or a stage")
    with context.lock(repo.root, "write"):
        removal = _Removal()
        for target in targets:
            _plan(repo, target, removal)
        for path in _others(repo, removal):
            removal.outs.pop(path, None)
        outs = list(removal.outs.values())
        running.refuse(repo, writes=[out.path for out in outs], env=os.environ)
        try:
            if params.get("outs"):
                refuse_mounted(repo, outs)
                if not params.get("force"):
                    refuse_unstored(context, repo, outs)
                remove_data(context, repo, outs)
            else:
                make_own(context, [repo.path(out.path) for out in outs if out.cache])
            for texts in (
                gitignore.without(repo, [out.path for out in outs if out.cache]),
                removal.locks,
                removal.files,
            ):
                write_all({repo.path(path): text for path, text in texts.items() if text})
                remove_all([repo.path(path) for path, text in texts.items() if not text])
        except OSError as error:
            raise write_error(error) from error
    return {
        "removed": [wirepath.encode(name) for name in dict.fromkeys(removal.names)],
        "outs": [repo.wire(out.path) for out in outs] if params.get("outs") else [],
    }


def _plan(repo: Repo, target: str, removal: _Removal) -> None:
    """Add what a target names."""
    file, stage = _meant(repo, target)
    if stage is None:
        removal.names.append(repo.seen(file))
        removal.outs |= {out.path: out for out in pointer_outputs(dvcfile.read(repo.path(file)), file)}
        removal.files[file] = ""
        return
    text, document = stagefile.load(repo, file)
    stages = document.get("stages") if isinstance(document, dict) else None
    names = [stage] if stage else list(stages) if isinstance(stages, dict) else []
    if not names:
        raise TargetError(f"'{printable(target)}' has no stages", path=printable(target))
    lock = posixpath.join(posixpath.dirname(file), LOCK_FILE)
    locked = stagefile.load(repo, lock)[0] if os.path.lexists(repo.path(lock)) else ""
    for name in names:
        shown = target if stage else f"{target}:{name}"
        removal.outs |= {
            out.path: out for out in stage_outputs(file, name, stagefile.entry(document, name, shown), lock, locked)
        }
        left = removal.files.get(file, text)
        removal.files[file] = stagefile.without_stage(left, repo.seen(file), name) if left else left
        left = removal.locks.get(lock, locked)
        if left and (without := stagefile.without_stage(left, repo.seen(lock), name)) != left:
            removal.locks[lock] = without
        removal.names.append(name if repo.seen(file) == STAGES_FILE else f"{repo.seen(file)}:{name}")


def _meant(repo: Repo, target: str) -> tuple[str, str | None]:
    """The file and stage of a target; raises TargetError, with the pointer's or stage's name where data was named."""
    shown = printable(target)
    try:
        file, stage = stagefile.meant(repo, target)
        if stage:
            stagefile.entry(stagefile.load(repo, file)[1], stage, target)
        return file, stage
    except TargetError:
        if os.path.isfile(os.path.join(repo.cwd, pointer := f"{target}{dvcfile.SUFFIX}")):
            raise TargetError(
                f"'{shown}' is tracked data, not a .dvc file", path=shown, hint=f"did you mean '{printable(pointer)}'?"
            ) from None
        relative = repo.relative(target)
        for output in repo.outputs():
            if output.path == relative and output.stage is not None:
                raise TargetError(
                    f"'{shown}' is made by stage '{output.stage}'",
                    path=shown,
                    hint=f"remove that, or the file: millpond remove {output.stage}",
                ) from None
        raise


def _others(repo: Repo, removal: _Removal) -> set[str]:
    """Outputs that another pointer or stage has too: their data and `.gitignore` lines stay."""
    going = removal.files.keys() | removal.locks.keys()
    # What cannot be read says nothing; the removal of something else need not wait for it.
    with contextlib.suppress(InvalidFileError):
        return {output.path for output in repo.outputs() if output.pointer not in going}
    return set()


def refuse_mounted(repo: Repo, outs: list[Output]) -> None:
    """Raise ConflictError for data that is mounted in its place, NotMountedError where it should be."""
    for out in outs:
        shown = printable(repo.seen(out.path))
        if mounted_at(repo.path(out.path)) is not None:
            raise ConflictError(f"'{shown}' is mounted", path=shown, hint=f"end that first: millpond umount {shown}")
        require_mounted(repo.path(out.path))


def refuse_unstored(context: VerbContext, repo: Repo, outs: list[Output]) -> None:
    """Raise ConflictError for data in the workspace that neither the store nor DVC's cache has."""
    if lost := unstored(context, repo, outs):
        shown = ", ".join(f"'{printable(repo.seen(out.path))}'" for out in lost)
        raise ConflictError(
            f"{shown} would be lost: it is stored nowhere",
            path=printable(lost[0].path),
            hint="`millpond commit` stores it, --force removes it",
        )


def remove_data(context: VerbContext, repo: Repo, outs: list[Output]) -> None:
    """Remove what lies in the outputs' places. Raises OSError."""
    for out in outs:
        path = repo.path(out.path)
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        context.progress("removing", note=posixpath.basename(out.path))
