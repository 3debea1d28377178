"""The zygote: a process of one uid with all imports done, that forks workers, sources and holders in a millisecond.

It has one thread, no LMDB environment, and the environment of nobody. It speaks SOCK_SEQPACKET with the daemon: one
message a request, `{"op": "fork", "kind": ..., ...}` with the child's descriptors, answered by `{"pid": n}` with a pidfd
(opened before the child can be reaped, so that it is never another process's); `{"op": "kill", "pid", "signal"}` for
its own children only, since the daemon may run as another user.

Its children outlive it and the daemon: a worker ends when its socket does, holders and sources when they are told.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from millpond.daemon.rpc import framing

MAX_MESSAGE = 64 << 10
_PRELOAD = {
    "caller": ("millpond.daemon.jobs.worker", "millpond.daemon.project.verbs", "millpond.daemon.mounts.verbs"),
    "holder": ("millpond.fusefs.holder",),
}
# What a child runs: module and function, called with the request and the descriptors.
_KINDS = {
    "worker": ("millpond.daemon.jobs.worker", "run"),
    "source": ("millpond.fusefs.source", "run"),
    "holder": ("millpond.fusefs.holder", "run"),
}


class Zygote:
    """The loop of one zygote."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._children: set[int] = set()

    def serve(self) -> None:
        """Answer requests until the daemon hangs up."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                self._reap()
            if self._sock.fileno() in ready and not self._answer():
                return

    def _answer(self) -> bool:
        try:
            data, control, _, _ = self._sock.recvmsg(MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        if not data:
            return False
        fds = framing.received_fds(control)
        request = json.loads(data)
        reply: dict[str, Any] = {}
        pidfd = -1
        if request["op"] == "fork":
            pid = self._fork(request, fds)
            self._children.add(pid)
            pidfd = os.pidfd_open(pid)
            reply = {"pid": pid}
        elif request["op"] == "kill" and request["pid"] in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(request["pid"], request["signal"])
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(BrokenPipeError):
            self._sock.sendmsg([json.dumps(reply).encode()], framing.ancillary([pidfd] if pidfd >= 0 else []))
        if pidfd >= 0:
            os.close(pidfd)
        return True

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._sock.close()
            os.setsid()
            module, name = _KINDS[request["kind"]]
            entry: Callable[[dict[str, Any], list[int]], int] = getattr(importlib.import_module(module), name)
            code = entry(request, fds)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.discard(pid)


def preload(role: str) -> None:
    """Import what children of this role need, so that nothing is imported after a fork."""
    for module in _PRELOAD[role]:
        importlib.import_module(module)


def main() -> None:
    """`python -m millpond.daemon.jobs.zygote FD ROLE`: serve on an inherited socket; ROLE is caller or holder."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    # A keyboard interrupt of the terminal is for the command line, which cancels properly.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for role in sys.argv[2].split(","):
        preload(role)
    # Objects made so far are the same in all children: leave them out of collections, and of copied pages.
    import gc

    gc.collect()
    gc.freeze()
    Zygote(sock).serve()


if __name__ == "__main__":
    main()
