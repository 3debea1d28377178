"""The filler: a process beside a mount's holder that brings what is read next into the page cache.

It sleeps until something is read, opens index and segments by itself then, and asks the holder for a clone of the mount's descriptor.
While a write to that waits in the kernel, another thread watches (guard.py). What it brings is another module's to know: neighbours of files
(files.py), or windows of an image (windows.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from millpond.daemon.errors import MillpondError
from millpond.daemon.rpc import framing
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs.filling import messages
from millpond.fusefs.filling.files import Files
from millpond.fusefs.filling.guard import Guard
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.filling.windows import Windows
from millpond.fusefs.serving.messages import used

log = logging.getLogger("millpond.filler")

# Memory that is used again for reading, in bytes.
_BUFFER_BYTES = 8 << 20
# Fillers of one mount at most.
MOST = 4
# Messages taken in a row; how often what was read is told, removed segments are let go of, and a descriptor that has not come is asked for again; after
# what time without a word everything is closed.
_ROW = 64
_REST_S = 0.005
_TELL_S = 5.0
_SLEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class FillerSettings:
    """Whose mount it is, of which store, and where; which of how many fillers this is; and whether the kernel reads an `image`."""

    store: str
    uid: int
    place: str
    log: str
    share: tuple[int, int] = (0, 1)
    image: bool = False


class Bringer(Protocol):
    """What to bring, and bringing it."""

    def wake(self, reader: StoreReader) -> None:
        """The store is open from now on."""
        ...

    def hear(self, kind: bytes, body: bytes) -> None:
        """A message, while awake."""
        ...

    def begin(self, device: int, number: str, given: Sequence[int]) -> None:
        """A clone of the descriptor of the mount with this `major:minor` has come, and what else the holder gives with it, which is closed
        here. Raises OSError."""
        ...

    def step(self) -> None:
        """Bring a batch, if there is reason to, once it has begun. Raises OSError."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether there is more to do at once."""
        ...

    def sleep(self) -> None:
        """Nobody reads: the store is closed."""
        ...

    def end(self) -> None:
        """The process ends after this: let no thread of it wait for an answer of the mount."""
        ...


class Filler:
    """`sock` leads to the holder and its servers; `holder` is a pidfd."""

    def __init__(self, settings: FillerSettings, sock: socket.socket, holder: int, tally: Tally) -> None:
        self._settings = settings
        self._sock = sock
        self._holder = holder
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._bringer: Bringer = (
            Windows(settings.uid, tally)
            if settings.image
            else Files(settings.uid, tally, settings.share, settings.place)
        )
        self._awake: _Awake | None = None

    def run(self) -> str:
        """Until the holder is gone (""), or there is another reason to end. Raises OSError, MillpondError."""
        try:
            return self._run()
        finally:
            # The guard answers until then. What it had taken and not answered yet, its own process's thread would wait for without an end: the
            # descriptor closes, and the kernel gives that answer, when all threads have ended.
            self._bringer.end()

    def _run(self) -> str:
        while True:
            busy = self._awake is not None and self._bringer.is_busy
            wait_s = None if self._awake is None else (0.0 if busy else _TELL_S)
            if self._poll.poll(None if wait_s is None else wait_s * 1000) and not self._receive():
                return ""
            if self._awake is None:
                continue
            if self._awake.why:
                return self._awake.why
            self._bringer.step()
            self._tell(self._awake)
            if self._awake is not None and not self._bringer.is_busy:
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
        if kind == messages.DEVICE and fds and self._awake is not None and self._awake.told < 0:
            device, *given = fds
            number = body.decode()
            told = self._awake.begin(device, number)
            self._poll.register(told, select.POLLIN)
            self._bringer.begin(device, number, given)
            return
        framing.close_all(fds)
        if kind == messages.DEVICE:
            return
        if self._awake is None:
            self._sock.send(messages.WANTED)
            self._awake = _Awake(self._settings, self._holder)
            self._bringer.wake(self._awake.reader)
        self._bringer.hear(kind, body)
        self._awake.heard_at = time.monotonic()

    def _tell(self, awake: _Awake) -> None:
        """Now and then: what was used; and close everything when nobody reads."""
        now = time.monotonic()
        if now < awake.tell_at:
            return
        awake.tell_at = now + _TELL_S
        awake.reader.let_go()
        # The holder may have had no room for another descriptor.
        asked = [messages.WANTED] if awake.told < 0 else []
        for message in [*asked, *used(awake.reader.take_used())]:
            with contextlib.suppress(BlockingIOError):
                self._sock.send(message, socket.MSG_DONTWAIT)
        if now - awake.heard_at > _SLEEP_S:
            if awake.told >= 0:
                self._poll.unregister(awake.told)
            self._bringer.sleep()
            awake.close()
            self._awake = None


class _Awake:
    """What a filler has while it is awake. Raises MillpondError."""

    def __init__(self, settings: FillerSettings, holder: int) -> None:
        self._place = settings.place
        self._holder = holder
        self.reader = StoreReader.open(Path(settings.store), _BUFFER_BYTES)
        self.heard_at = time.monotonic()
        self.tell_at = self.heard_at + _TELL_S
        self._device = -1
        self._guard: Guard | None = None

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
        self._guard = Guard(device, holder=self._holder, place=self._place, number=number)
        self._guard.begin()
        return self._guard.told

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
