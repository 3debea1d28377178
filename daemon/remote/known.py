"""Which manifests were complete on a remote: kept per user and remote, so that a second push asks little.

It is the caller's own note, never proof: such a manifest is asked for again each time, and only while it is there what it names counts as
there, for a collection, ours or DVC's, removes manifests first. A file that cannot be used is thrown away.
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

# What a manifest names is asked for again after this.
FRESH_S = 86_400.0
# Notes older than this are dropped.
_KEEP_S = 30 * 86_400.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS complete (name BLOB PRIMARY KEY, at REAL) WITHOUT ROWID"
# Host parameters of one statement.
_PART = 900


class Known:
    """The notes about one remote; `where` is its url and endpoint. To be closed."""

    def __init__(self, where: str, environ: Mapping[str, str]) -> None:
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
        db.execute("DELETE FROM complete WHERE at < ?", (time.time() - _KEEP_S,))
        return db

    def of(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were seen complete there within a day."""
        since = time.time() - FRESH_S
        by_key = {name.key(): name for name in names}
        keys, found = list(by_key), set[ObjectName]()
        for start in range(0, len(keys), _PART):
            part = keys[start : start + _PART]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT name FROM complete WHERE at > ? AND name IN ({marks})", (since, *part))
            found.update(by_key[key] for (key,) in rows)
        return found

    def latest(self, most: int) -> list[ObjectName]:
        """Those that were seen complete there last, the latest first."""
        rows = self._db.execute("SELECT name FROM complete ORDER BY at DESC LIMIT ?", (most,))
        return [ObjectName.from_key(key) for (key,) in rows]

    def add(self, names: Iterable[ObjectName]) -> None:
        """These manifests are there now, and all that they name."""
        now = time.time()
        rows = [(name.key(), now) for name in names]
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk, another's lock: then it is asked for again
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO complete VALUES (?, ?)", rows)
            self._db.execute("COMMIT")

    def drop(self, names: Iterable[ObjectName]) -> None:
        """These are not there."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.executemany("DELETE FROM complete WHERE name = ?", [(name.key(),) for name in names])

    def close(self) -> None:
        self._db.close()
