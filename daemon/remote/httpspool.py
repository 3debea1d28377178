"""Objects of web servers that give no ranges, or no sizes: each read once, as a whole, into a file without a name."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from millpond.daemon.errors import MillpondError, RemoteError, from_wire
from millpond.daemon.remote.backend import FINAL, Entry, Got, write_all

# So many are kept, so many seconds after the last read; and what a disk must have left beside them.
_KEPT, _KEPT_S = 4, 60.0
_ROOM_BYTES = 256 << 20


class Spool:
    """A whole object in a file; its size is below 0 until it is there. Closed by its last user."""

    def __init__(self, folder: str) -> None:
        self.lock = threading.Lock()
        self.entry = Entry("", -1)
        self.error: MillpondError | None = None
        self.used = time.monotonic()
        self._folder = folder
        self._fd = -1
        self._room = 0

    def write(self, piece: bytes) -> None:
        """The next bytes of it. Raises RemoteError where there is no room, OSError."""
        if self._fd < 0:
            found = os.statvfs(self._folder)
            self._room = found.f_bavail * found.f_frsize - _ROOM_BYTES
            self._fd, path = tempfile.mkstemp(prefix="millpond-", dir=self._folder)
            os.unlink(path)
        self._room -= len(piece)
        if self._room < 0:
            raise RemoteError(
                f"an object that its server gives only as a whole has no room in '{self._folder}'",
                path=self._folder,
                hint="set TMPDIR to a folder with more room",
                details=FINAL,
            )
        write_all(self._fd, piece)

    def read(self, start: int, size: int | None) -> Got:
        """A range, as of any object."""
        self.used = time.monotonic()
        length = max(0, min(self.entry.size - start, self.entry.size if size is None else size))
        data = os.pread(self._fd, length, start) if length else b""
        if len(data) < length:
            raise RemoteError(f"'{self.entry.key}' cannot be read again from '{self._folder}'", path=self._folder)
        return Got(data, self.entry)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class Spools:
    """For any number of threads; who asks for an object that is being fetched waits for it. `fetch` writes one into its spool."""

    def __init__(self, folder: str, fetch: Callable[[str, Spool], Entry]) -> None:
        self._folder = folder
        self._fetch = fetch
        self._lock = threading.Lock()
        self._spools: OrderedDict[str, Spool] = OrderedDict()
        self._sweeper: threading.Timer | None = None

    def going_on(self, key: str, start: int, etag: str | None) -> Spool | None:
        """Where the reader of an object has its further parts from. Where the server tells no versions apart, whoever begins at the
        beginning has it asked anew."""
        with self._lock:
            spool = self._spools.get(key)
        return spool if spool is not None and spool.entry.size >= 0 and spool.entry.etag == etag and start else None

    def get(self, key: str, told: str | None, *, fresh: bool) -> Spool:
        """The whole object; `told` is the ETag that it has now, `fresh` whether none that is here will do."""
        with self._lock:
            spool = self._spools.get(key)
            if spool is None or fresh or (spool.entry.size >= 0 and spool.entry.etag != told):
                spool = self._spools[key] = Spool(self._folder)
                self._sweep_later()
            self._spools.move_to_end(key)
            while len(self._spools) > _KEPT:
                self._spools.popitem(last=False)
        with spool.lock:
            if spool.error is not None:  # one error for each who waited
                raise from_wire(spool.error.to_wire())
            if spool.entry.size < 0:
                try:
                    spool.entry = self._fetch(key, spool)
                except MillpondError as error:
                    spool.error = error
                    with self._lock:
                        self._spools.pop(key, None)
                    raise
        return spool

    def close(self) -> None:
        with self._lock:
            self._spools.clear()
            if self._sweeper is not None:
                self._sweeper.cancel()

    def _sweep_later(self) -> None:
        """A mount keeps its backend for days: what nobody reads on gives its room back."""
        if self._sweeper is None:
            self._sweeper = threading.Timer(_KEPT_S, self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        with self._lock:
            self._sweeper = None
            for key, spool in list(self._spools.items()):
                if spool.entry.size >= 0 and time.monotonic() - spool.used > _KEPT_S:
                    del self._spools[key]
            if self._spools:
                self._sweep_later()
