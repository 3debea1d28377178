"""A stage as the rest of the code sees it: paths, dependencies, parameters and outputs, of dvc.yaml or of a `.dvc` file."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.pipeline.places import Places, place
from millpond.daemon.pipeline.resolve import Body, Document
from millpond.daemon.pipeline.variables import PARAMS_FILE
from millpond.daemon.project import yamlio
from millpond.daemon.project.dvcfile import DvcFile

OUTS, METRICS, PLOTS = "outs", "metrics", "plots"


@dataclass(frozen=True, slots=True)
class Dep:
    """A dependency: `path` as it is written, and as dvc.lock has it; `place` from the project's root, absolute for what lies
    elsewhere on this machine, None for a url; `key` what others that mean the same are known by: the place, or the url that
    `remote://` leads to."""

    path: str
    place: str | None
    key: str


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of one file: their `keys` in the order they are written; none for all of the file."""

    path: str
    place: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageOut:
    """An output: `path`, `place` and `key` as of a Dep, `kind` outs, metrics or plots; `options` as they are written."""

    path: str
    place: str | None
    key: str
    kind: str
    cache: bool = True
    persist: bool = False
    remote: str | None = None
    push: bool = True
    options: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One stage of a dvc.yaml, or a `.dvc` file (`name` "", no commands).

    `file` and `wdir` from the project's root; `cmd` as dvc.lock has it, `commands` one by one; `group` the key in dvc.yaml
    of the loop that made it; `pointer` the `.dvc` file's content; `parametrized`: templates were filled in.
    """

    file: str
    name: str
    wdir: str
    cmd: str | list[str] | None
    deps: tuple[Dep, ...] = ()
    params: tuple[Params, ...] = ()
    outs: tuple[StageOut, ...] = ()
    frozen: bool = False
    always_changed: bool = False
    desc: str | None = None
    group: str | None = None
    parametrized: bool = False
    pointer: DvcFile | None = None

    @property
    def commands(self) -> list[str]:
        if self.cmd is None:
            return []
        return list(self.cmd) if isinstance(self.cmd, list) else self.cmd.splitlines()

    @property
    def key(self) -> tuple[str, str]:
        return self.file, self.name

    @property
    def lock(self) -> str:
        """The dvc.lock beside its dvc.yaml."""
        return posixpath.join(posixpath.dirname(self.file), "dvc.lock")

    @property
    def is_callback(self) -> bool:
        """Nothing says when its command would do the same again, so it always runs."""
        return self.cmd is not None and not (self.deps or self.params or self.outs)


def stages_of(document: Document, file: str, places: Places) -> Iterator[Stage]:
    """The stages of a dvc.yaml at `file`, from the project's root. Raises InvalidFileError."""
    for body in document.bodies.values():
        yield _stage(document, body, file, places)


def pointer_stage(pointer: DvcFile, file: str, places: Places) -> Stage:
    """A `.dvc` file as a stage."""
    wdir = posixpath.normpath(posixpath.join(posixpath.dirname(file), pointer.wdir))
    found = [(out, places.of(wdir, out.path)) for out in pointer.outs]
    outs = [StageOut(out.path, spot.place, spot.key, OUTS, out.cache) for out, spot in found]
    # What an import has from another repository is no path of this one.
    own = [dep for dep in pointer.deps if "repo" not in dep and "db" not in dep]
    spots = [(str(dep.get("path")), places.of(wdir, str(dep.get("path")))) for dep in own]
    deps = [Dep(path, spot.place, spot.key) for path, spot in spots]
    return Stage(file, "", _tidy(wdir), None, tuple(deps), (), tuple(outs), pointer.frozen, pointer=pointer)


