"""Why a stage is out of date: all reasons, as data. In DVC's words they are the stage's status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import values
from millpond.daemon.pipeline.contents import Contents, Wanted
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.stage import Stage, StageOut
from millpond.daemon.project.paths import printable

NEW, MODIFIED, DELETED, NOT_IN_CACHE = "new", "modified", "deleted", "not in cache"
COMMAND, DEP, PARAM, OUT, ALWAYS, FORCED = "command", "dep", "param", "out", "always", "forced"
Entry = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: `kind` of the above; `state` as DVC has it; `path` as the caller sees it (of a param: its file), `key`
    its name there; `old` and `new`: command, value or hash."""

    kind: str
    state: str = ""
    path: str = ""
    key: str = ""
    old: Any = None
    new: Any = None

    def to_json(self) -> dict[str, Any]:
        fields = {"kind": self.kind, "state": self.state, "path": wirepath.encode(self.path), "key": self.key}
        found: dict[str, Any] = {name: value for name, value in fields.items() if value}
        for name, value in (("old", self.old), ("new", self.new)):
            if value is not None:
                found[name] = value if isinstance(value, str | int | float | bool | list | dict) else str(value)
        return found


class Comparer:
    """Compares stages with their entries in dvc.lock (or their `.dvc` files)."""

    def __init__(self, contents: Contents, value: Callable[[str], Any]) -> None:
        self._contents = contents
        self._value = value
        self._seen = contents.repo.seen

    def prepare(self, stages: Iterable[tuple[Stage, Entry]]) -> None:
        """Look at all places of these stages at once."""
        wanted: list[Wanted] = []
        names: list[ObjectName] = []
        for stage, entry in stages:
            if not stage.frozen:
                wanted += [(place, _algo(known)) for place, _, known in self._deps(stage, entry)]
            for out, place, known in self._outs(stage, entry):
                wanted.append((place, _algo(known)))
                if known is not None and known.name is not None and out.cache:
                    names.append(known.name)
        self._contents.look(wanted)
        self._contents.look_for(names)

    def reasons(self, stage: Stage, entry: Entry) -> list[Reason]:
        """All reasons, dependencies first, as DVC's status has them."""
        found: list[Reason] = []
        if not stage.frozen:
            found += self.dep_reasons(stage, entry)
        found += self.out_reasons(stage, entry)
        if (stage.always_changed or stage.is_callback) and not stage.frozen:
            found.append(Reason(ALWAYS))
        if stage.name and entry is not None and entry["cmd"] != stage.cmd:
            found.append(Reason(COMMAND, MODIFIED, old=entry["cmd"], new=stage.cmd))
        return found

    def dep_reasons(self, stage: Stage, entry: Entry) -> list[Reason]:
        """What differs of dependencies and parameters."""
        found = []
        for place, path, known in self._deps(stage, entry):
            state = _state(self._contents.at(place, _algo(known)), known)
            if state:
                found.append(self._reason(DEP, state, place, path, known))
        return [*found, *self._param_reasons(stage, entry)]

    def out_reasons(self, stage: Stage, entry: Entry) -> list[Reason]:
        """What differs of outputs."""
        found = []
        for out, place, known in self._outs(stage, entry):
            recorded = None if known is None or not out.cache else known.name
            if recorded is not None and not self._contents.to_be_had(recorded, place):
                found.append(self._reason(OUT, NOT_IN_CACHE, place, out.path, known))
            elif state := _state(self._contents.at(place, _algo(known)), known):
                found.append(self._reason(OUT, state, place, out.path, known))
        return found

    def param_values(self, stage: Stage) -> dict[str, dict[str, Any] | None]:
        """What the files of parameters say now, by their paths as written: keys with values (all top-level keys where
        the whole file is asked for); None for a file that is not there."""
        found: dict[str, dict[str, Any] | None] = {}
        for params in stage.params:
            document = self._value(params.place)
            if document is None:
                found[params.path] = None
            elif params.keys:
                pairs = ((key, values.get(document, key)) for key in params.keys)
                found[params.path] = {key: value for key, value in pairs if value is not values.ABSENT}
            else:
                found[params.path] = (
                    {str(key): value for key, value in document.items()} if isinstance(document, dict) else {}
                )
        return found

    def _reason(self, kind: str, state: str, place: str, path: str, known: Locked | None) -> Reason:
        seen = self._contents.at(place, _algo(known))
        old = None if known is None or known.name is None else known.name.value
        new = None if seen is None or seen.name is None else seen.name.value
        return Reason(kind, state, self._shown(place, path), old=old, new=new)

    def _param_reasons(self, stage: Stage, entry: Entry) -> Iterator[Reason]:
        recorded = (entry or {}).get("params") or {}
        actual = self.param_values(stage)
        for params in stage.params:
            shown = self._shown(params.place, params.path)
            now, old = actual[params.path], recorded.get(params.path)
            if now is None:
                yield Reason(PARAM, DELETED, shown)
                continue
            if old is None:
                yield Reason(PARAM, NEW, shown)
                continue
            for key in params.keys or dict.fromkeys([*now, *old]):
                if key not in now:
                    yield Reason(PARAM, DELETED, shown, key, old.get(key))
                elif key not in old:
                    yield Reason(PARAM, NEW, shown, key, None, now[key])
                elif _plain(now[key]) != _plain(old[key]):
                    yield Reason(PARAM, MODIFIED, shown, key, old[key], now[key])

    def _deps(self, stage: Stage, entry: Entry) -> Iterator[tuple[str, str, Locked | None]]:
        """(place, path, what is recorded) of each dependency that is a file or folder of this machine."""
        recorded = _pointer_deps(stage) if stage.pointer is not None else locked(entry, "deps")
        for dep in stage.deps:
            if dep.place is not None:
                yield dep.place, dep.path, recorded.get(dep.path)

    def _outs(self, stage: Stage, entry: Entry) -> Iterator[tuple[StageOut, str, Locked | None]]:
        """(output, place, what is recorded) of each output that is a file or folder of this machine."""
        if stage.pointer is not None:
            outs = stage.pointer.outs
            recorded = {out.path: Locked(out.name, out.size, out.nfiles, out.isexec) for out in outs}
        else:
            recorded = locked(entry, "outs")
        for out in stage.outs:
            if out.place is not None:
                yield out, out.place, recorded.get(out.path)

    def _shown(self, place: str, path: str) -> str:
        """As DVC shows a path: from the caller's folder, but for what lies outside of the project."""
        return path if place.startswith("/") else self._seen(place)


