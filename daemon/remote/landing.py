"""Objects on their way into a directory (see staging.py): which of them share a sync, and when they get their names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.remote.flow import RANGE_BYTES, Flow
from millpond.daemon.remote.going import Going
from millpond.daemon.remote.layout import key_of
from millpond.daemon.remote.staging import Staged, Staging

# Files that share a sync: so many, or those of so many seconds, which who waits hears of.
STAGED_FILES, STAGED_BYTES, STAGED_S = 4096, 64 << 20, 1.0
# So many times that wait for their names, where new folders get theirs with all that is in them; then their bytes are on their way to the
# disk after each half of it: little is left for the sync that is waited for.
_GATHERED, _FLUSHED = 5, 0.5
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


class Landing:
    """Objects on their way into a directory: while some are made durable and get their names, the next ones are written. `created` is
    told of them when their names are durable, too, which takes the sync of those after them, or one of their own at the end."""

    def __init__(self, staging: Staging, flow: Flow, created: Created, going: Going) -> None:
        self._staging = staging
        self._flow = flow
        self._created = created
        self._going = going
        # Bytes of small ones that were written since they were told of.
        self._untold = 0
        self._files: list[Staged] = []
        self._objects: list[Upload] = []
        self._size = 0
        # New folders that these are in (see Staging.stage).
        self._new: dict[str, str] = {}
        # When the first of these was begun, and which share of a group was reached when their bytes were last sent on their way.
        self._began = 0.0
        self._flushed = 0.0
        # A sync that has their bytes on the way to the disk, before the one that counts.
        self._flushing: Future[None] | None = None
        # Those that are getting their names, and those that have them, perhaps not durably.
        self._flying: tuple[Future[None], list[Staged], list[Upload]] | None = None
        self._named: list[Upload] = []

    def __enter__(self) -> Landing:
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
        pieces = self._flow.paid(each.pieces)
        if each.size > RANGE_BYTES:
            pieces = self._going.telling(pieces)
        else:
            self._untold += each.size
        self._files.append(self._staging.stage(each.key, pieces, each.size, self._new))
        self._objects.append(each)
        self._size += each.size
        share = max(
            self._size / STAGED_BYTES,
            len(self._files) / STAGED_FILES,
            (time.monotonic() - self._began) / STAGED_S,
        )
        if share >= (_GATHERED if self._new else 1):
            self._turn()
        elif self._new and share >= self._flushed + _FLUSHED:
            self._flushed = share
            self._flush()

    def _tell_bytes(self) -> None:
        self._going.add(self._untold)
        self._untold = 0
        self._going.tell()

    def _flush(self) -> None:
        """Begin to have their bytes on the disk. What fails then fails again in the sync that counts (see disks.py)."""
        self._tell_bytes()
        if self._flushing is None or self._flushing.done():
            self._flushing = self._flow.submit(self._staging.sync, tries=1)

    def _turn(self) -> None:
        """Begin to name what was written, when what was before has its names."""
        self._tell_bytes()
        self._land()
        files = self._files
        task = self._flow.submit(lambda: self._staging.settle(files), tries=1)
        self._flying = task, files, self._objects
        # Nothing more is written into folders that are about to get their names.
        self._files, self._objects, self._size, self._new, self._flushed = [], [], 0, {}, 0.0

    def _land(self) -> None:
        if self._flying is not None:
            task, _, objects = self._flying
            self._flow.wait(task)
            named, self._named, self._flying = self._named, objects, None
            self._tell(named)

    def _finish(self) -> None:
        self._tell_bytes()
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
