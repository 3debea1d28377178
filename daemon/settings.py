"""Where things are and what the bounds are: read once from the environment, at the edge, and passed in.

This module is imported by the command line, so it imports nothing but the standard library's small parts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from millpond.daemon.errors import UsageError

# sockaddr_un.sun_path holds 108 bytes, the last one a NUL.
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths are absolute. `idle_exit_s` is the time without requests and mounts after which the daemon ends; 0: never."""

    store: Path
    runtime: Path
    state: Path
    socket: Path
    idle_exit_s: float = 600.0
    fsync: bool = True
    verbs: str = "millpond.daemon.project.verbs:VERBS"

    @property
    def log(self) -> Path:
        """The daemon's log, JSON lines."""
        return self.state / "log" / "daemon.log"

    @property
    def mounts(self) -> Path:
        """Records of mounts: in the state folder, because they outlive a reboot."""
        return self.state / "mounts"


def from_env(environ: Mapping[str, str], uid: int) -> Settings:
    """Settings of a user's daemon. Raises UsageError for values that cannot be.

    MILLPOND_STORE, MILLPOND_SOCKET, MILLPOND_IDLE_EXIT (seconds), MILLPOND_FSYNC (0: measuring only); then the XDG
    base directories, then HOME.
    """
    home = Path(environ.get("HOME") or f"/tmp/millpond-{uid}")
    state = _xdg(environ, "XDG_STATE_HOME", home / ".local" / "state") / "millpond"
    store = environ.get("MILLPOND_STORE") or _xdg(environ, "XDG_CACHE_HOME", home / ".cache") / "millpond"
    # XDG_RUNTIME_DIR is not set in cron and su.
    runtime = _xdg(environ, "XDG_RUNTIME_DIR", state / "run") / "millpond"
    socket = Path(os.path.abspath(environ.get("MILLPOND_SOCKET") or runtime / "millpond.sock"))
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise UsageError(
            f"the socket's path has more than {MAX_SOCKET_PATH} bytes, which Linux does not allow",
            path=str(socket),
            hint="set MILLPOND_SOCKET to a shorter one",
        )
    try:
        idle = float(environ.get("MILLPOND_IDLE_EXIT", "600"))
    except ValueError:
        raise UsageError("MILLPOND_IDLE_EXIT is not a number of seconds") from None
    return Settings(
        store=Path(os.path.abspath(store)),
        runtime=runtime,
        state=state,
        socket=socket,
        idle_exit_s=idle,
        fsync=environ.get("MILLPOND_FSYNC", "1") != "0",
    )


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """The XDG base directory specification: relative values are ignored."""
    value = environ.get(name, "")
    return Path(value) if value.startswith("/") else default