def elsewhere(stage: Stage) -> list[str]:
    """What a stage needs and makes that is no file of this machine: URLs, which nobody looks at."""
    needed = [] if stage.frozen else [dep.path for dep in stage.deps if dep.place is None]
    return [*needed, *(out.path for out in stage.outs if out.place is None)]


def remote_place(path: str) -> UsageError:
    """The error for a path that is no file of this machine."""
    shown = printable(path)
    return UsageError(
        f"'{shown}' is not on this machine, and this version of millpond follows only what is",
        hint="use `dvc` for this stage",
    )


def status_of(reasons: Iterable[Reason]) -> list[Any]:
    """A stage's status in DVC's JSON."""
    deps: dict[str, Any] = {}
    outs: dict[str, str] = {}
    rest: list[Any] = []
    for reason in reasons:
        path = wirepath.encode(reason.path)
        if reason.kind == PARAM and reason.key:
            deps.setdefault(path, {})[reason.key] = reason.state
        elif reason.kind in (DEP, PARAM):
            deps[path] = reason.state
        elif reason.kind == OUT:
            outs[path] = reason.state
        else:
            rest.append("always changed" if reason.kind == ALWAYS else "changed command")
    found: list[Any] = [
        {name: changes} for name, changes in (("changed deps", deps), ("changed outs", outs)) if changes
    ]
    return [*found, *rest]


def _state(seen: Locked | None, known: Locked | None) -> str:
    if seen is None:
        return DELETED
    # What has no record is modified for DVC, too; nothing has a record of what can have no name.
    return "" if known is not None and known.name is not None and seen.name == known.name else MODIFIED


def _algo(known: Locked | None) -> str:
    return "md5" if known is None or known.name is None else known.name.algo


def _plain(value: Any) -> Any:
    """A value of Python's own as a lock file has it."""
    return list(value) if isinstance(value, tuple) else value


def _pointer_deps(stage: Stage) -> dict[str, Locked]:
    assert stage.pointer is not None
    deps = [dep for dep in stage.pointer.deps if isinstance(dep.get("path"), str)]
    return locked({"deps": deps}, "deps")
