"""Commands as processes: started, their output passed on and logged, waited for, stopped.

`Runner` is what a repro needs of whoever runs commands. `LocalRunner` runs them below this process: each in a session of
its own, its output (over a terminal where the client has one) copied to the client and to a log. The log is locked while
anything that the command started has it open: after a killed repro nobody runs the stage a second time beside it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import selectors
import signal
import subprocess
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from millpond.daemon.errors import BusyError, MillpondError, TargetError
from millpond.daemon.project.paths import printable

# A log grows no more after so many bytes.
MAX_LOG = 64 << 20
# Stopped commands have so long to end before they are killed; less than the daemon gives this process.
GRACE_S = 2.0
_CHUNK = 64 << 10
_FLAGS = {"zsh": ["--no-rcs"], "bash": ["--noprofile", "--norc"], "fish": ["--no-config"]}


@dataclass(frozen=True, slots=True)
class Task:
    """A command to run: `key` is whose it is, `log` the absolute path of the file its output goes to, too, after what is
    there with `append`; `label`: what each line begins with, if several run at once."""

    key: str
    command: str
    cwd: str
    env: Mapping[str, str]
    log: str
    append: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `code` as a shell has it, negative for a signal; CPU seconds, and the peak of memory in bytes."""

    key: str
    code: int
    seconds: float
    user_s: float
    system_s: float
    memory: int


class Runner(Protocol):
    """Runs commands, several at once."""

    def start(self, task: Task) -> None:
        """Begin a command. Raises TargetError when it cannot be started, BusyError when its log is in use."""
        ...

    def wait(self) -> Ended:
        """Until the next command ends. At least one must be running."""
        ...

    def stop(self) -> None:
        """End all commands that are still running, with all that they started in their process groups."""
        ...


@dataclass(slots=True)
class Sink:
    """Where output goes: open descriptors of the client's stdout and stderr, None for nowhere."""

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


@dataclass(slots=True, eq=False)
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    pidfd: int
    log: int
    started: float
    # What is read, and whether it is stderr; the beginning of a line that is not whole yet.
    streams: dict[int, bool] = field(default_factory=dict)
    rest: dict[int, bytes] = field(default_factory=dict)


class LocalRunner:
    """Runs commands as children of this process."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._selector = selectors.DefaultSelector()
        self._running: list[_Running] = []

    def start(self, task: Task) -> None:
        log = _open_log(task)
        streams: dict[int, bool] = {}
        given: list[int] = []
        try:
            if self._sink.is_terminal and not task.label:
                ours, theirs = pty.openpty()
                streams[ours] = False
                given.append(theirs)
                _same_size(self._sink.out, theirs)
            else:
                for error in (False, True):
                    ours, theirs = os.pipe2(os.O_CLOEXEC)
                    streams[ours] = error
                    given.append(theirs)
            process = subprocess.Popen(
                _words(task),
                cwd=task.cwd,
                env=dict(task.env),
                stdin=subprocess.DEVNULL,
                stdout=given[0],
                stderr=given[-1],
                start_new_session=True,
                pass_fds=(log,),
            )
        except BaseException as error:
            for fd in (log, *streams):
                os.close(fd)
            if isinstance(error, OSError):
                raise _cannot_start(task, error) from error
            raise
        finally:
            for fd in given:
                os.close(fd)
        running = _Running(task, process, os.pidfd_open(process.pid), log, time.monotonic(), streams)
        self._running.append(running)
        for fd in (running.pidfd, *streams):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, running)

    def wait(self) -> Ended:
        while True:
            for key, _ in self._selector.select():
                running: _Running = key.data
                if key.fd != running.pidfd:
                    self._copy(running, key.fd)
            # Ended ones last, so that their output is out before.
            for running in list(self._running):
                ended = self._ended(running)
                if ended is not None:
                    return ended

    def stop(self) -> None:
        for running in self._running:
            _kill(running, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self._running and time.monotonic() < deadline:
            for key, _ in self._selector.select(max(0.0, deadline - time.monotonic())):
                if key.fd != key.data.pidfd:
                    self._copy(key.data, key.fd)
            for running in list(self._running):
                if self._ended(running) is not None:
                    _kill(running, signal.SIGKILL)  # what it left behind in its group
        for running in list(self._running):
            _kill(running, signal.SIGKILL)
            while self._ended(running) is None:
                time.sleep(0.01)
        self._selector.close()

    def _copy(self, running: _Running, fd: int) -> bool:
        """Pass on what a command wrote; False when there is no more."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # so a terminal says that nobody writes to it any more
                raise
            data = b""
        if not data:
            self._selector.unregister(fd)
            self._flush(running, fd)
            os.close(fd)
            del running.streams[fd]
            return False
        if os.fstat(running.log).st_size < MAX_LOG:
            with contextlib.suppress(OSError):  # a disk that is full does not fail the command
                os.write(running.log, data)
        if not running.task.label:
            self._sink.write(data, error=running.streams[fd])
            return True
        *lines, rest = (running.rest.get(fd, b"") + data).split(b"\n")
        running.rest[fd] = rest[-_CHUNK:]
        label = os.fsencode(running.task.label)
        self._sink.write(b"".join(b"%s%s\n" % (label, line) for line in lines), error=running.streams[fd])
        return True

    def _flush(self, running: _Running, fd: int) -> None:
        rest = running.rest.pop(fd, b"")
        if rest:
            self._sink.write(b"%s%s\n" % (os.fsencode(running.task.label), rest), error=running.streams[fd])

    def _ended(self, running: _Running) -> Ended | None:
        pid, status, usage = os.wait4(running.process.pid, os.WNOHANG)
        if not pid:
            return None
        running.process.returncode = os.waitstatus_to_exitcode(status)
        self._running.remove(running)
        for fd in list(running.streams):
            # What it started may still write there: what is in the pipe now is its own.
            while self._copy(running, fd):
                pass
            if fd in running.streams:
                self._selector.unregister(fd)
                self._flush(running, fd)
                os.close(fd)
        self._selector.unregister(running.pidfd)
        os.close(running.pidfd)
        fcntl.flock(running.log, fcntl.LOCK_UN)
        os.close(running.log)
        return Ended(
            running.task.key,
            running.process.returncode,
            time.monotonic() - running.started,
            usage.ru_utime,
            usage.ru_stime,
            usage.ru_maxrss * 1024,
        )


def _words(task: Task) -> list[str]:
    """As DVC starts a command: by the person's shell, without its start files."""
    shell = task.env.get("SHELL") or "/bin/sh"
    return [shell, *_FLAGS.get(os.path.basename(shell).lower(), []), "-c", task.command]


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
            f"'{printable(task.key)}' is being run already: by another repro, or by one that was killed",
            hint=f"wait until it is done; who runs it: fuser {printable(task.log)}",
        ) from None
    if not task.append:
        os.ftruncate(log, 0)
    return log


def _same_size(source: int | None, target: int) -> None:
    """Give a terminal the size of the client's."""
    if source is not None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(target, termios.TIOCSWINSZ, size)


def _kill(running: _Running, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process.pid, number)


def _cannot_start(task: Task, error: OSError) -> MillpondError:
    path = printable(os.fsdecode(error.filename or task.cwd))
    return TargetError(f"cannot run a command of '{printable(task.key)}': {error.strerror}: '{path}'", path=path)
