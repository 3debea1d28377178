"""What a remote was seen to hold: kept per user and remote, so that a second push asks little.

It is the caller's own note, never proof: a manifest that was complete is asked for again each time, what it names is asked for
again after a day, and what is read is checked in any case. A file that cannot be used is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence

from millpond.daemon.names import ObjectName
from millpond.daemon.project.statcache import user_folder
from millpond.daemon.remote.remotes import Remote

# Knowledge older than this is asked for again.
FRESH_S = 86_400.0
# Notes older than this are dropped.
_KEEP_S = 30 * 86_400.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS known (name BLOB PRIMARY KEY, size INTEGER, at REAL, method TEXT) WITHOUT ROWID"
# Host parameters of one statement.
_PART = 900


class Known:
    """The notes about one remote. To be closed."""

    def __init__(self, remote: Remote, environ: Mapping[str, str]) -> None:
        where = f"{remote.url}\0{remote.values.get('endpointurl', '')}"
        folder = os.path.join(user_folder(environ), "remotes")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, hashlib.blake2b(where.encode(errors="surrogateescape"), digest_size=16).hexdigest())
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._db = self._open(path)

    def _open(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=10, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        db.execute("DELETE FROM known WHERE at < ?", (time.time() - _KEEP_S,))
        return db

    def of(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were seen there within a day."""
        since = time.time() - FRESH_S
        by_key = {name.key(): name for name in names}
        keys, found = list(by_key), set[ObjectName]()
        for start in range(0, len(keys), _PART):
            part = keys[start : start + _PART]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT name FROM known WHERE at > ? AND name IN ({marks})", (since, *part))
            found.update(by_key[key] for (key,) in rows)
        return found

    def add(self, seen: Iterable[tuple[ObjectName, int]], method: str) -> None:
        """These are there now; `method` tells how that is known: put, seen (asked for)."""
        now = time.time()
        rows = [(name.key(), size, now, method) for name, size in seen]
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk, another's lock: then it is asked for again
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def drop(self, names: Iterable[ObjectName]) -> None:
        """These are not there."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.executemany("DELETE FROM known WHERE name = ?", [(name.key(),) for name in names])

    def close(self) -> None:
        self._db.close()
