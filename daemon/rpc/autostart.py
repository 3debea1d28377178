"""Find the user's daemon or start it. Standard library only: the command line imports this at every start.

SOCKET.start is locked while a daemon is being started, so that many commands at once start one. A daemon that is stopping
keeps its connections until its store is closed: whoever meets it waits for that, then starts the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from millpond.daemon.errors import AccessError, DaemonUnavailableError, from_wire
from millpond.daemon.rpc.client import Client
from millpond.daemon.settings import Settings

START_S = 30.0
_TAIL_LINES = 8
_TAIL_BYTES = 16 << 10
SYSTEM_SOCKET = Path("/run/millpond/millpond.sock")
# What of a command's environment the daemon needs; no credentials. Workers get their own command's, not this.
_KEPT = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "DBUS_SESSION_BUS_ADDRESS")
_KEPT_PREFIXES = ("LC_", "XDG_", "MILLPOND_")


def connect_or_start(settings: Settings, environ: Mapping[str, str]) -> Client:
    """A greeted connection to the user's daemon, started when there is none.

    Raises DaemonUnavailableError (with the end of its log), AccessError (a folder cannot be made), or the error with
    which it refused to start.
    """
    deadline = time.monotonic() + START_S
    client = _connect(settings, deadline)
    if client is not None:
        return client
    if settings.socket == SYSTEM_SOCKET:
        raise DaemonUnavailableError("the system's daemon does not answer", hint="start it: systemctl start millpond")
    for folder in (settings.socket.parent, settings.log.parent):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable("make", folder, error) from error
    try:
        lock = os.open(f"{settings.socket}.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable("write to", settings.socket.parent, error) from error
    try:
        _flock(lock, deadline)
        client = _connect(settings, deadline)  # somebody may have been faster
        if client is None:
            _start(settings, environ)
            client = Client.connect(settings.socket)
        return client
    finally:
        os.close(lock)


def _unusable(doing: str, folder: Path, error: OSError) -> AccessError:
    """A folder of the daemon's own cannot be used."""
    return AccessError(
        f"cannot {doing} '{folder}': {error.strerror}",
        path=str(folder),
        hint="let it be yours to write, or name other places: XDG_STATE_HOME, XDG_RUNTIME_DIR, MILLPOND_STATE, MILLPOND_SOCKET",
    )


def _connect(settings: Settings, deadline: float) -> Client | None:
    """A connection to a daemon that runs; None when there is none (any more)."""
    while True:
        try:
            return Client.connect(settings.socket)
        except DaemonUnavailableError as error:
            if not error.details.get("stopping"):
                return None
        _await_end(settings.socket, deadline)


def _await_end(path: Path, deadline: float) -> None:
    """Until the daemon that is stopping has closed a connection to it: then its store is closed too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            sock.connect(os.fspath(path))
            while sock.recv(4096):
                pass
        except TimeoutError:
            raise DaemonUnavailableError(
                "the daemon is stopping and does not end", hint="see `millpond daemon logs`"
            ) from None
        except OSError:
            return


def _flock(fd: int, deadline: float) -> None:
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
    """Start a daemon and wait until it answers. Raises as `connect_or_start`."""
    env = {key: value for key, value in environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
    # It runs in another folder: what is relative here would be elsewhere there.
    places = {"MILLPOND_STORE": settings.store, "MILLPOND_STATE": settings.state, "MILLPOND_SOCKET": settings.socket}
    env |= {key: os.fspath(path) for key, path in places.items() if env.get(key)}
    # Many threads allocate large buffers: with an arena for each the memory would never be given back.
    env["MALLOC_ARENA_MAX"] = "2"
    command = [sys.executable, "-P", "-m", "millpond.daemon.main"]
    if _has_user_manager(environ) and _start_in_manager(command, env):
        return
    _start_detached(command, env, settings)
    if "SLURM_JOB_ID" in environ:
        print("millpond: the daemon was started in this Slurm step and ends with it", file=sys.stderr)


def _has_user_manager(environ: Mapping[str, str]) -> bool:
    return os.path.exists(os.path.join(environ.get("XDG_RUNTIME_DIR") or "/nonexistent", "systemd", "private"))


def _start_in_manager(command: list[str], env: dict[str, str]) -> bool:
    """Start it as a unit of systemd's user manager, so that it outlives this session; False when that does not work.

    With Type=notify, systemd-run returns when the daemon has said that it is ready.
    """
    import subprocess

    unit = ["systemd-run", "--user", "--quiet", "--collect", "--property=Type=notify", "--property=NotifyAccess=main"]
    unit.append("--property=KillMode=process")  # mounts and jobs outlive the daemon
    settings = [f"--setenv={key}={value}" for key, value in env.items()]
    try:
        done = subprocess.run([*unit, *settings, "--", *command], capture_output=True, timeout=START_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _start_detached(command: list[str], env: dict[str, str], settings: Settings) -> None:
    import subprocess

    ours, theirs = os.pipe()
    try:
        try:
            errors = open(settings.log.with_name("daemon.err"), "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _unusable("write to", settings.log.parent, error) from error
        with errors:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(theirs)],
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                cwd="/",
                env=env,
            )
        # It runs on when this command has ended: nothing is to be said about that.
        process.returncode = 0
        os.close(theirs)
        theirs = -1
        _await_ready(ours, settings)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


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
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            continue
        if lines:
            return " | ".join(lines)
    return "it said nothing"
