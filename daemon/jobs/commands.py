"""Commands as processes: started, read, waited for and ended by one thread, many side by side.

Each leads a process group of its own in the session of this process, so that ending it ends what it has started, and so that
what it leaves behind is still known to belong to the job. It is killed by the kernel when this process ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from millpond.daemon.jobs import process
from millpond.daemon.jobs.terminals import open_terminal

STDOUT, STDERR = b"stdout", b"stderr"
# Who is told to end has this long before he is killed.
GRACE_S = 10.0
_READ = 64 << 10
# What an ended command has written is read to this amount: something that it left behind may go on for ever.
_DRAIN = 1 << 20
_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD),
    *(signal.SIGTTOU, signal.SIGTTIN, signal.SIGUSR1),
)
Output = Literal["pipes", "terminal", "inherit"]
# Bytes of a stream of a command, as they come.
Sink = Callable[[bytes, bytes], None]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """What to run: `argv`, or in a forked child `call`, whose result is the exit code.

    `output`: `pipes`, two of them; `terminal`, a pseudo-terminal of `size` (rows, columns), or `pty`, both sides of one that is
    open; `inherit`, this process's own, and the sink gets nothing. `cwd` None: this process's. `death`: what the kernel
    sends it when this process ends. `keep` are descriptors that it and what it starts have open, too. `prepare` is called in
    the child, last of all.
    """

    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    call: Callable[[], int] | None = None
    output: Output = "pipes"
    size: tuple[int, int] = (24, 80)
    pty: tuple[int, int] | None = None
    death: signal.Signals = signal.SIGKILL
    keep: Sequence[int] = ()
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, or the signal that ended it; times in seconds, memory in bytes, which is not less than
    this process's own: the kernel counts from the fork on."""

    exit_code: int | None
    signal: int | None
    seconds: float
    user_s: float
    system_s: float
    max_rss_bytes: int

    @property
    def code(self) -> int:
        """As a shell tells it: 128 and the signal for one that was killed."""
        return 128 + self.signal if self.signal is not None else self.exit_code or 0


@dataclass(slots=True, eq=False)
class Command:
    """A process that was started; `ended` is set when it has ended and all of its output is read."""

    spec: CommandSpec
    pid: int
    pidfd: int
    sink: Sink
    streams: dict[int, bytes]
    started: float
    ended: Ended | None = None
    kill_at: float | None = None


