"""What a filler brings of a mount by the direct engine: the small files around those that are read, a NOTIFY_STORE each."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.rpc import framing
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.filling import messages
from millpond.fusefs.filling.lister import Lister
from millpond.fusefs.filling.plan import Plan
from millpond.fusefs.filling.pusher import Pusher
from millpond.fusefs.filling.tally import Tally, available_bytes

# Files brought in one go; the part of the memory that is filled (one in so many).
_FILES = 512
_PART = 4
# Files looked up ahead in one go.
_AHEAD = 128
# Directories that wait for there to be a descriptor of the mount.
_MOST_UNLISTED = 256
# Files that the kernel did not know, of _FILES, after which it is not told more.
_MOST_UNKNOWN = 64


class Files:
    """The share of one filler: which of how many, of the mount on `place`. `uid`'s grants count."""

    def __init__(self, uid: int, tally: Tally, share: tuple[int, int], place: str) -> None:
        self._uid = uid
        self._place = place
        # Of directories, once there is a descriptor of the mount; and what is to be listed by then.
        self._lister: Lister | None = None
        self._unlisted: list[bytes] = []
        self._tally = tally
        self._plan = Plan(self._files_of, lambda: available_bytes() // _PART, share)
        self._reader: StoreReader | None = None
        self._folders: FolderReader | None = None
        self._pusher: Pusher | None = None
        self._pushing: Iterator[None] | None = None
        self._looks_ahead = False
        self._generation = self._plan.generation

    def wake(self, reader: StoreReader) -> None:
        """See Bringer."""
        self._reader = reader
        self._folders = FolderReader(reader.index)
        self._generation = self._plan.generation

    def hear(self, kind: bytes, body: bytes) -> None:
        """See Bringer."""
        if kind == messages.LISTED:
            self._plan.listed(messages.folders_of(body))
            self._looks_ahead = True  # their files may be looked up while nothing else is to be done
        elif kind == messages.READ:
            self._plan.read(messages.files_of(body), time.monotonic())
        elif kind == messages.LIST and self._lister is not None:
            self._lister.add(body)
        elif kind == messages.LIST and len(self._unlisted) < _MOST_UNLISTED:
            self._unlisted.append(body)

    def begin(self, device: int, number: str, given: Sequence[int]) -> None:
        """See Bringer."""
        framing.close_all(given)
        # Who waits for an answer must be ended if nobody is left to give one: from now on there is somebody who sees to that (guard.py).
        self._lister = Lister(self._place, number, self._tally)
        for path in self._unlisted:
            self._lister.add(path)
        self._unlisted.clear()
        assert self._reader is not None
        self._pusher = Pusher(self._reader, self._uid, device, self._tally)
        self._plan.resume(time.monotonic())

    @property
    def is_busy(self) -> bool:
        """See Bringer."""
        return self._pushing is not None or (self._looks_ahead and self._pusher is not None)

    def step(self) -> None:
        """See Bringer."""
        if self._pusher is None:
            return
        now = time.monotonic()
        if self._pushing is None:
            if self._generation != self._plan.generation:
                self._generation = self._plan.generation
                self._pusher.forget()
            if self._pusher.unknown >= _MOST_UNKNOWN:
                self._plan.give_up()
            self._pusher.unknown = 0
            inodes = self._plan.take(_FILES, now)
            if not inodes:
                self._look_ahead(self._pusher)
                return
            self._pushing = self._pusher.push(inodes, self._plan.was_read)
        if not self._plan.is_going(now):
            self._pushing = None
            return
        try:
            next(self._pushing)
        except StopIteration:
            self._pushing = None
            self.step()

    def _look_ahead(self, pusher: Pusher) -> None:
        """Some of what will be asked for if all that was listed is read: a processor that is idle now will not be then."""
        if self._looks_ahead:
            inodes = [] if pusher.is_full else self._plan.ahead(_AHEAD)
            pusher.look_up(inodes)
            self._looks_ahead = bool(inodes)

    def end(self) -> None:
        """See Bringer."""
        if self._lister is not None:
            self._lister.join()

    def sleep(self) -> None:
        """See Bringer."""
        if self._lister is not None:
            self._lister.end()
        self._reader = self._folders = self._pusher = self._pushing = self._lister = None
        self._unlisted.clear()
        self._looks_ahead = False
        self._plan.rest()

    def _files_of(self, folder: bytes, largest: int, most: int) -> tuple[array[int], array[int]]:
        try:
            assert self._folders is not None
            return self._folders.small_files(folder, largest, most)
        except StoreDamagedError:  # a folder of before the index was made anew
            return array("Q"), array("I")
