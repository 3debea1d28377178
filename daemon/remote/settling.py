"""What lazy reads brought is given to the daemon, as the caller: it hashes it, and grants what it finds to him.

Whole small objects wait in bounded memory, large ones in their files. While the daemon is away they wait, and once the bound is
reached what is read is answered but not kept.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millpond.daemon.errors import MillpondError
from millpond.daemon.jobs.objects import DaemonObjectStore
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc.client import Client

log = logging.getLogger("millpond.source")

# Bytes that wait, and what is given over at once.
MAX_BYTES, BATCH_BYTES, BATCH_FILES = 64 << 20, 16 << 20, 2000
# Small objects wait this long for company: a commit costs some milliseconds.
_COMPANY_S = 0.05
# After a failure, twice as long each time.
_AGAIN_S, _AGAIN_MOST_S = 0.5, 30.0


class Settler:
    """One thread that hands over. `connect` gives a connection to the daemon."""

    def __init__(self, connect: Callable[[], Client], context: dict[str, Any] | None = None) -> None:
        self._connect = connect
        self._context = context
        self._changed = threading.Condition()
        self._small: OrderedDict[ObjectName, bytes] = OrderedDict()
        self._files: OrderedDict[ObjectName, tuple[str, Callable[[bool], None]]] = OrderedDict()
        self._bytes = 0
        self._ended = False
        self._thread: threading.Thread | None = None
        # Set when it ends: cuts a pause short.
        self._later = threading.Event()

    @classmethod
    def to(cls, socket: str, context: dict[str, Any] | None = None) -> Settler:
        """For the daemon that listens there. With `context`, that of the user's request, it may evict for what comes
        in."""
        return cls(lambda: Client.connect(Path(socket), name="source"), context)

    def get(self, name: ObjectName) -> bytes | None:
        """A small object that waits."""
        with self._changed:
            return self._small.get(name)

    def room(self) -> bool:
        """Whether there is room for what is brought ahead of need."""
        with self._changed:
            return self._bytes < MAX_BYTES // 2

    def keep(self, name: ObjectName, data: bytes) -> None:
        """Have a small object, checked, stored."""
        with self._changed:
            if name not in self._small and self._bytes + len(data) <= MAX_BYTES:
                self._small[name] = data
                self._bytes += len(data)
                self._start()

    def keep_file(self, name: ObjectName, path: str, done: Callable[[bool], None]) -> None:
        """Have a file that is whole stored; `done` is told whether its bytes were what the name says."""
        with self._changed:
            self._files.setdefault(name, (path, done))
            self._start()

    def close(self) -> None:
        """What waits is given over once more, then the thread ends."""
        with self._changed:
            self._ended = True
            self._later.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _AGAIN_S
        while True:
            with self._changed:
                while not (self._small or self._files or self._ended):
                    self._changed.wait()
                if self._ended and not (self._small or self._files):
                    return
            try:
                with self._connect() as client:
                    self._hand_over(DaemonObjectStore(client, self._context))
                pause = _AGAIN_S
            except (MillpondError, OSError) as error:
                log.warning("what was read cannot be stored yet: %s", error)
                with self._changed:
                    if self._ended:
                        return
                # Not on each change: what comes in wakes nobody before it is time.
                self._later.wait(pause)
                pause = min(2 * pause, _AGAIN_MOST_S)

    def _hand_over(self, store: DaemonObjectStore) -> None:
        """On one connection, until nothing waits."""
        while True:
            if self._bytes < BATCH_BYTES and not self._ended:
                time.sleep(_COMPANY_S)
            with self._changed:
                batch, size = [], 0
                for name, data in self._small.items():
                    batch.append((name, data))
                    size += len(data)
                    if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                        break
                files = list(self._files.items())[:1]
            if not batch and not files:
                return
            if batch:
                list(store.put_pieces((data, True, False) for _, data in batch))
                store.commit()
                with self._changed:
                    for name, data in batch:
                        del self._small[name]
                        self._bytes -= len(data)
            for name, (path, done) in files:
                self._hand_over_file(store, name, path, done)

    def _hand_over_file(
        self, store: DaemonObjectStore, name: ObjectName, path: str, done: Callable[[bool], None]
    ) -> None:
        is_right = False
        with contextlib.suppress(FileNotFoundError):
            [put] = store.put_files([path])
            is_right = put.name.hex == name.hex
            if is_right:
                store.commit()
        with self._changed:
            self._files.pop(name, None)
        done(is_right)
