"""The truth about jobs: one SQLite file (WAL), opened by the daemon alone.

number    INTEGER  what people call it; never used twice, also when rows are removed
uid       INTEGER  the caller's
state     TEXT     states.py
name      TEXT     the caller's, or NULL
kind      TEXT     command, or verb
title     TEXT     what runs, for people
cwd       TEXT     wire form
folder    TEXT     wire form; the files there are the caller's, this process never opens them
resources TEXT     JSON object, what the scheduler goes by
pid       INTEGER  of the shim; 0 until there is one. It is written before the shim may begin.
start     INTEGER  /proc/PID/stat field 22
boot      TEXT     /proc/sys/kernel/random/boot_id
created, started, ended  REAL, seconds since the epoch, or NULL
exit_code, signal        INTEGER, or NULL
reason    TEXT     why it is as it is, or NULL
outcome   TEXT     JSON object
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from millpond.daemon.errors import (
    BusyError,
    DiskFullError,
    InternalError,
    MillpondError,
    StoreFormatError,
    from_system,
)
from millpond.daemon.jobs.record import JobRecord
from millpond.daemon.jobs.states import ACTIVE, ENDED

log = logging.getLogger("millpond.jobs")

VERSION = 1
_COLUMNS = [field.name for field in dataclasses.fields(JobRecord)]
_JSON = ("resources", "outcome")
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, uid INTEGER NOT NULL, state TEXT NOT NULL, kind TEXT NOT NULL,
    title TEXT NOT NULL, cwd TEXT NOT NULL, folder TEXT NOT NULL, name TEXT, resources TEXT NOT NULL,
    pid INTEGER NOT NULL, start INTEGER NOT NULL, boot TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL,
    exit_code INTEGER, signal INTEGER, reason TEXT, outcome TEXT NOT NULL
);
CREATE INDEX jobs_of ON jobs (uid, state, number);
"""


class JobTable:
    """The open file. Used by one thread at a time; every method that writes has committed when it returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    def open(cls, path: Path, *, fsync: bool = True) -> JobTable:
        """Open or make the file; one that is damaged is set aside under another name. Raises StoreFormatError for one of a
        newer version, BusyError when another daemon has it, DiskFullError, AccessError, InternalError."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return cls(_connected(path, fsync))
            except sqlite3.OperationalError as error:
                raise _told(error) from error
            except sqlite3.DatabaseError as error:
                _set_aside(path, error)
                return cls(_connected(path, fsync))
        except sqlite3.Error as error:
            raise _told(error) from error
        except OSError as error:
            raise from_system(error, "opening the table of jobs") from error

    def add(self, record: JobRecord) -> int:
        """Insert a job; its number. Raises DiskFullError."""
        columns = [name for name in _COLUMNS if name != "number"]
        values = _values(record)
        with self._writing():
            done = self._db.execute(
                f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [values[name] for name in columns],
            )
        return int(done.lastrowid or 0)

    def save(self, record: JobRecord) -> None:
        """Write a job that is there. Raises DiskFullError."""
        values = _values(record)
        columns = [name for name in _COLUMNS if name != "number"]
        with self._writing():
            self._db.execute(
                f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in columns)} WHERE number = ?",
                [*(values[name] for name in columns), record.number],
            )

    def remove(self, numbers: Sequence[int]) -> None:
        """Forget jobs. Raises DiskFullError."""
        with self._writing():
            self._db.executemany("DELETE FROM jobs WHERE number = ?", [(number,) for number in numbers])

    def active(self) -> list[JobRecord]:
        """All jobs that have not ended, oldest first."""
        return self._select(f"state IN ({_quoted(ACTIVE)}) ORDER BY number")

    def of(self, uid: int | None, limit: int) -> list[JobRecord]:
        """The newest jobs that ended, of one user or of all, newest first."""
        return self._select(
            f"state IN ({_quoted(ENDED)}) AND (?1 IS NULL OR uid = ?1) ORDER BY number DESC LIMIT ?2", uid, limit
        )

    def beyond(self, uid: int, keep: int, limit: int) -> list[JobRecord]:
        """Of a user's ended jobs the oldest ones, all but the newest `keep`; at most `limit`."""
        return self._select(
            f"uid = ? AND state IN ({_quoted(ENDED)}) ORDER BY number DESC LIMIT ? OFFSET ?", uid, limit, keep
        )

    def close(self) -> None:
        """Safe twice."""
        self._db.close()

    def _select(self, where: str, *values: Any) -> list[JobRecord]:
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {where}", values)
        return [_record(row) for row in rows]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except (sqlite3.Error, OverflowError) as error:
            raise _told(error) from error


def _set_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    log.error("'%s' is damaged (%s): set aside as '%s', jobs are counted anew", path, error, aside.name)
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _connected(path: Path, fsync: bool) -> sqlite3.Connection:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.close(fd)
    db = sqlite3.connect(path, check_same_thread=False, timeout=1.0)
    try:
        # One daemon has it, also where a home is shared by machines; and there is no shared memory to go wrong there.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'OFF'}")
        [[version]] = db.execute("PRAGMA user_version")
        if version > VERSION:
            raise StoreFormatError(
                f"'{path}' has jobs of format {version}, this daemon knows {VERSION}",
                path=str(path),
                hint="use the newer millpond that wrote it",
            )
        if version == 0:
            with db:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        db.execute("SELECT count(*) FROM jobs")
        return db
    except BaseException:
        db.close()
        raise


def _quoted(states: frozenset[Any]) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


def _values(record: JobRecord) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in _COLUMNS}
    return values | {name: json.dumps(values[name]) for name in _JSON}


def _record(row: Sequence[Any]) -> JobRecord:
    values = dict(zip(_COLUMNS, row, strict=True))
    return JobRecord(**values | {name: json.loads(values[name]) for name in _JSON})


def _told(error: sqlite3.Error | OverflowError) -> MillpondError:
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        return BusyError(
            "the table of jobs is in use by another daemon", hint="is your home shared with another machine?"
        )
    if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return DiskFullError(f"the table of jobs cannot be written: {error}", hint="free some space, then do it again")
    return InternalError(f"the table of jobs failed: {error}", hint="see `millpond daemon logs`")
