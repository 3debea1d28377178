"""The daemon's side of zygotes: started on demand, one a uid, asked one at a time; started again when one dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from millpond.daemon.errors import AccessError, BusyError, InternalError, MillpondError, from_system
from millpond.daemon.jobs.start import start_zygote
from millpond.daemon.jobs.zygote import MAX_MESSAGE
from millpond.daemon.rpc import framing

log = logging.getLogger("millpond.jobs")

# Zygotes at once; in user mode there is one. The one that was idle for longest makes room for a new one.
MAX_ZYGOTES = 64
# A zygote that dies more often than this is not started again for a while.
MAX_STARTS, STARTS_WINDOW_S = 5, 60.0
_ANSWER_S = 30.0
# Gives a connected socket to a new zygote of (uid, role).
Starter = Callable[[int, str], Awaitable[socket.socket]]
# The fate of a child that could not begin.
LIMITS = "it had too few descriptors or too little memory to begin"


@dataclass(slots=True)
class Child:
    """A process forked by a zygote. `pidfd` is readable when it has ended; the holder of this object closes it."""

    pid: int
    pidfd: int
    _kill: Callable[[int, int], Awaitable[None]]
    _status: Callable[[int], Awaitable[int | None]] | None = None

    async def wait(self) -> None:
        """Until it has ended."""
        await trio.lowlevel.wait_readable(self.pidfd)

    async def kill(self, number: signal.Signals) -> None:
        """Send a signal, by its zygote, which has the right to. Does nothing when it has ended."""
        await self._kill(self.pid, number)

    async def fate(self) -> str:
        """How it ended, for a person."""
        status = None if self._status is None else await self._status(self.pid)
        if status is None:
            return "nobody knows why"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.strsignal(number) or "unknown"
            more = "; is memory short?" if number == signal.SIGKILL else ""
            return f"signal {number}, {name.lower()}{more}"
        code = os.waitstatus_to_exitcode(status)
        return LIMITS if code == os.EX_OSERR else f"exit code {code}"

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class ZygoteHandle:
    """One zygote. A request is a message and an answer, one at a time; `children` counts those that need it."""

    def __init__(self, starter: Starter, uid: int, role: str) -> None:
        self._starter = starter
        self._uid = uid
        self._role = role
        self._lock = trio.Lock()
        self._sock: trio.socket.SocketType | None = None
        self._starts: deque[float] = deque(maxlen=MAX_STARTS)
        self.children = 0
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it."""
        return self.children == 0 and not self._lock.locked()

    async def warm(self) -> None:
        """Start it before it is needed. A failure is logged, and shows again when it is needed."""
        async with self._lock:
            try:
                await self._started()
            except MillpondError as error:
                log.error("%s", error)

    async def fork(self, kind: str, request: dict[str, Any], fds: Sequence[int]) -> Child:
        """A child of `kind` (zygote.py) with descriptors; raises BusyError when the system's limits allow none, InternalError
        when none can be had for another reason.

        Once begun it is not cancelled: it takes milliseconds, and half an exchange would cost the zygote.
        """
        with trio.CancelScope(shield=True):
            reply, received = await self._ask({"op": "fork", "kind": kind, **request}, fds)
        if "pid" not in reply or len(received) != 1:
            framing.close_all(received)
            number = (
                errno.EMFILE if "pid" in reply else reply.get("errno")
            )  # the kernel drops descriptors beyond the limit
            told = from_system(OSError(number, ""), f"starting a {kind}") if number else None
            if isinstance(told, BusyError):
                raise told
            raise InternalError(f"no {kind} could be started: {reply.get('error')}", hint="see `millpond daemon logs`")
        return Child(reply["pid"], received[0], self._kill, self._status)

    def close(self) -> None:
        """Hang up: the zygote ends, and its workers; sources and holders do not."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def _kill(self, pid: int, number: int) -> None:
        with trio.CancelScope(shield=True):
            await self._ask({"op": "kill", "pid": pid, "signal": int(number)}, ())

    async def _status(self, pid: int) -> int | None:
        with trio.CancelScope(shield=True):
            reply, _ = await self._ask({"op": "status", "pid": pid}, ())
        status = reply.get("status")
        return status if isinstance(status, int) else None

    async def _ask(self, request: dict[str, Any], fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        data = json.dumps(request).encode()
        if len(data) > MAX_MESSAGE:
            raise InternalError(f"a request of {len(data)} bytes is too large for a zygote")
        self.used = time.monotonic()
        async with self._lock:
            # A zygote that died since it was last asked is replaced, once.
            for _ in range(2):
                sock = await self._started()
                try:
                    with trio.fail_after(_ANSWER_S):
                        await sock.sendmsg([data], framing.ancillary(fds))
                        answer, control, _, _ = await sock.recvmsg(
                            MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                        )
                    if answer:
                        return json.loads(answer), framing.received_fds(control)
                    log.warning("the zygote of uid %d is gone", self._uid)
                except (OSError, trio.TooSlowError) as error:
                    log.warning("the zygote of uid %d: %r", self._uid, error)
                self.close()
        raise InternalError("the helper process of this user ends at once", hint="see `millpond daemon logs`")

    async def _started(self) -> trio.socket.SocketType:
        if self._sock is None:
            now = time.monotonic()
            if len(self._starts) == MAX_STARTS and now - self._starts[0] < STARTS_WINDOW_S:
                raise InternalError(
                    f"the helper process of uid {self._uid} died {MAX_STARTS} times within {STARTS_WINDOW_S:.0f} s",
                    hint="see `millpond daemon logs`",
                )
            self._starts.append(now)
            self._sock = trio.socket.from_stdlib_socket(await self._starter(self._uid, self._role))
        return self._sock


class Zygotes:
    """All zygotes, by uid and role. With `shared` one zygote has both roles, as in user mode."""

    def __init__(self, starter: Starter, *, shared: bool = False) -> None:
        self._starter = starter
        self._shared = shared
        self._handles: dict[tuple[int, str], ZygoteHandle] = {}

    def of(self, uid: int, role: str = "caller") -> ZygoteHandle:
        """The zygote of a uid. Raises BusyError beyond MAX_ZYGOTES that are at work."""
        key = (uid, "caller,holder" if self._shared else role)
        if key not in self._handles:
            if len(self._handles) >= MAX_ZYGOTES:
                self._make_room()
            self._handles[key] = ZygoteHandle(self._starter, *key)
        return self._handles[key]

    def __len__(self) -> int:
        return len(self._handles)

    def close(self) -> None:
        for handle in self._handles.values():
            handle.close()

    def _make_room(self) -> None:
        idle = [(handle.used, key) for key, handle in self._handles.items() if handle.idle]
        if not idle:
            raise BusyError(f"{MAX_ZYGOTES} users are at work already", hint="try again later")
        self._handles.pop(min(idle)[1]).close()


class OwnUserStarter:
    """User mode: zygotes of this very user. `first` is one that was started before everything else."""

    def __init__(self, verbs: str, first: tuple[socket.socket, subprocess.Popen[bytes]] | None = None) -> None:
        self._verbs = verbs
        self._first = first
        # Kept until they have ended, so that none stays a zombie.
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __call__(self, uid: int, role: str) -> socket.socket:
        if uid != os.getuid():
            raise AccessError(
                f"this daemon serves uid {os.getuid()} only",
                hint="start your own (any command does), or use system mode",
            )
        self._processes = [process for process in self._processes if process.poll() is None]
        (sock, process), self._first = self._first or start_zygote(role, self._verbs), None
        self._processes.append(process)
        return sock

    def close(self) -> None:
        """Wait for zygotes that were hung up on: they end at once, unless workers must end first."""
        if self._first is not None:
            self._first[0].close()
            self._processes.append(self._first[1])
        for process in self._processes:
            process.wait()
