"""`repro`: run what is out of date, in order, and record what it made.

The project is locked while stages are looked at, started and recorded, and free while their commands run. What a stage made
is stored and durable before dvc.lock names it, so a repro that is killed anywhere is done again from there: a stage
whose command was under way runs anew, one whose outputs were stored and not recorded is found changed, or in the run cache.

As a job it outlives the daemon: what talks to it is done again with the next one, and commands run on meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    BusyError,
    CancelledError,
    CredentialsError,
    InternalError,
    MillpondError,
    RemoteConfigError,
    RemoteError,
    StageFailedError,
    UsageError,
)
from millpond.daemon.jobs.runner import GRACE_S, CommandRunner, Ended, Sink, Task
from millpond.daemon.jobs.worker import WorkerContext
from millpond.daemon.pipeline import graph, mounting, pipelines
from millpond.daemon.pipeline.changed import Comparer
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.graph import Graph
from millpond.daemon.pipeline.memory import Memory
from millpond.daemon.pipeline.nearest import Nearest
from millpond.daemon.pipeline.planning import FAIL, IGNORE, Options, Queue, chosen
from millpond.daemon.pipeline.provenance import CACHED, RAN, Records
from millpond.daemon.pipeline.receipts import Reads, Receipts
from millpond.daemon.pipeline.recording import Recorder
from millpond.daemon.pipeline.stage import Stage, address, folder_of
from millpond.daemon.pipeline.stageinputs import StageInputs
from millpond.daemon.pipeline.turns import UNCHANGED, Turn, Turns
from millpond.daemon.pipeline.voice import Voice
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.runcache import fetch_runs
from millpond.daemon.project.sharing import Links

FAILED, LEFT_OUT, ASKED = "failed", "left out", "asked"
# Names of running stages that are told at once.
_SHOWN = 4


def repro(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, force, force_downstream, single_item, pipeline, all_pipelines, recursive, downstream, glob, dry, pull,
    allow_missing, mount, no_commit, no_run_cache, on_error, jobs, interactive, approved, look, quiet, explain} -> {stages:
    [{name, outcome, reasons, nearest}], ran, ask, git_add, autostaged}.

    `outcome`: ran (with `dry`: would run), cached, unchanged, failed, left out; `nearest` (see Near.to_json) of a stage that ran, or with
    `dry` and `explain` would, if it ran before. Output goes to the descriptors that came with
    the request. `ask` is the stage that an interactive repro stopped at, or one that was only to `look`: the first that is out
    of date, of which and of those before it nothing is said. Raises StageFailedError, and what loading raises.
    """
    options = Options.of(params)
    sink = Sink(*getattr(context, "fds", ())[:2])
    runner = CommandRunner(sink, getattr(context, "grace_s", GRACE_S))
    voice = Voice(context, sink, quiet=options.quiet, held=[] if options.look else None)
    asked: str | None = None
    made: Repro | None = None
    try:
        made = Repro(context, options, runner, voice)
        result = made.run()
        asked = result["ask"]
        return result
    finally:
        runner.stop()
        if made is not None:
            made.let_go()
        if asked is None:
            voice.release()


