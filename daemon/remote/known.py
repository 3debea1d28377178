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
_SCHEMA = "CREATE TABLE IF NOT EXISTS noted (name BLOB PRIMARY KEY, at REAL, complete INTEGER) WITHOUT ROWID"
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
        db.execute("DELETE FROM noted WHERE at < ?", (time.time() - _KEEP_S,))
        return db

    def of(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were complete there within a day."""
        return self._select(names, "complete AND at > ?", time.time() - FRESH_S)

    def seen(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were there when somebody looked last, complete or not."""
        return self._select(names, "at > ?", 0.0)

    def latest(self, most: int) -> list[ObjectName]:
        """Manifests that were complete there, the latest first."""
        rows = self._db.execute("SELECT name FROM noted WHERE complete ORDER BY at DESC LIMIT ?", (most,))
        return [ObjectName.from_key(key) for (key,) in rows]

    def add(self, names: Iterable[ObjectName], *, complete: bool) -> None:
        """These are there now; with `complete` they are manifests, and so is all that they name."""
        now = time.time()
        rows = [(name.key(), now, complete) for name in names]
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk, another's lock: then it is asked for again
            self._db.execute("BEGIN")
            # What was complete is so until it is dropped.
            self._db.executemany(
                "INSERT INTO noted VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at, "
                "complete = max(complete, excluded.complete) WHERE excluded.complete OR NOT complete",
                rows,
            )
            self._db.execute("COMMIT")

    def drop(self, names: Iterable[ObjectName]) -> None:
        """These are not there."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.executemany("DELETE FROM noted WHERE name = ?", [(name.key(),) for name in names])

    def clear(self) -> None:
        """Nothing is known."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("DELETE FROM noted")

    def _select(self, names: Sequence[ObjectName], which: str, bound: float) -> set[ObjectName]:
        by_key = {name.key(): name for name in names}
        keys, found = list(by_key), set[ObjectName]()
        for start in range(0, len(keys), _PART):
            part = keys[start : start + _PART]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT name FROM noted WHERE {which} AND name IN ({marks})", (bound, *part))
            found.update(by_key[key] for (key,) in rows)
        return found

    def close(self) -> None:
        self._db.close()
