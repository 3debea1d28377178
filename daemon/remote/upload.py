"""Objects on their way to a remote: small ones together or one by one, as the remote likes it, large ones while they are read."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from millpond.daemon.errors import CancelledError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import PART_BYTES, Backend, Data
from millpond.daemon.remote.flow import RANGE_BYTES, Flow
from millpond.daemon.remote.layout import key_of
from millpond.daemon.remote.staging import Staged, Staging

# Small objects written together, and how many such groups are under way.
GROUP_FILES, GROUP_BYTES, GROUPS = 512, 16 << 20, 3
# Files of a directory that share a sync: so many, or those of so many seconds, which who waits hears of.
STAGED_FILES, STAGED_BYTES, _STAGED_S = 4096, 64 << 20, 1.0
# Told of objects that are there for good.
Created = Callable[["Sequence[Upload]"], None]


@dataclass(frozen=True, slots=True)
class Upload:
    """An object that goes out: `size` bytes that `pieces` gives, once; to its name's place, or to `place`."""

    name: ObjectName
    size: int
    pieces: Iterable[Data]
    place: str | None = None

    @property
    def key(self) -> str:
        return self.place or key_of(self.name)


class _Landing:
    """Objects on their way into a directory: while some are made durable and get their names, the next ones are written. `created` is
    told of them when their names are durable, too, which takes the sync of those after them, or one of their own at the end."""

    def __init__(self, staging: Staging, flow: Flow, created: Created) -> None:
        self._staging = staging
        self._flow = flow
        self._created = created
        self._files: list[Staged] = []
        self._objects: list[Upload] = []
        self._size = 0
        self._began = 0.0
        # Those that are getting their names, and those that have them, perhaps not durably.
        self._flying: tuple[Future[None], list[Staged], list[Upload]] | None = None
        self._named: list[Upload] = []

    def __enter__(self) -> _Landing:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Land all of them; after an error nothing that waits for its name is left."""
        try:
            if kind is None:
                self._finish()
        finally:
            self._staging.drop(self._files if self._flying is None else [*self._files, *self._flying[1]])

    def add(self, each: Upload) -> None:
        """Write one; at times, wait for those before it."""
        if not self._files:
            self._began = time.monotonic()
        self._files.append(self._staging.stage(each.key, self._flow.paid(each.pieces), each.size))
        self._objects.append(each)
        self._size += each.size
        if self._size >= STAGED_BYTES or len(self._files) >= STAGED_FILES or time.monotonic() - self._began > _STAGED_S:
            self._turn()

    def _turn(self) -> None:
        """Begin to name what was written, when what was before has its names."""
        self._land()
        files = self._files
        task = self._flow.submit(lambda: self._staging.settle(files), tries=1)
        self._flying = task, files, self._objects
        self._files, self._objects, self._size = [], [], 0

    def _land(self) -> None:
        if self._flying is not None:
            task, _, objects = self._flying
            self._flow.wait(task)
            named, self._named, self._flying = self._named, objects, None
            self._tell(named)

    def _finish(self) -> None:
        if self._flying is None and not self._named:
            self._staging.commit(self._files)
            named, self._files = self._objects, []
        else:
            if self._files:
                self._turn()
            self._land()
            self._staging.sync()
            named = self._named
        self._tell(named)

    def _tell(self, objects: list[Upload]) -> None:
        if objects:
            self._flow.count(len(objects), sum(each.size for each in objects), pause=False)
            self._created(objects)


class Uploads:
    """What goes to one remote."""

    def __init__(self, backend: Backend, flow: Flow, jobs: int | None) -> None:
        self._backend = backend
        self._flow = flow
        self._groups = min(GROUPS, jobs or GROUPS)

    def send(self, objects: Iterable[Upload], created: Created) -> None:
        """Write objects; `created` is told of those that are there for good, in order."""
        staging, source = self._backend.staging, iter(objects)
        if staging is not None:
            with _Landing(staging, self._flow, created) as landing:
                for each in source:
                    landing.add(each)
                    if staging.is_slow:
                        break
        # All of it, or what is left for several threads.
        if self._backend.singly:
            self._singly(source, created)
        else:
            self._in_groups(source, created)

    def _singly(self, objects: Iterable[Upload], created: Created) -> None:
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
                landed.append(sent)
            if len(landed) >= GROUP_FILES:
                created(landed)
                landed.clear()

        try:
            for each in objects:
                if each.size > RANGE_BYTES:
                    land(0, 0)
                    self._stream(each)
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

    def _in_groups(self, objects: Iterable[Upload], created: Created) -> None:
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
                self._flow.count(len(sent), sum(each.size for each in sent))
                created(sent)

        for each in objects:
            if each.size > RANGE_BYTES:
                send(0)
                self._stream(each)
                created([each])
                continue
            group.append((each, b"".join(bytes(piece) for piece in each.pieces)))
            size += each.size
            if len(group) >= GROUP_FILES or size >= GROUP_BYTES:
                send(self._groups - 1)
        send(0)

    def _stream(self, each: Upload) -> None:
        """Write one large object while its bytes are read; a few pieces wait between the two. When that fails here nobody waits for
        what is on its way."""
        pieces: queue.Queue[bytes | None] = queue.Queue(4)
        given_up = threading.Event()

        def taken() -> Iterator[bytes]:
            while (piece := pieces.get()) is not None:
                if given_up.is_set():  # nothing half-written gets the object's name
                    raise CancelledError("the transfer was cancelled")
                yield piece

        task = self._flow.submit(lambda: self._backend.put_stream(each.key, taken(), each.size), tries=1)
        try:
            for piece in each.pieces:
                self._put(pieces, bytes(piece), task)
                self._flow.pause(len(piece))
                if task.done():
                    break
            # Too few pieces are an error of the stream.
            self._put(pieces, None, task)
            self._flow.wait(task)
        except BaseException:
            given_up.set()
            with contextlib.suppress(queue.Empty):
                pieces.get_nowait()
            with contextlib.suppress(queue.Full):
                pieces.put_nowait(b"")  # it may wait for one
            raise
        self._flow.count(1 + each.size // PART_BYTES, each.size, pause=False)

    def _put(self, pieces: queue.Queue[bytes | None], piece: bytes | None, task: Future[None]) -> None:
        while not task.done():
            try:
                pieces.put(piece, timeout=0.2)
                return
            except queue.Full:
                self._flow.look()
