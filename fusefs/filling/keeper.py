"""The holder's side of its fillers: given a clone when they want one, told about when they have ended, and replaced when they were killed."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

import trio

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.filling import IN_CONTAINER
from millpond.daemon.mounts.kernel import is_machines
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.rpc import framing
from millpond.fusefs.engines import mounting
from millpond.fusefs.engines.arrival import Arrival
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling import messages, starting
from millpond.fusefs.filling.feed import Feed
from millpond.fusefs.filling.starting import Forked
from millpond.fusefs.filling.windowfeed import WindowFeed
from millpond.fusefs.reaping import reaped
from millpond.fusefs.serving.messages import USED, segments_of

log = logging.getLogger("millpond.filler")

# Pauses before one that was killed is replaced, doubled each time; after so many of a mount there is one less.
_FIRST_PAUSE_S, MOST_REPLACED = 1.0, 3
# For so long after somebody wants to unmount no filler opens anything below the mount.
_AWAY_S = 10.0
KILLED = f"its process was killed {MOST_REPLACED + 1} times"


def why_not(place: str, *, recorded: bool, system: bool = False) -> str:
    """Why the mount at a place may have no filler; "" when it may. `recorded`: its opens are asked for; `system`: it was made in system mode."""
    if recorded:
        return "what is read is recorded"
    if not is_machines("pid"):
        return IN_CONTAINER
    entry = mounted_at(place)
    return "the mount is not in the kernel's table" if entry is None else connections.why_not(entry, system=system)


class Keeper:
    """The fillers of the mount on `place`, whose descriptor is `device`. `forked` may be why there are none; with `why_not` those that were forked are
    let go. `image` is the memory of an image's space, if that is what they fill."""

    def __init__(
        self,
        forked: Sequence[Forked] | str,
        filesystem: Filesystem,
        *,
        device: int,
        place: str,
        why_not: str,
        image: int = -1,
    ) -> None:
        self._fs = filesystem
        self._device = device
        self._place = place
        self._forked = [] if isinstance(forked, str) else list(forked)
        # Those that are not given up.
        self._kept = [] if why_not else list(self._forked)
        self._why_not = forked if isinstance(forked, str) else why_not
        # Why one who asked has no descriptor of the mount, which it asks for again.
        self._not_given = ""
        self._killed = 0
        # Of the mount, as long as it is on top at its place: there who must abort it looks for it.
        entry = mounted_at(place)
        self._number = "" if entry is None else entry.device
        # What requests are told to, by this process and by servers, who are given `fds`.
        socks, tallies = [each.sock for each in self._kept], [each.tally for each in self._kept]
        self.feed = Feed(socks, filesystem.where, tallies) if self._kept and image < 0 else None
        # What windows of an image are told to, by this process alone.
        self.windows = WindowFeed(self._kept)
        self._image = image
        for each in self._forked:
            if each not in self._kept:
                each.close()

    @property
    def fds(self) -> list[int]:
        """What leads to the fillers."""
        return [each.sock.fileno() for each in self._kept]

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        files, size = self.counts()
        return {
            "fillers": [each.pid for each in self._kept if each.pid],
            "fillers_killed": self._killed,
            "filling_why": self._why_not or self._not_given,
            "filled_files": files,
            "filled_bytes": size,
        }

    def ending(self) -> None:
        """The mount is about to be unmounted: nothing of it may be open."""
        for each in self._kept:
            each.tally.keep_away(_AWAY_S)

    def counts(self) -> tuple[int, int]:
        """Files and bytes that they brought."""
        counts = [each.tally.counts() for each in self._forked]
        return sum(files for files, _ in counts), sum(size for _, size in counts)

    async def run(self, arrival: Arrival) -> None:
        """Give them what they want until they end or this is cancelled. No request ever waits for one."""
        async with trio.open_nursery() as nursery:
            for each in self._forked:
                if each in self._kept:
                    nursery.start_soon(self._tend, each, arrival)
                else:
                    nursery.start_soon(_reap, each)

    async def ended(self) -> None:
        """After `run`, when each has been let go: return when all are no processes any more, which those are that wait for a READ when it is answered."""
        for each in self._forked:
            if each.pid:
                await _reap(each)

    async def _tend(self, forked: Forked, arrival: Arrival) -> None:
        """One, and those that take its place."""
        arrival.also(forked.sock.fileno())
        pause_s, replaced = _FIRST_PAUSE_S, 0
        try:
            while True:
                pid = forked.pid
                if await self._until_ended(forked):
                    break
                self._killed += 1
                log.warning("a filler of the mount was killed, process %d", pid)
                if replaced == MOST_REPLACED:
                    self._why_not = self._why_not or KILLED
                    break
                await trio.sleep(pause_s)
                pause_s, replaced = 2 * pause_s, replaced + 1
                if not self._replace(forked):
                    break
        finally:
            arrival.not_also(forked.sock.fileno())
            self._kept.remove(forked)
            forked.close()

    async def _until_ended(self, forked: Forked) -> bool:
        """Serve one until it is no process any more; whether it has said why."""
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                while True:
                    await trio.lowlevel.wait_readable(forked.sock)
                    self._receive(forked)

            nursery.start_soon(listen)
            await _reap(forked)
            nursery.cancel_scope.cancel()
        while self._receive(forked):
            pass
        return bool(forked.why)

    def _replace(self, forked: Forked) -> bool:
        try:
            if not self._is_mounted():  # it was detached, or is covered by another
                return False
            starting.replace(forked)
        except OSError as error:
            self._why_not = f"another process cannot be started: {error.strerror}"
            log.error("%s", self._why_not)
            return False
        if self.feed is not None:
            self.feed.again(forked.sock)
        self.windows.again(forked)
        return True

    def _receive(self, forked: Forked) -> bool:
        """One message; whether there was one."""
        try:
            message = forked.sock.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            return False
        kind, body = message[:1], message[1:]
        if kind == messages.WANTED:
            self._give(forked.sock)
        elif kind == USED:
            self._fs.reader.note_used(segments_of(body))
        elif kind == messages.ENDED:
            self._why_not = forked.why = body.decode(errors="replace")
        return bool(message)

    def _is_mounted(self) -> bool:
        """Raises OSError."""
        entry = mounted_at(self._place)
        return entry is not None and entry.device == self._number

    def _give(self, sock: socket.socket) -> None:
        """A clone, which is the filler's alone."""
        try:
            if not self._is_mounted():
                return  # it was detached, or is covered by another
            clone = mounting.clone(self._device)
        except OSError as error:
            self._not_given = f"another process cannot share the mount: {error.strerror}"
            log.error("%s", self._not_given)
            return
        self._not_given = ""
        try:
            message = messages.DEVICE + self._number.encode()
            given = [clone] if self._image < 0 else [clone, self._image]
            sock.sendmsg([message], framing.ancillary(given), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            log.info("the filler does not take its descriptor: %s", error)
        finally:
            os.close(clone)


async def _reap(forked: Forked) -> None:
    """Wait for its end. Its number may be another's then."""
    await reaped(forked.pid)
    forked.pid = 0
