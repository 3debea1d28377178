"""The loop of the direct engine: requests taken, answered at once or later, and taken back.

Two lanes. One task reads requests and answers at once what takes no waiting, with no await of its own in between; what must
wait for a disk or a source becomes a task of its own. There is a bounded number of these, and their threads are taken in
the order in which they asked, so that one slow object holds up its readers only. While nothing waits, the loop itself waits for
the kernel a moment (arrival.py), before it lets trio do so: a program that asks for one thing after the other is answered in
half the time.

A request that waits is taken back by INTERRUPT when its program is to end (signals.py). Its answer is EINTR at once; what
it had begun goes on to its own deadline, and answers nobody.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from millpond.daemon.errors import MillpondError, MountError
from millpond.fusefs.attributes import FileError
from millpond.fusefs.engines import protocol
from millpond.fusefs.engines.answers import Handler, Later, Work
from millpond.fusefs.engines.arrival import Arrival
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.protocol import IN_HEADER, Op
from millpond.fusefs.filesystem import Filesystem

log = logging.getLogger("millpond.fusefs")

# The longest request is a name, or forgets: the kernel fills what the buffer holds.
_BUFFER = 256 << 10
# Waiting requests at once; then no more are taken until one is done.
MAX_WAITING = 1024
# Requests answered in a row before other tasks run.
_ROW = 64
# Requests answered in a row before a little is done of what is answered slowly.
_TURN = 4
# Interrupted requests that are remembered, as they may be on their way from another process.
_MAX_EARLY = 256
# How often it is seen whether an interrupted program is to end by now: the kernel does not say INTERRUPT twice.
_LOOK_S = 0.2


class Handlers(Protocol):
    """What answers requests: by their operation, whether kernel and we have agreed, and for whom of those who have a signal a request is
    taken back."""

    table: dict[int, Handler]
    initialised: bool

    def takes_back(self, pid: int) -> bool:
        """Whether the request of this thread, which has a signal, is to be answered with EINTR."""
        ...

    @property
    def is_behind(self) -> bool:
        """Whether `idle` has more to do that somebody waits for."""
        ...

    def idle(self) -> bool:
        """Do a little of what is done between requests; `is_behind` after it."""
        ...


@dataclass(slots=True)
class _Waiting:
    """A request that waits: who asked, and how to stop it."""

    unique: int
    pid: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    watched: bool = False


class Session:
    """One mount: `fd` gives the kernel's requests and takes the answers, which `answers` makes."""

    def __init__(
        self,
        filesystem: Filesystem,
        fd: int,
        nursery: trio.Nursery,
        answers: Callable[[Channel, Later], Handlers],
    ) -> None:
        self._fs = filesystem
        self._fd = fd
        self._nursery = nursery
        self._channel = Channel(fd)
        self._answers = answers(self._channel, self._later)
        self._table = {**self._answers.table, Op.INTERRUPT: self._interrupt}
        self._waiting: dict[int, _Waiting] = {}
        self._room = trio.Event()
        self._pid = 0
        # Whether other processes take requests of this mount, too; then those that were interrupted before they came here.
        self.shared = False
        self._early: OrderedDict[int, None] = OrderedDict()
        self.arrival = Arrival(fd, self._answers.idle)
        self.initialised = trio.Event()

    @property
    def pid(self) -> int:
        """The thread that asked last."""
        return self._pid

    async def run(self) -> None:
        """Answer until the mount is gone. Raises MountError when the kernel is too old."""
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer).toreadonly()
        arrival = self.arrival
        row = 0
        while True:
            if row < _ROW and not self._waiting and arrival.comes():
                row += 1
            else:
                row = 0
                if self._answers.is_behind:
                    self._answers.idle()
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._fd)
            try:
                size = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                raise
            if not size:
                return
            self._handle(view[:size])
            if row % _TURN == 0 and self._answers.is_behind:
                self._answers.idle()  # or else who asks all the time would keep what others wait for from being done
            if len(self._waiting) >= MAX_WAITING:
                await self.room()

    async def room(self) -> None:
        """Return when another request may wait."""
        while len(self._waiting) >= MAX_WAITING:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def take_over(self, request: bytes, fd: int) -> None:
        """Answer a request, or begin to, that another process read from `fd`. Raises MountError."""
        _, op, unique, *_ = IN_HEADER.unpack_from(request)
        if op not in protocol.SILENT:
            self._channel.answer_on(unique, fd)
        self._handle(memoryview(request))
        # The loop waits for requests of its own, and knows nothing of this one.
        while self._answers.is_behind:
            self._answers.idle()

    def _handle(self, request: memoryview) -> None:
        """Answer a request, or begin to. Raises MountError."""
        if len(request) < IN_HEADER.size:
            log.error("a request of %d bytes has no header", len(request))
            return
        _, op, unique, inode, _, _, self._pid, _, _ = IN_HEADER.unpack_from(request)
        work = self._table.get(op)
        if work is None:
            self._channel.error(unique, errno.EROFS if op in protocol.CHANGES else errno.ENOSYS)
            return
        try:
            with self._fs.reading():
                work(unique, inode, request[IN_HEADER.size :])
        except MountError:
            raise
        except Exception as error:
            if op in protocol.SILENT:
                log.error("request %d is not understood: %s", op, error)
            else:
                self._failed(unique, error)
        if op == Op.INIT and self._answers.initialised:
            self.initialised.set()

    # -- requests that wait ---------------------------------------------------------------------------------------

    def _later(self, unique: int, work: Work) -> None:
        """Answer in a task of its own."""
        waiting = self._waiting[unique] = _Waiting(unique, self._pid)
        self._nursery.start_soon(self._wait, waiting, work)
        if unique in self._early:
            del self._early[unique]
            self._begin_to_watch(waiting)

    async def _wait(self, waiting: _Waiting, work: Work) -> None:
        try:
            with waiting.scope:
                await work()
        except Exception as error:
            if not waiting.scope.cancel_called:  # else it has its answer
                self._failed(waiting.unique, error)
        finally:
            del self._waiting[waiting.unique]
            self._room.set()

    def _interrupt(self, unique: int, inode: int, body: memoryview) -> None:
        """Who waits for a request has a signal. If it is answered already, nothing is to be done."""
        (of,) = protocol.INTERRUPT_IN.unpack_from(body)
        waiting = self._waiting.get(of)
        if waiting is not None:
            self._begin_to_watch(waiting)
        elif self.shared:
            self._early[of] = None
            if len(self._early) > _MAX_EARLY:
                self._early.popitem(last=False)

    def _begin_to_watch(self, waiting: _Waiting) -> None:
        if not waiting.watched:
            waiting.watched = True
            self._nursery.start_soon(self._watch, waiting)

    async def _watch(self, waiting: _Waiting) -> None:
        """Take a request back once its program is to end."""
        while waiting.unique in self._waiting:
            if self._answers.takes_back(waiting.pid):
                self._channel.error(waiting.unique, errno.EINTR)
                waiting.scope.cancel()
                return
            await trio.sleep(_LOOK_S)

    def _failed(self, unique: int, error: Exception) -> None:
        """Whatever went wrong is this request's errno and nobody else's."""
        if isinstance(error, struct.error):
            self._channel.error(unique, errno.EINVAL)  # a request that is too short
            return
        if not isinstance(error, FileError):
            if not isinstance(error, MillpondError):
                log.error("a request failed", exc_info=error)
            error = self._fs.failed(str(error), error)
        self._channel.error(unique, error.errno)
