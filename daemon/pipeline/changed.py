"""Why a stage is out of date: all reasons, as data. In DVC's words they are the stage's status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import CancelledError, MillpondError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import values
from millpond.daemon.pipeline.contents import Contents, Wanted
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.places import Item, is_followed, shown
from millpond.daemon.pipeline.stage import Dep, Stage, StageOut, address
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.paths import printable

NEW, MODIFIED, DELETED, NOT_IN_CACHE, UPDATE = "new", "modified", "deleted", "not in cache", "update available"
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
        """Look at all places and urls of these stages at once. What cannot be seen at a url is told by `reasons`."""
        wanted: list[Wanted] = []
        urls: list[Item] = []
        names: list[ObjectName] = []
        for stage, entry in stages:
            if not stage.frozen:
                for dep, known in self._deps(stage, entry):
                    self._want(dep, known, wanted, urls)
            for out, known in self._outs(stage, entry):
                self._want(out, known, wanted, urls)
                if known is not None and known.name is not None and out.cache:
                    names.append(known.name)
        self._contents.urls.look(urls)
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
        found: list[Reason] = []
        for dep, known in self._deps(stage, entry):
            found += self._reason(DEP, stage, dep, known)
        return [*found, *self._param_reasons(stage, entry)]

    def out_reasons(self, stage: Stage, entry: Entry) -> list[Reason]:
        """What differs of outputs."""
        found: list[Reason] = []
        for out, known in self._outs(stage, entry):
            recorded = None if known is None or not out.cache else known.name
            lost = recorded is not None and not self._contents.to_be_had(recorded, out.key)
            found += self._reason(OUT, stage, out, known, NOT_IN_CACHE if lost else "")
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

    def now(self, stage: Stage, item: Item, algo: str = "md5") -> Locked | None:
        """What a dependency or output of the stage is now. Raises the url's own error, which names the stage."""
        try:
            return self._contents.of_item(item, algo)
        except CancelledError:
            raise
        except MillpondError as error:
            if item.place is not None:
                raise
            raise _unseen(error, stage, item, self._seen) from error

    def _reason(self, kind: str, stage: Stage, item: Item, known: Locked | None, state: str = "") -> Iterator[Reason]:
        """The reason that is in `state`, or in what is there now."""
        seen = self.now(stage, item, _algo(known))
        state = state or _state(seen, known)
        if (
            kind == DEP and seen is not None and known is not None and item.place is None
            and known.version and known.version != seen.version and self._contents.urls.keeps_versions(item)
        ):  # fmt: skip
            state = UPDATE
        if state:
            old, new = (None if each is None else each.value for each in (known, seen))
            yield Reason(kind, state, shown(item, self._seen), old=old, new=new)

    def _want(self, item: Item, known: Locked | None, places: list[Wanted], urls: list[Item]) -> None:
        if item.place is not None:
            places.append((item.place, _algo(known)))
        elif is_followed(item):
            urls.append(item)

    def _param_reasons(self, stage: Stage, entry: Entry) -> Iterator[Reason]:
        recorded = (entry or {}).get("params") or {}
        actual = self.param_values(stage)
        for params in stage.params:
            name = params.path if params.place.startswith("/") else self._seen(params.place)
            now, old = actual[params.path], recorded.get(params.path)
            if now is None:
                yield Reason(PARAM, DELETED, name)
                continue
            if old is None:
                yield Reason(PARAM, NEW, name)
                continue
            for key in params.keys or dict.fromkeys([*now, *old]):
                if key not in now:
                    yield Reason(PARAM, DELETED, name, key, old.get(key))
                elif key not in old:
                    yield Reason(PARAM, NEW, name, key, None, now[key])
                elif _plain(now[key]) != _plain(old[key]):
                    yield Reason(PARAM, MODIFIED, name, key, old[key], now[key])

    def _deps(self, stage: Stage, entry: Entry) -> Iterator[tuple[Dep, Locked | None]]:
        """Each dependency that can be looked at, and what is recorded. Urls of imports are left to `importing.changes`."""
        recorded = _pointer_deps(stage) if stage.pointer is not None else locked(entry, "deps")
        for dep in stage.deps:
            if dep.place is not None or (stage.pointer is None and is_followed(dep)):
                yield dep, recorded.get(dep.path)

    def _outs(self, stage: Stage, entry: Entry) -> Iterator[tuple[StageOut, Locked | None]]:
        """Each output that can be looked at, and what is recorded."""
        if stage.pointer is not None:
            outs = stage.pointer.outs
            recorded = {out.path: Locked(out.name, out.size, out.nfiles, out.isexec) for out in outs}
        else:
            recorded = locked(entry, "outs")
        for out in stage.outs:
            if is_followed(out):
                yield out, recorded.get(out.path)


def unseen(stage: Stage) -> list[Item]:
    """What a stage needs and makes that nobody looks at: urls of kinds that only DVC follows."""
    needed: list[Item] = [] if stage.frozen else list(stage.deps)
    return [item for item in (*needed, *stage.outs) if not is_followed(item)]


def _unseen(error: MillpondError, stage: Stage, item: Item, seen: Callable[[str], str]) -> MillpondError:
    """A url's error, with the stage and the url in it."""
    name, url = printable(address(stage, seen(stage.file))), printable(shown_url(item.path))
    hint = error.hint or "see the url and the remote's settings; a frozen stage looks at no dependencies"
    needs = "needs" if isinstance(item, Dep) else "makes"
    return type(error)(f"stage '{name}' {needs} '{url}': {error.message}", path=url, hint=hint)


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
    return "" if known is not None and known.token is not None and seen.token == known.token else MODIFIED


def _algo(known: Locked | None) -> str:
    return "md5" if known is None or known.name is None else known.name.algo


def _plain(value: Any) -> Any:
    """A value of Python's own as a lock file has it."""
    return list(value) if isinstance(value, tuple) else value


def _pointer_deps(stage: Stage) -> dict[str, Locked]:
    assert stage.pointer is not None
    deps = [dep for dep in stage.pointer.deps if isinstance(dep.get("path"), str)]
    return locked({"deps": deps}, "deps")
