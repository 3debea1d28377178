"""What a stage made: stored, and written to dvc.lock, the run cache and `.gitignore`. Data is durable before it is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import InvalidFileError, MillpondError, TargetError, TrackedByGitError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import runcache
from millpond.daemon.pipeline.changed import Comparer, unseen
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.lock import Lock, Locked, with_versions
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.places import is_outside
from millpond.daemon.pipeline.provenance import RAN, Journal, Run
from millpond.daemon.pipeline.stage import METRICS, Stage, StageOut
from millpond.daemon.pipeline.urls import not_followed
from millpond.daemon.pipeline.variables import PARAMS_FILE
from millpond.daemon.project import gitignore, yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import Group, fill, forget_missing
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.export import export_outputs, exports
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.statcache import Moment


@dataclass(slots=True)
class Recorder:
    """Records stages of one verb. `git_add`: files that were written and are Git's, from the project's root. `order`: of the
    stages that it may record; those that are new in dvc.lock come there in this order, whichever is done first."""

    context: VerbContext
    repo: Repo
    loaded: Pipelines
    contents: Contents
    comparer: Comparer
    git_add: dict[str, None] = field(default_factory=dict)
    order: dict[Stage, int] = field(default_factory=dict)
    _new: list[Stage] = field(default_factory=list)
    _exports: bool | None = None
    _journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.repo, self.loaded)
        return self._journal

    @property
    def runs(self) -> runcache.RunCache:
        return runcache.RunCache(self.repo.cache.folder)

    def inputs(self, stage: Stage, began: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The lock entry without outputs, of what is in the workspace now; parameters are those that the stage `began` with (an entry),
        whatever their files say since. Raises TargetError for what is missing."""
        entry: dict[str, Any] = {"cmd": stage.cmd}
        deps = []
        for dep in sorted(stage.deps, key=lambda dep: dep.path):
            found = self.comparer.now(stage, dep)
            if found is None or (found.name is None and dep.place is not None):
                shown = printable(shown_url(dep.path))
                problem = "does not exist" if found is None else "is neither a file nor a directory of files"
                raise TargetError(f"dependency '{shown}' {problem}", path=shown)
            deps.append(found.entry(dep.path))
        params = self._params(stage) if began is None else began.get("params")
        return entry | ({"deps": deps} if deps else {}) | ({"params": params} if params else {})

    def store(self, stage: Stage, *, keep: bool, began: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The lock entry of what the stage made, if it is known of what it `began` with (an entry without outputs). With `keep` its
        outputs are stored, those that are Git's only where a later run may need them. Raises TargetError (an output is missing), FileChangedError, DiskFullError."""
        self.contents.forget()
        entry = self.inputs(stage, began)
        remembered = keep and runcache.can_record(stage)
        since = Moment.now(self.repo.dvc_dir)
        groups = {out: self._group(stage, out) for out in stage.outs if out.place is not None}
        kept = [out for out in groups if keep and (out.cache or remembered)]
        storing = [groups[out] for out in kept]
        forget_missing(storing, self.contents.workspace.objects)
        fill(storing, self.context.store, keep=True, progress=self._progress)
        fill([groups[out] for out in groups if out not in kept], self.context.store, keep=False)
        former = self._former(stage)
        made = {
            out: self._locked(out, group, former.get(out.path), stored=out in kept) for out, group in groups.items()
        }
        if kept:
            self._commit([made[out] for out in kept])
        for out, group in groups.items():
            assert out.place is not None
            self._remember(out.place, group, made[out], since)
        made |= {out: self._at_url(stage, out) for out in stage.outs if out.place is None}
        outs = [made[out].entry(out.path) for out in sorted(stage.outs, key=lambda out: out.path)]
        return entry | ({"outs": outs} if outs else {})

    def record(
        self, stage: Stage, entry: dict[str, Any], *, remember: bool, run: Run | None = None, outcome: str = RAN
    ) -> list[str]:
        """Write dvc.lock and `.gitignore`, with the record of the `run` that it is of, and with `remember` the run cache; what
        DVC says of it. Raises InvalidFileError, DiskFullError."""
        said = []
        try:
            told = {} if run is None else self.journal.record(stage, run, entry, outcome)
            lock = self._current(stage.lock)
            shown = printable(self.repo.seen(stage.lock))
            ignoring = gitignore.texts(
                self.repo, [out.place for out in stage.outs if out.cache and _inside(out.place) and out.place]
            )
            texts = dict(ignoring)
            written = with_versions(entry, lock.get(stage.name))
            if lock.get(stage.name) != written:
                if not lock.text:
                    said.append(f"Generating lock file '{shown}'")
                said.append(f"Updating lock file '{shown}'")
                lock = lock.with_entry(stage.name, written, before=self._later(stage, lock))
                texts[stage.lock] = lock.text
            # The run cache first: when the lock says that all is done, nothing is left to do.
            if remember and runcache.can_record(stage):
                self.runs.save(entry)
            # The record of the run before the lock: what the lock names has one.
            write_all(told | {self.repo.path(path): text for path, text in texts.items()})
        except OSError as error:
            raise write_error(error, "what the stage made is stored: run `millpond repro` again") from error
        self.loaded.locks[stage.lock] = lock
        self.git_add.update(dict.fromkeys(texts))
        if run is not None:
            self.journal.tidy(stage)
        return said

    def params_changed(self, stage: Stage, began: Mapping[str, Any]) -> bool:
        """Whether the files of parameters say something else than when the stage began."""
        try:
            return (self._params(stage) or None) != began.get("params")
        except MillpondError:  # they cannot be read now
            return True

    def export(self, stage: Stage, entry: dict[str, Any]) -> None:
        """Bring what was stored into DVC's cache, too, where DVC is used."""
        if self._exports is None:
            self._exports = exports(self.repo, os.environ)
        if not self._exports:
            return
        remembered = runcache.can_record(stage)
        outs = {item["path"]: item for item in entry.get("outs") or []}
        found = []
        for out in stage.outs:
            if out.place is not None and (out.cache or remembered) and out.path in outs:
                name = ObjectName("md5", outs[out.path]["md5"])
                found.append(Output(out.place, stage.lock, name, None, None, False))
        export_outputs(self.context, self.repo, found)

    def refuse_outside(self, stage: Stage) -> None:
        """Raise UsageError for what lies outside of the project and cannot: outputs that are to be kept, metrics at urls, and urls that
        are not followed."""
        for item in unseen(stage):
            raise not_followed(item)
        for out in filter(is_outside, stage.outs):
            where = printable(shown_url(out.path))
            if out.cache:
                raise kept_outside(where)
            if out.place is None and out.kind == METRICS:
                raise UsageError(
                    f"metrics cannot be at a url, and '{where}' is one",
                    hint="have the stage write a file of the project",
                )

    def refuse_tracked(self, stage: Stage) -> None:
        """Raise TrackedByGitError for an output that DVC should keep and Git has."""
        git = self.repo.git
        for out in stage.outs:
            if git is None or not out.cache or not _inside(out.place) or out.place is None:
                continue
            gitignore.check(self.repo, out.place)
            if git.tracked_below(self.repo.git_path(out.place)) is not None:
                shown = printable(self.repo.seen(out.place))
                raise TrackedByGitError(
                    f"output '{shown}' is already tracked by Git", path=shown,
                    hint=f"take it out with `git rm -r --cached '{shown}'`, or give it `cache: false`",
                )  # fmt: skip

    def _later(self, stage: Stage, lock: Lock) -> set[str]:
        """What came into the lock before it was the turn of this new stage."""
        if stage.name in lock.entries:
            return set()
        mine = self.order.get(stage, 0)
        later = {each.name for each in self._new if each.lock == stage.lock and self.order.get(each, 0) > mine}
        self._new.append(stage)
        return later

    def _current(self, path: str) -> Lock:
        """The lock as it is now: someone may have changed it meanwhile."""
        raw = self.loaded.content(path)
        text = "" if raw is None else yamlio.decode(raw, printable(self.repo.seen(path)))
        known = self.loaded.locks.get(path)
        return known if known is not None and known.text == text else Lock.parse(text, printable(self.repo.seen(path)))

    def _params(self, stage: Stage) -> dict[str, Any]:
        actual = self.comparer.param_values(stage)
        found = {}
        for params in sorted(stage.params, key=lambda each: (each.path != PARAMS_FILE, each.path)):
            values, shown = actual[params.path], printable(params.path)
            if values is None:
                raise InvalidFileError(f"the file of parameters '{shown}' does not exist", path=shown)
            missing = [key for key in params.keys if key not in values]
            if missing:
                names = ", ".join(f"'{printable(key)}'" for key in missing)
                raise InvalidFileError(
                    f"parameter{'s' if len(missing) > 1 else ''} {names} {'are' if len(missing) > 1 else 'is'} not in "
                    f"'{shown}'",
                    path=shown,
                )
            found[params.path] = {key: _lockable(values[key]) for key in sorted(values)}
        return found

    def _group(self, stage: Stage, out: StageOut) -> Group:
        assert out.place is not None
        path, shown = self.repo.path(out.place), printable(out.path)
        if not os.path.exists(path):
            raise TargetError(f"output '{shown}' was not made", path=shown, hint="is it what the command writes?")
        if os.path.isfile(path):
            return self.contents.workspace.files([out.place])
        group = self.contents.workspace.folder(out.place)
        for inner, reason in group.listing.odd:
            raise TargetError(f"cannot store '{printable(f'{out.path}/{inner}')}': it {reason}", path=shown)
        return group

    def _at_url(self, stage: Stage, out: StageOut) -> Locked:
        found = self.comparer.now(stage, out)
        if found is None:
            where = printable(shown_url(out.path))
            raise TargetError(f"output '{where}' was not made", path=where, hint="is it where the command writes?")
        return found

    def _former(self, stage: Stage) -> dict[str, ObjectName]:
        """What the lock says of the stage's outputs, by their paths, as far as it names anything."""
        known = self.loaded.locks.get(stage.lock)
        outs = [] if known is None else (known.get(stage.name) or {}).get("outs") or []
        return {item["path"]: ObjectName("md5", str(item["md5"])) for item in outs if "md5" in item}

    def _locked(self, out: StageOut, group: Group, former: ObjectName | None, *, stored: bool) -> Locked:
        """The lock's entry of an output, whose manifest is stored if `stored` and not there."""
        assert out.place is not None
        path = self.repo.path(out.place)
        if os.path.isfile(path):
            return Locked(group.name(0), group.size(0), None, bool(os.stat(path).st_mode & 0o111))
        tree = group.tree()
        if stored and self.context.store.sizes([tree])[0] is None:
            self.context.store.put_bytes(group.text(), is_dir=True, like=former)
        return Locked(tree, group.listing.total, len(group.listing.paths))

    def _commit(self, made: Iterable[Locked]) -> None:
        names = [each.name for each in made if each.name is not None]
        self.context.store.commit()
        git = self.repo.git
        self.context.seen(self.repo.root, None if git is None else git.git_dir, names)
        self.contents.stored(names)

    def _remember(self, place: str, group: Group, made: Locked, since: Moment) -> None:
        self.contents.take(place, made)
        assert made.name is not None
        if made.nfiles is None:
            self.contents.workspace.keep_files(group, since=since)
        else:
            self.contents.workspace.keep_folder(place, group, made.name.value, since=since)

    def _progress(self, files: int, all_files: int, done: int, total: int) -> None:
        self.context.progress("storing outputs", (files, all_files), (done, total))


def outs_of(entry: Mapping[str, Any]) -> list[ObjectName]:
    """The names of an entry's outputs."""
    return [ObjectName("md5", out["md5"]) for out in entry.get("outs") or [] if "md5" in out]


def kept_outside(shown: str) -> UsageError:
    """The error for an output that the store should keep, and that lies outside of the project."""
    return UsageError(
        f"output '{shown}' lies outside of the project, where none can be kept",
        hint="declare it as one that is not: --outs-no-cache, or `cache: false` in dvc.yaml",
    )


def _inside(place: str | None) -> bool:
    return place is not None and not place.startswith("/")


def _lockable(value: Any) -> Any:
    """A value of a Python file as YAML has it."""
    if isinstance(value, tuple):
        return [_lockable(each) for each in value]
    return value
