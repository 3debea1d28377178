"""The filler: a process beside a mount's holder that brings neighbours of what is read into the page cache.

It sleeps until small files are read, opens index and segments by itself then, and asks the holder for a clone of the mount's descriptor.
While a write to that waits in the kernel, another thread watches (guard.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from millpond.daemon.errors import MillpondError, StoreDamagedError
from millpond.daemon.rpc import framing
from millpond.daemon.store.folders import FolderReader
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.filling import messages
from millpond.fusefs.filling.guard import Guard
from millpond.fusefs.filling.plan import Plan
from millpond.fusefs.filling.pusher import Pusher
from millpond.fusefs.filling.tally import Tally, available_bytes
from millpond.fusefs.serving.messages import used

log = logging.getLogger("millpond.filler")

# Memory that is used again for reading, in bytes; files brought in one go; the part of the memory that is filled (one in so many).
_BUFFER_BYTES = 8 << 20
_FILES = 512
_PART = 4
# Fillers of one mount at most.
MOST = 4
# Files looked up ahead in one go.
_AHEAD = 128
# Messages taken in a row; how often what was read is told, and removed segments are let go of; after what time without a word everything is closed.
_ROW = 64
_REST_S = 0.005
_TELL_S = 5.0
_SLEEP_S = 60.0
# Files that the kernel did not know, of _FILES, after which it is not told more.
_MOST_UNKNOWN = 64


@dataclass(frozen=True, slots=True)
class FillerSettings:
    """Whose mount it is, of which store, and where; and which of how many fillers this is."""

    store: str
    uid: int
    place: str
    log: str
    share: tuple[int, int] = (0, 1)


class Filler:
    """`sock` leads to the holder and its servers; `holder` is a pidfd."""

    def __init__(self, settings: FillerSettings, sock: socket.socket, holder: int, tally: Tally) -> None:
        self._settings = settings
        self._sock = sock
        self._holder = holder
        self._tally = tally
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._work: _Work | None = None
        self._plan = Plan(self._files_of, lambda: available_bytes() // _PART, settings.share)

    def run(self) -> str:
        """Until the holder is gone (""), or there is another reason to end. Raises OSError, MillpondError."""
        while True:
            wait_s = None if self._work is None else (0.0 if self._work.is_busy else _TELL_S)
            if self._poll.poll(None if wait_s is None else wait_s * 1000) and not self._receive():
                return ""
            if self._work is None:
                continue
            if self._work.why:
                return self._work.why
            self._work.step()
            self._tell(self._work)
            if self._work is not None and not self._work.is_busy:
                time.sleep(_REST_S)  # else every message would wake it, and there is nothing to do

    def _receive(self) -> bool:
        """Take what is there; False at the end."""
        for _ in range(_ROW):
            try:
                message, control, _, _ = self._sock.recvmsg(
                    messages.MAX_BYTES, framing.ANCILLARY_BYTES, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not message:
                return False
            self._take(message[:1], message[1:], framing.received_fds(control))
        return True

    def _take(self, kind: bytes, body: bytes, fds: list[int]) -> None:
        if kind == messages.DEVICE and fds and self._work is not None and self._work.told < 0:
            told = self._work.begin(fds.pop(), body.decode())
            self._poll.register(told, select.POLLIN)
        framing.close_all(fds)
        if kind not in (messages.LISTED, messages.READ):
            return
        if self._work is None:
            self._sock.send(messages.WANTED)
            self._work = _Work(self._settings, self._holder, self._tally, self._plan)
        if kind == messages.LISTED:
            self._plan.listed(messages.folders_of(body))
            self._work.listed()
        else:
            self._plan.read(messages.files_of(body), time.monotonic())
            self._work.heard_at = time.monotonic()

    def _tell(self, work: _Work) -> None:
        """Now and then: what was used; and close everything when nobody reads."""
        now = time.monotonic()
        if now < work.tell_at:
            return
        work.tell_at = now + _TELL_S
        work.reader.let_go()
        for message in used(work.reader.take_used()):
            with contextlib.suppress(BlockingIOError):
                self._sock.send(message, socket.MSG_DONTWAIT)
        if now - work.heard_at > _SLEEP_S:
            if work.told >= 0:
                self._poll.unregister(work.told)
            work.close()
            self._work = None
            self._plan.rest()

    def _files_of(self, folder: bytes, largest: int, most: int) -> tuple[array[int], array[int]]:
        try:
            assert self._work is not None
            return self._work.folders.small_files(folder, largest, most)
        except StoreDamagedError:  # a folder of before the index was made anew
            return array("Q"), array("I")


class _Work:
    """What a filler has while it is awake. Raises MillpondError."""

    def __init__(self, settings: FillerSettings, holder: int, tally: Tally, plan: Plan) -> None:
        self._settings = settings
        self._plan = plan
        self._holder = holder
        self._tally = tally
        self.reader = StoreReader.open(Path(settings.store), _BUFFER_BYTES)
        self.folders = FolderReader(self.reader.index)
        self.heard_at = time.monotonic()
        self.tell_at = self.heard_at + _TELL_S
        self._device = -1
        self._guard: Guard | None = None
        self._pusher: Pusher | None = None
        self._pushing: Iterator[None] | None = None
        self._looks_ahead = False
        self._generation = plan.generation

    @property
    def is_busy(self) -> bool:
        """Whether there is more to do at once."""
        return self._pushing is not None or (self._looks_ahead and self._pusher is not None)

    def listed(self) -> None:
        """There are new folders, whose files may be looked up while nothing else is to be done."""
        self._looks_ahead = True

    @property
    def why(self) -> str:
        """Why the filler is to end; "" as long as it is not."""
        return "" if self._guard is None else self._guard.why

    @property
    def told(self) -> int:
        """What is readable when there is such a reason; -1 as long as there is no descriptor of the mount."""
        return -1 if self._guard is None else self._guard.told

    def begin(self, device: int, number: str) -> int:
        """A clone of the descriptor of the mount with this `major:minor` has come, the only one. Returns `told`."""
        self._device = device
        self._guard = Guard(device, holder=self._holder, place=self._settings.place, number=number)
        self._guard.begin()
        self._pusher = Pusher(self.reader, self._settings.uid, device, self._tally)
        self._plan.resume(time.monotonic())
        return self.told

    def step(self) -> None:
        """Bring a batch of files, if there is reason to. Raises OSError."""
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

    def close(self) -> None:
        """Nothing is under way: close everything."""
        if self._guard is not None:
            self._guard.end()
            os.close(self._device)
        self.reader.close()


def serve(settings: FillerSettings, sock: socket.socket, parent: int, tally: Tally) -> str:
    """What the forked process does; why it ended, "" if the holder did. `parent` is the holder's pid."""
    try:
        holder = os.pidfd_open(parent)
    except ProcessLookupError:
        return ""
    if os.getppid() != parent:
        return ""
    try:
        return Filler(settings, sock, holder, tally).run()
    except BrokenPipeError:
        return ""
    except (MillpondError, OSError) as error:
        log.error("the filler cannot go on: %s", error)
        return f"it could not go on: {error}"
