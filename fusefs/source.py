"""Sources: what a mount shows and the store has not, given by a process of the caller's own.

The source runs as the caller, beside the holder, and outlives the daemon as it does. It opens objects of the project's
DVC cache (checked against their names) and blobs of its Git repository, brings what only its remotes have (daemon/remote/fetcher.py),
and passes descriptors; it also tells branches
and tags, and asks the daemon, as its user, for the tree of a revision. It answers JSON lines on a socket pair; the other
side is asking.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import InternalError, MillpondError, ObjectMissingError, RemoteConfigError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.statcache import user_folder
from millpond.daemon.remote.fetcher import Fetcher
from millpond.daemon.remote.partial import sweep
from millpond.daemon.remote.places import Places, without_remote
from millpond.daemon.remote.settling import Settler
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import Client

log = logging.getLogger("millpond.source")

# Requests answered at once: most of them wait for a remote; one that is slow (a large object is checked, a revision
# listed) holds up no other.
THREADS = 40


class SourceServer:
    """Answers one holder, requests in any order, each answer with the number of its request."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._repo_path = wirepath.decode(settings["repo"])
        self._target = settings.get("target") or ""
        self._daemon_socket = settings["socket"]
        self._context = settings["context"]
        self._caches = [DvcCache(wirepath.decode(folder)) for folder in settings["caches"]]
        # libgit2's objects are not for two threads at once.
        self._git_lock = threading.Lock()
        self._git: GitRepo | None = None
        self._fetcher: Fetcher | None = None
        self._fetcher_lock = threading.Lock()

    def serve(self) -> None:
        """Answer until the holder hangs up. Raises ProtocolError for what is no request."""
        decoder = framing.Decoder(framing.parse_json)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="source") as pool:
            while framing.receive(self._sock, decoder):
                while (item := decoder.next()) is not None:
                    request, fds = item
                    framing.close_all(fds)
                    pool.submit(self._answer, request)
        if self._fetcher is not None:
            self._fetcher.close()

    def _answer(self, request: dict[str, Any]) -> None:
        fds: list[int] = []
        try:
            answer = self._perform(request, fds)
        except MillpondError as error:
            answer = {"error": error.to_wire()}
        except Exception as error:  # whatever it is, who asked must not wait for ever
            log.exception("request %r failed", request.get("op"))
            answer = {"error": InternalError(f"the source failed: {error!r}").to_wire()}
        try:
            with self._sending:
                framing.send(self._sock, framing.encode({"id": request.get("id"), **answer}, fds), fds)
        except OSError:  # nobody listens any more; serve ends too
            log.debug("the holder hung up")
        finally:
            framing.close_all(fds)

    def _perform(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if request["op"] == "open":
            fd, size, whole = self._open(ObjectName(*request["name"]), request.get("size"))
            fds.append(fd)
            if request.get("near") and self._fetcher is not None:
                self._fetcher.hint([ObjectName(algo, value) for algo, value in request["near"]])
            return {"size": size, "whole": whole, "moved": self._moved()}
        if request["op"] == "ensure":
            name, size = ObjectName(*request["name"]), int(request["size"])
            inode, offset, length = (int(request[key]) for key in ("inode", "offset", "length"))
            start, end = self._remote().ensure(name, size, inode, offset, length)
            return {"start": start, "end": end, "moved": self._moved()}
        if request["op"] == "refs":
            with self._git_lock:
                return {"refs": {wirepath.encode(name): commit for name, commit in self._repo().refs().items()}}
        if request["op"] == "version":
            return self._version(wirepath.decode(str(request["rev"])))
        raise ValueError(f"no operation {request['op']!r}")

    def _open(self, name: ObjectName, size: int | None) -> tuple[int, int, bool]:
        """(descriptor, size, whether all is there) of an object; `size` is what the version's listing says."""
        if name.algo.startswith("git-"):
            with self._git_lock:
                data = self._repo().read(name.value)
            if data is not None:
                return memfd.from_bytes(data), len(data), True
        for cache in self._caches:
            found = cache.open(name)
            if found is not None:
                return *found, True
        what = f"object {name}"
        if size is None or name.algo != "md5":
            raise ObjectMissingError(f"{what} is neither in the store nor in the project's cache")
        try:
            fd, whole = self._remote().open(name, size)
        except RemoteConfigError as error:
            raise without_remote(error, what) from None
        return fd, os.fstat(fd).st_size, whole

    def _remote(self) -> Fetcher:
        with self._fetcher_lock:
            if self._fetcher is None:
                dvc_dir = os.path.join(self._repo_path, ".dvc")
                places = Places(lambda: config.load(dvc_dir, os.environ), os.environ)
                folder = os.path.join(user_folder(os.environ), "partial")
                sweep(folder)
                self._fetcher = Fetcher(places, Settler.to(self._daemon_socket, self._context), folder)
            return self._fetcher

    def _moved(self) -> tuple[int, int]:
        return (0, 0) if self._fetcher is None else self._fetcher.moved

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