class Commands:
    """Commands of one thread. Close it: what still runs then is killed."""

    def __init__(self) -> None:
        self._running: list[Command] = []
        self._poll = select.poll()
        self._by_fd: dict[int, Command] = {}
        self._watched: set[int] = set()

    def watch(self, fd: int) -> None:
        """Have `wait` return when `fd` is readable, too."""
        self._watched.add(fd)
        self._poll.register(fd, select.POLLIN)

    def start(self, spec: CommandSpec, sink: Sink) -> Command:
        """Start a command. Raises OSError, whose filename is what could not be run or entered."""
        ours: dict[int, bytes] = {}
        theirs: list[int] = []
        broken, report = os.pipe2(os.O_CLOEXEC)
        try:
            _open_output(spec, ours, theirs)
            parent = os.getpid()
            # What a signal's handler raises while Python prepares itself for a fork is printed, and lost.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if not pid:
                    _become(spec, theirs, report, parent)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # Both sides do it, so that it is done whichever is first.
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            os.close(report)
            report = -1
            failure = b"".join(iter(lambda: os.read(broken, _READ), b""))
            if failure:
                os.waitpid(pid, 0)
                number, _, name = failure.partition(b" ")
                raise OSError(int(number), os.strerror(int(number)), os.fsdecode(name))
            command = Command(spec, pid, os.pidfd_open(pid), sink, ours, time.monotonic())
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in (*theirs, broken, *([report] if report >= 0 else [])):
                os.close(fd)
        self._running.append(command)
        for fd in (command.pidfd, *ours):
            self._by_fd[fd] = command
            self._poll.register(fd, select.POLLIN)
        return command

    def wait(self, timeout: float | None) -> list[Command]:
        """Until something was read, a command has ended, a watched descriptor is readable, or `timeout` seconds have passed; the
        commands that have ended. Kills those whose grace is over. What a sink or a signal's handler raises comes out here."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            now = time.monotonic()
            for command in self._running:
                if command.kill_at is not None and now >= command.kill_at:
                    self.kill(command, signal.SIGKILL)
                    command.kill_at = None
            marks = [c.kill_at for c in self._running if c.kill_at is not None]
            until = min([*marks, *([deadline] if deadline is not None else [])], default=None)
            ready = {fd for fd, _ in self._poll.poll(None if until is None else max(0.0, until - now) * 1000)}
            for fd in sorted(ready - self._watched):  # stdout before stderr, of those that are ready together
                command = self._by_fd[fd]
                if fd in command.streams:
                    self._read(command, fd)
            ended = [c for c in self._running if c.pidfd in ready]
            for command in ended:
                self._finish(command)
            if ready or (deadline is not None and time.monotonic() >= deadline):
                return ended

    def run(self, spec: CommandSpec, sink: Sink) -> Ended:
        """Start a command and wait for it. Whatever is raised meanwhile, a cancellation for instance, ends it first."""
        command = self.start(spec, sink)
        try:
            while command.ended is None:
                self.wait(None)
        except BaseException:
            self.stop([command])
            raise
        return command.ended

    def stop(self, commands: Sequence[Command], grace_s: float = GRACE_S) -> None:
        """End commands, TERM and then KILL to their process groups, and wait until they have ended."""
        for command in commands:
            self.end(command, grace_s)
        while any(command.ended is None for command in commands):
            self.wait(None)

    def end(self, command: Command, grace_s: float | None = GRACE_S) -> None:
        """Tell a command's process group to end; `wait` kills it after `grace_s` seconds (None: the caller does)."""
        if command.ended is None:
            self.kill(command, signal.SIGTERM)
            self.kill(command, signal.SIGCONT)  # one that is stopped would not hear of it
            command.kill_at = None if grace_s is None else time.monotonic() + grace_s

    @staticmethod
    def kill(command: Command, number: signal.Signals) -> None:
        """Send a signal to a command's process group."""
        if command.ended is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(command.pid, number)

    def close(self) -> None:
        """Kill what runs, and wait for it."""
        self.stop(list(self._running), 0.0)

    def _read(self, command: Command, fd: int) -> int:
        """Read once; how much. At its end a stream is closed."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal that nobody has open any more
                raise
            data = b""
        if data:
            command.sink(command.streams[fd], data)
        else:
            self._close(command, fd)
        return len(data)

    def _finish(self, command: Command) -> None:
        """It has ended: take its status, read what is left."""
        _, status, usage = os.wait4(command.pid, 0)
        for fd in list(command.streams):
            left = _DRAIN
            while left > 0 and fd in command.streams and (count := self._read(command, fd)):
                left -= count
        for fd in list(command.streams):
            self._close(command, fd)
        self._poll.unregister(command.pidfd)
        del self._by_fd[command.pidfd]
        os.close(command.pidfd)
        self._running.remove(command)
        code = os.waitstatus_to_exitcode(status)
        command.ended = Ended(
            code if code >= 0 else None,
            -code if code < 0 else None,
            time.monotonic() - command.started,
            usage.ru_utime,
            usage.ru_stime,
            usage.ru_maxrss << 10,
        )

    def _close(self, command: Command, fd: int) -> None:
        self._poll.unregister(fd)
        del self._by_fd[fd], command.streams[fd]
        os.close(fd)


def shell_command(line: str, environ: Mapping[str, str]) -> list[str]:
    """The words by which a line is run: by the client's shell, as stages are, without its start-up files."""
    shell = environ.get("SHELL") or "/bin/sh"
    plain = {"zsh": ["--no-rcs"], "bash": ["--noprofile", "--norc"], "fish": ["--no-config"]}
    return [shell, *plain.get(os.path.basename(shell).lower(), []), "-c", line]


def _open_output(spec: CommandSpec, ours: dict[int, bytes], theirs: list[int]) -> None:
    """Fill in where this process reads, and what the command has as its stdout and stderr."""
    if spec.output == "terminal":
        master, slave = spec.pty or open_terminal(spec.size)
        os.set_blocking(master, False)
        ours[master] = STDOUT
        theirs.append(slave)
    elif spec.output == "pipes":
        for stream in (STDOUT, STDERR):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            ours[read] = stream
            theirs.append(write)


def _become(spec: CommandSpec, output: list[int], report: int, parent: int) -> NoReturn:
    """In the forked child: run the command, or say on `report` why not."""
    what = spec.cwd or "."
    try:
        os.setpgid(0, 0)
        process.die_with(parent, spec.death)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if output:
            os.dup2(output[0], 1)
            os.dup2(output[-1], 2)
        if spec.output != "pipes":
            # Of the session's terminal, if it is that, it has the foreground: it may change its settings, and hears of its size.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                os.tcsetpgrp(1, os.getpid())
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if spec.cwd is not None:
            os.chdir(spec.cwd)
        for fd in spec.keep:
            os.set_inheritable(fd, True)
        if spec.prepare is not None:
            spec.prepare()
        if spec.call is not None:
            os.closerange(3, 1 << 20)  # the report with them, which says that it has begun
            os._exit(spec.call())
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        what = spec.argv[0]
        os.execvpe(what, list(spec.argv), dict(spec.env))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(report, b"%d %s" % (error.errno or 0, os.fsencode(what)))
    except BaseException:
        if spec.call is not None:
            import traceback

            traceback.print_exc()
    finally:
        os._exit(70)
