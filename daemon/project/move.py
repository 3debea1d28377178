"""`move`: rename tracked data with its pointer.

Order: the new `.gitignore` line, the new pointer, the data, the old line, the old pointer. While both pointers are there the data
is at the one place or the other, whole; the same command again goes on from where a crash left it, because it finds at
the new place the very pointer that it would write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, TargetError, UsageError
from millpond.daemon.mounts.place import mounted_at, require_mounted
from millpond.daemon.project import dvcfile, gitignore, running, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import remove_all, rename, write_all, write_error
from millpond.daemon.project.importing.pointer import with_md5
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes
from millpond.daemon.project.targets import check_place
from millpond.daemon.project.workspace import Workspace


@dataclass(frozen=True, slots=True)
class _Move:
    """What is to be done; paths relative to the project's root. `old_pointer` and `pointer` are one file when only the
    output's name in it changes."""

    output: Output
    path: str
    old_pointer: str
    pointer: str
    text: str


def move(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {source, target} -> {path, pointer, git_add: [file], missing}, as seen from the caller's folder.

    A target that is a folder gets the data in it. Nothing is overwritten. `missing`: there was no data to move. Raises TargetError,
    UsageError (an output of a stage), ConflictError (mounted), OverlapError, TrackedByGitError, InvalidFileError; nothing was
    changed then.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    source, target = (wirepath.decode(params[key]) for key in ("source", "target"))
    with context.lock(repo.root, "write"):
        planned = _plan(repo, source, target)
        running.refuse(repo, writes=[planned.output.path, planned.path], env=os.environ)
        old, new = repo.path(planned.output.path), repo.path(planned.path)
        missing = not os.path.lexists(old) and not os.path.lexists(new)
        try:
            ignoring = gitignore.texts(repo, [planned.path])
            write_all({repo.path(file): text for file, text in ignoring.items()})
            write_all({repo.path(planned.pointer): planned.text})
            if os.path.lexists(old):
                rename(old, new)
            left = gitignore.without(repo, [planned.output.path])
            write_all({repo.path(file): text for file, text in left.items() if text})
            remove_all([repo.path(file) for file, text in left.items() if not text])
            if planned.pointer != planned.old_pointer:
                remove_all([repo.path(planned.old_pointer)])
        except OSError as error:
            raise write_error(error) from error
        _keep_digests(repo, context, planned)
    touched = {planned.old_pointer, planned.pointer, *ignoring, *left}
    return {
        "path": repo.wire(planned.path),
        "pointer": repo.wire(planned.pointer),
        "git_add": repo.for_git(sorted(touched)),
        "missing": missing,
    }


def _plan(repo: Repo, source: str, target: str) -> _Move:
    outputs, shown = repo.outputs(), printable(source)
    refuse_clashes(outputs)
    relative = repo.relative(source)
    output = next((each for each in outputs if each.path == relative), None)
    if output is None:
        hint = "name the data, not its pointer" if source.endswith(dvcfile.SUFFIX) else None
        raise TargetError(f"'{shown}' is not tracked: no .dvc file has it", path=shown, hint=hint)
    if output.stage is not None:
        raise UsageError(f"'{shown}' is made by stage '{output.stage}'", hint="change its `outs` in dvc.yaml instead")
    _refuse_mount(repo, output.path, shown)
    pointer = dvcfile.read(repo.path(output.pointer))
    beside = output.pointer == f"{output.path}{dvcfile.SUFFIX}" and len(pointer.outs) == 1
    others = [each for each in outputs if each != output]
    inside = os.path.join(target, os.path.basename(output.path))
    for place in (target, inside) if beside else ():
        begun = _begun(repo, others, output, pointer, repo.relative(place))
        if begun is not None:
            return begun
    if os.path.isdir(os.path.join(repo.cwd, target)) or target.endswith("/"):
        target = inside
    to = repo.relative(target)
    if to == output.path:
        raise TargetError(f"'{shown}' is there already", path=shown)
    path = check_place(repo, target, others, is_dir=os.path.isdir(repo.path(output.path)))
    _refuse_place(repo, target, path, output, beside=beside)
    new = f"{path}{dvcfile.SUFFIX}" if beside else output.pointer
    return _Move(output, path, output.pointer, new, _text(pointer, output, path, beside=beside))


def _refuse_mount(repo: Repo, relative: str, shown: str) -> None:
    if mounted_at(repo.path(relative)) is not None:
        raise ConflictError(f"'{shown}' is mounted", path=shown, hint=f"end that first: millpond umount {shown}")
    require_mounted(repo.path(relative))


def _refuse_place(repo: Repo, target: str, path: str, output: Output, *, beside: bool) -> None:
    """Nothing may be at the new place; but for another spelling of the same file's name, on a disk that takes them for one."""
    shown, place = printable(target), repo.path(path)
    if not os.path.isdir(os.path.dirname(place)):
        folder = printable(os.path.dirname(target) or ".")
        raise TargetError(f"folder '{folder}' does not exist", path=folder, hint=f"make it first: mkdir -p '{folder}'")
    old = repo.path(output.path)
    if os.path.lexists(place) and not (os.path.lexists(old) and os.path.samefile(place, old)):
        raise TargetError(f"'{shown}' exists already", path=shown, hint="nothing is overwritten: remove it first")
    if f"{path}/".startswith(f"{output.path}/"):
        raise TargetError(f"'{shown}' lies in what is to be moved", path=shown)
    pointer = f"{path}{dvcfile.SUFFIX}"
    if beside and os.path.lexists(repo.path(pointer)):
        file = printable(repo.seen(pointer))
        raise TargetError(f"'{file}' exists already", path=file, hint="nothing is overwritten: remove it first")


def _begun(repo: Repo, others: list[Output], output: Output, pointer: dvcfile.DvcFile, to: str | None) -> _Move | None:
    """The move that a crash interrupted, None if there is none: its pointer is there, the data at one of the places."""
    other = next((each for each in others if each.path == to), None)
    if to is None or other is None or other.pointer != f"{to}{dvcfile.SUFFIX}":
        return None
    text = _text(pointer, output, to, beside=True)
    if os.path.lexists(repo.path(output.path)) and os.path.lexists(repo.path(to)):
        return None
    same = dvcfile.read(repo.path(other.pointer)).text == text
    return _Move(output, to, output.pointer, other.pointer, text) if same else None


def _text(pointer: dvcfile.DvcFile, output: Output, path: str, *, beside: bool) -> str:
    """The pointer with the output at its new place."""
    old_folder = os.path.normpath(os.path.join(os.path.dirname(output.pointer), pointer.wdir))
    folder = os.path.dirname(path) if beside else old_folder
    document = yamlio.load(pointer.text, output.pointer, round_trip=True)
    for entry in document["outs"]:
        if os.path.normpath(os.path.join(old_folder, entry["path"])) == output.path:
            entry["path"] = os.path.relpath(path, folder or ".")
    if beside:
        document.pop("wdir", None)
        for dep in document.get("deps") or []:
            local = isinstance(dep.get("path"), str) and "://" not in dep["path"] and "repo" not in dep
            if local and not os.path.isabs(dep["path"]):
                dep["path"] = os.path.relpath(os.path.join(old_folder, dep["path"]), folder or ".")
    text = yamlio.dump(document)
    return with_md5(text, output.pointer) if pointer.is_import else text


def _keep_digests(repo: Repo, context: VerbContext, planned: _Move) -> None:
    """What is known of a folder's files holds at its new place: renaming it changes nothing in it."""
    workspace = Workspace(repo, context.store)
    loose = workspace.loose()
    loose.drop(planned.output.path)
    snapshot = repo.stat_cache.load(repo.path(planned.output.path))
    if planned.output.is_dir and snapshot is not None:
        repo.stat_cache.save(repo.path(planned.path), snapshot)
        if snapshot.tree:
            loose.put_folder(planned.path, snapshot.tree)
    workspace.save()
