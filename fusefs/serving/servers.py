"""The holder's side: servers started and ended as load has it, what they hand over, and what they leave when they are killed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from millpond.daemon.jobs.process import stat_fields
from millpond.daemon.rpc import framing
from millpond.fusefs.engines import mounting
from millpond.fusefs.engines.protocol import IN_HEADER
from millpond.fusefs.engines.session import Session
from millpond.fusefs.filesystem import Filesystem, Served
from millpond.fusefs.serving import messages
from millpond.fusefs.serving.load import Load, Meter, Sample, most_by_load
from millpond.fusefs.serving.shared import Counter, Directories, Slot

log = logging.getLogger("millpond.fusefs")

_SECOND = 1.0
# Pauses before a server is replaced that ended unasked, and how long one that took no request must have lived for there to be none.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LIVED_S = 0.1, 30.0, 1.0
# So many in a row that did not live so long, and no more are started.
_MOST_QUICK = 8
# How long a killed process may take to end.
_END_S = 10.0


@dataclass(slots=True)
class _Place:
    """What outlives a server: its clone of the mount's descriptor, on which its requests must be answered, and its slot."""

    device: int
    slot_fd: int
    slot: Slot
    directories: int


@dataclass(slots=True)
class _Server:
    """One that runs. `last` is the number of the request that it handed over last, `before` how many
    requests those took who had its slot before."""

    place: _Place
    process: subprocess.Popen[bytes]
    sock: socket.socket
    began: float
    before: int
    last: int = 0
    wanted: bool = True

    def hang_up(self) -> None:
        """Have it end between two requests."""
        self.wanted = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


