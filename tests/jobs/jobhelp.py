"""Jobs by requests, as the command line makes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.jobs.helpers import Site, context, gone, until

from millpond.daemon import wirepath
from millpond.daemon.jobs.joblog import OWN, parse
from millpond.daemon.rpc.client import Client

Row = dict[str, Any]


def run(client: Client, *argv: str, cwd: Path | str = "/", **options: Any) -> Row:
    """A command as a job, in the test's own environment."""
    words = [wirepath.encode(word) for word in argv]
    return begin(client, cwd=cwd, argv=words, **options)


def begin(client: Client, *, cwd: Path | str = "/", env: dict[str, str] | None = None, **params: Any) -> Row:
    surroundings = {"PATH": os.environ["PATH"], "HOME": os.environ["JOBS_HOME"], **(env or {})}
    row: Row = client.call("job.run", {**params, "context": context(cwd, env=surroundings)})[0]["job"]
    return row


def wait(client: Client, row: Row, until: str = "ended") -> Row:
    found: Row = client.call("jobs.wait", {"job": row["number"], "until": until})[0]["job"]
    return found


def cancel(client: Client, *rows: Row, now: bool = False, wait: bool = True) -> list[Row]:
    params = {"jobs": [str(row["number"]) for row in rows], "now": now, "wait": wait, "context": context()}
    found: list[Row] = client.call("job.cancel", params)[0]["jobs"]
    return found


def rows(client: Client) -> list[Row]:
    found: list[Row] = client.call("jobs", {"limit": 1000})[0]["jobs"]
    return found


def folder(row: Row) -> Path:
    return Path(wirepath.decode(row["folder"]))


def records(row: Row) -> list[tuple[bytes, bool, bytes]]:
    """(stream, whole, content) of the log, both parts."""
    found = []
    for name in ("log.1", "log"):
        path = folder(row) / name
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            record = parse(line)
            assert record is not None, line
            found.append((record.stream, record.whole, record.content))
    return found


def output(row: Row, stream: bytes = b"stdout") -> bytes:
    """What the job wrote."""
    return b"".join(content + (b"\n" if whole else b"") for found, whole, content in records(row) if found == stream)


def notes(row: Row) -> list[str]:
    """What the shim wrote."""
    return [content.decode() for stream, _, content in records(row) if stream == OWN]


def result(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(row) / "result.json").read_bytes())
    return found


def pid_in(path: Path) -> int:
    """The pid that a job's command wrote to a file."""
    return int(until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text()))


def kill_daemon(place: Site) -> None:
    """kill -9, and wait until its zygotes and workers are gone too."""
    with Client.connect(place.settings.socket) as client:
        pid = int(client.call("daemon.status", {})[0]["pid"])
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))


def ended(*pids: int) -> bool:
    return all(gone(pid) for pid in pids)


def sleepers(mark: str) -> list[int]:
    """Processes whose command line has `mark`."""
    done = subprocess.run(["pgrep", "-f", "--", mark], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]
