"""Objects on their way to a remote: small ones together or one by one, as the remote likes it, large ones while they are read."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial

from millpond.daemon.errors import CancelledError
from millpond.daemon.remote.backend import PART_BYTES, Backend, Sent
from millpond.daemon.remote.flow import RANGE_BYTES, Flow
from millpond.daemon.remote.going import Going
from millpond.daemon.remote.landing import Created, Landing, Upload

__all__ = ["Created", "Upload", "Uploads"]

# While a large object is waited for, what went of it is told so often.
_TOLD_S = 0.2
# Small objects written together, and how many such groups are under way.
GROUP_FILES, GROUP_BYTES, GROUPS = 512, 16 << 20, 3


class Uploads:
    """What goes to one remote."""

    def __init__(self, backend: Backend, flow: Flow, jobs: int | None) -> None:
        self._backend = backend
        self._flow = flow
        self._groups = min(GROUPS, jobs or GROUPS)

    def send(self, objects: Iterable[Upload], created: Created, went: Sent | None = None) -> None:
        """See Transfer.upload."""
        staging, source, going = self._backend.staging, iter(objects), Going(went)
        if staging is not None:
            with Landing(staging, self._flow, created, going) as landing:
                for each in source:
                    landing.add(each)
                    if staging.is_slow:
                        break
        # All of it, or what is left for several threads.
        if self._backend.singly:
            self._singly(source, created, going)
        else:
            self._in_groups(source, created, going)

    def _singly(self, objects: Iterable[Upload], created: Created, going: Going) -> None:
        """As many at once as still bring more."""
        flying: deque[tuple[Future[bool], Upload]] = deque()
        landed: list[Upload] = []
        held = 0

        def land(limit: int, most_bytes: int) -> None:
            nonlocal held
            while len(flying) > limit or (flying and held > most_bytes):
                task, sent = flying.popleft()
                self._flow.wait(task)
                held -= sent.size
                self._flow.count(1, sent.size)
                going.add(sent.size)
                landed.append(sent)
            going.tell()
            if len(landed) >= GROUP_FILES:
                created(landed)
                landed.clear()

        try:
            for each in objects:
                if each.size > RANGE_BYTES:
                    land(0, 0)
                    self._stream(each, going)
                    landed.append(each)
                    continue
                data = b"".join(bytes(piece) for piece in each.pieces)
                flying.append((self._flow.submit(partial(self._backend.put, each.key, data)), each))
                held += each.size
                land(self._flow.pace.limit, GROUPS * GROUP_BYTES)
            land(0, 0)
        finally:
            if landed:
                created(landed)

    def _in_groups(self, objects: Iterable[Upload], created: Created, going: Going) -> None:
        flying: deque[tuple[Future[None], list[Upload]]] = deque()
        group: list[tuple[Upload, bytes]] = []
        size = 0

        def send(limit: int) -> None:
            nonlocal group, size
            if group:
                items = [(each.key, data) for each, data in group]
                task = self._flow.submit(lambda: self._backend.put_many(items))
                flying.append((task, [each for each, _ in group]))
                group, size = [], 0
            while len(flying) > limit:
                task, sent = flying.popleft()
                self._flow.wait(task)
                size_sent = sum(each.size for each in sent)
                self._flow.count(len(sent), size_sent)
                going.add(size_sent)
                going.tell()
                created(sent)

        for each in objects:
            if each.size > RANGE_BYTES:
                send(0)
                self._stream(each, going)
                created([each])
                continue
            group.append((each, b"".join(bytes(piece) for piece in each.pieces)))
            size += each.size
            if len(group) >= GROUP_FILES or size >= GROUP_BYTES:
                send(self._groups - 1)
        send(0)

    def _stream(self, each: Upload, going: Going) -> None:
        """Write one large object while its bytes are read; a few pieces wait between the two, and what came there is told meanwhile. When
        that fails here nobody waits for what is on its way."""
        told: list[int] = []

        def sent(size: int) -> None:
            told.append(size)
            going.add(size)

        pieces: queue.Queue[bytes | None] = queue.Queue(4)
        given_up = threading.Event()

        def taken() -> Iterator[bytes]:
            while (piece := pieces.get()) is not None:
                if given_up.is_set():  # nothing half-written gets the object's name
                    raise CancelledError("the transfer was cancelled")
                yield piece

        task = self._flow.submit(lambda: self._backend.put_stream(each.key, taken(), each.size, sent), tries=1)
        try:
            for piece in each.pieces:
                self._put(pieces, bytes(piece), task, going)
                self._flow.pause(len(piece))
                if task.done():
                    break
            # Too few pieces are an error of the stream.
            self._put(pieces, None, task, going)
            while not wait([task], _TOLD_S).done:
                going.tell()
                self._flow.look()
            task.result()
        except BaseException:
            given_up.set()
            with contextlib.suppress(queue.Empty):
                pieces.get_nowait()
            with contextlib.suppress(queue.Full):
                pieces.put_nowait(b"")  # it may wait for one
            raise
        self._flow.count(1 + each.size // PART_BYTES, each.size, pause=False)
        going.add(each.size - sum(told))
        going.tell()

    def _put(self, pieces: queue.Queue[bytes | None], piece: bytes | None, task: Future[None], going: Going) -> None:
        while not task.done():
            going.tell()
            try:
                pieces.put(piece, timeout=_TOLD_S)
                return
            except queue.Full:
                self._flow.look()
