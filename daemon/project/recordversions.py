"""Pointers and lock files are told what versions their files have on a remote (fileversions.py), as DVC writes it.

What an output's entry says of its content stays, and the rest of the file; a directory has its files in place of its manifest's name. An
entry that names another content by now is left alone: what was pushed is there, and nobody asks for it any more.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline.lock import Lock
from millpond.daemon.project import dvcfile, pointers, yamlio
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.fileversions import FileVersions, Version
from millpond.daemon.project.importing import pointer as importing
from millpond.daemon.project.outputs import LOCK_FILE, Output, place_of
from millpond.daemon.project.pushversions import files_of
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.stages import STAGES_FILE, Stages

# What an entry says of one content at one place.
_OLD = ("cloud", "etag", "version_id")
_OF_FILE = ("md5", "size", "nfiles", *_OLD)

Found = Mapping[Output, Mapping[str, Version]]


def record(repo: Repo, objects: Objects, found: Found) -> list[str]:
    """Write what was found into the files that name these outputs; which were changed, relative. Raises InvalidFileError, DiskFullError,
    LockTimeoutError, AccessError."""
    texts: dict[str, tuple[str | None, str]] = {}
    for path in dict.fromkeys(output.pointer for output in found):
        outs = {output.path: output for output in found if output.pointer == path}
        texts |= rewritten(repo, path, _Told(objects, outs, found))
    return pointers.write(repo, texts, []) if texts else []


class Entries(Protocol):
    """What is to be said of outputs."""

    def entry(self, place: str | None, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """The new entry for that of the output at a place; None where it stays."""
        ...


def rewritten(repo: Repo, path: str, entries: Entries) -> dict[str, tuple[str | None, str]]:
    """A `.dvc` file or `dvc.lock` with new entries: its path, text, and new text; nothing where that is the same, or there is no such file.
    Raises InvalidFileError."""
    try:
        with open(repo.path(path), "rb") as file:
            old = yamlio.decode(yamlio.read(file), path)
    except FileNotFoundError:
        return {}
    new = _lock(repo, path, old, entries) if posixpath.basename(path) == LOCK_FILE else _pointer(path, old, entries)
    return {path: (old, new)} if new != old else {}


class Renewed:
    """The entry of one output that became what a remote has: `name` of its content, `size` in bytes; of a folder `files`, relpath, object
    and size of each, else None; `versions` of those that are not as they were, by relpath."""

    def __init__(
        self,
        place: str,
        name: ObjectName,
        size: int,
        files: Sequence[tuple[str, ObjectName, int]] | None,
        versions: Mapping[str, Version],
    ) -> None:
        self._place = place
        self._name = name
        self._size = size
        self._files = files
        self._versions = versions

    def entry(self, place: str | None, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """See Entries.entry."""
        if place != self._place:
            return None
        kept = {key: value for key, value in entry.items() if key not in (*_OF_FILE, "files")}
        if self._files is None:
            said = {**kept, "md5": self._name.value, "size": self._size}
            return _with_cloud(said, self._versions.get(""))
        before = {str(row["relpath"]): row for row in entry.get("files") or ()}
        rows = []
        for relpath, name, size in sorted(self._files):
            row = {"relpath": relpath, "md5": name.hex, "size": size}
            version = self._versions.get(relpath)
            rows.append(dict(before.get(relpath, row)) if version is None else _with_cloud(row, version))
        return {**kept, "files": rows}


class _Told:
    """New entries for old ones."""

    def __init__(self, objects: Objects, outs: Mapping[str, Output], found: Found) -> None:
        self._objects = objects
        self._outs = outs
        self._found = found

    def entry(self, place: str | None, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """An output's entry with its versions; None where nothing is to be said, or it is about another content."""
        output = self._outs.get(place or "")
        if output is None or output.name is None or _name(entry) != output.name.value:
            return None
        versions = self._found[output]
        if not output.name.is_dir:
            return _with_cloud(entry, versions.get(""))
        about = files_of(output, self._objects)
        if about is None:
            return None
        return {
            **{key: value for key, value in entry.items() if key not in (*_OF_FILE, "files")},
            "files": list(self._rows(entry, about, versions)),
        }

    def _rows(
        self, entry: Mapping[str, Any], about: Sequence[FileVersions], versions: Mapping[str, Version]
    ) -> Iterator[dict[str, Any]]:
        before = {str(row["relpath"]): row for row in entry.get("files") or ()}
        sizes = self._objects.sizes([each.name for each in about])
        for each, size in sorted(zip(about, sizes, strict=True), key=lambda row: row[0].relpath):
            row: dict[str, Any] = {"relpath": each.relpath, "md5": each.name.hex}
            size = each.size if size is None else size
            row |= {} if size is None else {"size": size}
            yield _with_cloud({**row, **before.get(each.relpath, {})}, versions.get(each.relpath))


def _with_cloud(entry: Mapping[str, Any], version: Version | None) -> dict[str, Any]:
    """What an entry says with a version; as it is without one."""
    if version is None:
        return dict(entry)
    said = {key: value for key, value in (("etag", version.etag), ("version_id", version.version)) if value}
    return {**{key: value for key, value in entry.items() if key not in _OLD}, "cloud": {version.remote: said}}


def _name(entry: Mapping[str, Any]) -> str | None:
    """The digest of what an entry is about."""
    if entry.get("md5"):
        return str(entry["md5"])
    name = dvcfile.name_of_files(entry["files"]) if isinstance(entry.get("files"), list) else None
    return None if name is None else name.value


def _pointer(path: str, text: str, told: Entries) -> str:
    parsed = dvcfile.parse(text, path)
    document, plain = yamlio.load(text, path, round_trip=True), yamlio.load(text, path)
    for entry, raw in zip(document["outs"], plain["outs"], strict=True):
        new = told.entry(place_of(path, parsed.wdir, str(raw["path"])), raw)
        if new is not None:
            importing.apply(new, entry)
    if document == plain:
        return text
    made = yamlio.dump(document)
    return importing.with_md5(made, path) if parsed.is_import else made


def _lock(repo: Repo, path: str, text: str, told: Entries) -> str:
    lock = Lock.parse(text, path)
    file = posixpath.join(posixpath.dirname(path), STAGES_FILE)
    try:
        with open(repo.path(file), "rb") as stages:
            known = Stages.parse(yamlio.read(stages), file)
    except FileNotFoundError:
        return text
    for name, entry in lock.entries.items():
        stage = known.get(name)
        if stage is None or stage.wdir is None:
            continue
        outs = [told.entry(place_of(path, stage.wdir, str(out["path"])), out) or out for out in entry.get("outs") or ()]
        if outs and outs != entry["outs"]:
            lock = lock.with_entry(name, {**entry, "outs": outs})
    return lock.text