class Servers:
    """Those of one mount, `device` being its descriptor. `fixed` processes in all; 0: as load has it, `most` of them (0: as the
    cores allow). What they read is told on the descriptors that `feed` gives. `image` is the memory of an image's space, if the kernel
    asks for one, of whose requests `asked(pid, offset, size)` is told."""

    def __init__(
        self,
        filesystem: Filesystem,
        session: Session,
        nursery: trio.Nursery,
        *,
        device: int,
        store: str,
        fixed: int,
        most: int,
        feed: Callable[[], Sequence[int]] = tuple,
        image: int = -1,
        asked: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._fs = filesystem
        self._session = session
        self._nursery = nursery
        self._device = device
        self._settings = {"store": store, "uid": filesystem.uid, "image": image}
        self._feed = feed
        self._image = image
        self._asked = asked
        self._fixed = fixed
        # How many processes there are to be.
        self._wanted = max(1, fixed)
        self._most = fixed or most or most_by_load()
        self._load = Load(self._most)
        self._directories = -1
        # All that there ever were: a clone is open as long as the mount lives.
        self._places: list[_Place] = []
        self._running: list[_Server] = []
        self._changed = trio.Event()
        self._deaths = self._left = 0
        self._pause_s = 0.0
        self._quick = 0
        self._not_before = 0.0
        # Why there are none; "" when there may be.
        self.why_not = ""
        filesystem.served = self._served
        filesystem.more_statistics.append(self.statistics)

    async def run(self) -> None:
        """Keep as many as are wanted, until cancelled."""
        if self._most < 2:
            return
        try:
            meter = Meter()
            while True:
                if not self._fixed:
                    self._wanted = self._load.wanted(self._wanted, self._sample(meter))
                running = [server for server in self._running if server.wanted]
                for server in running[self._wanted - 1 :]:
                    server.hang_up()
                for _ in range(self._wanted - 1 - len(running)):
                    if not self._start():
                        break
                self._changed = trio.Event()
                with trio.move_on_after(_SECOND):
                    await self._changed.wait()
        finally:
            self._end()

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        slots = [place.slot for place in self._places]
        return {
            "serving": 1 + len(self._running),
            "serving_most": self._most,
            "serving_why": self.why_not,
            "servers": [server.process.pid for server in self._running],
            "servers_ended": self._deaths,
            "servers_left": self._left,
            "served": sum(slot.counted(Counter.REQUESTS) for slot in slots),
            "handed_over": sum(slot.counted(Counter.HANDED_OVER) for slot in slots),
        }

    def _served(self) -> Served:
        slots = [place.slot for place in self._places]
        opens, reads, size = (
            sum(slot.counted(counter) for slot in slots)
            for counter in (Counter.OPENS, Counter.READS, Counter.READ_BYTES)
        )
        return Served(opens, reads, size)

    def _sample(self, meter: Meter) -> Sample:
        asked, there = self._session.arrival.take_counts()
        return meter.sample(asked, there, sum(_processor_s(server.process.pid) for server in self._running))

    # -- one server -----------------------------------------------------------------------------------------------

    def _start(self) -> bool:
        """Start one, unless it is too soon after one that ended unasked; whether it was."""
        if self.why_not or trio.current_time() < self._not_before:
            return False
        ours: socket.socket | None = None
        try:
            place = self._free_place()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                given = (place.device, place.slot_fd, place.directories, theirs.fileno())
                feed = list(self._feed())
                settings = json.dumps({**self._settings, "feed": feed})
                # From this thread, which lives as long as the process does: the server is to end with it (PR_SET_PDEATHSIG).
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-m", "millpond.fusefs.serving.server"),
                        *(*map(str, given), str(os.getpid()), settings),
                    ],
                    pass_fds=[*given, *feed, *([self._image] if self._image >= 0 else [])],
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                )
        except OSError as error:
            if ours is not None:
                ours.close()
            self.why_not = f"another process cannot share the mount: {error.strerror}"
            log.error("%s", self.why_not)
            return False
        server = _Server(place, process, ours, trio.current_time(), place.slot.counted(Counter.REQUESTS))
        self._running.append(server)
        self._session.shared = True
        self._session.arrival.also(ours.fileno())
        self._nursery.start_soon(self._tend, server)
        return True

    def _free_place(self) -> _Place:
        """A place that no server has. Raises OSError."""
        taken = [server.place for server in self._running]
        for place in self._places:
            if not any(place is each for each in taken):
                return place
        if self._directories < 0:
            self._directories = Directories.create()
            self._fs.nodes.share(Directories(self._directories))
        device = mounting.clone(self._device)
        try:
            slot_fd = Slot.create()
        except OSError:
            os.close(device)
            raise
        slot = Slot(slot_fd)
        slot.lock()
        place = _Place(device, slot_fd, slot, self._directories)
        self._places.append(place)
        return place

    async def _tend(self, server: _Server) -> None:
        """Take what a server hands over until it ends; then what it was at work on."""
        try:
            while await self._receive(server):
                pass
            await self._gone(server)
            # Only now is nobody else answering: what is left is ours.
            request = server.place.slot.request()
            if len(request) >= IN_HEADER.size and IN_HEADER.unpack_from(request)[2] != server.last:
                await self._session.room()
                self._left += 1
                self._session.take_over(request, server.place.device)
            server.place.slot.clear()
        finally:
            server.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(_END_S)
            self._session.arrival.not_also(server.sock.fileno())
            server.sock.close()
            self._running.remove(server)
            self._changed.set()
        if server.wanted:
            self._deaths += 1
            now = trio.current_time()
            if now - server.began >= _LIVED_S or server.place.slot.counted(Counter.REQUESTS) > server.before:
                self._pause_s, self._quick = 0.0, -1
            self._quick += 1
            if self._quick >= _MOST_QUICK:
                self.why_not = f"{_MOST_QUICK} servers in a row ended as soon as they had begun: see the holder's log"
            self._not_before = now + self._pause_s
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            log.warning("server %d of the mount ended with status %s", server.process.pid, server.process.returncode)

    async def _receive(self, server: _Server) -> bool:
        """One message; False at the end."""
        await self._session.room()
        await trio.lowlevel.wait_readable(server.sock)
        try:
            message = server.sock.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if not message:
            return False
        kind, body = message[:1], message[1:]
        if kind == messages.REQUEST:
            server.last = IN_HEADER.unpack_from(body)[2]
            self._session.take_over(body, server.place.device)
        elif kind == messages.FOLDER:
            self._fs.looked_into(body)
        elif kind == messages.ASKED and self._asked is not None:
            self._asked(*messages.asked_of(body))
        elif kind == messages.USED:
            self._fs.reader.note_used(messages.segments_of(body))
        return True

    async def _gone(self, server: _Server) -> None:
        """Wait until a server that hung up is no process any more."""
        pidfd = os.pidfd_open(server.process.pid)
        try:
            with trio.move_on_after(_END_S):
                await trio.lowlevel.wait_readable(pidfd)
            server.process.kill()
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)

    def _end(self) -> None:
        """The mount is gone, or is to be. Each server is ended by the task that tends it."""
        framing.close_all([fd for place in self._places for fd in (place.device, place.slot_fd)])
        if self._directories >= 0:
            os.close(self._directories)
        self._places.clear()


def _processor_s(pid: int) -> float:
    """Processor time of a process, in seconds; 0 when it is gone."""
    fields = stat_fields(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
