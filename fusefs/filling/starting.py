"""Fillers started: forked by the holder before it opens anything, or, in the place of one that was killed, begun as a program.

`python -m millpond.fusefs.filling.starting SOCKET TALLY HOLDER SETTINGS`: descriptors, the holder's pid, and FillerSettings as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from millpond.daemon import wirepath
from millpond.daemon.jobs import process
from millpond.daemon.mounts.busy import FILLER
from millpond.fusefs.filling import filler, messages
from millpond.fusefs.filling.filler import FillerSettings
from millpond.fusefs.filling.tally import Tally
from millpond.fusefs.logfile import log_to

log = logging.getLogger("millpond.filler")

_PATHS = ("store", "place", "log")


@dataclass(slots=True)
class Forked:
    """A filler that sleeps: its pid; the holder's end of what leads to it, and its own, which is kept for the next one; what it counts."""

    settings: FillerSettings
    pid: int
    sock: socket.socket
    theirs: socket.socket
    tally: Tally
    # Why it ended; "" for as long as it has not said so.
    why: str = ""
    # Windows that it was told, or that are done: `tally` counts those.
    told: int = 0
    # When it is not the first one. Kept, as a Popen that is dropped would have its process waited for by whoever starts the next.
    program: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """Let it end."""
        self.sock.close()
        self.theirs.close()


def how_many(wanted: int | None, *, image: bool = False) -> int:
    """How many fillers a mount has: `wanted`, else as the cores allow, of which readers need some, too; who reads an image, more of them."""
    if wanted is None:
        cores = len(os.sched_getaffinity(0))
        wanted = 1 if cores < 2 else cores // 2 + (not image)
    return min(wanted, filler.MOST)


def fork(settings: FillerSettings) -> Forked:
    """For a process without threads that has nothing open of the store. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tally, parent = Tally(), os.getpid()
    pid = os.fork()
    if pid:
        return Forked(settings, pid, ours, theirs, tally)
    try:
        process.keep_only(theirs.fileno())
        _fill(settings, theirs, parent, tally)
    except BaseException:
        log.exception("the filler failed")
    finally:
        # Not by sys.exit: what the holder has set up is not this process's to end. A thread that still answers ends with it.
        os._exit(0)


def replace(forked: Forked) -> None:
    """Begin another one in the place of one that has ended. Raises OSError."""
    given = (forked.theirs.fileno(), forked.tally.fd)
    told = asdict(forked.settings)
    settings = json.dumps(told | {key: wirepath.encode(told[key]) for key in _PATHS})
    forked.program = subprocess.Popen(
        [sys.executable, "-P", "-m", "millpond.fusefs.filling.starting", *map(str, given), str(os.getpid()), settings],
        pass_fds=given,
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    forked.pid = forked.program.pid


def _fill(settings: FillerSettings, sock: socket.socket, holder: int, tally: Tally) -> None:
    process.set_name(FILLER)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log_to(settings.log)
    why = filler.serve(settings, sock, holder, tally)
    if why:
        with contextlib.suppress(OSError):
            sock.send(messages.ENDED + why.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    sock, tally, holder = map(int, arguments[:3])
    told = json.loads(arguments[3])
    told |= {key: wirepath.decode(told[key]) for key in _PATHS}
    settings = FillerSettings(**told | {"share": tuple(told["share"])})
    try:
        _fill(settings, socket.socket(fileno=sock), holder, Tally(tally))
    except Exception:
        log.exception("the filler failed")
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
