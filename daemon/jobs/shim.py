"""The shim: one process a job, the caller's, in a session of its own. It runs the job's command or verb, keeps its log and its
terminal, and writes how it ended. It needs no daemon, and outlives the one that had it made.

The daemon forks it with the job's folder and a socket. It says nothing before it has read the job; begins when it is told
`go`, which the daemon says once the table has its pid; says durably that it has begun (begun.json), then `{}` on the socket.
Without `go` nothing has begun. SIGTERM cancels the job: TERM to its process group, KILL after the grace. SIGUSR1 kills at
once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import InternalError, MillpondError, from_system, from_wire
from millpond.daemon.jobs import process
from millpond.daemon.jobs.commands import GRACE_S, Command, Commands, CommandSpec, Ended, Output
from millpond.daemon.jobs.jobcontext import run_verb
from millpond.daemon.jobs.jobfolder import JobFolder
from millpond.daemon.jobs.joblog import ERROR, PART_BYTES, LogWriter
from millpond.daemon.jobs.record import GO
from millpond.daemon.jobs.terminals import open_terminal
from millpond.daemon.rpc import framing

# What a command left behind in its session has this long to end.
LEFTOVER_S = 2.0
# A verb that is cancelled ends what it runs first: it has this much longer.
VERB_S = 5.0
# A result that cannot be written is tried again for this long.
FINISH_S = 60.0
_TICK_S = 0.5
# As shells have it.
NOT_FOUND, NOT_RUNNABLE = 127, 126
_ORDERS = (signal.SIGTERM, signal.SIGUSR1)
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU, signal.SIGTTIN, signal.SIGPIPE)


@dataclass(slots=True)
class Orders:
    """What signals have asked for."""

    cancel: bool = False
    now: bool = False


class Shim:
    """One job being run; `pty` both sides of its terminal, None for a job without."""

    def __init__(
        self, folder: JobFolder, spec: dict[str, Any], env: dict[str, str], pty: tuple[int, int] | None
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._env = env
        self._pty = pty
        grace_s = spec.get("grace_s")
        self._grace_s = GRACE_S if grace_s is None else float(grace_s)
        self._log = LogWriter(folder.path, int(spec.get("log_bytes") or PART_BYTES))
        self._orders = Orders()
        self._commands = Commands()
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._cancelling = False

    def run(self, verb: Callable[[], int]) -> dict[str, Any]:
        """Run the job to its end; its result, as result.json has it. `verb` is what a job of that kind runs."""
        self._listen()
        began, clock, kills = time.time(), time.monotonic(), _oom_kills()
        reason: str | None = None
        left: list[str] = []
        try:
            command = self._commands.start(self._command(verb), self._log.feed)
        except OSError as error:
            reason = f"cannot run '{error.filename or 'the command'}': {error.strerror}"
            self._log.note(reason)
            code = NOT_FOUND if error.errno == 2 else NOT_RUNNABLE
            ended = Ended(code, None, time.monotonic() - clock, 0.0, 0.0, 0)
        else:
            ended = self._follow(command)
            left = self._end_leftovers()
            if (failure := self._error()) is not None and not self._cancelling:
                self._log.note(f"{ERROR}{failure}")
        oom = ended.code == 128 + signal.SIGKILL and not self._cancelling and _oom_kills() > kills
        self._log.close()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "state": "cancelled" if self._cancelling else "failed" if ended.code else "succeeded",
            "reason": reason or self._reason(ended, oom=oom),
            "exit_code": ended.exit_code,
            "signal": ended.signal,
            "started": began,
            "ended": time.time(),
            "seconds": round(time.monotonic() - clock, 3),
            "rusage": {
                "user_s": round(usage.ru_utime, 3),
                "system_s": round(usage.ru_stime, 3),
                "max_rss_bytes": usage.ru_maxrss << 10,
                "major_faults": usage.ru_majflt,
                "blocks_in": usage.ru_inblock,
                "blocks_out": usage.ru_oublock,
            },
            "oom": oom,
            "log": {"bytes": self._log.bytes, "dropped": self._log.dropped, "lost": self._log.lost},
            "ended_with_it": left,
            # What the job's mounts read, and how long it waited for that.
            "mounts": [],
        }

    def _command(self, verb: Callable[[], int]) -> CommandSpec:
        output: Output = "pipes" if self._pty is None else "terminal"
        if self._spec["kind"] == "verb":
            return CommandSpec(call=verb, output=output, pty=self._pty, death=signal.SIGTERM, prepare=self._limit)
        return CommandSpec(
            [wirepath.decode(word) for word in self._spec["argv"]],
            self._env,
            wirepath.decode(self._spec["cwd"]),
            output=output,
            pty=self._pty,
            prepare=self._limit,
        )

    def _limit(self) -> None:
        """In the child: the client's limits, not the daemon's, as far as they may be had."""
        for name, (soft, hard) in (self._spec.get("limits") or {}).items():
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                number = getattr(resource, f"RLIMIT_{name.removeprefix('RLIMIT_')}")
                most = resource.getrlimit(number)[1]
                if most != resource.RLIM_INFINITY:
                    hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
                    soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
                resource.setrlimit(number, (soft, hard))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, max(int(self._spec.get("nice") or 0), os.nice(0)))
        with contextlib.suppress(OSError, ValueError):
            os.sched_setaffinity(0, self._spec.get("cpus") or os.sched_getaffinity(0))

    def _listen(self) -> None:
        def cancel(*_: object) -> None:
            self._orders.cancel = True

        def kill(*_: object) -> None:
            self._orders.cancel = self._orders.now = True

        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, cancel)
        signal.signal(signal.SIGUSR1, kill)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
        self._commands.watch(self._wake[0])

    def _follow(self, command: Command) -> Ended:
        """Until the command has ended, by itself or by order."""
        kill_at: float | None = None
        while command.ended is None:
            now = time.monotonic()
            if self._orders.cancel and not self._cancelling:
                self._cancelling = True
                self._log.note("cancelled")
                self._commands.end(command, None)
                kill_at = now + self._grace_s + (VERB_S if self._spec["kind"] == "verb" else 0)
            if self._cancelling and (self._orders.now or (kill_at is not None and now >= kill_at)):
                self._kill_session(signal.SIGKILL)
            marks = [self._log.due, now + _TICK_S if self._cancelling else None]
            until = min((mark for mark in marks if mark is not None), default=None)
            self._commands.wait(None if until is None else max(0.0, until - now))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)
            self._reap(command)
            if self._log.due is not None and time.monotonic() >= self._log.due:
                self._log.flush()
        return command.ended

    def _reap(self, command: Command) -> None:
        """Take the status of orphans, which this process is the parent of; the command's own is taken by its owner."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if found.si_pid == command.pid and command.ended is None:
                    return
                os.waitpid(found.si_pid, 0)

    def _end_leftovers(self) -> list[str]:
        """End what the command left in its session; their names. What made a session of its own and lost its parent, a
        daemon, is let go."""
        left = process.session_members(os.getpid())
        if not left:
            return []
        names = [f"{name} (pid {pid})" for pid, name in sorted(left.items())]
        self._log.note(f"ended with the job, which left them behind: {', '.join(names)}")
        self._kill_session(signal.SIGTERM)
        deadline = time.monotonic() + (0.0 if self._orders.now else LEFTOVER_S)
        number = signal.SIGTERM
        while process.session_members(os.getpid()):
            if number == signal.SIGTERM and time.monotonic() >= deadline:
                number, deadline = signal.SIGKILL, time.monotonic() + LEFTOVER_S
            elif time.monotonic() >= deadline:  # the kernel holds them: a file system that does not answer
                break
            if number == signal.SIGKILL:
                self._kill_session(number)
            time.sleep(0.01)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
        return names

    def _kill_session(self, number: signal.Signals) -> None:
        for pid in process.session_members(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _error(self) -> MillpondError | None:
        """What a verb failed with."""
        error = (self._folder.answered() or {}).get("error") if self._spec["kind"] == "verb" else None
        return from_wire(error) if error else None

    def _reason(self, ended: Ended, *, oom: bool) -> str | None:
        if self._cancelling:
            return "cancelled"
        if (error := self._error()) is not None:
            return error.message
        if oom:
            return "killed by the kernel: memory ran out"
        if ended.signal is not None:
            return f"ended by signal {ended.signal}, {(signal.strsignal(ended.signal) or 'unknown').lower()}"
        return f"exit code {ended.exit_code}" if ended.exit_code else None


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child: `{folder, number, socket, verbs, system}` and the daemon's socket."""
    with socket.socket(fileno=os.dup(fds[0])) as daemon:
        os.close(fds[0])
        try:
            shim, verb = _begun(request, daemon)
        except BrokenPipeError:
            return 0
        except (MillpondError, OSError, KeyError, TypeError, ValueError) as error:
            _refuse(daemon, error)
            return 1
    folder = JobFolder(wirepath.decode(request["folder"]))
    return 0 if _finish(folder, shim.run(verb)) else 1


def _begun(request: dict[str, Any], daemon: socket.socket) -> tuple[Shim, Callable[[], int]]:
    """Read the job, wait for `go`, begin. Raises BrokenPipeError without one, or what is wrong with the job."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)  # until the shim listens
    folder = JobFolder(wirepath.decode(request["folder"]))
    spec, env = folder.spec(), folder.environment()
    env |= {"MILLPOND_JOB": str(request["number"]), "MILLPOND_JOB_ID": folder.id}
    os.umask(int(spec.get("umask", 0o022)) & 0o777)
    size = spec.get("terminal")
    pty = None if size is None else open_terminal((int(size[0]), int(size[1])))
    shim = Shim(folder, spec, env, pty)
    if daemon.recv(len(GO), socket.MSG_WAITALL) != GO:
        raise BrokenPipeError
    process.adopt_orphans()
    if pty is not None:
        fcntl.ioctl(pty[1], termios.TIOCSCTTY, 0)
    who = {"pid": os.getpid(), "start": process.start_ticks(os.getpid()), "boot": process.boot_id()}
    folder.begin({**who, "number": request["number"], "tty": None if pty is None else os.ttyname(pty[1])})
    with contextlib.suppress(OSError):
        daemon.sendall(b"{}\n")
    os.environ.clear()
    os.environ.update(env)
    _let_go_of_streams()
    return shim, lambda: run_verb(folder, spec, env, request)


def _let_go_of_streams() -> None:
    """Nothing of the daemon's stays open in a process that may run for weeks."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _refuse(daemon: socket.socket, error: Exception) -> None:
    if isinstance(error, OSError):
        error = from_system(error, "beginning the job")
    elif not isinstance(error, MillpondError):
        error = InternalError(f"the job cannot begin: {error!r}")
    with contextlib.suppress(OSError):
        daemon.sendall(framing.encode(error.to_wire()))


def _finish(folder: JobFolder, result: dict[str, Any]) -> bool:
    """Write the result, again and again while the disk has no room; whether it is written."""
    deadline = time.monotonic() + FINISH_S
    while True:
        try:
            folder.finish(result)
            return True
        except OSError:
            if time.monotonic() >= deadline or not os.path.isdir(folder.path):
                return False
            time.sleep(_TICK_S)


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it booted."""
    try:
        with open("/proc/vmstat") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except OSError:
        return 0
