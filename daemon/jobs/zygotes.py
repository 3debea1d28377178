"""The daemon's side of zygotes: started on demand, one a uid, asked one at a time; started again when one dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from millpond.daemon.errors import AccessError, BusyError, InternalError
from millpond.daemon.jobs.zygote import MAX_MESSAGE
from millpond.daemon.rpc import framing

log = logging.getLogger("millpond.jobs")

# Uids with a zygote at once; in user mode there is one.
MAX_ZYGOTES = 64
_ANSWER_S = 30.0
# Gives a connected socket to a new zygote of (uid, role).
Starter = Callable[[int, str], Awaitable[socket.socket]]


@dataclass(slots=True)
class Child:
    """A process forked by a zygote. `pidfd` is readable when it has ended; the holder of this object closes it."""

    pid: int
    pidfd: int
    _kill: Callable[[int, int], Awaitable[None]]

    async def wait(self) -> None:
        """Until it has ended."""
        await trio.lowlevel.wait_readable(self.pidfd)

    async def kill(self, number: signal.Signals) -> None:
        """Send a signal, by its zygote, which has the right to."""
        await self._kill(self.pid, number)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class ZygoteHandle:
    """One zygote. A request is a message and an answer, one at a time."""

    def __init__(self, starter: Starter, uid: int, role: str) -> None:
        self._starter = starter
        self._uid = uid
        self._role = role
        self._lock = trio.Lock()
        self._sock: trio.socket.SocketType | None = None

    async def warm(self) -> None:
        """Start it before it is needed."""
        async with self._lock:
            await self._started()

    async def fork(self, kind: str, request: dict[str, Any], fds: Sequence[int]) -> Child:
        """A child of `kind` (zygote.py) with descriptors; raises InternalError when none can be had."""
        reply, received = await self._ask({"op": "fork", "kind": kind, **request}, fds)
        if "pid" not in reply or len(received) != 1:
            for fd in received:
                os.close(fd)
            raise InternalError(f"no {kind} could be started", hint="see `millpond daemon logs`")
        return Child(reply["pid"], received[0], self._kill)

    def close(self) -> None:
        """Hang up: the zygote ends, its children do not."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def _kill(self, pid: int, number: int) -> None:
        await self._ask({"op": "kill", "pid": pid, "signal": int(number)}, ())

    async def _ask(self, request: dict[str, Any], fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        data = json.dumps(request).encode()
        if len(data) > MAX_MESSAGE:
            raise InternalError(f"a request of {len(data)} bytes is too large for a zygote")
        async with self._lock:
            for attempt in (1, 2):
                sock = await self._started()
                try:
                    with trio.fail_after(_ANSWER_S):
                        await sock.sendmsg([data], framing.ancillary(fds))
                        answer, control, _, _ = await sock.recvmsg(
                            MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                        )
                    if answer:
                        return json.loads(answer), framing.received_fds(control)
                except (OSError, trio.TooSlowError) as error:
                    log.error("zygote of uid %d: %r", self._uid, error)
                except trio.Cancelled:
                    self.close()  # the answer would be taken for the next one's
                    raise
                log.warning("zygote of uid %d is gone (attempt %d): a new one is started", self._uid, attempt)
                self.close()
        raise InternalError("the helper process of this user cannot be started", hint="see `millpond daemon logs`")

    async def _started(self) -> trio.socket.SocketType:
        if self._sock is None:
            self._sock = trio.socket.from_stdlib_socket(await self._starter(self._uid, self._role))
        return self._sock


class Zygotes:
    """All zygotes, by uid and role."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._handles: dict[tuple[int, str], ZygoteHandle] = {}

    def of(self, uid: int, role: str = "caller") -> ZygoteHandle:
        """The zygote of a uid. Raises BusyError beyond MAX_ZYGOTES."""
        key = (uid, role)
        if key not in self._handles:
            if len(self._handles) >= MAX_ZYGOTES:
                raise BusyError(f"{MAX_ZYGOTES} users are at work already", hint="try again later")
            self._handles[key] = ZygoteHandle(self._starter, uid, role)
        return self._handles[key]

    def close(self) -> None:
        for handle in self._handles.values():
            handle.close()


async def own_user_starter(uid: int, role: str) -> socket.socket:
    """User mode: a zygote of this very user, with an empty environment but for what Python needs."""
    if uid != os.getuid():
        raise AccessError(
            f"this daemon serves uid {os.getuid()} only", hint="start your own (any command does), or use system mode"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(  # noqa: ASYNC220 - only starts it
            [sys.executable, "-m", "millpond.daemon.jobs.zygote", str(theirs.fileno()), role],
            pass_fds=[theirs.fileno()],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    return ours


def clean_environment() -> dict[str, str]:
    """What Python needs to start the same program, and nothing else of the daemon's environment."""
    kept = ("PYTHONPATH", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "VIRTUAL_ENV", "MALLOC_ARENA_MAX")
    return {name: os.environ[name] for name in kept if name in os.environ}
