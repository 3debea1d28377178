"""The holder's side of a filler: forked before anything is open, given a clone when it wants one, told about when it has ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from millpond.daemon.jobs import process
from millpond.daemon.mounts import connections
from millpond.daemon.mounts.filling import IN_CONTAINER
from millpond.daemon.mounts.kernel import is_machines
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.rpc import framing
from millpond.fusefs.engines import mounting
from millpond.fusefs.engines.arrival import Arrival
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling import filler, messages
from millpond.fusefs.filling.feed import Feed
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.serving.messages import USED, segments_of

log = logging.getLogger("millpond.filler")


@dataclass(frozen=True, slots=True)
class Forked:
    """A filler that sleeps: its pid, what leads to it, and what it counts."""

    pid: int
    sock: socket.socket
    tally: Tally


def fork(settings: filler.FillerSettings, log_to: Callable[[], None]) -> Forked:
    """For a process without threads that has nothing open of the store. In the child `log_to` opens its log. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tally, parent = Tally(), os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Forked(pid, ours, tally)
    try:
        fd = theirs.fileno()
        # What else is open is the holder's: its end must be seen by those who wait for it.
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        process.set_name("millpond-filler")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        log_to()
        why = filler.serve(settings, theirs, parent, tally)
        if why:
            with contextlib.suppress(OSError):
                theirs.send(messages.ENDED + why.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except BaseException:
        log.exception("the filler failed")
    finally:
        # Not by sys.exit: what the holder has set up is not this process's to end. A thread that still answers ends with it.
        os._exit(0)


def why_not(place: str, *, recorded: bool) -> str:
    """Why the mount at a place may have no filler; "" when it may. `recorded`: its opens are asked for."""
    if recorded:
        return "what is read is recorded"
    if not is_machines("pid"):
        return IN_CONTAINER
    entry = mounted_at(place)
    return "the mount is not in the kernel's table" if entry is None else connections.why_not(entry)


class Keeper:
    """The filler of the mount on `place`, whose descriptor is `device`. `forked` may be why there is none; with `why_not` one that was forked is
    let go."""

    def __init__(self, forked: Forked | str, filesystem: Filesystem, *, device: int, place: str, why_not: str) -> None:
        self._fs = filesystem
        self._device = device
        self._place = place
        self._forked = None if isinstance(forked, str) else forked
        self._sock = None if isinstance(forked, str) or why_not else forked.sock
        self._why_not = forked if isinstance(forked, str) else why_not
        # Of the mount, as long as it is on top at its place: there who must abort it looks for it.
        entry = mounted_at(place)
        self._number = "" if entry is None else entry.device
        # What requests are told to, by this process and by servers, who are given `fd`.
        self.feed = None if self._sock is None else Feed(self._sock)
        if self._forked is not None and self._sock is None:
            self._forked.sock.close()
        filesystem.more_statistics.append(self.statistics)

    @property
    def fd(self) -> int:
        """What leads to the filler; -1 when there is none."""
        return -1 if self._sock is None else self._sock.fileno()

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        files, size = (0, 0) if self._forked is None else self._forked.tally.counts()
        pid = self._forked.pid if self._forked is not None and self._sock is not None else None
        return {"filler": pid, "filling_why": self._why_not, "filled_files": files, "filled_bytes": size}

    async def run(self, arrival: Arrival) -> None:
        """Give it what it wants until it ends or this is cancelled. No request ever waits for it."""
        if self._forked is None:
            return
        if self._sock is not None:
            arrival.also(self._sock.fileno())
            try:
                while await self._receive(self._sock):
                    pass
            finally:
                arrival.not_also(self._sock.fileno())
                self._sock.close()
                self._sock = None
                self._why_not = self._why_not or "its process was killed"
        # It may wait in the kernel until a READ is answered.
        pidfd = os.pidfd_open(self._forked.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  it has ended
        finally:
            os.close(pidfd)

    async def _receive(self, sock: socket.socket) -> bool:
        """One message; False at the end."""
        await trio.lowlevel.wait_readable(sock)
        try:
            message = sock.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            message = b""
        kind, body = message[:1], message[1:]
        if kind == messages.WANTED:
            self._give(sock)
        elif kind == USED:
            self._fs.reader.note_used(segments_of(body))
        elif kind == messages.ENDED:
            self._why_not = body.decode(errors="replace")
        return bool(message)

    def _give(self, sock: socket.socket) -> None:
        """A clone, which is the filler's alone."""
        entry = mounted_at(self._place)
        if entry is None or entry.device != self._number:
            return  # it was detached, or is covered by another
        try:
            clone = mounting.clone(self._device)
        except OSError as error:
            self._why_not = f"another process cannot share the mount: {error.strerror}"
            log.error("%s", self._why_not)
            return
        try:
            message = messages.DEVICE + self._number.encode()
            sock.sendmsg([message], framing.ancillary([clone]), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            log.info("the filler does not take its descriptor: %s", error)
        finally:
            os.close(clone)
