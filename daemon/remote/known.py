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
from typing import Any

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
    """The notes about one remote; `where` is its url and endpoint. To be closed.

    Nothing is synced: what a power loss leaves may be damaged, and is thrown away then, as notes may be at any time."""

    def __init__(self, where: str, environ: Mapping[str, str]) -> None:
        folder = os.path.join(user_folder(environ), "remotes")
        hashed = hashlib.blake2b(where.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        self._path = os.path.join(folder, hashed)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._db = self._open()
        except (OSError, sqlite3.OperationalError):
            # A full disk, one that cannot be written, or another process that is making the file at this moment, which must not be taken
            # away from it: what is noted is forgotten at the end.
            self._db = self._open(":memory:")
        except sqlite3.DatabaseError:
            self._db = self._anew()

    def _open(self, path: str = "") -> sqlite3.Connection:
        db = sqlite3.connect(path or self._path, timeout=10, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.execute(_SCHEMA)
        db.execute("DELETE FROM noted WHERE at < ?", (time.time() - _KEEP_S,))
        return db

    def _anew(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(self._path + suffix)
        return self._open()

    def of(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were complete there within a day."""
        return self._select(names, "complete AND at > ?", time.time() - FRESH_S)

    def seen(self, names: Sequence[ObjectName]) -> set[ObjectName]:
        """Those that were there when somebody looked last, complete or not."""
        return self._select(names, "at > ?", 0.0)

    def latest(self, most: int) -> list[ObjectName]:
        """Manifests that were complete there, the latest first."""
        rows = self._ask("SELECT name FROM noted WHERE complete ORDER BY at DESC LIMIT ?", [(most,)])
        return [ObjectName.from_key(key) for (key,) in rows]

    def add(self, names: Iterable[ObjectName], *, complete: bool) -> None:
        """These are there now; with `complete` they are manifests, and so is all that they name."""
        now = time.time()
        # What was complete is so until it is dropped.
        self._ask(
            "INSERT INTO noted VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at, "
            "complete = max(complete, excluded.complete) WHERE excluded.complete OR NOT complete",
            [(name.key(), now, complete) for name in names],
        )

    def drop(self, names: Iterable[ObjectName]) -> None:
        """These are not there."""
        gone = list(names)
        if gone and self._ask("SELECT 1 FROM noted LIMIT 1", [()]):
            self._ask("DELETE FROM noted WHERE name = ?", [(name.key(),) for name in gone])

    def clear(self) -> None:
        """Nothing is known."""
        self._ask("DELETE FROM noted", [()])

    def _select(self, names: Sequence[ObjectName], which: str, bound: float) -> set[ObjectName]:
        by_key = {name.key(): name for name in names}
        keys, found = list(by_key), set[ObjectName]()
        for start in range(0, len(keys), _PART):
            part = keys[start : start + _PART]
            marks = ",".join("?" * len(part))
            rows = self._ask(f"SELECT name FROM noted WHERE {which} AND name IN ({marks})", [(bound, *part)])
            found.update(by_key[key] for (key,) in rows)
        return found

    def _ask(self, statement: str, values: Sequence[tuple[object, ...]]) -> list[tuple[Any, ...]]:
        """One statement with each of these values, together; what it answers, nothing where the file cannot be used now."""
        try:
            self._db.execute("BEGIN")
            try:
                rows = [row for each in values for row in self._db.execute(statement, each)]
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            return rows
        except sqlite3.OperationalError:  # a full disk, another's lock: then it is asked for again
            return []
        except sqlite3.DatabaseError:
            self._db.close()
            self._db = self._anew()
            return []

    def close(self) -> None:
        self._db.close()
