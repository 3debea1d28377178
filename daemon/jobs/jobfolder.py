"""A job's folder: files of the caller's, written by his processes only, in a folder that only he may enter.

    job.json     what to run, from before the daemon hears of the job; never changed
    env          the client's environment, NAME=VALUE NUL ...; removed when the shim has read it
    begun.json   written by the shim before anything of the job runs: who it is
    log, log.1   what the job writes (joblog.py)
    answer.json  of a verb: its result or its error
    result.json  how the job ended; its room on the disk is taken when the job begins

Write order: job.json and env, then the daemon's row, then begun.json, then env goes, then the job runs, then log and
answer.json, then result.json, by rename: that is the commit point of a job's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millpond.daemon import xdg
from millpond.daemon.errors import InvalidFileError

VERSION = 1
# A result has a few hundred bytes; this much is reserved for it.
RESULT_BYTES = 64 << 10
MAX_FILE = 64 << 20
_SPEC, _ENV, _BEGUN, _RESULT, _RESERVED, _ANSWER = (
    *("job.json", "env", "begun.json"),
    *("result.json", "result.new", "answer.json"),
)


def home(environ: Mapping[str, str]) -> str:
    """Where a user's jobs have their folders: `$XDG_STATE_HOME/millpond-user/jobs`, else below `~/.local/state`."""
    return os.path.join(xdg.base(environ, "XDG_STATE_HOME", ".local/state"), "millpond-user", "jobs")


@dataclass(frozen=True, slots=True)
class JobFolder:
    """One job's files below the absolute `path`."""

    path: str

    @classmethod
    def create(cls, environ: Mapping[str, str], spec: Mapping[str, Any], env: Mapping[str, str]) -> JobFolder:
        """Make a folder with a job to be begun, durably. Raises OSError, and nothing is left then."""
        base = home(environ)
        os.makedirs(base, mode=0o700, exist_ok=True)
        folder = cls(os.path.join(base, secrets.token_hex(8)))
        os.mkdir(folder.path, 0o700)
        try:
            folder._stage(_SPEC, json.dumps({"version": VERSION, **spec}).encode())
            folder._stage(_ENV, b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()))
            _sync_folder(folder.path)
            _sync_folder(base)
        except BaseException:
            folder.remove()
            raise
        return folder

    @property
    def id(self) -> str:
        """What marks the job's processes (MILLPOND_JOB_ID)."""
        return os.path.basename(self.path)

    def spec(self) -> dict[str, Any]:
        """job.json. Raises InvalidFileError."""
        found = self._read(_SPEC)
        if found is None:
            raise InvalidFileError(f"the job's file '{self._at(_SPEC)}' cannot be read", path=self._at(_SPEC))
        if found.get("version") != VERSION:
            raise InvalidFileError(
                f"'{self._at(_SPEC)}' is of another version of millpond", path=self._at(_SPEC), hint="run the job again"
            )
        return found

    def environment(self) -> dict[str, str]:
        """The client's environment. Raises InvalidFileError when it is gone, with what began before."""
        try:
            with open(self._at(_ENV), "rb") as file:
                pairs = [item.partition(b"=") for item in file.read().split(b"\0") if item]
        except OSError as error:
            raise InvalidFileError(f"the job's environment cannot be read: {error.strerror}", path=self.path) from error
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}

    def begin(self, who: Mapping[str, Any]) -> None:
        """Reserve room for the result, say durably that the job has begun, remove its environment. Raises OSError."""
        fd = os.open(self._at(_RESERVED), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESULT_BYTES)
        finally:
            os.close(fd)
        self._write(_BEGUN, json.dumps({"version": VERSION, **who}).encode())
        os.unlink(self._at(_ENV))

    def discard_environment(self) -> None:
        """Nothing will begin any more. Safe twice."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(_ENV))

    def begun(self) -> dict[str, Any] | None:
        """What the shim wrote when it began, None when it has not."""
        return self._read(_BEGUN)

    def answer(self, message: Mapping[str, Any]) -> None:
        """Keep a verb's `result` or `error`, durably. Raises OSError."""
        self._write(_ANSWER, json.dumps(message).encode())

    def answered(self) -> dict[str, Any] | None:
        return self._read(_ANSWER)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result where room was reserved, durably. Raises OSError; it may be tried again."""
        data = json.dumps({"version": VERSION, **result}).encode()
        fd = os.open(self._at(_RESERVED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.ftruncate(fd, len(data))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(self._at(_RESERVED), self._at(_RESULT))
        _sync_folder(self.path)

    def result(self) -> dict[str, Any] | None:
        """How it ended; None when that was never written."""
        return self._read(_RESULT)

    def remove(self) -> None:
        """Remove it all. Safe twice. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(self._at(name), "rb") as file:
                data = file.read(MAX_FILE + 1)
            found = json.loads(data) if len(data) <= MAX_FILE else None
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, data: bytes) -> None:
        self._stage(name, data)
        _sync_folder(self.path)

    def _stage(self, name: str, data: bytes) -> None:
        """Put a whole file in place; its name is durable when the folder is synced."""
        new = self._at(f"{name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, self._at(name))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
