"""Find the user's daemon or start it. Standard library only: the command line imports this at every start."""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from millpond.daemon.errors import DaemonUnavailableError, from_wire
from millpond.daemon.rpc.client import Client
from millpond.daemon.settings import Settings

START_S = 20.0
_TAIL_LINES = 8
SYSTEM_SOCKET = Path("/run/millpond/millpond.sock")


def connect_or_start(settings: Settings, environ: Mapping[str, str]) -> Client:
    """A greeted connection to the user's daemon, started when there is none.

    Raises DaemonUnavailableError (with the end of its log), or the error with which it refused to start.
    """
    try:
        return Client.connect(settings.socket)
    except DaemonUnavailableError:
        if settings.socket == SYSTEM_SOCKET:
            raise DaemonUnavailableError(
                "the system's daemon does not answer", hint="start it: systemctl start millpond"
            ) from None
    settings.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(f"{settings.socket}.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _flock(lock)
        try:
            return Client.connect(settings.socket)  # somebody was faster
        except DaemonUnavailableError:
            _start(settings, environ)
        return Client.connect(settings.socket)
    finally:
        os.close(lock)


def _flock(fd: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DaemonUnavailableError(
                    f"another command has tried for {START_S:.0f} s to start the daemon"
                ) from None
            time.sleep(0.02)


def _start(settings: Settings, environ: Mapping[str, str]) -> None:
    import subprocess

    settings.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    try:
        command = [sys.executable, "-m", "millpond.daemon.main", "--ready-fd", str(theirs)]
        with open(settings.log.with_name("daemon.err"), "wb") as errors:
            subprocess.Popen(
                command,
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                cwd="/",
                env={**environ, "MALLOC_ARENA_MAX": "2"},
            )
        os.close(theirs)
        theirs = -1
        _await_ready(ours, settings)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    if "SLURM_JOB_ID" in environ:
        print("millpond: the daemon was started in this Slurm step and ends with it", file=sys.stderr)


def _await_ready(fd: int, settings: Settings) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    answer = os.read(fd, 65536) if poll.poll(START_S * 1000) else b""
    if answer == b"\n":
        return
    if answer:
        raise from_wire(json.loads(answer))
    raise DaemonUnavailableError(
        f"the daemon did not start: {_tail(settings)}", path=str(settings.log), hint="see `millpond daemon logs`"
    )


def _tail(settings: Settings) -> str:
    """The end of what it said, on one line."""
    for path in (settings.log.with_name("daemon.err"), settings.log):
        try:
            lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            continue
        if lines:
            return " | ".join(lines)
    return "it said nothing"
