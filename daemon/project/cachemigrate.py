"""`cache migrate`: objects in the layout of DVC 1 and 2 given their names of DVC 3, in DVC's own cache; and pointers too.

Nothing is removed: the old names stay, and both are hard links to one file where the file system has them. A manifest keeps
its bytes, as in DVC; with `dvc_files` pointers get the MD5 of the bytes they mean, and their folders new manifests.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from millpond.daemon.errors import ObjectMissingError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import Staging, copy_into
from millpond.daemon.project.digests import LEGACY, Objects, as_md5
from millpond.daemon.project.durable import sync_file_system, write_all, write_error
from millpond.daemon.project.dvcfile import Out
from millpond.daemon.project.hashing import md5_of
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.repo import Repo, printable

# As DVC has it: nobody changes an object.
_MODE = 0o444


def migrate(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {dvc_files, dry} -> {objects, migrated, pointers: [file], skipped: [file]}.

    `objects` are those in the old layout, `migrated` those that got a name; `skipped` are lock files, whose stages only their
    pipeline records anew. Raises NotARepoError, InvalidFileError, ObjectMissingError (an object that a pointer to be rewritten
    means is nowhere; nothing was rewritten then).
    """
    repo = Repo.open(os.getcwd(), os.environ)
    dry = bool(params.get("dry"))
    with context.lock(repo.root, "read" if dry else "write"):
        old = [name for name in repo.cache.names() if name.algo == LEGACY]
        migrating = _Migrating(context, repo)
        found = [out for out in repo.outputs() if params.get("dvc_files") and _is_old(out)]
        pointers = sorted({out.pointer for out in found if out.stage is None})
        try:
            if not dry:
                for count, name in enumerate(old, 1):
                    migrating.object(name)
                    context.progress("migrating", (count, len(old)))
                _sync(repo.cache.folder)
                texts = {repo.path(file): migrating.pointer(file) for file in pointers}
                _sync(repo.cache.folder)
                write_all(texts)
        except OSError as error:
            raise write_error(error) from error
    return {
        "objects": len(old),
        "migrated": migrating.count,
        "pointers": [repo.wire(file) for file in pointers],
        "skipped": [repo.wire(file) for file in sorted({out.pointer for out in found if out.stage is not None})],
    }


def _sync(folder: str) -> None:
    """Have what was linked and written on disk before anything names it."""
    if os.path.isdir(folder):
        sync_file_system(folder)


def _is_old(out: Output) -> bool:
    return out.name is not None and out.name.algo == LEGACY and out.cache


class _Migrating:
    """Names given, and what the old ones became."""

    def __init__(self, context: VerbContext, repo: Repo) -> None:
        self._repo = repo
        self._objects = Objects(context.store, repo.cache)
        self._new: dict[ObjectName, ObjectName] = {}
        self.count = 0

    def object(self, name: ObjectName) -> ObjectName | None:
        """Give one object its new name; None if it is not there."""
        if name in self._new:
            return self._new[name]
        opened = self._repo.cache.open(name)
        if opened is None:
            same = as_md5(name)  # what has no CRLF has one digest both ways
            return None if self._objects.sizes([same])[0] is None else same
        with os.fdopen(opened[0], "rb") as file:
            new = ObjectName("md5", md5_of(file) + (".dir" if name.is_dir else ""))
            self._link(
                self._repo.cache.path_of(name) or "", self._repo.cache.path_of(new) or "", file.fileno(), opened[1]
            )
        self._new[name] = new
        return new

    def pointer(self, file: str) -> str:
        """The text of a pointer with the new names of its outs."""
        old = dvcfile.read(self._repo.path(file))
        return dvcfile.updated_text(
            old, [self._out(file, out) if out.legacy and out.cache else out for out in old.outs]
        )

    def _out(self, file: str, out: Out) -> Out:
        assert out.name is not None
        name = self._folder(file, out.name) if out.name.is_dir else self.object(out.name)
        if name is None:
            raise _missing(file, out.name)
        return replace(out, name=name)

    def _folder(self, file: str, name: ObjectName) -> ObjectName:
        raw = self._objects.manifest(name)
        if raw is None:
            raise _missing(file, name)
        entries = []
        for entry in manifest.parse(raw, source=str(name), algo=LEGACY):
            new = self.object(entry.name)
            if new is None:
                raise _missing(file, entry.name)
            entries.append((entry.relpath, new.value))
        text = manifest.serialise(sorted(entries))
        found = manifest.manifest_name(text)
        path = self._repo.cache.path_of(found) or ""
        if not os.path.exists(path):
            self._write(path, text)
        return found

    def _link(self, old: str, new: str, fd: int, size: int) -> None:
        if os.path.exists(new):
            return
        os.makedirs(os.path.dirname(new), exist_ok=True)
        try:
            os.link(old, new)
            os.chmod(new, _MODE)
        except OSError:  # no links on this file system, or not on this one file
            with Staging() as staging:
                staged = staging.open(new)
                copy_into(fd, staged.fd, size)
                os.fsync(staged.fd)
                staging.place(staged, mode=_MODE)
        self.count += 1

    def _write(self, path: str, text: bytes) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with Staging() as staging:
            staged = staging.open(path)
            with open(staged.fd, "wb", closefd=False) as file:
                file.write(text)
            os.fsync(staged.fd)
            staging.place(staged, mode=_MODE)


def _missing(file: str, name: ObjectName) -> ObjectMissingError:
    shown = printable(file)
    return ObjectMissingError(
        f"'{shown}' cannot be migrated: its object {name} is neither in DVC's cache nor in the store",
        path=shown,
        hint="fetch it first: millpond fetch; nothing was rewritten",
    )
