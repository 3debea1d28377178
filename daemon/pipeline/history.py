"""The steps of one revision: what each was made from, by what, and whether the hashes of one fit those of the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import MillpondError, TargetError
from millpond.daemon.pipeline import metrics, snapshot, targets, values
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.graph import OutIndex
from millpond.daemon.pipeline.links import SAME, STALE, UNKNOWN, Links
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.origins import Origins
from millpond.daemon.pipeline.places import Item, is_outside, shown
from millpond.daemon.pipeline.provenance import Records
from millpond.daemon.pipeline.snapshot import Snapshot
from millpond.daemon.pipeline.stage import METRICS, Stage, StageOut, address
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Objects
from millpond.daemon.project.paths import overlap
from millpond.daemon.project.repo import Repo, printable

Row = dict[str, Any]


@dataclass(slots=True)
class History:
    """The steps of one revision, each looked at when it is asked for."""

    context: VerbContext
    repo: Repo
    at: Snapshot
    problems: list[Row] = field(default_factory=list)
    _index: OutIndex = field(init=False)
    contents: Contents = field(init=False)
    _links: Links = field(init=False)
    _objects: Objects = field(init=False)
    _records: Records = field(init=False)
    _needs: dict[Stage, list[Stage]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index = OutIndex(self.at.pipelines.stages, self.repo.seen)
        self._objects = Objects(self.context.store, self.repo.cache)
        self.contents = Contents.of(self.context, self.repo)
        self._links = Links(self.repo, self.at, self.contents, self._objects)
        self._records = Records(self.repo)

    def start(self, target: str) -> tuple[str | None, list[Stage]]:
        """(place, steps that make it) of a target; no place for a step's name, no steps for a source. Raises TargetError;
        InvalidFileError when it may be in a file that cannot be read."""
        relative = self.repo.relative(target)
        if relative is not None:
            made = list(dict.fromkeys(stage for stage, _ in self._index.touching(relative))) if relative else []
            if made:
                return relative, made
        try:
            return None, targets.meant(self.repo, self.at.pipelines, [target])
        except TargetError as error:
            if relative is not None and (self._links.source(relative, None)[1] or self._used(relative)):
                return relative, []
            for unreadable in self.at.pipelines.failed.values():
                raise unreadable from error  # it may be what tells of the target
            where = printable(target)
            problem = f"'{where}' is no output, source or stage at '{printable(self.at.label)}'"
            raise TargetError(problem, path=where, hint=error.hint) from error

    def users(self, where: str | None, stages: Iterable[Stage]) -> list[Stage]:
        """The steps that use a place, or without one what the stages make."""
        places = [where] if where is not None else [out.key for each in stages for out in each.outs]
        return [
            stage for stage in self.at.pipelines.stages
            if any(overlap(place, other) for place in self._places(stage) for other in places)
        ]  # fmt: skip

    def above(self, starts: Iterable[Stage]) -> list[Stage]:
        """The steps and all that they were made from, nearest first."""
        return list(_closure(starts, self.needs))

    def below(self, starts: Iterable[Stage]) -> list[Stage]:
        """The steps and all that was made from what they made."""
        used: dict[Stage, list[Stage]] = {}
        for stage in self.at.pipelines.stages:
            for maker in self.needs(stage):
                used.setdefault(maker, []).append(stage)
        return list(_closure(starts, lambda stage: used.get(stage, [])))

    def needs(self, stage: Stage) -> list[Stage]:
        """The steps whose outputs it was made from."""
        if stage not in self._needs:
            found: dict[Stage, None] = {}
            for each in self._places(stage):
                found.update((maker, None) for maker, _ in self._index.touching(each) if maker is not stage)
            self._needs[stage] = list(found)
        return self._needs[stage]

    def row(self, stage: Stage) -> Row:
        """A step as it is told."""
        entry = self._entry(stage)
        name = self.id_of(stage)
        imported = stage.pointer is not None and bool(stage.pointer.deps)
        kind = "stage" if stage.name else "import" if imported else "data"
        record = None if entry is None else self._records.of_entry(entry)
        if stage.name and entry is None:
            self._tell(stage, "never ran", "dvc.lock has no entry of it: what it was made from is what dvc.yaml says")
        for path in (record or {}).get("changed_meanwhile") or []:
            dep = printable(wirepath.decode(path))
            self._tell(
                stage, "changed", f"'{dep}' changed while it ran: it may have been made from an earlier content of it"
            )
        self._compare(stage, entry)
        return {
            "id": wirepath.encode(name),
            "kind": kind,
            "name": wirepath.encode(self._shown(stage)),
            "file": self.repo.wire(stage.file),
            "cmd": stage.cmd if entry is None else entry["cmd"],
            "params": {} if entry is None else _plain(entry.get("params") or {}),
            "metrics": dict(self._metrics(stage, entry)),
            "outs": [self._out(stage, out, entry) for out in stage.outs],
            "deps": [self._dep(stage, dep, known) for dep, known in self._deps(stage)],
            "source": _plain(stage.pointer.deps) if imported and stage.pointer is not None else None,
            "frozen": stage.frozen,
            "record": record,
            "code": None,
            "used_by": [],
        }

    def tell_codes(self, steps: list[Stage], rows: list[Row]) -> None:
        """The code revision of each step, and who uses it: by its record, else by the commit that its entry came with."""
        by_id = {row["id"]: row for row in rows}
        wanted: list[tuple[Stage, Row]] = []
        for stage, row in zip(steps, rows, strict=True):
            for maker in self.needs(stage):
                other = by_id.get(wirepath.encode(self.id_of(maker)))
                if other is not None:
                    other["used_by"].append(row["id"])
            code = None if row["record"] is None else row["record"].get("git")
            entry = self._entry(stage)
            if code is not None and code.get("rev"):
                row["code"] = {"how": "recorded", "rev": code["rev"], "dirty": code["dirty"], "diff": code["diff"]}
            elif entry is not None:
                wanted.append((stage, row))
        git = self.repo.git
        commit = self.at.commit or (None if git is None else git.head())
        if git is None or commit is None or not wanted:
            return
        origins = Origins(self.repo, git, commit)
        found = origins.find((stage, self._entry(stage) or {}) for stage, _ in wanted)
        for stage, row in wanted:
            came = found.get(stage)
            row["code"] = {"how": "not committed"} if came is None else {
                "how": "commit" if came[1] else "at or before commit", "rev": came[0]
            }  # fmt: skip

    def measured(self, where: str | None, starts: list[Stage]) -> Iterator[Row]:
        """Metrics of the steps that use what is asked about."""
        for stage in self.users(where, starts):
            if stage in starts or not any(out.kind == METRICS for out in stage.outs):
                continue
            row = self.row(stage)
            states = [maker["state"] for dep in row["deps"] for maker in dep["from"]]
            state = STALE if STALE in states else UNKNOWN if UNKNOWN in states else SAME
            yield {"step": row["id"], "name": row["name"], "metrics": row["metrics"], "state": state}

    def source_of(self, where: str) -> str:
        """What a place that no step makes is."""
        return "git" if self._links.source(where, None)[1] else "untracked"

    def unreadable(self) -> list[Row]:
        """Files of stages at this revision that cannot be read: the steps in them are not among these."""
        return [
            {"step": self.repo.wire(path), "kind": "unreadable", "text": error.message}
            for path, error in self.at.pipelines.failed.items()
        ]

    def id_of(self, stage: Stage) -> str:
        return address(stage, stage.file)

    def _shown(self, stage: Stage) -> str:
        return address(stage, self.repo.seen(stage.file))

    def _entry(self, stage: Stage) -> dict[str, Any] | None:
        return self.at.pipelines.lock_of(stage).get(stage.name) if stage.name else None

    def _outs(self, stage: Stage) -> dict[str, Locked]:
        if stage.pointer is not None:
            return {out.path: Locked(out.name, out.size, out.nfiles, out.isexec) for out in stage.pointer.outs}
        return locked(self._entry(stage), "outs")

    def _deps(self, stage: Stage) -> list[tuple[Item, Locked]]:
        """(dependency, what is recorded) of what a step was made from: by its lock, else its dvc.yaml."""
        if stage.pointer is not None:
            own = locked({"deps": [dep for dep in stage.pointer.deps if isinstance(dep.get("path"), str)]}, "deps")
            return [(dep, own.get(dep.path, Locked(None))) for dep in stage.deps]
        entry = self._entry(stage)
        if entry is None:
            return [(dep, Locked(None)) for dep in stage.deps]
        where = self.at.pipelines.where
        return [(where.of(stage.wdir, path), known) for path, known in locked(entry, "deps").items()]

    def _places(self, stage: Stage) -> list[str]:
        """Where all is that a step was made from, files of parameters too."""
        found = [dep.key for dep, _ in self._deps(stage)]
        entry = self._entry(stage)
        files = [each.path for each in stage.params] if entry is None else list(entry.get("params") or {})
        return [*found, *(self.at.pipelines.where.of(stage.wdir, path).key for path in files)]

    def _used(self, where: str) -> bool:
        return any(overlap(where, other) for stage in self.at.pipelines.stages for other in self._places(stage))

    def _dep(self, stage: Stage, dep: Item, known: Locked) -> Row:
        name = shown(dep, self.repo.seen)
        makers = []
        holds = False
        for maker, out in self._index.touching(dep.key):
            if maker is stage:
                continue
            recorded = self._outs(maker).get(out.path, Locked(None))
            state = self._between(known, dep, recorded, out)
            makers.append({"id": wirepath.encode(self.id_of(maker)), "state": state})
            if state == STALE:
                text = f"it was made from another '{name}' than '{self._shown(maker)}' has made: {_told(known)}"
                self._tell(stage, STALE, text)
            elif state == UNKNOWN and known.token is not None and recorded.token is not None:
                text = (
                    f"whether '{name}' is what '{self._shown(maker)}' has made cannot be told: no manifest is at hand"
                )
                self._tell(stage, UNKNOWN, text)
            holds = holds or len(out.key) > len(dep.key)
        row: Row = {"path": wirepath.encode(name), **_fields(known), "from": makers, "source": None, "state": None}
        if holds and dep.place is not None:  # what else lies in the folder
            row["source"], row["state"] = ("git" if self._links.source(dep.place, None)[1] else None), UNKNOWN
        elif not makers:
            row["source"], row["state"] = self._source(stage, dep, known)
        return row

    def _between(self, known: Locked, dep: Item, recorded: Locked, out: StageOut) -> str:
        """A dependency as it was, and the output that it is, lies in or holds."""
        if dep.place is not None:
            return self._links.between(known.name, dep.key, recorded.name, out.key)
        # What is inside of a folder at a url stands in no manifest of ours.
        if dep.key != out.key or known.token is None or recorded.token is None:
            return UNKNOWN
        return SAME if known.token == recorded.token else STALE

    def _source(self, stage: Stage, dep: Item, known: Locked) -> tuple[str, str]:
        if dep.place is None or is_outside(dep):
            return "elsewhere", UNKNOWN
        name = shown(dep, self.repo.seen)
        state, tracked = self._links.source(dep.place, known.name)
        if not tracked:
            self._tell(stage, "untracked", f"its source '{name}' is tracked neither by Git nor by a .dvc file")
        if state == STALE and (tracked or self.at.commit is None):
            self._tell(stage, STALE, f"it was made from another '{name}' than is there: {_told(known)}")
        return "git" if tracked else "untracked", state

    def _out(self, stage: Stage, out: StageOut, entry: dict[str, Any] | None) -> Row:
        known = self._outs(stage).get(out.path, Locked(None))
        name = shown(out, self.repo.seen)
        state = UNKNOWN if is_outside(out) else self._links.actual(out.place or "", known.name)
        if state == STALE:
            self._tell(stage, "changed", f"'{name}' in the workspace is not what is recorded: {_told(known)}")
        return {"path": wirepath.encode(name), "kind": out.kind, **_fields(known), "state": state}

    def _compare(self, stage: Stage, entry: dict[str, Any] | None) -> None:
        """Say what dvc.yaml and the files of parameters have now that the run had not."""
        if entry is None:
            return
        if entry["cmd"] != stage.cmd:
            self._tell(stage, STALE, "it was made by another command than dvc.yaml has")
        if set(locked(entry, "deps")) != {dep.path for dep in stage.deps}:
            self._tell(stage, STALE, "it was made from other dependencies than dvc.yaml has")
        recorded = entry.get("params") or {}
        for params in stage.params:
            try:
                document = self.at.pipelines.value(params.place)
            except MillpondError as error:
                self._tell(stage, "unreadable", error.message)
                continue
            old = recorded.get(params.path) or {}
            for key in params.keys or old:
                now = values.ABSENT if document is None else values.get(document, key)
                now = list(now) if isinstance(now, tuple) else now
                if key not in old or now is values.ABSENT or now != old[key]:
                    here = "nothing" if now is values.ABSENT else repr(now)
                    was = repr(old[key]) if key in old else "nothing"
                    where = self.repo.seen(params.place)
                    self._tell(stage, STALE, f"it was made with {key} = {was}, '{where}' has {here}")

    def _metrics(self, stage: Stage, entry: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
        """(path, numbers) of its metrics, as they were recorded: by hash, else as they lie there if that is the hash."""
        outs = self._outs(stage)
        for out in stage.outs:
            known = outs.get(out.path, Locked(None)).name
            if out.kind != METRICS or out.place is None or known is None or known.is_dir:
                continue
            size = self._objects.sizes([known])[0]
            raw = self._objects.manifest(known) if size is not None and size <= snapshot.MAX_BYTES else None
            if raw is None and self._links.source(out.place, known)[0] == SAME:
                raw = self.at.read(out.place)
            where = self.repo.seen(out.place)
            if raw is not None:
                try:
                    yield wirepath.encode(where), metrics.numbers(values.parse(raw, printable(where)))
                except MillpondError as error:
                    self._tell(stage, "unreadable", error.message)

    def _tell(self, stage: Stage, kind: str, text: str) -> None:
        row = {"step": wirepath.encode(self._shown(stage)), "kind": kind, "text": wirepath.encode(text)}
        if row not in self.problems:
            self.problems.append(row)


def _closure(starts: Iterable[Stage], following: Any) -> Iterator[Stage]:
    seen = dict.fromkeys(starts)
    waiting = list(seen)
    while waiting:
        stage = waiting.pop(0)
        yield stage
        for each in following(stage):
            if each not in seen:
                seen[each] = None
                waiting.append(each)


def _fields(known: Locked) -> Row:
    tag = {} if known.tag is None else {known.tag[0]: known.tag[1]}
    return {
        "md5": None if known.name is None else known.name.value, **tag, "size": known.size, "nfiles": known.nfiles
    }  # fmt: skip


def _told(known: Locked) -> str:
    return "no hash" if known.value is None else f"{known.value} is recorded"


def _plain(value: Any) -> Any:
    """A value of YAML as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
