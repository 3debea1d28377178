"""Lazy reads: what a mount's reader asks for and this machine has not, brought from the project's remotes.

Small objects come whole and are checked before a byte of them is given out; large ones by blocks (large.py). Readers who wait for
one block or object share its request. What comes ahead of need, the rest of a folder being walked and the blocks behind a
sequential reader, waits behind what somebody waits for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from millpond.daemon import memfd
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Got
from millpond.daemon.remote.gate import Gate
from millpond.daemon.remote.large import DEADLINE_S, LargeObjects, damaged, result_of
from millpond.daemon.remote.partial import WHOLE_BYTES, Partials
from millpond.daemon.remote.places import Places, check
from millpond.daemon.remote.settling import Settler

# Requests at once for those who wait, and ahead of need.
NOW, AHEAD = 32, 16
# So many who wait leave nothing for what comes ahead of need.
_BUSY = 24
# Names that wait to be brought ahead of need.
_MAX_HINTS = 4096


class Fetcher:
    """For one mount. `partials` are for what is read in part; with `check_first` large objects are checked as a whole before a byte of
    them is given out; `changed` is called when there is something to be `told` that no request led to."""

    def __init__(
        self,
        places: Places,
        settler: Settler,
        partials: Partials,
        *,
        check_first: bool = False,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._gate = Gate(places)
        self._settler = settler
        self._lock = threading.Lock()
        # Told when fewer wait.
        self._calmer = threading.Condition(self._lock)
        self._now = ThreadPoolExecutor(NOW, thread_name_prefix="fetch")
        self._ahead = ThreadPoolExecutor(AHEAD, thread_name_prefix="ahead")
        self._large = LargeObjects(
            self._gate,
            settler,
            partials,
            now=self._now,
            ahead=self._ahead,
            check_first=check_first,
            changed=changed,
        )
        self._flying: dict[ObjectName, Future[bytes]] = {}
        self._hints: OrderedDict[ObjectName, None] = OrderedDict()
        self._walking = 0
        self._waiting = 0
        self._closed = False

    def told(self) -> dict[str, int | str]:
        """{requests, bytes, unverified, rate, jobs, refused, wanted, damaged}: what was moved so far, large objects that are here in part and that nobody
        has checked as a whole, what bounds reading (see Limits), why remotes refuse to be asked ("": they do not), for which object they did last, and what there is to
        say of the last large object that was damaged."""
        requests, size = self._gate.moved
        wanted = self._gate.wanted
        return {
            "requests": requests,
            "bytes": size,
            "unverified": self._large.unverified,
            **self._gate.limits._asdict(),
            "refused": self._gate.refused,
            "wanted": "" if wanted is None else str(wanted),
            "damaged": self._large.last_damaged,
        }

    def prepare(self) -> None:
        """Connect now: somebody is going to ask soon."""
        self._gate.prepare()

    def renew(self) -> None:
        """The environment is another one: ask the remotes with it. Raises CredentialsError, RemoteError, RemoteConfigError."""
        self._gate.renew()

    def open(self, name: ObjectName, size: int) -> tuple[int, bool]:
        """(descriptor, whether all is there) of an object that is to have `size` bytes: of a memory file, or of one that `ensure`
        fills. Raises ObjectMissingError, StoreDamagedError, RemoteError, CredentialsError."""
        if size <= WHOLE_BYTES:
            return memfd.from_bytes(self._whole(name)), True
        with self._someone_waits():
            return self._large.open(name, size), False

    def ensure(self, name: ObjectName, size: int, inode: int, offset: int, length: int) -> tuple[int, int] | int:
        """See LargeObjects.ensure."""
        with self._someone_waits():
            return self._large.ensure(name, size, inode, offset, length)

    def hint(self, names: Sequence[ObjectName]) -> None:
        """These may be read soon: small objects of a folder that is being walked."""
        with self._lock:
            if self._closed:
                return
            for name in names:
                if name not in self._flying and self._settler.get(name) is None and len(self._hints) < _MAX_HINTS:
                    self._hints[name] = None
            more = min(AHEAD - self._walking, len(self._hints))
            self._walking += more
            for _ in range(more):
                self._ahead.submit(self._walk)

    def close(self) -> None:
        """Nothing more is asked for; what came is stored."""
        with self._lock:
            self._closed = True
            self._hints.clear()
        for pool in (self._now, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)
        self._large.close()
        self._settler.close()

    def _whole(self, name: ObjectName) -> bytes:
        data = self._settler.get(name)
        if data is not None:
            return data
        with self._lock:
            self._hints.pop(name, None)
            future = self._flying.get(name)
            if future is None:
                future = self._flying[name] = self._now.submit(self._fetch, name)
        with self._someone_waits():
            return result_of(future, name, time.monotonic() + DEADLINE_S)

    def _fetch(self, name: ObjectName) -> bytes:
        try:
            data = bytes(self._gate.get(name, 0, WHOLE_BYTES + 1, accept=lambda got: _check(name, got)).data)
            self._settler.keep(name, data)
            return data
        finally:
            with self._lock:
                self._flying.pop(name, None)

    def _walk(self) -> None:
        """Bring a hinted object, if there is room and not too many wait for others; then stand at the end of the line again, so that the
        blocks behind a sequential reader come as well."""
        with self._calmer:
            self._calmer.wait_for(lambda: self._waiting <= _BUSY)
            if not self._hints or not self._settler.room():
                self._hints.clear()
                self._walking -= 1
                return
            name, _ = self._hints.popitem(last=False)
            mine: Future[bytes] | None = None
            if name not in self._flying:
                mine = self._flying[name] = Future()
        if mine is not None:
            try:
                mine.set_result(self._fetch(name))
            except Exception as error:  # whoever waits for it is told; nobody else needs to know
                mine.set_exception(error)
        with self._lock:
            if self._closed:
                self._walking -= 1
            else:
                self._ahead.submit(self._walk)

    @contextlib.contextmanager
    def _someone_waits(self) -> Iterator[None]:
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._calmer:
                self._waiting -= 1
                self._calmer.notify_all()


def _check(name: ObjectName, got: Got) -> None:
    if got.entry.size > WHOLE_BYTES:  # whatever was listed: it is not to be held
        raise damaged(name)
    check(name, got.data)
