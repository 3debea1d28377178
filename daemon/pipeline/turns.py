"""One stage's turn in a repro: is it out of date, was its like made before, what must go before it runs, what it made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import CancelledError, DaemonUnavailableError, MillpondError, StageFailedError, TargetError
from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import imports, runcache
from millpond.daemon.pipeline.changed import DEP, FORCED, NOT_IN_CACHE, OUT, Reason
from millpond.daemon.pipeline.clearing import clear
from millpond.daemon.pipeline.graph import Graph
from millpond.daemon.pipeline.imports import Followed
from millpond.daemon.pipeline.lock import Locked, locked
from millpond.daemon.pipeline.memory import slug
from millpond.daemon.pipeline.nearest import Near, Nearest
from millpond.daemon.pipeline.places import shown
from millpond.daemon.pipeline.planning import Options
from millpond.daemon.pipeline.provenance import CACHED, RAN, Run
from millpond.daemon.pipeline.receipts import Reads, Receipts
from millpond.daemon.pipeline.recorded import Recorded
from millpond.daemon.pipeline.recording import Recorder, outs_of
from millpond.daemon.pipeline.stage import Dep, Stage, StageOut, address
from millpond.daemon.pipeline.stageinputs import StageInputs
from millpond.daemon.project import add, running, targets
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing.urls import shown_url
from millpond.daemon.project.paths import overlap
from millpond.daemon.project.repo import Repo, printable

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
    followed: Followed | None = None
    # Once it is to run, or to be brought back.
    run: Run | None = None
    nearest: Near | None = None


@dataclass(slots=True)
class Turns:
    """The turns of one repro."""

    context: VerbContext
    repo: Repo
    recorder: Recorder
    options: Options
    say: Callable[[str], None]
    graph: Graph | None
    nearest: Nearest
    recorded: Recorded = field(init=False)
    # What is mounted for stages, and what their mounts were asked for; None where nothing can be mounted.
    inputs: StageInputs | None = None
    receipts: Receipts | None = None
    _forced: set[Stage] = field(default_factory=set)
    _claims: dict[Stage, running.Claim] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recorded = Recorded(self.context, self.repo, self.recorder)

    def prepare(self, steps: Sequence[Stage]) -> None:
        """Look at all that the stages need and make, at once."""
        if self.inputs is not None:
            self.inputs.look(steps, only=self.options.look or self.options.dry)
        self.recorder.comparer.prepare((stage, self.recorded.entry(stage)) for stage in steps)

    def begin(self, stage: Stage) -> Turn:
        """Find out why the stage should run, if it should. Raises MillpondError for files that cannot be read."""
        if stage.name:
            self.recorder.refuse_outside(stage)
        entry = self.recorded.entry(stage)
        self.recorder.comparer.prepare([(stage, entry)])
        reasons = self.recorder.comparer.reasons(stage, entry)
        followed = Followed.of(self.context, self.repo, stage)
        if followed is not None:
            reasons = [*followed.reasons(), *(reason for reason in reasons if reason.kind != DEP)]
        forced = self.options.force or stage in self._forced
        if forced:
            reasons.append(Reason(FORCED))
        turn = Turn(stage, entry, reasons, forced=forced, followed=followed)
        if not self._counting(turn, allow_missing=self.options.allow_missing):
            turn.outcome = UNCHANGED
        elif not self.options.dry:
            reads, writes = _places(stage.deps), _places(stage.outs)
            if stage.pointer is not None or stage.frozen:  # its data is looked at, and stays as it is
                reads, writes = writes, ()
            running.refuse(self.repo, reads=reads, writes=writes, env=os.environ)
        return turn

    def claim_of(self, stage: Stage) -> int | None:
        """The descriptor by which the stage's commands keep it claimed."""
        claim = self._claims.get(stage)
        return None if claim is None else claim.fd

    def perform(self, turn: Turn) -> str | None:
        """Do all of the turn that needs no command; its outcome, or None when its commands are to be run. What is to be done is claimed,
        until the turn is `over`."""
        stage = turn.stage
        name = self._name(stage)
        if turn.outcome == UNCHANGED:
            kind = "" if stage.pointer is not None else "Stage "
            self.say(f"{kind}'{name}' didn't change, skipping")
            return UNCHANGED
        if stage.pointer is None and not self.options.dry:
            self._claim(stage)
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
            due = turn.followed if imports.is_due(turn.reasons) or turn.forced else None
            return self._commit_data(stage) if due is None else self._import(stage, due)
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
            if runcache.can_reuse(stage):
                turn.nearest = self.nearest.of(stage, entry)
                if turn.nearest is not None:
                    self.say(f"Stage '{name}': {turn.nearest.text}")
        self.recorder.refuse_tracked(stage)
        self._provide(stage)
        if not os.path.isdir(self.repo.path(stage.wdir)):
            shown = printable(self.repo.seen(stage.wdir))
            raise TargetError(f"working directory '{shown}' of stage '{name}' does not exist", path=shown)
        self._give_up(stage)
        clear(self.context, self.repo, self.recorder.contents, stage)
        if self.receipts is not None:
            self.receipts.begin(stage)
        self.say(f"Running stage '{name}':")
        return None

    def _provide(self, stage: Stage) -> None:
        """Mount what the stage needs and is not here, or bring it. Raises ObjectMissingError, RemoteError, MountError and others."""
        for absent in self.inputs.mount_for(stage) if self.inputs is not None else ():
            if not absent.here:
                self.recorded.fetch(absent.stage, [absent.out])
            self.recorded.place([(absent.out, absent.known)])
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
        """The stage's turn has ended, and its commands: others may have what it claimed, and its mounts go, unless others need them."""
        self._release(stage)
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
            began = None if turn.run is None else turn.run.inputs
            if turn.run is not None:
                turn.run.params_changed = recorder.params_changed(stage, turn.run.inputs)
            entry = recorder.store(stage, keep=keep, began=began)
            self._say_all(recorder.record(stage, entry, remember=keep, run=turn.run))
            self._tell_changed(turn, entry)
        except DaemonUnavailableError:  # a job does it again with the next daemon
            raise
        except MillpondError as error:
            self.failed(turn, error)
            raise
        if keep:
            recorder.export(stage, entry)

    def _tell_changed(self, turn: Turn, entry: Entry) -> None:
        """What somebody changed while the stage ran, and what was made of that."""
        name = self._name(turn.stage)
        if turn.run is not None and turn.run.params_changed:
            self.context.log(
                "warning",
                f"parameters of stage '{name}' were changed while it ran: recorded are those that it began with",
            )
        for path in turn.run.changed_deps(entry) if turn.run is not None else ():
            self.context.log(
                "warning",
                f"'{printable(path)}' changed while stage '{name}' ran, and is recorded as it is now; if it was not the stage that "
                f"changed it, run that again: millpond repro -f -s {name}",
            )

    def failed(self, turn: Turn, error: MillpondError) -> None:
        """Its commands came to nothing: that is recorded, too."""
        if turn.run is not None:
            self.recorder.journal.failed(turn.stage, turn.run, error)

    def _claim(self, stage: Stage) -> None:
        """Have nobody else run it, or change what it needs and makes, from before anything of it is touched."""
        if stage not in self._claims:
            job = getattr(self.context, "number", None)
            told = running.Running(self._name(stage), job, os.getpid(), _places(stage.deps), _places(stage.outs))
            self._claims[stage] = running.claim(self.repo, slug(stage), told)

    def let_go(self) -> None:
        """No command runs any more, however the repro ended."""
        for stage in list(self._claims):
            self._release(stage)

    def look_again(self) -> None:
        """The project was not locked for a while: what was seen of it may be so no longer."""
        self.recorder.loaded.values.clear()
        self.recorder.contents.forget()

    def _release(self, stage: Stage) -> None:
        claim = self._claims.pop(stage, None)
        if claim is not None:
            claim.release()

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
            if shown(dep, self.repo.seen) != reason.path:
                continue
            for maker in self.graph.needs[turn.stage] if self.graph is not None else ():
                recorded = self.recorded.outs(maker)
                for out in maker.outs:
                    known = wanted.get(dep.path)
                    if out.key == dep.key and recorded.get(out.path, Locked(None)).token != (known and known.token):
                        return True
        return False

    def _pulled(self, turn: Turn) -> bool:
        """Bring the recorded outputs of a stage that only lacks data. False when they are nowhere."""
        stage = turn.stage
        self.say(f"Pulling data for stage: '{self._name(stage)}'")
        if self.options.dry:
            return True
        outs = [out for out in stage.outs if out.cache]
        try:
            self.recorded.fetch(stage, outs)
            self.recorded.place([(out, self.recorded.outs(stage)[out.path]) for out in outs])
        except CancelledError:
            raise
        except (MillpondError, KeyError) as error:
            reason = error.message if isinstance(error, MillpondError) else "it was never made"
            self.say(f"Unable to pull data for stage: '{self._name(stage)}': {reason}")
            return False
        return True

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
                self.recorded.fetch(maker, outs)
                self.recorded.place([(out, self.recorded.outs(maker)[out.path]) for out in outs])

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
                if all(map(contents.at_hand, wanted)) or self._brought(turn, outs):
                    return entry
        return None

    def _brought(self, turn: Turn, outs: Mapping[str, Locked]) -> bool:
        """With --pull: whether what an earlier run made could be had from the remote."""
        if not self.options.pull or self.options.dry:
            return False
        try:
            self.recorded.fetch(turn.stage, [out for out in turn.stage.outs if out.cache], outs)
        except CancelledError:
            raise
        except MillpondError:  # then it is made again
            return False
        return all(known.name is not None and self.recorder.contents.at_hand(known.name) for known in outs.values())

    def _restore(self, turn: Turn, made: Entry) -> None:
        stage = turn.stage
        self.say(f"Stage '{self._name(stage)}' is cached - skipping run, checking out outputs")
        outs = locked(made, "outs")
        self.recorded.place([(out, outs[out.path]) for out in stage.outs])
        # Recorded as found: names of DVC 2 become those of DVC 3 when the outputs are stored again.
        keep = not self.options.no_commit and any(name.algo != "md5" for name in outs_of(made))
        assert turn.run is not None
        # What was changed while they were brought is not what they were made from.
        entry = {**self.recorder.store(stage, keep=keep, began=turn.run.inputs), **_apart(turn.run.inputs, stage)}
        self._say_all(
            self.recorder.record(stage, entry, remember=not self.options.no_commit, run=turn.run, outcome=CACHED)
        )
        if not self.options.no_commit:
            self.recorder.export(stage, entry)

    def _pretend(self, turn: Turn) -> str:
        stage = turn.stage
        if not turn.forced:
            try:
                inputs = self.recorder.inputs(stage)
                made = self._made_before(turn, inputs)
                if made is None and self.options.explain:
                    turn.nearest = self.nearest.of(stage, inputs)
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

    def _import(self, stage: Stage, followed: Followed) -> str:
        """A `.dvc` file of data from elsewhere, which follows its source."""
        self.say(followed.told)
        if not self.options.dry:
            followed.bring()
            self.recorder.git_add[stage.file] = None
            self.recorder.contents.forget()
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


def _places(them: Iterable[Dep | StageOut]) -> tuple[str, ...]:
    """By which they are known to others, who are not told what is secret in a url."""
    return tuple(each.key if each.place is not None else shown_url(each.key) for each in them)


def _apart(inputs: Mapping[str, Any], stage: Stage) -> Entry:
    """The dependencies of an entry as its `deps`, unless some of them hold what the stage makes, and are others by that."""
    within = any(overlap(dep.key, out.key) for dep in stage.deps for out in stage.outs)
    return {} if within or "deps" not in inputs else {"deps": inputs["deps"]}
