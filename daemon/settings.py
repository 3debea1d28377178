"""Where things are and what the bounds are: read once from the environment, at the edge, and passed in.

This module is imported by the command line, so it imports nothing but the standard library's small parts.
"""

from __future__ import annotations

import os
import pwd
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from millpond.daemon import xdg
from millpond.daemon.errors import UsageError

# sockaddr_un.sun_path holds 108 bytes, the last one a NUL.
MAX_SOCKET_PATH = 107
VERBS = "millpond.daemon.project.verbs:VERBS"
JOBS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths are absolute. `idle_exit_s` is the time without requests and mounts after which the daemon ends; 0: never. `scrub_after_s`: that
    before it reads its segments again to find damage; 0: never. `jobs_at_once` of one user's jobs run, others wait.
    `serving_most` processes serve one mount; None: as many as its cores allow. `fill` processes of a mount bring neighbours of small files that are
    read into the page cache; None: as its cores allow; 0: none.

    `verbs` names the table of verbs, `module:NAME`, that workers import.
    """

    store: Path
    runtime: Path
    state: Path
    socket: Path
    idle_exit_s: float = 600.0
    scrub_after_s: float = 60.0
    fsync: bool = True
    verbs: str = VERBS
    jobs_at_once: int = JOBS_AT_ONCE
    serving_most: int | None = None
    fill: int | None = None

    @property
    def log(self) -> Path:
        """The daemon's log, JSON lines."""
        return self.state / "log" / "daemon.log"

    @property
    def mounts(self) -> Path:
        """Records of mounts: in the state folder, because they outlive a reboot."""
        return self.state / "mounts"


def from_env(environ: Mapping[str, str], uid: int) -> Settings:
    """Settings of a user's daemon, or of the system's when MILLPOND_SYSTEM_USER is set. Raises UsageError.

    MILLPOND_STORE, MILLPOND_STATE, MILLPOND_SOCKET, MILLPOND_IDLE_EXIT and MILLPOND_SCRUB (seconds), MILLPOND_FSYNC (0:
    measuring only), MILLPOND_FILL, MILLPOND_VERBS, MILLPOND_JOBS and MILLPOND_SERVING (numbers); then the XDG base directories, then HOME. Another store than the usual one has a socket, a log and
    records of its own; what else belongs to the running daemon lies beside its socket.
    """
    base = _Base.of_system() if environ.get("MILLPOND_SYSTEM_USER") else _Base.of_user(environ, uid)
    store = Path(os.path.abspath(environ.get("MILLPOND_STORE") or base.store))
    runtime, state = base.runtime, base.state
    if store != base.store:
        # One daemon a store: they must not share a socket, a log or the records of their mounts.
        instance = f"{zlib.crc32(os.fsencode(store)):08x}"
        runtime, state = runtime / instance, state / instance
    if environ.get("MILLPOND_STATE"):
        state = Path(os.path.abspath(environ["MILLPOND_STATE"]))
    socket = Path(os.path.abspath(environ.get("MILLPOND_SOCKET") or runtime / "millpond.sock"))
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise UsageError(
            f"the socket's path has more than {MAX_SOCKET_PATH} bytes, which Linux does not allow",
            path=str(socket),
            hint="set MILLPOND_SOCKET to a shorter one",
        )
    default_idle = "0" if environ.get("MILLPOND_SYSTEM_USER") else "600"
    return Settings(
        store=store,
        runtime=socket.parent,
        state=state,
        socket=socket,
        idle_exit_s=_seconds("MILLPOND_IDLE_EXIT", environ.get("MILLPOND_IDLE_EXIT") or default_idle),
        scrub_after_s=_seconds("MILLPOND_SCRUB", environ.get("MILLPOND_SCRUB") or "60"),
        fsync=environ.get("MILLPOND_FSYNC", "1") != "0",
        verbs=environ.get("MILLPOND_VERBS") or VERBS,
        jobs_at_once=_count("MILLPOND_JOBS", environ.get("MILLPOND_JOBS") or str(JOBS_AT_ONCE), "jobs"),
        serving_most=_count("MILLPOND_SERVING", most, "processes")
        if (most := environ.get("MILLPOND_SERVING"))
        else None,
        fill=None if (fill := environ.get("MILLPOND_FILL")) is None else _fill(fill),
    )


@dataclass(frozen=True, slots=True)
class _Base:
    """Where things are when nothing says otherwise."""

    store: Path
    runtime: Path
    state: Path

    @classmethod
    def of_system(cls) -> _Base:
        return cls(Path("/var/cache/millpond"), Path("/run/millpond"), Path("/var/lib/millpond"))

    @classmethod
    def of_user(cls, environ: Mapping[str, str], uid: int) -> _Base:
        home = _home(environ, uid)
        state = Path(xdg.base(environ, "XDG_STATE_HOME", ".local/state", home)) / "millpond"
        # In cron and su XDG_RUNTIME_DIR is not set. Without one the state folder serves, by machine, since a home may be
        # shared over a network.
        login = Path(f"/run/user/{uid}")
        runtime = state / "run" / os.uname().nodename
        named = xdg.named(environ, "XDG_RUNTIME_DIR")
        if named is not None or _owned(login, uid):
            runtime = Path(named or login) / "millpond"
        return cls(Path(xdg.base(environ, "XDG_CACHE_HOME", ".cache", home)) / "millpond", runtime, state)


def parsed_size(shown: str) -> int:
    """Bytes of `200GB`, `1.5 TB`, `none`. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", shown.strip(), re.IGNORECASE)
    if shown == "none":
        return 0
    if match is None or float(match[1]) == 0:
        raise UsageError(f"'{shown}' is no size like 200GB", hint="`none` takes the limit away")
    return int(float(match[1]) * 1000 ** "\0KMGT".index(match[2].upper() or "\0"))


def _home(environ: Mapping[str, str], uid: int) -> str:
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            raise UsageError("there is no home directory", hint="set HOME") from None
    return home


def _owned(path: Path, uid: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_uid == uid and not found.st_mode & 0o022


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UsageError(f"{name} is '{text}', which is not a number of seconds")
    return seconds


def _fill(text: str) -> int:
    return 0 if text == "0" else _count("MILLPOND_FILL", text, "processes")


def _count(name: str, text: str, what: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1_000_000:
        raise UsageError(f"{name} is '{text}', which is not a number of {what}")
    return int(text)
