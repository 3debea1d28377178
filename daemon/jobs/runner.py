"""Commands of a verb that runs many, a pipeline's stages for instance: started, their output passed on and logged, waited for,
stopped.

They are below this process, in its session, each leading a process group: when the verb is a job, whatever becomes of the verb,
the shim or `job.settle` ends what is left. A command's own log is locked while anything that it started has it open, so that nobody
runs it a second time beside itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from millpond.daemon.errors import BusyError, MillpondError, TargetError
from millpond.daemon.jobs.commands import STDERR, Command, Commands, CommandSpec, shell_command
from millpond.daemon.project.paths import printable

# A command's own log grows no more after so many bytes.
MAX_LOG = 64 << 20
# Stopped commands have so long to end before they are killed; less than a worker has that is cancelled.
GRACE_S = 2.0
# A line that is longer is passed on in parts, each with its label.
_MAX_LINE = 64 << 10


@dataclass(frozen=True, slots=True)
class Task:
    """A command to run by the shell of `env`: `key` is whose it is, `log` the absolute path of the file its output goes to, too, after
    what is there with `append`; `label`: what each line begins with, if several run at once; `keep`: descriptors that it inherits."""

    key: str
    command: str
    cwd: str
    env: Mapping[str, str]
    log: str
    append: bool = False
    label: str = ""
    keep: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `code` as a shell has it, negative for a signal; CPU seconds, and the peak of memory in bytes."""

    key: str
    code: int
    seconds: float
    user_s: float
    system_s: float
    memory: int


@dataclass(slots=True)
class Sink:
    """Where output goes: open descriptors, a client's or a job's stdout and stderr; None for nowhere."""

    out: int | None = None
    err: int | None = None

    def write(self, data: bytes, *, error: bool = False) -> None:
        """Write all of it; a client that does not read any more is no error."""
        fd = self.err if error else self.out
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while fd is not None and len(view):
                view = view[os.write(fd, view) :]

    @property
    def is_terminal(self) -> bool:
        return self.out is not None and os.isatty(self.out)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        try:
            found = os.get_terminal_size(-1 if self.out is None else self.out)
        except OSError:
            return (24, 80)
        return (found.lines or 24, found.columns or 80)


@dataclass(slots=True, eq=False)
class _Running:
    task: Task
    log: int
    logged: int
    # The beginning of a line that is not whole yet, by stream.
    rest: dict[bytes, bytes] = field(default_factory=dict)


class CommandRunner:
    """Runs commands, several at once. With a label their lines are told apart; one without has a terminal, where the sink is one.
    `stop` it at the end."""

    def __init__(self, sink: Sink, grace_s: float = GRACE_S) -> None:
        self._sink = sink
        self._grace_s = grace_s
        self._commands = Commands()
        self._running: dict[Command, _Running] = {}
        self._ended: list[Ended] = []

    def start(self, task: Task) -> None:
        """Begin a command. Raises TargetError when it cannot be started, BusyError when its log is in use."""
        log = _open_log(task)
        running = _Running(task, log, os.fstat(log).st_size)
        alone = self._sink.is_terminal and not task.label
        spec = CommandSpec(
            shell_command(task.command, task.env),
            task.env,
            task.cwd,
            output="terminal" if alone else "pipes",
            size=self._sink.size,
            keep=(log, *task.keep),
        )
        try:
            command = self._commands.start(spec, lambda stream, data: self._pass_on(running, stream, data))
        except BaseException as error:
            os.close(log)
            if isinstance(error, OSError):
                raise _cannot_start(task, error) from error
            raise
        self._running[command] = running

    def wait(self) -> Ended:
        """Until the next command has ended, and its output is out. At least one must be running."""
        while not self._ended:
            for command in self._commands.wait(None):
                self._ended.append(self._over(command))
        return self._ended.pop(0)

    def stop(self) -> None:
        """End all commands that are still running, with all that they started in their process groups. Safe twice."""
        self._commands.stop(list(self._running), self._grace_s)
        for command in list(self._running):
            self._over(command)

    def _pass_on(self, running: _Running, stream: bytes, data: bytes) -> None:
        if running.logged < MAX_LOG:
            with contextlib.suppress(OSError):  # a disk that is full does not fail the command
                running.logged += os.write(running.log, data)
        if running.task.label:
            *lines, rest = (running.rest.get(stream, b"") + data).split(b"\n")
            if len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest], b""
            running.rest[stream] = rest
            data = b"".join(self._labelled(running, line) for line in lines)
        self._sink.write(data, error=stream == STDERR)

    def _over(self, command: Command) -> Ended:
        running = self._running.pop(command)
        for stream, rest in running.rest.items():
            if rest:
                self._sink.write(self._labelled(running, rest), error=stream == STDERR)
        fcntl.flock(running.log, fcntl.LOCK_UN)
        os.close(running.log)
        ended = command.ended
        assert ended is not None
        code = -ended.signal if ended.signal is not None else ended.exit_code or 0
        return Ended(running.task.key, code, ended.seconds, ended.user_s, ended.system_s, ended.max_rss_bytes)

    @staticmethod
    def _labelled(running: _Running, line: bytes) -> bytes:
        return b"%s%s\n" % (os.fsencode(running.task.label), line)


def is_running(log: str) -> bool:
    """Whether a command with this log still runs, whoever started it."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _open_log(task: Task) -> int:
    """The log, locked. Raises BusyError, TargetError."""
    try:
        os.makedirs(os.path.dirname(task.log), exist_ok=True)
        log = os.open(task.log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_start(task, error) from error
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(log)
        raise BusyError(
            f"'{printable(task.key)}' is being run already: by another command, or by one that was killed",
            hint=f"wait until it is done; who runs it: fuser {printable(task.log)}",
        ) from None
    if not task.append:
        os.ftruncate(log, 0)
    return log


def _cannot_start(task: Task, error: OSError) -> MillpondError:
    path = printable(os.fsdecode(error.filename or task.cwd))
    return TargetError(f"cannot run a command of '{printable(task.key)}': {error.strerror}: '{path}'", path=path)
