"""`source.open`: a source (fusefs/source.py) for a program that reads a version without a mount.

It is the caller's own process, as a mount's source is; the program speaks with it over a socket of its own, and when that is
closed it ends.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

from millpond.daemon import memfd
from millpond.daemon.errors import BusyError
from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.rpc.methods import Call, Registry, Reply

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

# Sources of one uid's programs at once.
MAX_SOURCES = 64


class Sources:
    """Those that were started by this daemon and still run."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._running: Counter[int] = Counter()

    async def open(self, call: Call, params: dict[str, Any]) -> Reply:
        """{repo, caches, commit, context} -> {} + the socket that the source answers on; with `commit` `repo` is a clone. Raises BusyError."""
        if self._running[call.uid] >= MAX_SOURCES:
            raise BusyError(
                f"{MAX_SOURCES} of your programs read what is not in the store", hint="let some end, or use a mount"
            )
        self._running[call.uid] += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environ = memfd.from_bytes(json.dumps(params["context"].get("env") or {}).encode())
        try:
            with theirs:
                settings = {
                    "repo": str(params["repo"]),
                    "socket": os.fspath(self._daemon.settings.socket),
                    "umask": params["context"].get("umask", 0o022),
                    "commit": params.get("commit"),
                    "caches": [str(folder) for folder in params["caches"]],
                }
                zygote = self._daemon.zygotes.of(call.uid)
                child = await zygote.fork("source", {"settings": settings}, [theirs.fileno(), environ])
            self._daemon.nursery.start_soon(self._watch, call.uid, child)
            return Reply({}, fds=[ours.detach()])
        except BaseException:
            self._running[call.uid] -= 1
            ours.close()
            raise
        finally:
            os.close(environ)

    async def _watch(self, uid: int, child: Child) -> None:
        try:
            await child.wait()
        finally:
            child.close()
            self._running[uid] -= 1


def register(registry: Registry, daemon: Daemon) -> None:
    """Add the method."""
    registry.register("source.open", Sources(daemon).open)
