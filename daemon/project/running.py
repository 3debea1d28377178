"""Stages that are being run: what they read and write, which no other command may change meanwhile.

`.dvc/tmp/millpond/running/NAME.json` is one stage's: `{stage, job, pid, where, reads, writes}`, paths percent-encoded, from the project's root.
It counts while it is locked (flock), by the process that runs the stage and by its commands: so it tells the truth whoever is killed.
Made and looked at with the project's lock, which is free while commands run. DVC's own sign of the same, `.dvc/tmp/rwlock`, is
read and written, too, so that real `dvc` runs no stage here a second time and records nothing half-made, and the reverse.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError, InvalidFileError, MillpondError
from millpond.daemon.jobs.process import lives, pid_space
from millpond.daemon.project import rwlock
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.paths import overlap, printable
from millpond.daemon.project.repo import Repo

_FOLDER = os.path.join("millpond", "running")
_MAX_BYTES = 16 << 20
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Running:
    """A stage that runs: `job`, the number of the job that runs it; `pid`, of the process that does, `where` numbers of processes mean
    what they do there; paths from the root, absolute ones of what lies elsewhere, and urls."""

    stage: str
    job: int | None
    pid: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    where: str = field(default_factory=pid_space)

    @property
    def is_here(self) -> bool:
        """Whether its `pid` means a process that can be seen from here: containers, and machines, may share a project."""
        return self.where == pid_space()

    @property
    def who(self) -> str:
        """For people."""
        by = f"job {self.job}" if self.job is not None else f"process {self.pid}"
        by = by if self.is_here else f"{by} of another machine or container"
        return f"stage '{printable(self.stage)}' ({by})" if self.stage else by

    @property
    def hint(self) -> str:
        """What to do about it."""
        if not self.is_here:
            return "wait until it is done there"
        if self.job is not None and lives(self.pid):
            return f"follow it with `millpond attach {self.job}`, or end it with `millpond cancel {self.job}`"
        if lives(self.pid):
            return f"wait until process {self.pid} is done"
        return "what ran it was killed, its commands still run: wait for them, or end them"


@dataclass(slots=True)
class Claim:
    """That this process runs a stage. `fd` is given to the stage's commands, and keeps the claim while any of them lives."""

    path: str
    fd: int
    shared: rwlock.Entry

    def release(self) -> None:
        """It is done. Whatever a command left behind does not keep the claim."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        self.shared.remove()


def claim(repo: Repo, name: str, running: Running) -> Claim:
    """Say that a stage runs; `name` is its file's. Held with the project's lock, after `refuse`. Raises BusyError, DiskFullError,
    InvalidFileError for a folder that cannot be written to, or whose file system has no locks."""
    folder = os.path.join(repo.temporary, _FOLDER)
    path = os.path.join(folder, f"{name}.json")
    try:
        os.makedirs(folder, exist_ok=True)
        fd = _locked(path)
    except OSError as error:
        raise _unclaimed(path, error) from error
    if fd is None:
        raise _busy(running.stage, _read(path) or running, "run already")
    try:
        told = {
            "stage": wirepath.encode(running.stage),
            "job": running.job,
            "pid": running.pid,
            "where": running.where,
            "reads": [wirepath.encode(each) for each in running.reads],
            "writes": [wirepath.encode(each) for each in running.writes],
        }
        os.ftruncate(fd, 0)
        with open(os.dup(fd), "wb") as file:  # which writes all of it, or fails
            file.write(json.dumps(told).encode())
        command = f"{rwlock.OURS}{running.stage}"
        local = [[each for each in paths if "://" not in each] for paths in (running.reads, running.writes)]
        reads, writes = ([repo.path(each) for each in paths] for paths in local)
        return Claim(path, fd, rwlock.add(repo.temporary, running.pid, command, reads=reads, writes=writes))
    except OSError as error:
        os.close(fd)
        raise _unclaimed(path, error) from error


def refuse(
    repo: Repo, *, writes: Iterable[str] = (), reads: Iterable[str] = (), env: Mapping[str, str] | None = None
) -> None:
    """Raise BusyError when a running stage makes what is to be read or written, or reads what is to be written.

    Paths are from the project's root. What this process runs itself is no obstacle, nor is with `env` (a command's) the stage that
    the command is part of.
    """
    found = [each for each in others(repo) if env is None or not _is_own(repo, each, env)]
    if not found:
        return
    written, read = list(writes), list(reads)
    for each in found:
        for path in (*written, *read):
            if any(overlap(path, other) for other in each.writes):
                raise _busy(_seen(repo, path), each, "made")
        for path in written:
            if any(overlap(path, other) for other in each.reads):
                raise _busy(_seen(repo, path), each, "read")


def others(repo: Repo) -> list[Running]:
    """The stages that other processes run, real DVC's included."""
    folder = os.path.join(repo.temporary, _FOLDER)
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    found = [running for name in sorted(names) if (running := _read(os.path.join(folder, name))) is not None]
    # What millpond runs has a claim, or does not run any more, whatever process has its number by now.
    told = [entry for entry in rwlock.entries(repo.temporary) if not entry.command.startswith(rwlock.OURS)]
    theirs = [entry for entry in told if entry.pid != os.getpid() and lives(entry.pid)]
    found += [
        Running("", None, each.pid, tuple(_inside(repo, each.reads)), tuple(_inside(repo, each.writes)))
        for each in theirs
    ]
    return [running for running in found if running.pid != os.getpid() or not running.is_here]


def _locked(path: str) -> int | None:
    """The file at `path`, made and locked; None when somebody else has it locked. Raises OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        # The one before may have removed it between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        os.close(fd)


def _read(path: str) -> Running | None:
    """The claim in a file; None when nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        try:
            told: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
            reads, writes = (tuple(map(wirepath.decode, told[key])) for key in ("reads", "writes"))
            return Running(
                wirepath.decode(told["stage"]), told["job"], int(told["pid"]), reads, writes, str(told.get("where", ""))
            )
        except (ValueError, KeyError, TypeError):
            # Held, and not to be understood: nothing of the project is to be touched.
            return Running(os.path.basename(path), None, 0, (), ("",))


def _is_own(repo: Repo, running: Running, env: Mapping[str, str]) -> bool:
    return env.get("DVC_STAGE") == running.stage and env.get("DVC_ROOT") == repo.root


def _seen(repo: Repo, path: str) -> str:
    return path if "://" in path or path.startswith("/") else repo.seen(path)


def _inside(repo: Repo, paths: Iterable[str]) -> Iterator[str]:
    top = os.path.join(repo.root, "")
    return (path.removeprefix(top) for path in paths)


def _unclaimed(path: str, error: OSError) -> MillpondError:
    if error.errno in _NO_LOCKS:
        shown = printable(path)
        return InvalidFileError(
            f"cannot lock '{shown}': {error.strerror}", path=shown,
            hint="stages run only where their file system has locks (flock): mount it with them, or have the project elsewhere",
        )  # fmt: skip
    return write_error(
        error if error.filename else OSError(error.errno, error.strerror, path), "make room, then run it again"
    )


def _busy(what: str, running: Running, how: str) -> BusyError:
    shown = printable(what)
    return BusyError(f"'{shown}' is being {how} by {running.who}", path=shown, hint=running.hint)