def _stage(document: Document, body: Body, file: str, places: Places) -> Stage:
    entry = body.entry
    folder = posixpath.dirname(file)
    wdir = _tidy(posixpath.normpath(posixpath.join(folder, str(entry.get("wdir") or "."))))
    if wdir == ".." or wdir.startswith(("../", "/")):
        raise _error(document, body, "wdir", f"working directory '{entry['wdir']}' lies outside of the project")
    cmd = entry["cmd"]
    if not cmd or not all(isinstance(each, str) for each in (cmd if isinstance(cmd, list) else [cmd])):
        raise _error(document, body, "cmd", f"'cmd' of stage '{body.name}' is no text and no list of texts")
    return Stage(
        file=file,
        name=body.name,
        wdir=wdir,
        cmd=cmd,
        deps=tuple(_deps(entry, places, wdir)),
        params=tuple(_params(document, body, places.root, wdir)),
        outs=tuple(_outs(document, body, places, wdir)),
        frozen=bool(entry.get("frozen")),
        always_changed=bool(entry.get("always_changed")),
        desc=entry.get("desc"),
        group=body.definition if body.looped else None,
        parametrized=body.looped or body.entry != body.written,
    )


def _deps(entry: Mapping[str, Any], places: Places, wdir: str) -> Iterator[Dep]:
    for path in entry.get("deps") or []:
        spot = places.of(wdir, str(path))
        yield Dep(spot.path, spot.place, spot.key)


def _params(document: Document, body: Body, root: str, wdir: str) -> Iterator[Params]:
    """Each file once, with all keys that are asked of it; all of it where one entry asks for that."""
    entries: list[Any] = body.entry.get("params") or []
    named = [(file, keys) for entry in entries if isinstance(entry, dict) for file, keys in entry.items()]
    whole = {file for file, keys in named if not keys}
    found: dict[str, list[str]] = {}
    for entry in entries:
        pairs: Iterable[tuple[Any, Any]] = entry.items() if isinstance(entry, dict) else [(PARAMS_FILE, [entry])]
        for file, keys in pairs:
            if file in whole:
                if isinstance(entry, dict):
                    found[file] = []
            elif not isinstance(keys, list):
                raise _error(document, body, "params", f"keys of '{file}' are '{keys}', expected a list of names")
            else:
                found.setdefault(file, []).extend(map(str, keys))
    for file, keys in found.items():
        where = place(root, wdir, str(file))
        if where is None:
            raise _error(document, body, "params", f"parameters cannot be read from the URL '{file}'")
        yield Params(str(file), where, tuple(dict.fromkeys(keys)))


def _outs(document: Document, body: Body, places: Places, wdir: str) -> Iterator[StageOut]:
    entry = body.entry
    for kind in (OUTS, METRICS, PLOTS):
        named: dict[str, dict[str, Any]] = {}
        for item in entry.get(kind) or []:
            for path, options in item.items() if isinstance(item, dict) else ((item, None),):
                # A plot may have several descriptions, none of which says more about the file.
                named.setdefault(str(path), {}).update(options if isinstance(options, dict) else {})
        for path, options in named.items():
            spot = places.of(wdir, path)
            if spot.key.startswith("/") and f"{places.root}/".startswith(
                f"{spot.key.rstrip('/')}/"
            ):  # it would be removed before the stage runs
                raise _error(document, body, kind, f"output '{path}' of stage '{body.name}' holds the project")
            yield StageOut(
                spot.path,
                spot.place,
                spot.key,
                kind,
                cache=options.get("cache") is not False,
                persist=bool(options.get("persist")),
                remote=options.get("remote"),
                push=options.get("push") is not False,
                options=options,
            )


def _error(document: Document, body: Body, key: str, problem: str) -> Exception:
    at = ("stages", body.definition, *(("do",) if "foreach" in document.definitions[body.definition] else ()), key)
    return yamlio.invalid_at(document.path, document.text, at, problem)


def _tidy(folder: str) -> str:
    return "" if folder == "." else folder


def address(stage: Stage, seen: str) -> str:
    """How the stage is called from the caller's folder, from where its file is `seen`."""
    if not stage.name:
        return seen
    return stage.name if seen == "dvc.yaml" else f"{seen}:{stage.name}"


def folder_of(stage: Stage, root: str) -> str:
    """The absolute path of the folder its commands run in."""
    return os.path.join(root, stage.wdir) if stage.wdir else root
