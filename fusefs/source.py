"""Sources: what a mount shows and the store has not, given by a process of the caller's own.

The source runs as the caller, beside the holder, and outlives the daemon as it does. It opens objects of the project's
DVC cache (checked against their names) and blobs of its Git repository, brings what only its remotes have (daemon/remote/fetcher.py),
and passes descriptors; it also tells branches and tags, and asks the daemon, as its user, for the tree of a revision. It answers
JSON lines on a socket pair; the other side is asking.py.

Its environment, which may hold credentials, comes in a memory file that nobody on the way reads, and is kept nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from millpond.daemon import environs, memfd, wirepath
from millpond.daemon.errors import InternalError, MillpondError, ObjectMissingError, ProtocolError, RemoteConfigError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config, outputs
from millpond.daemon.project.config import Config
from millpond.daemon.project.dvccache import DvcCache
from millpond.daemon.project.gitrepo import GitRepo
from millpond.daemon.project.importing import clones, external
from millpond.daemon.project.outputs import GitTree, Output
from millpond.daemon.project.statcache import user_folder
from millpond.daemon.remote.fetcher import Fetcher
from millpond.daemon.remote.layout import LEGACY
from millpond.daemon.remote.partial import Partials
from millpond.daemon.remote.places import Places, without_remote
from millpond.daemon.remote.settling import Settler
from millpond.daemon.rpc import framing
from millpond.daemon.rpc.client import Client

log = logging.getLogger("millpond.source")

# Requests answered at once: most of them wait for a remote; one that is slow (a large object is checked, a revision
# listed) holds up no other.
THREADS = 40
# What `verify` of a mount may be: large objects are checked when their last block is there, or before their first byte is given out.
BLOCKS, WHOLE = "blocks", "whole"


class SourceServer:
    """Answers one holder, requests in any order, each answer with the number of its request."""

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._repo_path = wirepath.decode(settings["repo"])
        # Of a clone: at which commit.
        self._commit = settings.get("commit")
        self._target = settings.get("target") or ""
        self._daemon_socket = settings["socket"]
        self._id = str(settings.get("id") or os.getpid())
        self._far = bool(settings.get("far"))
        self._check_first = settings.get("verify") == WHOLE
        self._umask = settings.get("umask", 0o022)
        self._caches = [DvcCache(wirepath.decode(folder)) for folder in settings["caches"]]
        # libgit2's objects are not for two threads at once.
        self._git_lock = threading.Lock()
        self._git: GitRepo | None = None
        self._fetcher: Fetcher | None = None
        self._fetcher_lock = threading.Lock()

    def serve(self) -> None:
        """Answer until the holder hangs up. Raises ProtocolError for what is no request."""
        decoder = framing.Decoder(framing.parse_json)
        kept = contextlib.nullcontext() if self._commit is None else clones.using(self._repo_path)
        with kept, ThreadPoolExecutor(THREADS, thread_name_prefix="source") as pool:
            if self._far:
                pool.submit(self._prepare)
            while framing.receive(self._sock, decoder):
                while (item := decoder.next()) is not None:
                    pool.submit(self._answer, *item)
            # Whoever follows this source is to find what it has in part free.
            if self._fetcher is not None:
                self._fetcher.close()

    def _answer(self, request: dict[str, Any], given: list[int]) -> None:
        fds: list[int] = []
        try:
            if request["op"] == "credentials":
                self._take_credentials(given)
                answer = {}
            else:
                answer = self._perform(request, fds)
        except MillpondError as error:
            answer = {"error": error.to_wire()}
        except Exception as error:  # whatever it is, who asked must not wait for ever
            log.exception("request %r failed", request.get("op"))
            answer = {"error": InternalError(f"the source failed: {error!r}").to_wire()}
        finally:
            framing.close_all(given)
        try:
            self._send({"id": request.get("id"), **answer}, fds)
        finally:
            framing.close_all(fds)

    def _send(self, answer: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """An answer, or with an id that is no request's what there is to be told; with it what the fetcher tells."""
        try:
            with self._sending:
                told = {} if self._fetcher is None else {"told": self._fetcher.told()}
                framing.send(self._sock, framing.encode({**answer, **told}, fds), fds)
        except OSError:  # nobody listens any more; serve ends too
            log.debug("the holder hung up")

    def _perform(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if request["op"] == "open":
            fd, size, whole = self._open(ObjectName(*request["name"]), request.get("size"))
            fds.append(fd)
            if request.get("near") and self._fetcher is not None:
                self._fetcher.hint([ObjectName(algo, value) for algo, value in request["near"]])
            return {"size": size, "whole": whole}
        if request["op"] == "ensure":
            name, size = ObjectName(*request["name"]), int(request["size"])
            inode, offset, length = (int(request[key]) for key in ("inode", "offset", "length"))
            found = self._remote().ensure(name, size, inode, offset, length)
            return {"coming": found} if isinstance(found, int) else {"start": found[0], "end": found[1]}
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
        if size is None or name.algo not in ("md5", LEGACY):
            raise ObjectMissingError(f"{what} is neither in the store nor in the project's cache")
        try:
            fd, whole = self._remote().open(name, size)
        except RemoteConfigError as error:
            raise without_remote(error, what) from None
        return fd, os.fstat(fd).st_size, whole

    def _prepare(self) -> None:
        with contextlib.suppress(Exception):  # whoever asks for something is told
            self._remote().prepare()

    def _remote(self) -> Fetcher:
        with self._fetcher_lock:
            if self._fetcher is None:
                places = Places(self._config, os.environ, self._outputs if self._commit is not None else None)
                partials = Partials(os.path.join(user_folder(os.environ), "partial"), self._id)
                settler = Settler.to(self._daemon_socket, self._caches[0] if self._caches else None, self._context)
                self._fetcher = Fetcher(
                    places, settler, partials, check_first=self._check_first, changed=lambda: self._send({"id": 0})
                )
            return self._fetcher

    def _config(self) -> Config:
        """The project's, with what the caller lays over it. Raises InvalidFileError, RemoteConfigError."""
        dvc_dir = os.path.join(self._repo_path, ".dvc")
        if self._commit is None:
            found = config.load(dvc_dir, os.environ)
        else:
            with self._git_lock:
                found = external.config_at(self._repo(), self._commit, "", dvc_dir, os.environ)
        external.Settings.of_environ(os.environ).lay_over(found, self._repo_path)
        return found

    def _outputs(self) -> list[Output]:
        """Those of the commit."""
        assert self._commit is not None
        with self._git_lock:
            return outputs.collect(GitTree(self._repo(), self._commit))

    def _take_credentials(self, given: list[int]) -> None:
        """Ask the remotes with another environment, that of a command which its user ran just now. Raises CredentialsError, RemoteError,
        RemoteConfigError when they do not answer to that either."""
        if len(given) != 1:
            raise ProtocolError("credentials come with one descriptor")
        _take_environ(environs.read(os.dup(given[0])))
        self._remote().renew()

    def _repo(self) -> GitRepo:
        if self._git is None:
            self._git = GitRepo.discover(self._repo_path)
            if self._git is None:
                raise ObjectMissingError(f"'{self._repo_path}' is no Git repository any more")
        return self._git

    def _context(self) -> dict[str, Any]:
        """Where a worker of this user runs for this mount, with the environment that its remotes are asked with now."""
        return {
            "env": environs.to_wire(os.environ),
            "cwd": wirepath.encode(self._repo_path),
            "umask": self._umask,
        }

    def _version(self, revision: str) -> dict[str, Any]:
        """Ask the daemon, as this user, for a revision's tree."""
        from pathlib import Path

        with Client.connect(Path(self._daemon_socket), name="source") as client:
            params = {"target": self._target, "rev": revision, "context": self._context()}
            result, _ = client.call("tree", params)
        return {"commit": result["commit"], "root": result["root"]}


def _take_environ(environ: dict[str, str]) -> None:
    """Make this the process's own. Other threads may look at it: nothing that stays is away in between."""
    os.environ.update(environ)
    for key in set(os.environ) - set(environ):
        del os.environ[key]


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child: serve on `fds[0]` with the request's settings and the environment in the memory file `fds[1]`."""
    _take_environ(environs.read(os.dup(fds[1])))
    sock = socket.socket(fileno=os.dup(fds[0]))
    framing.close_all(fds)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        SourceServer(sock, request["settings"]).serve()
    return 0


def main() -> None:
    """`python -m millpond.fusefs.source FD SETTINGS`: the same on an inherited socket, with the settings as JSON, and in the
    environment that there is."""
    run({"settings": json.loads(sys.argv[2])}, [int(sys.argv[1]), environs.to_file(os.environ)])


if __name__ == "__main__":
    main()
