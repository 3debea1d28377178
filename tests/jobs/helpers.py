"""A daemon as a process of its own, in folders of its own, with the test verbs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.jobs import reach

from millpond.daemon import wirepath
from millpond.daemon.rpc.autostart import connect_or_start
from millpond.daemon.rpc.client import Client
from millpond.daemon.settings import Settings, from_env

REPO = Path(__file__).resolve().parents[2]
WAIT_S = 20.0


@dataclass
class Site:
    """Where a daemon lives. `start` makes it run; `end` kills whatever still does."""

    folder: Path
    env: dict[str, str]

    @property
    def settings(self) -> Settings:
        return from_env(self.env, os.getuid())

    def start(self) -> Client:
        """A connection to the daemon, started if need be."""
        return connect_or_start(self.settings, self.env)

    def log(self) -> list[dict[str, Any]]:
        """The daemon's log so far."""
        return [json.loads(line) for line in self.settings.log.read_text().splitlines()]

    def end(self) -> None:
        with contextlib.suppress(Exception), Client.connect(self.settings.socket, timeout=5) as client:
            client.call("daemon.stop", {"now": True})
            client.hung_up(WAIT_S)


def site(folder: Path, **env: str) -> Site:
    """A place for a daemon below `folder`; `env` adds to its environment."""
    base = {
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{REPO / '.src'}:{REPO}",
        "MILLPOND_VERBS": "tests.jobs.verbtable:VERBS",
        "MILLPOND_FSYNC": "0",
    }
    (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    return Site(folder, {**base, **env})


@contextlib.contextmanager
def running(folder: Path, **env: str) -> Iterator[Site]:
    """A site with a daemon that is ended with the block."""
    found = site(folder, **env)
    with found.start():
        pass
    try:
        yield found
    finally:
        found.end()


@dataclass
class System:
    """A daemon in system mode: three uids, none of them root's or a caller's."""

    folder: Path
    process: subprocess.Popen[bytes]
    socket: Path
    daemon_uid: int = 41001
    holder_uid: int = 41002
    store_gid: int = 41003


@contextlib.contextmanager
def system(**env: str) -> Iterator[System]:
    """Run `millpondd` in system mode, in a folder that every user can reach, until the block ends. As root only."""
    with tempfile.TemporaryDirectory(prefix="mp-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        ours, theirs = os.pipe()
        surroundings = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": reach.for_everyone().path,
            "MILLPOND_SYSTEM_USER": str(System.daemon_uid),
            "MILLPOND_HOLDER_USER": str(System.holder_uid),
            "MILLPOND_STORE_GROUP": str(System.store_gid),
            "MILLPOND_STORE": str(folder / "store"),
            "MILLPOND_STATE": str(folder / "state"),
            "MILLPOND_SOCKET": str(folder / "run" / "s.sock"),
            **env,
        }
        process = subprocess.Popen(
            [reach.for_everyone().python, "-P", "-m", "millpond.daemon.main", "--ready-fd", str(theirs)],
            pass_fds=[theirs],
            env=surroundings,
        )
        os.close(theirs)
        try:
            with os.fdopen(ours, "rb") as ready:
                assert ready.readline() == b"\n"
            yield System(folder, process, folder / "run" / "s.sock")
        finally:
            process.terminate()
            process.wait(30)


def context(
    cwd: Path | str = "/", wait_s: float | None = WAIT_S, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A client's context."""
    coded = {wirepath.encode(key): wirepath.encode(value) for key, value in (env or {}).items()}
    return {"cwd": wirepath.encode(os.fspath(cwd)), "env": coded, "umask": 0o027, "wait_s": wait_s}


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`, which must come within WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(pid: int) -> None:
    """kill -9, and wait for the end."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))


def children_named(name: str, parent: int | None = None) -> list[int]:
    """Pids of the processes called `name` (below a parent)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                if (folder / "comm").read_text().strip() == name and parent in (None, int(fields[1])):
                    found.append(int(folder.name))
    return found