@dataclass(slots=True)
class _Running:
    turn: Turn
    rest: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Repro:
    """One repro."""

    def __init__(self, context: VerbContext, options: Options, runner: CommandRunner, voice: Voice) -> None:
        self._context = context
        self._options = options
        self._runner = runner
        self._voice = voice
        self._repo = Repo.open(os.getcwd(), os.environ)
        self._memory = Memory.load(self._repo.temporary)
        self._running: dict[str, _Running] = {}
        self._outcomes: dict[Stage, tuple[str, Turn | None]] = {}
        self._errors: dict[Stage, MillpondError] = {}
        self._ask: str | None = None
        self._mounts: StageInputs | None = None
        # As DVC: an empty line after what a stage says that ran.
        self._blank = False

    def run(self) -> dict[str, Any]:
        with self._phase():
            if self._options.pull and not (self._options.no_run_cache or self._options.dry or self._options.look):
                self._pull_runs()
            loaded = pipelines.load(self._repo)
            active = graph.build(loaded.stages, self._repo.seen).active()
            steps = chosen(self._repo, loaded, active, self._options)
            contents = Contents.of(self._context, self._repo)
            comparer = Comparer(contents, loaded.value)
            recorder = Recorder(self._context, self._repo, loaded, contents, comparer)
            recorder.order = {stage: number for number, stage in enumerate(steps)}
            self._graph: Graph | None = None if self._options.single_item else active
            nearest = Nearest(Records(self._repo), recorder.runs)
            self._turns = Turns(
                self._context, self._repo, recorder, self._options, self._voice.say, self._graph, nearest,
                self._inputs(contents, loaded), self._receipts(),
            )  # fmt: skip
            self._turns.prepare(steps)
            # One by one, single items come as they are named; at once none may run beside another that makes what it needs.
            ordering = active if self._options.jobs > 1 else self._graph
            self._queue = Queue(steps, ordering, self._memory.seconds, self._options.jobs > 1)
        try:
            self._loop()
        except CancelledError as error:
            for running in self._running.values():
                self._turns.failed(running.turn, error)
            raise
        finally:
            self._runner.stop()
            self._turns.let_go()
            self._keep(contents)
        return self._result(recorder)

    def _pull_runs(self) -> None:
        """As DVC: with --pull what others' stages made of what comes first. Without it there is only more to run."""
        try:
            with Links(self._repo, None, None, os.environ) as links:
                fetch_runs(self._context, self._repo, links)
        except (RemoteConfigError, RemoteError, CredentialsError) as error:
            self._voice.warn(f"the run cache was not pulled: {error.message}")

    def _inputs(self, contents: Contents, loaded: pipelines.Pipelines) -> StageInputs | None:
        """What mounts data for stages, where the command or a setting wants it. Raises UsageError, InvalidFileError."""
        policy = mounting.policy(self._repo.dvc_dir, os.environ, self._options.mount)
        if not policy.on:
            return None
        if not isinstance(self._context, WorkerContext):
            raise UsageError("this request cannot mount", hint="send it to the daemon")
        self._mounts = StageInputs.of(self._context, contents, loaded, policy, self._voice.say, self._voice.warn)
        return self._mounts

    def _receipts(self) -> Receipts | None:
        return Receipts(self._context, self._repo) if isinstance(self._context, WorkerContext) else None

    def let_go(self) -> None:
        """No command runs any more: what was mounted for them goes, however the repro ended."""
        if self._mounts is not None:
            with contextlib.suppress(MillpondError, OSError):  # the next repro does it
                self._mounts.end(sweep=self._options.look and self._ask is None)

    def _loop(self) -> None:
        ended: Ended | None = None
        while True:
            with self._phase():
                if ended is not None:
                    self._turns.look_again()
                    if self._leaves_room(ended):
                        self._fill(self._options.jobs + 1)
                    self._take(ended)
                self._fill(self._options.jobs)
            if not self._running:
                return
            self._tell()
            ended = self._runner.wait()

    def _fill(self, most: int) -> None:
        """Begin stages until so many run."""
        while self._open and len(self._running) < most:
            stage = self._queue.pop()
            if stage is None:
                return
            self._begin(stage)

    def _leaves_room(self, ended: Ended) -> bool:
        """Whether another stage may begin before what this one made is stored, which may take a while: then something runs meanwhile.
        One after the other is one after the other."""
        return self._options.jobs > 1 and not ended.code and not self._running[ended.key].rest

    def _tell(self) -> None:
        """For `jobs`: how far it is."""
        shown = ", ".join(list(self._running)[:_SHOWN])
        more = ", ..." if len(self._running) > _SHOWN else ""
        self._context.progress(f"stage {len(self._outcomes) + 1} of {self._queue.count}: {shown}{more}")
        self._context.tell_progress()

    @property
    def _open(self) -> bool:
        """Whether more stages may begin."""
        return self._ask is None and not (self._errors and self._options.on_error == FAIL)

    @contextlib.contextmanager
    def _phase(self) -> Iterator[None]:
        """With the project's lock, and nothing being collected as garbage: never while commands run. What a command made is worth
        any wait."""
        patient = bool(self._running)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._context.lock("", "read", patient=patient))
            root = self._repo.root
            self._context.again(lambda: stack.enter_context(self._context.lock(root, "write", patient=patient)))
            yield

    def _begin(self, stage: Stage) -> None:
        if stage in self._outcomes:  # left out because of a failure
            return
        name = self._name(stage)
        if self._blank:
            self._voice.say("")
            self._blank = False
        if stage.frozen and stage.pointer is None:
            self._voice.warn(f"stage '{name}' is frozen. Its dependencies are not going to be reproduced.")

        def start(turn: Turn) -> None:
            running = _Running(turn, list(stage.commands))
            self._running[name] = running
            self._next_command(running)

        def begin() -> None:
            turn, outcome = self._context.again(lambda: self._up_to_its_commands(stage, name))
            if outcome is None:
                start(turn)
            elif outcome == ASKED:
                self._ask = name
            else:
                self._end(turn, outcome)

        self._guarded(stage, begin)

    def _up_to_its_commands(self, stage: Stage, name: str) -> tuple[Turn, str | None]:
        """A stage's turn, and its outcome: ASKED when a person is to be asked first, None when its commands are to be run."""
        turn = self._turns.begin(stage)
        asks = self._options.look or (self._options.interactive and name not in self._options.approved)
        if turn.outcome != UNCHANGED and asks:
            return turn, ASKED
        return turn, self._turns.perform(turn)

    def _take(self, ended: Ended) -> None:
        """A command ended: go on with the stage's next one, or record what it made."""
        running = self._running[ended.key]
        running.seconds += ended.seconds
        stage = running.turn.stage
        if running.turn.run is not None:
            running.turn.run.take(ended)

        def go_on() -> None:
            if ended.code:
                raise self._command_failed(running, ended)
            if running.rest:
                self._next_command(running)
                return
            self._refuse_unread(running.turn)
            del self._running[ended.key]
            self._context.again(lambda: self._turns.record(running.turn))
            self._memory.note(stage, seconds=round(running.seconds, 3))
            self._end(running.turn, RAN)

        self._guarded(stage, go_on)

    def _next_command(self, running: _Running) -> None:
        stage = running.turn.stage
        name = self._name(stage)
        command = running.rest.pop(0)
        self._voice.say(f"> {command}")
        env = {"DVC_ROOT": self._repo.root, **os.environ, "DVC_STAGE": name}
        first = len(running.rest) + 1 == len(stage.commands)
        label = f"{name}: " if self._options.jobs > 1 else ""
        folder = folder_of(stage, self._repo.root)
        claim = self._turns.claim_of(stage)
        locks = () if self._mounts is None else self._mounts.locks(stage)
        keep = locks if claim is None else (*locks, claim)
        self._runner.start(Task(name, command, folder, env, self._memory.log(stage), not first, label, keep))

    def _guarded(self, stage: Stage, action: Callable[[], None]) -> None:
        """An error of the action is the stage's; others may go on, as the person wished."""
        try:
            action()
        except (CancelledError, InternalError):
            raise
        except MillpondError as error:
            self._fail(stage, error)

    def _fail(self, stage: Stage, error: MillpondError) -> None:
        running = self._running.pop(self._name(stage), None)
        if running is not None:
            self._turns.failed(running.turn, error)
        self._turns.over(stage)
        self._errors[stage] = error
        self._outcomes[stage] = (FAILED, None if running is None else running.turn)
        if self._options.on_error == FAIL:
            return
        ignored = self._options.on_error == IGNORE
        self._voice.warn(f"{error.message}{' (ignored)' if ignored else ''}")
        if ignored or self._graph is None:
            self._queue.done(stage)
            return
        after = [each for each in self._graph.below([stage]) if each is not stage and each not in self._outcomes]
        self._outcomes.update((each, (LEFT_OUT, None)) for each in after)
        if after:
            names = ", ".join(f"'{printable(self._name(each))}'" for each in after)
            self._voice.warn(f"Stage{'s' if len(after) > 1 else ''} {names} will be skipped due to this failure")

    def _end(self, turn: Turn, outcome: str) -> None:
        self._outcomes[turn.stage] = (outcome, turn)
        self._turns.over(turn.stage)
        self._blank = outcome != UNCHANGED and self._options.jobs == 1
        self._queue.done(turn.stage)

    def _command_failed(self, running: _Running, ended: Ended) -> StageFailedError:
        stage = running.turn.stage
        command = stage.commands[len(stage.commands) - len(running.rest) - 1]
        how = f"exited with {ended.code}"
        if ended.code < 0:
            how = f"was killed by {signal.Signals(-ended.code).name}"
        if ended.code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            how += " (was there enough memory? see `dmesg`)"
        log = self._memory.log(stage)
        hint = f"its output is in {os.path.relpath(log, self._repo.cwd)}"
        if self._whole_log:
            hint = f"see {self._whole_log}; {hint}"
        for reason, more in self._about_mounts(running.turn, log):
            how, hint = f"{how}: {reason}", f"{more}; {hint}"
        return StageFailedError(f"failed to run: {printable(command)}, {how}", hint=hint)

    def _about_mounts(self, turn: Turn, log: str) -> Iterator[tuple[str, str]]:
        """Why mounts may be what a command failed of, and what to do."""
        receipts = self._turns.receipts
        refused = [] if receipts is None else receipts.refused_writes(turn.stage, log)
        theirs = [] if receipts is None else [name for name in receipts.of_a_person(turn.stage) if name in refused]
        reads = self._context.again(lambda: self._turns.check_reads(turn))
        if reads is not None and reads.troubles:
            yield "; ".join(reads.troubles), _resume(reads)
        elif refused:
            names = ", ".join(f"'{name}'" for name in refused)
            many = len(refused) > 1
            instead = (
                f"millpond umount {theirs[0]} && millpond checkout {theirs[0]}"
                if theirs
                else "millpond repro --pull --no-mount"
            )
            yield (
                f"its {'inputs' if many else 'input'} {names} {'are' if many else 'is'} mounted, and read-only",
                "have it write elsewhere, and declare that as an output of the stage (`outs`); or have files instead of the mount: "
                f"{instead}",
            )

    def _refuse_unread(self, turn: Turn) -> None:
        """Raise StageFailedError when a stage that ended well was not given all that it asked for."""
        reads = self._context.again(lambda: self._turns.check_reads(turn))
        if reads is not None and reads.troubles:
            name = printable(self._name(turn.stage))
            raise StageFailedError(
                f"its commands ended well, but {'; '.join(reads.troubles)}",
                hint=f"{_resume(reads)}; if you know that its outputs are whole: millpond commit {name}",
            )

    @property
    def _whole_log(self) -> str:
        """What shows all that was written, where that is kept."""
        job = getattr(self._context, "number", None)
        return "" if job is None else f"`millpond logs {job}`"

    def _keep(self, contents: Contents) -> None:
        """Remember digests, durations and reasons, however the repro ended."""
        contents.save()
        if not self._options.dry:
            for stage, (outcome, turn) in self._outcomes.items():
                if outcome != UNCHANGED:
                    why = [] if turn is None else [reason.to_json() for reason in turn.reasons]
                    self._memory.note(stage, outcome=outcome, reasons=why)
            if any(outcome != UNCHANGED for outcome, _ in self._outcomes.values()):
                self._memory.save()

    def _result(self, recorder: Recorder) -> dict[str, Any]:
        if self._errors and self._options.on_error != IGNORE:
            raise self._failed()
        git = self._repo.git
        autostaged = git is not None and self._repo.config.flag("core", "autostage")
        if git is not None and autostaged:
            git.stage([self._repo.git_path(path) for path in recorder.git_add])
        return {
            "stages": [
                {
                    "name": wirepath.encode(self._name(stage)),
                    "outcome": outcome,
                    "reasons": [] if turn is None else [reason.to_json() for reason in turn.reasons],
                    **({} if turn is None or turn.nearest is None else {"nearest": turn.nearest.to_json()}),
                }
                for stage, (outcome, turn) in self._outcomes.items()
            ],
            "ran": sum(outcome in (RAN, CACHED) for outcome, _ in self._outcomes.values()),
            "ask": None if self._ask is None else wirepath.encode(self._ask),
            "git_add": self._repo.for_git(recorder.git_add),
            "autostaged": autostaged,
        }

    def _failed(self) -> MillpondError:
        names = [printable(self._name(stage)) for stage in self._errors]
        left = [wirepath.encode(self._name(stage)) for stage, (how, _) in self._outcomes.items() if how == LEFT_OUT]
        details = {"failed": [wirepath.encode(name) for name in names], "left_out": left}
        if len(names) > 1:
            shown = ", ".join(f"'{name}'" for name in names)
            busy = [error for error in self._errors.values() if isinstance(error, BusyError)]
            if len(busy) == len(names):  # nothing is to be mended
                hint = "; ".join(dict.fromkeys(error.hint for error in busy if error.hint))
                return BusyError(f"others run what these stages need or make: {shown}", hint=hint, details=details)
            where = [f"see {self._whole_log}"] if self._whole_log else []
            hint = "; ".join([*where, "when they are mended, `millpond repro` goes on from there"])
            return StageFailedError(f"failed to reproduce stages: {shown}", hint=hint, details=details)
        (error,) = self._errors.values()
        if isinstance(error, BusyError):
            return error
        hint = "; ".join(filter(None, (error.hint, "when it is mended, `millpond repro` goes on from there")))
        message = f"failed to reproduce '{names[0]}': {error.message}"
        return StageFailedError(message, path=error.path, hint=hint, details=details)

    def _name(self, stage: Stage) -> str:
        return address(stage, self._repo.seen(stage.file))


def _resume(reads: Reads) -> str:
    """What to do when remotes did not give what was asked for."""
    if reads.refused:
        return "log in (millpond remote login, or fresh credentials in the environment), then `millpond repro --mount` goes on from there"
    return "when the remote answers again, `millpond repro --mount` goes on from there"
