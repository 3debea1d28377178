"""The merge driver: two versions of a tracked directory become one, file by file, from their common ancestor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, ObjectMissingError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, manifest, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.dvcfile import DvcFile, Out
from millpond.daemon.project.export import export_outputs, exports
from millpond.daemon.project.outputs import pointer_outputs
from millpond.daemon.project.repo import Repo, printable

# Files by their path in the directory.
Tree = Mapping[str, ObjectName]
# Paths that a sentence names; `details["paths"]` has all.
_NAMED = 3


def merge(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {ancestor, our, their, path} -> {changed}: the pointer `our` has what both sides made of `ancestor`.

    The three are files, `path` is where the pointer belongs, from the caller's folder; `ancestor` is empty where both added it.
    The merged manifest is durable before the file is written. Raises ConflictError (both changed a file in different ways, or
    what only `add` writes is not all there is), ObjectMissingError, InvalidFileError; nothing was changed then.
    """
    path = wirepath.decode(params["path"])
    repo = Repo.open(_folder_of(path), os.environ)
    relative = repo.relative(os.path.abspath(path))
    if relative is None:
        raise UsageError(f"'{printable(path)}' is outside of the project")
    with context.lock(repo.root, "read"):
        files = [os.path.abspath(wirepath.decode(params[side])) for side in ("ancestor", "our", "their")]
        ancestor, our, their = (_read(file, path) for file in files)
        if not their.outs:
            return {"changed": False}
        text = _merged(context, repo, relative, ancestor, our, their) if our.outs else their.text
        try:
            write_all({files[1]: text})
        except OSError as error:
            raise write_error(error) from error
    return {"changed": text != our.text}


def _folder_of(path: str) -> str:
    """The nearest folder above `path` that is there: a branch may have it elsewhere."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _read(file: str, path: str) -> DvcFile:
    """One side's pointer, named as the file that it is a version of."""
    try:
        with open(file, "rb") as opened:
            raw = yamlio.read(opened)
    except OSError as error:
        raise UsageError(f"cannot read '{printable(file)}': {error.strerror}") from error
    return dvcfile.parse(yamlio.decode(raw, path), path) if raw.strip() else DvcFile(path, "", [])


def _merged(context: VerbContext, repo: Repo, path: str, ancestor: DvcFile, our: DvcFile, their: DvcFile) -> str:
    """The text of the merged pointer, whose manifest is stored."""
    sides = [side for side in (ancestor, our, their) if side.outs]
    for side in sides:
        _require_mergeable(side, our)
    objects = Objects(context.store, repo.cache)
    base = _tree(objects, ancestor.outs[0], path) if ancestor.outs else {}
    tree = merged_tree(path, base, _tree(objects, our.outs[0], path), _tree(objects, their.outs[0], path))
    rows = sorted((relpath, name.value) for relpath, name in tree.items())
    raw = manifest.serialise(rows)
    sizes = objects.sizes(list(tree.values()))
    name = context.store.put_bytes(raw, is_dir=True, like=our.outs[0].name)
    context.store.commit()
    # As in DVC the size is left out when it is not known.
    size = None if None in sizes else sum(size for size in sizes if size is not None)
    out = replace(our.outs[0], name=name, size=size, nfiles=len(tree))
    merged = DvcFile(path, our.text, [out], our.wdir)
    context.seen(repo.root, None if repo.git is None else repo.git.git_dir, [name])
    if exports(repo, os.environ):
        export_outputs(context, repo, pointer_outputs(merged, path))
    return dvcfile.updated_text(our, [out])


def _require_mergeable(side: DvcFile, our: DvcFile) -> None:
    """Raise ConflictError unless a pointer is one that `add` made of a directory, as ours is."""
    if side.deps or len(side.outs) > 1:
        raise _conflict(side.path, "it was not made by `add`")
    mine, other = our.outs[0], side.outs[0]
    if (side.wdir, _options(other)) != (our.wdir, _options(mine)) or mine.legacy != other.legacy:
        raise _conflict(side.path, "the versions differ in more than data")
    if other.name is None or not other.name.is_dir or other.legacy:
        raise _conflict(side.path, "only directories of DVC 3 are merged, file by file")


def _options(out: Out) -> tuple[Any, ...]:
    return out.path, out.isexec, out.cache, out.extra


def _conflict(path: str, why: str) -> ConflictError:
    shown = printable(path)
    return ConflictError(f"'{shown}' cannot be merged: {why}", path=shown, hint="choose a version, or edit the file")


def _tree(objects: Objects, out: Out, path: str) -> dict[str, ObjectName]:
    assert out.name is not None
    raw = objects.manifest(out.name)
    if raw is None:
        shown = printable(path)
        raise ObjectMissingError(
            f"'{shown}' cannot be merged: the list of files of a version ({out.name}) is not stored here",
            path=shown,
            hint="bring that version here first, by `millpond fetch` or `millpond add` in its work tree",
        )
    return dict(manifest.parse(raw, source=str(out.name), algo=out.name.algo))


def merged_tree(path: str, base: Tree, our: Tree, their: Tree) -> dict[str, ObjectName]:
    """What both sides made of `base`; `path` is named when they disagree. Raises ConflictError.

    Where one side left a file as it was the other one counts; where both did the same there is nothing to choose.
    """
    merged: dict[str, ObjectName] = {}
    problems: list[tuple[str, str]] = []
    for relpath in sorted(base.keys() | our.keys() | their.keys()):
        was, mine, other = base.get(relpath), our.get(relpath), their.get(relpath)
        if mine != other and mine != was and other != was:
            problems.append((relpath, _disagreement(was, mine, other)))
        chosen = other if mine == was else mine
        if chosen is not None:
            merged[relpath] = chosen
    folders = {path[:at] for path in merged for at, char in enumerate(path) if char == "/"}
    problems += [
        (both, "is a file in one version and a folder in the other") for both in sorted(folders & merged.keys())
    ]
    if problems:
        raise _disagree(path, problems)
    return merged


def _disagreement(was: ObjectName | None, mine: ObjectName | None, other: ObjectName | None) -> str:
    if was is None:
        return "was added by both"
    if mine is None:
        return "was deleted here and changed there"
    return "was changed here and deleted there" if other is None else "was changed by both"


def _disagree(path: str, problems: list[tuple[str, str]]) -> ConflictError:
    named = ", ".join(f"'{printable(inner)}' {what}" for inner, what in problems[:_NAMED])
    more = f", and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    shown = printable(path)
    return ConflictError(
        f"'{shown}' cannot be merged: {named}{more}",
        path=shown,
        hint="choose a version: git checkout --ours or --theirs",
        details={"paths": [wirepath.encode(inner) for inner, _ in problems]},
    )
