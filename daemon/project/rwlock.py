"""DVC's `.dvc/tmp/rwlock`: which process reads and writes what, while a stage's commands run.

JSON, `{"write": {PATH: INFO}, "read": {PATH: [INFO, ...]}}`, INFO being `{"pid", "cmd"}` and paths absolute; changed under an
flock of `rwlock.lock`. An entry whose process is gone counts for nothing and is removed by whoever meets it. (DVC 3.67, rwlock.py.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from millpond.daemon.jobs.process import lives

_FILE, _LOCK, _NEW = "rwlock", "rwlock.lock", "rwlock.new"
_MAX_BYTES = 64 << 20
# How entries that are ours begin.
OURS = "millpond repro "
# With so many of a path those that are gone go.
_MOST_READERS = 64
# DVC holds its lock for the time of one small write.
_WAIT_S, _STEP_S = 2.0, 0.02


@dataclass(frozen=True, slots=True)
class Entry:
    """What one process reads and writes, as far as the file in `folder` tells."""

    folder: str
    pid: int
    command: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def remove(self) -> None:
        """Take it out again, as far as it can be done: when this process has ended it counts for nothing anyhow."""
        info = {"pid": self.pid, "cmd": self.command}
        with _changed(self.folder) as found:
            for path in self.writes:
                if found["write"].get(path) == info:
                    del found["write"][path]
            for path in self.reads:
                left = [each for each in found["read"].get(path, []) if each != info]
                found["read"].pop(path, None)
                if left:
                    found["read"][path] = left


def add(folder: str, pid: int, command: str, *, reads: Sequence[str], writes: Sequence[str]) -> Entry:
    """Tell DVC that a process reads and writes these (absolute paths). A file that cannot be read or written is left alone: it
    is a courtesy to DVC, and no lock of ours."""
    info = {"pid": pid, "cmd": command}
    with _changed(folder) as found:
        found["write"].update(dict.fromkeys(writes, info))
        for path in reads:
            readers = found["read"].setdefault(path, [])
            if len(readers) >= _MOST_READERS:  # most were killed
                readers[:] = [each for each in readers if lives(each["pid"])]
            readers.append(info)
    return Entry(folder, pid, command, tuple(reads), tuple(writes))


def entries(folder: str) -> list[Entry]:
    """One for each process in the file and what it is said to run, whether it lives or not."""
    found = _load(folder) or {"write": {}, "read": {}}
    told: dict[tuple[int, str], tuple[list[str], list[str]]] = {}
    for path, infos in found["read"].items():
        for info in infos:
            told.setdefault((info["pid"], info["cmd"]), ([], []))[0].append(path)
    for path, info in found["write"].items():
        told.setdefault((info["pid"], info["cmd"]), ([], []))[1].append(path)
    return [Entry(folder, pid, cmd, tuple(reads), tuple(writes)) for (pid, cmd), (reads, writes) in told.items()]


@contextlib.contextmanager
def _changed(folder: str) -> Iterator[dict[str, Any]]:
    """The file's content, written back at the end."""
    nothing: dict[str, Any] = {"write": {}, "read": {}}
    with contextlib.ExitStack() as stack:
        try:
            lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, lock)
            found = _load(folder) if _lock(lock) else None
        except OSError:
            found = None
        yield found if found is not None else nothing
        if found is None:
            return
        with contextlib.suppress(OSError):
            text = json.dumps({key: value for key, value in found.items() if value})
            # Whole or not at all: DVC runs nothing while it cannot read it, and those that only look, like `entries`, hold no lock.
            new = os.path.join(folder, _NEW)
            try:
                with open(new, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(new, os.path.join(folder, _FILE))
            except OSError:
                os.unlink(new)
                raise


def _lock(fd: int) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP_S)


def _load(folder: str) -> dict[str, Any] | None:
    """{write, read}; None for a file that is not as DVC writes it."""
    try:
        with open(os.path.join(folder, _FILE), encoding="utf-8") as file:
            found = json.loads(file.read(_MAX_BYTES) or "{}")
        write, read = found.get("write") or {}, found.get("read") or {}
        infos = [*write.values(), *(info for each in read.values() for info in each)]
        if all(isinstance(info["pid"], int) and isinstance(info["cmd"], str) for info in infos):
            return {"write": write, "read": read}
    except FileNotFoundError:
        return {"write": {}, "read": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
