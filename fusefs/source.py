"""Sources: what a mount shows and the store has not, given by a process of the caller's own.

The source runs as the caller, beside the holder, and outlives the daemon as it does. It opens objects of the project's
DVC cache (checked against their names) and blobs of its Git repository, and passes descriptors; it also tells branches
and tags, and asks the daemon, as its user, for the tree of a revision. Both speak JSON lines over a socket pair.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from typing import Any

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import MillpondError, ObjectMissingError, from_wire
from millpond.daemon.names import ObjectName
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import Client

log = logging.getLogger("millpond.source")

# A source that does not answer in this time is taken for gone: EIO.
DEADLINE_S = 60.0


class SourceClient:
    """The holder's side. Blocking, used from threads, one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(DEADLINE_S)
        self._decoder = framing.Decoder(framing.parse_json)
        self._lock = threading.Lock()

    def open(self, name: ObjectName) -> tuple[int, int]:
        """(descriptor, size) of an object. Raises ObjectMissingError, StoreDamagedError, OSError."""
        answer, fds = self._ask({"op": "open", "name": [name.algo, name.value]})
        if len(fds) != 1:
            raise ObjectMissingError(f"object {name} is neither in the store nor in the project's cache")
        return fds[0], int(answer["size"])

    def refs(self) -> dict[str, str]:
        """Branches and tags with their commits."""
        answer, _ = self._ask({"op": "refs"})
        return dict(answer["refs"])

    def version(self, revision: str) -> tuple[str, bytes]:
        """(commit, root folder) of a revision. Raises RevisionError, DaemonUnavailableError."""
        answer, _ = self._ask({"op": "version", "rev": revision})
        return str(answer["commit"]), bytes.fromhex(answer["root"])

    def close(self) -> None:
        self._sock.close()
        self._decoder.close()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            framing.send(self._sock, framing.encode(request))
            while (item := self._decoder.next()) is None:
                if not framing.receive(self._sock, self._decoder):
                    raise ObjectMissingError(
                        "the process that reads the project's own cache is gone", hint="mount again"
                    )
        answer, fds = item
        if "error" in answer:
            for fd in fds:
                os.close(fd)
            raise from_wire(answer["error"])
        return answer, fds


class SourceServer:
    """The source process's side."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self._sock = sock
        self._repo_path = wirepath.decode(settings["repo"])
        self._target = settings.get("target") or ""
        self._daemon_socket = settings["socket"]
        self._context = settings["context"]
        self._caches = [DvcCache(wirepath.decode(folder)) for folder in settings["caches"]]
        self._git: GitRepo | None = None

    def serve(self) -> None:
        """Answer until the holder hangs up."""
        decoder = framing.Decoder(framing.parse_json)
        while framing.receive(self._sock, decoder):
            while (item := decoder.next()) is not None:
                request, fds = item
                for fd in fds:
                    os.close(fd)
                self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        fds: list[int] = []
        try:
            answer = self._perform(request, fds)
        except MillpondError as error:
            answer = {"error": error.to_wire()}
        except (OSError, KeyError, ValueError) as error:
            answer = {"error": {"message": f"the source failed: {error!r}", "data": {"kind": "internal"}}}
        try:
            framing.send(self._sock, framing.encode(answer, fds), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _perform(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if request["op"] == "open":
            fd, size = self._open(ObjectName(*request["name"]))
            fds.append(fd)
            return {"size": size}
        if request["op"] == "refs":
            return {"refs": self._repo().refs()}
        if request["op"] == "version":
            return self._version(str(request["rev"]))
        raise ValueError(f"no operation {request['op']!r}")

    def _open(self, name: ObjectName) -> tuple[int, int]:
        if name.algo.startswith("git-"):
            data = self._repo().read(name.value)
            if data is not None:
                return memfd.from_bytes(data), len(data)
        for cache in self._caches:
            found = cache.open(name)
            if found is not None:
                return found
        raise ObjectMissingError(f"object {name} is neither in the store nor in the project's cache")

    def _repo(self) -> GitRepo:
        if self._git is None:
            self._git = GitRepo.discover(self._repo_path)
            if self._git is None:
                raise ObjectMissingError(f"'{self._repo_path}' is no Git repository any more")
        return self._git

    def _version(self, revision: str) -> dict[str, Any]:
        """Ask the daemon, as this user, for a revision's tree."""
        from pathlib import Path

        with Client.connect(Path(self._daemon_socket), name="source") as client:
            params = {"target": self._target, "rev": revision, "context": self._context}
            result, _ = client.call("tree", params)
        return {"commit": result["commit"], "root": result["root"]}


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child: serve on `fds[0]` with the request's settings."""
    os.environ.clear()
    for key, value in (request["settings"]["context"].get("env") or {}).items():
        os.environ[wirepath.decode(key)] = wirepath.decode(value)
    sock = socket.socket(fileno=os.dup(fds[0]))
    os.close(fds[0])
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        SourceServer(sock, request["settings"]).serve()
    return 0


def main() -> None:
    """`python -m millpond.fusefs.source FD SETTINGS`: the same on an inherited socket, with the settings as JSON."""
    run({"settings": json.loads(sys.argv[2])}, [int(sys.argv[1])])


if __name__ == "__main__":
    main()
