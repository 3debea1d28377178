"""Jobs from a terminal: begun, followed to their end, left running, cancelled."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from millpond.cli import exits, render
from millpond.cli.connection import request, verb
from millpond.cli.console import Console
from millpond.daemon import wirepath
from millpond.daemon.errors import (
    BusyError,
    CancelledError,
    DaemonUnavailableError,
    DiskFullError,
    JobLostError,
    StoreFormatError,
    from_wire,
)

if TYPE_CHECKING:
    from millpond.cli.joblog import Printer

Row = dict[str, Any]
# A wait may outlive so many daemons that are stopped or killed.
DAEMONS = 10


def start(console: Console, what: dict[str, Any], **options: Any) -> Row:
    """Have a job begin: `what` is {argv} or {verb, params}; its row when it has, or waits for a place. Raises MillpondError."""
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    surroundings = {
        "terminal": _size(),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "nice": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
    }
    row: Row = verb(console, "job.run", {**surroundings, **options, **what})["job"]
    return await_job(console, row, "begun") if row["state"] == "starting" else row


def as_job(
    console: Console,
    method: str,
    params: dict[str, Any],
    *,
    detach: bool,
    title: str,
    err: bool = False,
    otherwise: Callable[[], dict[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Run a verb as a job; its result, None when it was left running. Ctrl-C cancels it. With `err` all that it writes goes to
    stderr, since stdout is for JSON. `otherwise` is done instead where the daemon can have no jobs. Raises the verb's error,
    CancelledError, JobLostError."""
    try:
        row = start(console, {"verb": method, "params": params, "title": title}, **options)
    except (BusyError, DiskFullError, StoreFormatError) as error:  # none has begun
        if detach or otherwise is None:
            raise
        console.warn(f"{error.message}; so this is no job, and ends with this command")
        return otherwise()
    if detach:
        tell_begun(console, row, as_json=err)
        return None
    ended = follow(console, row, cancel=True, err=err, told=True)
    if ended is None:
        return None
    answer: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        answer = json.loads((folder_of(row) / "answer.json").read_bytes())
    exit_code(ended)
    if answer.get("error"):
        raise from_wire(answer["error"])
    if "result" not in answer:
        number = ended["number"]
        raise JobLostError(f"job {number} left no result: {ended['reason']}", hint=f"see `millpond logs {number}`")
    result: dict[str, Any] = answer["result"]
    return result


def follow(console: Console, row: Row, *, cancel: bool, err: bool = False, told: bool = False) -> Row | None:
    """Print what a job writes until it has ended; its row then. Ctrl-C leaves it running (None), or with `cancel` cancels it
    the first time, as SIGTERM does. `err`, `told`: see Printer."""
    from millpond.cli.joblog import Printer

    number = row["number"]
    try:
        row = await_job(console, row, "begun")
    except CancelledError:  # Ctrl-C while it waits for a place
        if cancel:
            verb(console, "job.cancel", {"jobs": [str(number)], "now": False, "wait": False})
        return None
    with _Signals(terminate=cancel) as signals, _Output(row, Printer(console, err=err, told=told)) as output:
        while not output.advance(signals.wake):
            if signals.resized:
                signals.resized = False
                output.resize()
            if not signals.interrupts:
                continue
            signals.interrupts -= 1
            if not cancel:
                console.interrupted = True
                console.note(f"Job {number} goes on: `millpond attach {number}`, `millpond cancel {number}`")
                return None
            cancel = False
            console.note(f"Cancelling job {number}; Ctrl-C again does not wait for its end")
            verb(console, "job.cancel", {"jobs": [str(number)], "now": False, "wait": False})
    return await_job(console, row, "ended")


