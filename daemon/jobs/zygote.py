"""The zygote: a process of one uid with all imports done, that forks workers, shims, sources and holders in a
millisecond.

It has one thread, no LMDB environment, and the environment of nobody. It speaks SOCK_SEQPACKET with the daemon, one
message a request and one an answer, in JSON:

    {"op": "fork", "kind": K, ...} + the child's descriptors -> {"pid"} + a pidfd, opened before the child can be reaped, so
                                                                that it is never another process's
    {"op": "kill", "pid", "signal"}                          -> {"sent"}; its own children only, since the daemon may be
                                                                another user; SIGKILL goes to the child's whole group
    {"op": "status", "pid"}                                  -> {"status"} of an ended child (os.waitpid), else null

Shims, sources and holders outlive it and the daemon. Workers do not: a worker whose daemon is gone holds no lock any more.

While nobody asks for anything it forks one worker ahead, the spare: it waits for a request on a socket of its own, and
has its share of copied pages behind it when one comes.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from millpond.daemon.jobs import process
from millpond.daemon.rpc import framing

MAX_MESSAGE = 64 << 10
# Objects made in a child, and not freed by their last reference, until cycles are looked for.
_COLLECT_AFTER = 20_000
# Ended children whose status is remembered.
MAX_ENDED = 256
# Workers have this long to clean up once the daemon is gone.
GRACE_S = 5.0
# What a child runs: module and function, called with the request and the descriptors; the exit code comes back.
KINDS = {
    "worker": ("millpond.daemon.jobs.worker", "run"),
    "source": ("millpond.fusefs.source", "run"),
    "shim": ("millpond.daemon.jobs.shim", "run"),
    "holder": ("millpond.fusefs.holder", "run"),
}
# Imported before the first request, and then one by one while nobody asks for anything.
FIRST = {"caller": ("millpond.daemon.jobs.worker",), "holder": ("millpond.fusefs.holder",)}
LATER = {"caller": ("millpond.daemon.jobs.shim", "millpond.fusefs.source"), "holder": ()}


class Zygote:
    """The loop of one zygote. `later` are modules to import while it is idle."""

    def __init__(self, sock: socket.socket, later: deque[str], *, spares: bool) -> None:
        self._sock = sock
        self._later = later
        self._spares = spares
        self._children: dict[int, str] = {}
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._spare: tuple[int, socket.socket] | None = None
        self._ended: OrderedDict[int, int] = OrderedDict()

    def serve(self) -> None:
        """Answer requests until the daemon hangs up."""
        wake_read, wake_write = self._wake
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            idle = not self._later and (self._spare is not None or not self._spares)
            ready = {fd for fd, _ in poll.poll(None if idle else 0)}
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                self._reap()
            if self._sock.fileno() in ready and not self._answer():
                self._end_workers()
                return
            if not ready and self._later:
                preload(self._later.popleft())
            elif not ready and not idle:
                try:
                    self._make_spare()
                except OSError:  # no more processes, or memory: each request says so for itself
                    self._spares = False

    def _answer(self) -> bool:
        """One request; False when the daemon is gone."""
        given: list[int] = []
        try:
            data, control, flags, _ = self._sock.recvmsg(MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            fds = framing.received_fds(control)
            if not data:
                return False
            try:
                _require_all(flags)
                reply = self._perform(data, fds, given)
            except (OSError, KeyError, ValueError, TypeError) as error:
                reply = {"error": repr(error), "errno": getattr(error, "errno", None)}
            finally:
                framing.close_all(fds)
            self._sock.sendmsg([json.dumps(reply).encode()], framing.ancillary(given))
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            framing.close_all(given)

    def _perform(self, data: bytes, fds: list[int], given: list[int]) -> dict[str, Any]:
        request = json.loads(data)
        if request["op"] == "fork":
            pid = self._assign(data, fds) if request["kind"] == "worker" else 0
            pid = pid or self._fork(request["kind"], lambda: (request, fds))
            given.append(os.pidfd_open(pid))
            return {"pid": pid}
        if request["op"] == "kill":
            return {"sent": self._kill(request["pid"], request["signal"])}
        if request["op"] == "status":
            self._reap()
            return {"status": self._ended.get(request["pid"])}
        raise ValueError(f"no operation {request['op']!r}")

    def _assign(self, data: bytes, fds: list[int]) -> int:
        """Give a request to the spare; its pid, 0 when there is none (any more)."""
        if self._spare is None:
            return 0
        (pid, sock), self._spare = self._spare, None
        with sock:
            try:
                sock.sendmsg([data], framing.ancillary(fds))
            except OSError:
                return 0
        return pid

    def _make_spare(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def assignment() -> tuple[dict[str, Any], list[int]]:
            ours.close()
            with theirs:
                data, control, flags, _ = theirs.recvmsg(MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            if not data:  # the zygote is gone
                os._exit(0)
            _require_all(flags)
            return json.loads(data), framing.received_fds(control)

        with theirs:
            self._spare = self._fork("worker", assignment), ours

    def _fork(self, kind: str, assignment: Callable[[], tuple[dict[str, Any], list[int]]]) -> int:
        """A child that runs what `assignment` gives it; the parent returns its pid."""
        module, name = KINDS[kind]
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._children[pid] = kind
            return pid
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            framing.close_all(self._wake)
            self._sock.close()
            if self._spare is not None:
                self._spare[1].close()
            os.setsid()
            process.set_name(f"millpond-{kind}")
            if kind == "worker":
                process.die_with(parent)
            entry: Callable[[dict[str, Any], list[int]], int] = getattr(importlib.import_module(module), name)
            code = entry(*assignment())
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                code = os.EX_OSERR
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def _kill(self, pid: int, number: int) -> bool:
        if pid not in self._children:
            return False
        with contextlib.suppress(ProcessLookupError):
            # A child leads a group of its own, with whatever it has started: Git, for instance.
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.pop(pid, None)
            if self._spare is not None and self._spare[0] == pid:
                self._spare[1].close()
                self._spare = None
            self._ended[pid] = status
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def _end_workers(self) -> None:
        deadline = time.monotonic() + GRACE_S
        number = signal.SIGTERM
        while workers := [pid for pid, kind in self._children.items() if kind == "worker"]:
            for pid in workers:
                self._kill(pid, number)
            while time.monotonic() < deadline and any(pid in self._children for pid in workers):
                signal.sigtimedwait([signal.SIGCHLD], 0.05)
                self._reap()
            if number == signal.SIGKILL:
                return
            number = signal.SIGKILL
            deadline = time.monotonic() + 1.0


def preload(module: str) -> None:
    """Import what children need, so that nothing is imported after a fork. A failure shows again in the child."""
    try:
        importlib.import_module(module)
    except ImportError:
        traceback.print_exc()
    # Objects made so far are the same in all children: leave them out of collections, and of copied pages.
    gc.collect()
    gc.freeze()
    # What children do with many files makes as many objects that stay, and hardly a cycle.
    gc.set_threshold(_COLLECT_AFTER)


def _require_all(flags: int) -> None:
    """Raise OSError when the kernel dropped descriptors of a message, because this process may have no more."""
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def main() -> None:
    """`python -m millpond.daemon.jobs.zygote FD ROLES VERBS`: serve on an inherited socket.

    ROLES is caller, holder, or both with a comma between; VERBS the module of the verb table.
    """
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    roles, verbs = sys.argv[2].split(","), sys.argv[3]
    # A keyboard interrupt of the terminal is for the command line, which cancels properly.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    process.set_name("millpond-zygote")
    os.umask(0o022)
    first = [module for role in roles for module in FIRST[role] if len(roles) == 1 or role == "caller"]
    later = [module for role in roles for module in (*FIRST[role], *LATER[role]) if module not in first]
    for module in [*first, *([verbs] if "caller" in roles else [])]:
        preload(module)
    Zygote(sock, deque(later), spares="caller" in roles).serve()


if __name__ == "__main__":
    main()
