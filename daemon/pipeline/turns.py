"""One stage's turn in a repro: is it out of date, was its like made before, what must go before it runs, what it made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import (
    CancelledError,
    ConflictError,
    DaemonUnavailableError,
    MillpondError,
    ObjectMissingError,
    StageFailedError,
    TargetError,
)
from millpond.daemon.mounts.place import mount_around
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import runcache
from millpond.daemon.pipeline.changed import DEP, FORCED, NOT_IN_CACHE, OUT, Reason, elsewhere, remote_place
from millpond.daemon.pipeline.graph import Graph
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.planning import Options
from millpond.daemon.pipeline.provenance import CACHED, RAN, Run
from millpond.daemon.pipeline.receipts import Reads, Receipts
from millpond.daemon.pipeline.recording import Recorder, outs_of
from millpond.daemon.pipeline.stage import Stage, StageOut, address
from millpond.daemon.pipeline.stageinputs import StageInputs
from millpond.daemon.project import add, targets
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import remove_tree
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.fetch import fetch_chosen
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.placer import Placer
from millpond.daemon.project.plan import Content, Planner
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import Choice
from millpond.daemon.project.unprotect import make_own
from millpond.daemon.project.workspace import Workspace

UNCHANGED = "unchanged"
Entry = dict[str, Any]


@dataclass(slots=True)
class Turn:
    """A stage as it is looked at: `entry` of dvc.lock, all `reasons` why it may run, and `outcome` UNCHANGED if none of
    them counts."""

    stage: Stage
    entry: Entry | None
    reasons: list[Reason]
    outcome: str | None = None
    forced: bool = False
    # Once it is to run, or to be brought back.
    run: Run | None = None


@dataclass(slots=True)
class Turns:
    """The turns of one repro."""

    context: VerbContext
    repo: Repo
    recorder: Recorder
    options: Options
    say: Callable[[str], None]
    graph: Graph | None
    # What is mounted for stages, and what their mounts were asked for; None where nothing can be mounted.
    inputs: StageInputs | None = None
    receipts: Receipts | None = None
    _forced: set[Stage] = field(default_factory=set)

    def prepare(self, steps: Sequence[Stage]) -> None:
        """Look at all that the stages need and make, at once."""
        if self.inputs is not None:
            self.inputs.look(steps, only=self.options.look or self.options.dry)
        self.recorder.comparer.prepare((stage, self._entry(stage)) for stage in steps)

    def begin(self, stage: Stage) -> Turn:
        """Find out why the stage should run, if it should. Raises MillpondError for files that cannot be read."""
        urls = elsewhere(stage) if stage.name else []
        if urls:
            raise remote_place(urls[0])
        entry = self._entry(stage)
        self.recorder.comparer.prepare([(stage, entry)])
        reasons = self.recorder.comparer.reasons(stage, entry)
        forced = self.options.force or stage in self._forced
        if forced:
            reasons.append(Reason(FORCED))
        turn = Turn(stage, entry, reasons, forced=forced)
        if not self._counting(turn, allow_missing=self.options.allow_missing):
            turn.outcome = UNCHANGED
        return turn

    def perform(self, turn: Turn) -> str | None:
        """Do all of the turn that needs no command; its outcome, or None when its commands are to be run."""
        stage = turn.stage
        name = self._name(stage)
        if turn.outcome == UNCHANGED:
            kind = "" if stage.pointer is not None else "Stage "
            self.say(f"{kind}'{name}' didn't change, skipping")
            return UNCHANGED
        if (
            not turn.forced
            and self.options.pull
            and not self._counting(turn, allow_missing=True)
            and self._pulled(turn)
        ):
            return UNCHANGED
        if self.options.force_downstream and self.graph is not None:
            self._forced.update(self.graph.needed[stage])
        if stage.pointer is not None:
            return self._commit_data(stage)
        if stage.frozen:
            return self._verify_frozen(stage)
        if self.options.dry:
            return self._pretend(turn)
        entry = self._inputs(turn)
        turn.run = self.recorder.journal.begin(entry, [reason.to_json() for reason in turn.reasons])
        if not turn.forced:
            made = self._made_before(turn, entry)
            if made is not None:
                self._give_up(stage)
                self._restore(turn, made)
                return CACHED
        self.recorder.refuse_tracked(stage)
        self._provide(stage)
        if not os.path.isdir(self.repo.path(stage.wdir)):
            shown = printable(self.repo.seen(stage.wdir))
            raise TargetError(f"working directory '{shown}' of stage '{name}' does not exist", path=shown)
        self._give_up(stage)
        self._clear(stage)
        if self.receipts is not None:
            self.receipts.begin(stage)
        self.say(f"Running stage '{name}':")
        return None

    def _provide(self, stage: Stage) -> None:
        """Mount what the stage needs and is not here, or bring it. Raises ObjectMissingError, RemoteError, MountError and others."""
        for absent in self.inputs.mount_for(stage) if self.inputs is not None else ():
            if not absent.here:
                self._fetch(absent.stage, [absent.out])
            self._place([(absent.out, absent.known)])
        self.recorder.contents.forget()

    def _give_up(self, stage: Stage) -> None:
        if self.inputs is not None:
            self.inputs.give_up(out.place for out in stage.outs if out.place is not None)

    def check_reads(self, turn: Turn) -> Reads | None:
        """The commands of the stage have ended: what its mounts were asked for belongs to its record; None where it had none."""
        reads = None if self.receipts is None else self.receipts.end(turn.stage)
        if reads is not None and turn.run is not None:
            turn.run.reads, turn.run.waited_s = reads.rows, reads.waited_s
        return reads

    def over(self, stage: Stage) -> None:
        """The stage's turn has ended: its mounts go, unless others need them."""
        if self.receipts is not None:
            self.receipts.forget(stage)
        if self.inputs is not None:
            self.inputs.done(stage)

    def record(self, turn: Turn) -> None:
        """The commands of the stage ended well: store what they made. Raises MillpondError."""
        recorder, stage = self.recorder, turn.stage
        recorder.loaded.values.clear()
        keep = not self.options.no_commit
        try:
            entry = recorder.store(stage, keep=keep)
            self._say_all(recorder.record(stage, entry, remember=keep, run=turn.run))
        except DaemonUnavailableError:  # a job does it again with the next daemon
            raise
        except MillpondError as error:
            self.failed(turn, error)
            raise
        if keep:
            recorder.export(stage, entry)

    def failed(self, turn: Turn, error: MillpondError) -> None:
        """Its commands came to nothing: that is recorded, too."""
        if turn.run is not None:
            self.recorder.journal.failed(turn.stage, turn.run, error)

    def _entry(self, stage: Stage) -> Entry | None:
        return self.recorder.loaded.lock_of(stage).get(stage.name) if stage.name else None

    def _counting(self, turn: Turn, *, allow_missing: bool) -> list[Reason]:
        """The reasons that count: data that is only missing does not where that is allowed."""
        if not allow_missing:
            return turn.reasons
        found = []
        for reason in turn.reasons:
            missing = reason.state == "deleted"
            if reason.kind == OUT and (missing or reason.state == NOT_IN_CACHE):
                continue
            if reason.kind == DEP and missing and not self._made_anew(turn, reason):
                continue
            found.append(reason)
        return found

    def _made_anew(self, turn: Turn, reason: Reason) -> bool:
        """Whether the missing dependency is recorded otherwise by the stage that makes it."""
        wanted = locked(turn.entry, "deps")
        for dep in turn.stage.deps:
            if dep.place is None or self.repo.seen(dep.place) != reason.path:
                continue
            for maker in self.graph.needs[turn.stage] if self.graph is not None else ():
                recorded = self._recorded(maker)
                for out in maker.outs:
                    known = wanted.get(dep.path)
                    if out.place == dep.place and recorded.get(out.path, Locked(None)).name != (known and known.name):
                        return True
        return False

    def _recorded(self, stage: Stage) -> dict[str, Locked]:
        if stage.pointer is not None:
            return {out.path: Locked(out.name) for out in stage.pointer.outs}
        return locked(self._entry(stage), "outs")

    def _pulled(self, turn: Turn) -> bool:
        """Bring the recorded outputs of a stage that only lacks data. False when they are nowhere."""
        stage = turn.stage
        self.say(f"Pulling data for stage: '{self._name(stage)}'")
        if self.options.dry:
            return True
        outs = [out for out in stage.outs if out.cache]
        try:
            self._fetch(stage, outs)
            self._place([(out, self._recorded(stage)[out.path]) for out in outs])
        except CancelledError:
            raise
        except (MillpondError, KeyError) as error:
            reason = error.message if isinstance(error, MillpondError) else "it was never made"
            self.say(f"Unable to pull data for stage: '{self._name(stage)}': {reason}")
            return False
        return True

    def _fetch(self, stage: Stage, outs: Iterable[StageOut]) -> None:
        """Have recorded outputs in the store. Raises ObjectMissingError, RemoteError and others."""
        choices = []
        for out in outs:
            known = self._recorded(stage).get(out.path)
            if known is not None and known.name is not None and out.place is not None:
                pointer = stage.lock if stage.name else stage.file
                output = Output(out.place, pointer, known.name, known.size, known.nfiles, known.isexec, True)
                choices.append(Choice(_shared(output, out)))
        found = fetch_chosen(self.context, self.repo, choices, {})
        if found["missing"] or found["damaged"]:
            raise ObjectMissingError("not all of its data is on the remote")
        self.recorder.contents.stored([each.output.name for each in choices if each.output.name is not None])

    def _inputs(self, turn: Turn) -> Entry:
        """The lock entry of what the stage would run with. Raises TargetError for what is missing."""
        if self.options.pull:
            self._pull_deps(turn.stage)
        return self.recorder.inputs(turn.stage)

    def _pull_deps(self, stage: Stage) -> None:
        lacking = {dep.place for dep in stage.deps if dep.place and self.recorder.contents.at(dep.place) is None}
        for maker in self.graph.needs[stage] if self.graph is not None and lacking else ():
            outs = [out for out in maker.outs if out.place in lacking]
            if outs:
                self._fetch(maker, outs)
                self._place([(out, self._recorded(maker)[out.path]) for out in outs])

    def _made_before(self, turn: Turn, inputs: Entry) -> Entry | None:
        """The whole entry of an earlier run with the same inputs whose outputs are all at hand."""
        stage, contents = turn.stage, self.recorder.contents
        if not runcache.can_reuse(stage):
            return None
        paths = [out.path for out in stage.outs]
        found: list[Entry] = []
        if turn.entry is not None and not any(reason.kind != OUT for reason in turn.reasons):
            found.append(turn.entry)
        elif not self.options.no_run_cache:
            # DVC's key leaves out `size` and `nfiles` wherever they are, in parameters, too.
            earlier = self.recorder.runs.found(inputs, paths)
            found += [entry for entry in earlier if entry.get("params") == inputs.get("params")]
        for entry in found:
            outs = locked(entry, "outs")
            names = [known.name for known in outs.values()]
            if set(outs) == set(paths) and None not in names:
                wanted = [name for name in names if name is not None]
                contents.look_for(wanted)
                if all(map(contents.at_hand, wanted)):
                    return entry
        return None

    def _restore(self, turn: Turn, made: Entry) -> None:
        stage = turn.stage
        self.say(f"Stage '{self._name(stage)}' is cached - skipping run, checking out outputs")
        outs = locked(made, "outs")
        self._place([(out, outs[out.path]) for out in stage.outs])
        # Recorded as found: names of DVC 2 become those of DVC 3 when the outputs are stored again.
        keep = not self.options.no_commit and any(name.algo != "md5" for name in outs_of(made))
        entry = self.recorder.store(stage, keep=keep)
        self._say_all(
            self.recorder.record(stage, entry, remember=not self.options.no_commit, run=turn.run, outcome=CACHED)
        )
        if not self.options.no_commit:
            self.recorder.export(stage, entry)

    def _place(self, outs: Iterable[tuple[StageOut, Locked]]) -> None:
        """Bring outputs into the workspace."""
        contents = [Content(out.place or "", known.name, known.isexec) for out, known in outs]
        workspace = Workspace(self.repo, self.context.store)
        plans = Planner(workspace).plans(contents)
        for plan in plans:
            if plan.missing:
                shown = printable(self.repo.seen(plan.content.path))
                raise ObjectMissingError(f"the data of '{shown}' is not at hand", path=shown)
        Placer(self.context, workspace).apply(plans)
        # Dependencies may lie inside of outputs.
        self.recorder.contents.forget()

    def _clear(self, stage: Stage) -> None:
        """Remove what the commands make anew; what they build on stays, as files of the workspace's own."""
        for out in stage.outs:
            assert out.place is not None
            mountpoint = mount_around(self.repo.path(out.place))
            if mountpoint is not None:
                shown, where = (
                    printable(self.repo.seen(out.place)),
                    printable(os.path.relpath(mountpoint, self.repo.cwd)),
                )
                lies = "is" if where == shown else f"lies in '{where}', which is"
                raise ConflictError(
                    f"output '{shown}' {lies} a mount, which no command can write into",
                    path=shown,
                    hint=f"take it away first: millpond umount {where}",
                )
        try:
            for out in stage.outs:
                path = self.repo.path(out.place or "")
                if out.persist:
                    if os.path.lexists(path):
                        make_own(self.context, [path])
                elif os.path.isdir(path) and not os.path.islink(path):
                    remove_tree(path)
                elif os.path.lexists(path):
                    os.unlink(path)
        except OSError as error:
            raise write_error(error, "run it again") from error
        self.recorder.contents.forget()

    def _pretend(self, turn: Turn) -> str:
        stage = turn.stage
        if not turn.forced:
            try:
                made = self._made_before(turn, self.recorder.inputs(stage))
            except CancelledError:
                raise
            except MillpondError:  # something is missing that an earlier stage will make
                made = None
            if made is not None:
                self.say(f"Stage '{self._name(stage)}' is cached - skipping run, checking out outputs")
        self.say(f"Running stage '{self._name(stage)}':")
        for command in stage.commands:
            self.say(f"> {command}")
        return RAN

    def _commit_data(self, stage: Stage) -> str:
        """A `.dvc` file whose data was changed: what is there now is its data."""
        if self.options.dry:
            return RAN
        self.say(f"Verifying data sources in stage: '{self._name(stage)}'")
        self._refuse_missing(stage)
        # What is only recorded, or mounted, is what it is.
        names = [self.repo.seen(out.place) for out in stage.outs if out.place and not self._stands(out.place)]
        if not names:
            return UNCHANGED
        options = add.Options(names, glob=False, store=not self.options.no_commit, force=False, out=None, relink=True)
        found = targets.resolve(self.repo, names, self.repo.outputs())
        result = add.Adding(self.context, self.repo, options).run(found)
        self.recorder.git_add[stage.file] = None
        self.recorder.contents.forget()
        self.recorder.contents.stored([ObjectName("md5", row["md5"]) for row in result["added"]])
        return RAN

    def _verify_frozen(self, stage: Stage) -> str:
        """A frozen stage keeps what its outputs are."""
        if self.options.dry:
            return RAN
        self.say(f"Verifying outputs in frozen stage: '{self._name(stage)}'")
        self._refuse_missing(stage)
        if stage.outs and all(self._stands(out.place) for out in stage.outs):
            return UNCHANGED
        keep = not self.options.no_commit
        entry = self.recorder.store(stage, keep=keep)
        self._say_all(self.recorder.record(stage, entry, remember=keep))
        if keep:
            self.recorder.export(stage, entry)
        return RAN

    def _refuse_missing(self, stage: Stage) -> None:
        missing = [out.path for out in stage.outs if out.place and self.recorder.contents.at(out.place) is None]
        if missing:
            raise StageFailedError(
                f"missing data '{'sources' if len(missing) > 1 else 'source'}': {', '.join(map(printable, missing))}",
                hint="bring it back: millpond checkout, or millpond pull",
            )

    def _stands(self, place: str | None) -> bool:
        """Whether what is recorded of a place is taken for what is there: it is not brought, and not read."""
        return self.inputs is not None and place is not None and self.inputs.absent.standing(place) is not None

    def _say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def _name(self, stage: Stage) -> str:
        return address(stage, self.repo.seen(stage.file))


def _shared(output: Output, out: StageOut) -> Output:
    return Output(
        output.path, output.pointer, output.name, output.size, output.nfiles, output.isexec, True, remote=out.remote,
        push=out.push,
    )  # fmt: skip