def exit_code(row: Row) -> int:
    """What a shell would have had from the command. Raises CancelledError, JobLostError."""
    if row["state"] == "cancelled":
        raise CancelledError(f"job {row['number']} was cancelled")
    if row["state"] == "lost":
        raise JobLostError(f"job {row['number']} is lost: {row['reason']}", hint=f"see `millpond logs {row['number']}`")
    code: int | None = row["exit_code"]
    if row["signal"] is not None:
        return 128 + int(row["signal"])
    return code if code is not None else exits.OK if row["state"] == "succeeded" else exits.DIFFERENT


def tell_begun(console: Console, row: Row, *, as_json: bool) -> None:
    """After `--detach`."""
    if as_json:
        console.write(json.dumps(render.decoded(row, render.JOB_PATHS)))
    else:
        console.say(_begun_line(row))


def _begun_line(row: Row) -> str:
    how = {"running": "runs", "queued": "waits for a place"}.get(row["state"])
    number = row["number"]
    return f"Job {number} {how}: `millpond attach {number}` follows it" if how else f"Job {number}: {row['state']}"


def folder_of(row: Row) -> Path:
    return Path(wirepath.decode(row["folder"]))


class _Output:
    """What a job writes, from its beginning, to this terminal. A context manager."""

    def __init__(self, row: Row, printer: Printer) -> None:
        from millpond.cli.joblog import JobLog

        self._folder = folder_of(row)
        self._log = JobLog(self._folder)
        self._printer = printer
        self._pidfd = pidfd_of(row)
        self._watch: Any = None
        self.resize()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        if self._watch is not None:
            self._watch.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def advance(self, wake: int) -> bool:
        """Print what is new, wait for more; whether the job's process has ended and all is printed."""
        from millpond.cli.joblog import Watch

        if self._watch is None:
            self._watch = Watch(self._folder, self._pidfd, wake)
        self._printer.show(self._log.read())
        if not self._watch.wait():
            return False
        self._printer.show(self._log.read())
        return True

    def resize(self) -> None:
        """Give the job's terminal, if it has one, the size of this one."""
        from millpond.daemon.jobs.terminals import set_size

        size = _size()
        if size is None or self._pidfd < 0:
            return
        with contextlib.suppress(OSError, ValueError):
            tty = json.loads((self._folder / "begun.json").read_bytes())["tty"]
            if tty is not None:
                fd = os.open(tty, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                try:
                    set_size(fd, size)
                finally:
                    os.close(fd)


class _Signals:
    """Ctrl-C (with `terminate` SIGTERM, too) and changes of the window's size, noted for a loop that waits on `wake`. Ctrl-C that the
    loop does not come to hear is a KeyboardInterrupt the second time."""

    def __init__(self, *, terminate: bool) -> None:
        self._terminate = terminate
        self.interrupts = 0
        self.resized = False
        self.wake, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt),
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, self._resize),
        }
        if self._terminate:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.wake)
        os.close(self._write)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupts:
            raise KeyboardInterrupt
        self.interrupts += 1

    def _resize(self, number: int, frame: FrameType | None) -> None:
        self.resized = True


def await_job(console: Console, row: Row, until: str) -> Row:
    """The job's row when it has `begun` or `ended`, whichever daemon says so. Raises MillpondError."""
    for left in reversed(range(DAEMONS)):
        try:
            found: Row = request(console, "jobs.wait", {"job": row["number"], "until": until})["job"]
            return found
        except DaemonUnavailableError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def pidfd_of(row: Row) -> int:
    """Of the job's shim, -1 when it has ended."""
    from millpond.daemon.jobs.process import start_ticks

    if row["ended"] is not None:
        return -1
    try:
        pidfd = os.pidfd_open(row["pid"])
    except OSError:
        return -1
    if start_ticks(row["pid"]) == row["start"]:
        return pidfd
    os.close(pidfd)
    return -1


def _size() -> tuple[int, int] | None:
    """Rows and columns of this terminal; None when the output is none."""
    if not sys.stdout.isatty():
        return None
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return None
    return (size.lines or 24, size.columns or 80)
