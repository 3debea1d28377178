"""`cache import`: objects of DVC's own cache brought into the store, checked on the way.

The daemon names what it stores by the bytes it gets, so an object that is not what its name says gets into nobody's way: it is
reported. What is stored already is not read, so an import that was cut goes on where it was. Files come in the order of
their manifests: neighbours in a folder become neighbours in the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import export, manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import LEGACY, Objects, Place
from millpond.daemon.project.hashing import digest_of, is_md5
from millpond.daemon.project.repo import Repo

# Objects stored with one commit, and bytes: what a cut import has to do again.
_COMMIT_FILES = 10_000
_COMMIT_BYTES = 4 << 30


@dataclass(slots=True)
class Imported:
    """What was brought into the store, and what was not: objects `there` already; `missing` from both places; `damaged`; and
    `kept` by DVC's cache alone, because only DVC 2 gives such names. Each with a path that it is at."""

    objects: int = 0
    bytes: int = 0
    there: int = 0
    missing: dict[ObjectName, str] = field(default_factory=dict)
    damaged: dict[ObjectName, str] = field(default_factory=dict)
    kept: dict[ObjectName, str] = field(default_factory=dict)


def import_(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, recursive, revs, all_branches, all_tags, all_commits, everything} -> {objects, bytes, there, missing,
    damaged, kept, cache}; the last lists are of [name, path].

    Without revisions it is the workspace's pointers that say which objects; `everything` is all of the cache. Raises
    NotARepoError, RevisionError, TargetError, InvalidFileError, FileChangedError, DiskFullError.
    """
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "read"):
        importing = _Importing(context, repo)
        names = _everything(repo) if params.get("everything") else _wanted(context, repo, params, importing.done)
        importing.run(names)
    done = importing.done
    return {
        "objects": done.objects,
        "bytes": done.bytes,
        "there": done.there,
        "missing": rows(done.missing),
        "damaged": rows(done.damaged),
        "kept": rows(done.kept),
        "cache": wirepath.encode(repo.cache.folder),
    }


def rows(found: dict[ObjectName, str]) -> list[list[str]]:
    """[name, path] of each, for the wire."""
    return [[str(name), wirepath.encode(path)] for name, path in found.items()]


def _wanted(context: VerbContext, repo: Repo, params: dict[str, Any], done: Imported) -> dict[ObjectName, str]:
    """The objects that pointers name, each with a path. A manifest that cannot be read is noted as damaged."""
    objects, names = Objects(context.store, repo.cache), dict[ObjectName, str]()
    for output in export.chosen(repo, params):
        if output.name is None or not output.cache:
            continue
        try:
            for name, path in export.objects_of(output, objects):
                names.setdefault(name, path)
        except StoreDamagedError:
            done.damaged[output.name] = output.path
    return names


def _everything(repo: Repo) -> dict[ObjectName, str]:
    """All objects of the cache: those that a manifest names in its order, then the others. The path is the object's own."""
    there = dict.fromkeys(repo.cache.names())
    found: dict[ObjectName, str] = {}
    for folder in [name for name in there if name.is_dir]:
        try:
            raw = repo.cache.read(folder)
            entries = () if raw is None else manifest.parse(raw, source=str(folder), algo=folder.algo)
        except Exception:  # it is looked at again when its own turn comes
            entries = ()
        for entry in entries:
            if entry.name in there:
                found.setdefault(entry.name, "")
    found.update(dict.fromkeys(there, ""))
    return {name: repo.cache.path_of(name) or str(name) for name in found}


class _Importing:
    """One import."""

    def __init__(self, context: VerbContext, repo: Repo) -> None:
        self._context = context
        self._repo = repo
        self._objects = Objects(context.store, repo.cache)
        self.done = Imported()

    def run(self, names: dict[ObjectName, str]) -> None:
        done = self.done
        todo: list[tuple[Place, ObjectName]] = []
        for name, place in zip(names, self._objects.places(list(names)), strict=True):
            if place is None:
                done.missing[name] = names[name]
            elif place.in_store:
                done.there += 1
            else:
                todo.append((place, name))
        total = sum(place.size for place, _ in todo)
        for batch in _batches(each for each in todo if not each[1].is_dir):
            self._files(batch, names, len(todo), total)
            self._context.store.commit()
        for place, name in todo:
            if name.is_dir:
                self._manifest(place, name, names)
        self._context.store.commit()
        git = self._repo.git
        kept = {**done.missing, **done.damaged, **done.kept}
        used = [name for name in names if name not in kept]
        self._context.seen(self._repo.root, None if git is None else git.git_dir, used)

    def _files(
        self, batch: list[tuple[Place, ObjectName]], names: dict[ObjectName, str], count: int, total: int
    ) -> None:
        done, before = self.done, self.done.bytes

        def tick(files: int, size: int) -> None:
            self._context.progress("importing", (done.objects, count), (before + size, total))

        paths = [self._repo.cache.path_of(place.name) or "" for place, _ in batch]
        for (_, name), path, put in zip(batch, paths, self._context.store.put_files(paths, tick=tick), strict=True):
            done.bytes += put.size
            if put.name.hex == name.hex:
                done.objects += 1
            elif name.algo == LEGACY and _is(path, name):
                done.kept[name] = names[name]
            else:
                done.damaged[name] = names[name]

    def _manifest(self, place: Place, name: ObjectName, names: dict[ObjectName, str]) -> None:
        done = self.done
        with open(self._repo.cache.path_of(place.name) or "", "rb") as file:
            raw = file.read()
        if not is_md5(raw, name.hex):
            done.damaged[name] = names[name]
            return
        self._context.store.put_bytes(raw, is_dir=True)
        done.objects += 1
        done.bytes += len(raw)


def _is(path: str, name: ObjectName) -> bool:
    with open(path, "rb") as file:
        return digest_of(file, name.algo) == name.hex


def _batches(todo: Iterable[tuple[Place, ObjectName]]) -> Iterator[list[tuple[Place, ObjectName]]]:
    """Parts that are stored with one commit each."""
    size = 0
    batch: list[tuple[Place, ObjectName]] = []
    for place, name in todo:
        batch.append((place, name))
        size += place.size
        if size >= _COMMIT_BYTES or len(batch) >= _COMMIT_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
