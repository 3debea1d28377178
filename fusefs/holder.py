"""The holder: the process that serves one mount. It reads the store by itself, needs no daemon once it runs, and ends when
the mount is gone.

Its control socket answers one JSON line a connection. None of its requests touches the mount:

    {"op": "state"}                  -> who it is, its counters
    {"op": "ending"}                 -> as state; somebody is about to unmount: fillers have nothing of the mount open for a while
    {"op": "abort"}                  ends the mount at once
    {"op": "source"} + a socket      -> {}: the source behind it follows the one that died
    {"op": "credentials"} + memory   -> {}, or {"error"}: the source asks remotes with the environment in that file (source.py)
    {"op": "watch"}                  -> a line now and with each change (Sources.state), until the other side hangs up
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError, InternalError, MillpondError, MountError, ProtocolError, from_system
from millpond.daemon.mounts import filling
from millpond.daemon.mounts.engines import AUTO, EROFS, PYFUSE3, Choice, choose, why_no_image
from millpond.daemon.mounts.place import SOURCE
from millpond.daemon.rpc import framing
from millpond.daemon.store.reader import StoreReader
from millpond.fusefs import engines
from millpond.fusefs.engines import EngineRefused, EngineSettings, direct_engine, erofs_engine
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling import starting
from millpond.fusefs.filling.filler import FillerSettings
from millpond.fusefs.filling.starting import Forked
from millpond.fusefs.image import mounter as mounters
from millpond.fusefs.image.ahead import is_of_use
from millpond.fusefs.image.mounter import Mounter
from millpond.fusefs.logfile import log_to
from millpond.fusefs.reader import BUFFER_BYTES, ChunkCache
from millpond.fusefs.sources import Sources
from millpond.fusefs.versions import VersionsFilesystem

log = logging.getLogger("millpond.holder")

# Who connects to the control socket must ask, and take the answer, in this time.
_CONTROL_S = 5.0
# How often a holder looks for segments that were removed.
_LET_GO_S = 5
# Imported here, so that a holder forked from a process that has this module need not.
PRELOADED = (direct_engine, erofs_engine)


@dataclass(frozen=True, slots=True)
class HolderSettings:
    """What a holder is told. `root` is hex, None with `versions`; `uid` the caller's; `control` the socket's path; `device`
    a /dev/fuse descriptor that is mounted already (system mode), else -1; `serving` processes serve the mount (0: as load
    has it, `serving_most` at most, or as the cores allow); `successor_s` how long a reader waits for another
    source when the one there was has died (0: none comes); `far`: not all is here; `fill`: so many processes (None: as the cores allow, 0: none)
    may bring neighbours of small files that are read into the page cache; `verify` is told on; `name` is what the kernel's table calls it."""

    id: str
    store: str
    uid: int
    mountpoint: str
    root: str | None
    files: int
    bytes: int
    control: str
    log: str
    engine: str = AUTO
    versions: bool = False
    far: bool = False
    xattrs: bool = False
    allow_other: bool = False
    read_ahead_kb: int = engines.READ_AHEAD_KB
    materialize: int = 0
    serving: int = 0
    serving_most: int = 0
    fill: int | None = 0
    device: int = -1
    successor_s: float = 0.0
    verify: str = "blocks"
    name: str = SOURCE


class Holder:
    """One mount being served. Raises MountError when its engine is not there."""

    def __init__(
        self,
        settings: HolderSettings,
        source: Sources | None,
        fillers: Sequence[Forked] | str = filling.OFF,
        mounter: Mounter | None = None,
    ) -> None:
        self._settings = settings
        self._fillers = fillers
        self._mounter = mounter
        self._choice = _choice(settings)
        if self._choice.engine == PYFUSE3 and settings.serving > 1:
            raise MountError(
                f"the engine {self._choice.engine} serves a mount by one process, not by {settings.serving}",
                path=settings.mountpoint,
                hint="use --engine direct, or leave --serving out",
            )
        self._source = source
        self._filesystem: Filesystem | None = None
        # Set, and replaced, when the source's state changes.
        self._changed = trio.Event()

    async def serve(self, ready: socket.socket) -> None:
        """Mount, say so on `ready`, serve, return when the mount is gone. Raises MountError."""
        settings = self._settings
        reader = StoreReader.open(Path(settings.store), BUFFER_BYTES)
        if self._source is not None:
            self._listen_to(self._source)
        try:
            async with trio.open_nursery() as nursery:
                chunks = ChunkCache(reader, nursery)
                kind = VersionsFilesystem if settings.versions else Filesystem
                self._filesystem = kind(
                    reader,
                    chunks,
                    self._source,
                    root=bytes.fromhex(settings.root) if settings.root else None,
                    uid=settings.uid,
                    totals=(settings.files, settings.bytes),
                    xattrs=settings.xattrs,
                    verify=settings.verify,
                )
                # In system mode the daemon is another user, of the store's group as this process is.
                listener = await _listen(settings.control, 0o660 if settings.device >= 0 else 0o600)
                nursery.start_soon(self._control, listener)
                nursery.start_soon(_let_go, reader)

                async def mounted() -> None:
                    ready.sendall(json.dumps({"engine": self._choice.engine}).encode() + b"\n")
                    ready.close()

                try:
                    await engines.load(self._choice.engine).serve(self._filesystem, self._engine_settings(), mounted)
                except EngineRefused as refused:
                    raise MountError(
                        f"the engine {self._choice.engine} cannot serve this: {refused}",
                        path=settings.mountpoint,
                        hint="use --engine direct, or leave it out",
                    ) from refused
                nursery.cancel_scope.cancel()
        finally:
            with contextlib.suppress(OSError):
                os.unlink(settings.control)
            reader.close()

    def _engine_settings(self) -> EngineSettings:
        settings = self._settings
        return EngineSettings(
            mountpoint=settings.mountpoint if settings.device < 0 else f"/dev/fd/{settings.device}",
            place=settings.mountpoint,
            name=settings.name,
            allow_other=settings.allow_other,
            read_ahead_kb=settings.read_ahead_kb,
            materialize=settings.materialize,
            scratch=str(Path(settings.store) / "tmp"),
            store=wirepath.encode(settings.store),
            serving=settings.serving,
            serving_most=settings.serving_most,
            fillers=self._fillers,
            far=settings.far,
            mounter=self._mounter,
        )

    async def _control(self, listener: trio.SocketListener) -> None:
        await trio.serve_listeners(self._answer, [listener])

    def _state(self, filesystem: Filesystem) -> dict[str, Any]:
        return {
            "id": self._settings.id,
            "pid": os.getpid(),
            "rss": _rss_bytes(),
            "engine": self._choice.engine,
            "engine_why": self._choice.why,
            "stats": filesystem.statistics(),
        }

    async def _answer(self, stream: trio.SocketStream) -> None:
        fds: list[int] = []
        try:
            async with stream:
                request: dict[str, Any] | None = None
                with trio.move_on_after(_CONTROL_S):
                    data, control, flags, _ = await stream.socket.recvmsg(
                        4096, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                    )
                    fds = framing.taken_in(data, control, flags) or []
                    request, _ = framing.parse_json(data)
                if request is not None and request.get("op") == "watch":
                    await self._tell_changes(stream)
                elif request is not None:
                    answer = await self._perform(str(request.get("op")), fds)
                    with trio.move_on_after(_CONTROL_S):
                        await stream.send_all(json.dumps(answer).encode() + b"\n")
        except* (OSError, trio.BrokenResourceError, MillpondError) as group:
            log.info("a request on the control socket failed: %s", group.exceptions[0])
        finally:
            framing.close_all(fds)

    async def _perform(self, op: str, fds: list[int]) -> dict[str, Any]:
        if op == "abort":
            os.kill(os.getpid(), signal.SIGKILL)
        if op in ("source", "credentials"):
            if self._source is None or len(fds) != 1:
                raise ProtocolError(f"{op} takes one descriptor, and a mount with a source")
            if op == "source":
                await trio.to_thread.run_sync(self._source.replace, socket.socket(fileno=fds.pop()))
                return {}
            try:
                await trio.to_thread.run_sync(self._source.credentials, fds[0])
                return {}
            except MillpondError as error:
                return {"error": error.to_wire()}
        assert self._filesystem is not None
        if op == "used":
            return {"segments": sorted(self._filesystem.take_used())}
        if op == "ending":
            self._filesystem.when_ending()
        return self._state(self._filesystem)

    async def _tell_changes(self, stream: trio.SocketStream) -> None:
        """A line for each state of the source, until the other side hangs up."""
        told: dict[str, object] | None = None
        async with trio.open_nursery() as nursery:

            async def until_gone() -> None:
                await stream.receive_some(1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_gone)
            while True:
                changed = self._changed
                state: dict[str, object] = {"gone": False} if self._source is None else self._source.state
                if state != told:
                    told = state
                    await stream.send_all(json.dumps(state).encode() + b"\n")
                await changed.wait()

    def _listen_to(self, source: Sources) -> None:
        token = trio.lowlevel.current_trio_token()

        def change() -> None:
            self._changed.set()
            self._changed = trio.Event()

        def changed() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(change)

        source.changed = changed


async def _let_go(reader: StoreReader) -> None:
    """Garbage collection removes segments that this process may have open: their room is given back here."""
    while True:
        await trio.sleep(_LET_GO_S)
        reader.let_go()


async def _listen(path: str, mode: int) -> trio.SocketListener:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        await sock.bind(path)
    finally:
        os.umask(before)
    sock.listen(8)
    return trio.SocketListener(sock)


def run(request: dict[str, Any], fds: list[int]) -> int:
    """A zygote's child. Descriptors: where to say ready, the source's socket, and perhaps /dev/fuse."""
    values = dict(request["settings"])
    for key in ("store", "mountpoint", "control", "log"):
        values[key] = wirepath.decode(values[key])
    if len(fds) > 2:
        values["device"] = fds[2]
        os.set_inheritable(fds[2], True)
    settings = HolderSettings(**values)
    ready = socket.socket(fileno=fds[0])
    try:
        mounter = mounters.fork() if settings.engine == EROFS else None
    except OSError as error:
        log_to(settings.log)
        return _report(ready, from_system(error, "starting the process that mounts"))
    fillers = _fork_fillers(settings)
    log_to(settings.log)
    source = Sources(socket.socket(fileno=fds[1]), successor_s=settings.successor_s)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # only an unmount ends it
        signal.signal(number, signal.SIG_IGN)
    try:
        trio.run(Holder(settings, source, fillers, mounter).serve, ready)
        return 0
    except MillpondError as error:
        return _report(ready, error)
    except Exception as failure:
        log.exception("the holder failed")
        cause = failure
        while isinstance(cause, ExceptionGroup):  # what a nursery raises; the first that failed is why
            cause = cause.exceptions[0]
        if isinstance(cause, MillpondError):
            return _report(ready, cause)
        if isinstance(cause, OSError) and isinstance(told := from_system(cause, "serving the mount"), BusyError):
            return _report(ready, told)
        return _report(
            ready, InternalError(f"the mount's process failed: {cause!r}", hint="see `millpond daemon logs`")
        )


def _choice(settings: HolderSettings) -> Choice:
    """The engine. Raises MountError."""
    no_image = why_no_image(
        system=settings.device >= 0,
        versions=settings.versions,
        xattrs=settings.xattrs,
        materialize=bool(settings.materialize),
    )
    return choose(settings.engine, no_image)


def _fork_fillers(settings: HolderSettings) -> list[Forked] | str:
    """While there are no threads, and nothing of the store is open. Else why the mount has none."""
    if settings.fill == 0:
        return filling.OFF
    if settings.engine == PYFUSE3:
        return filling.BY_ENGINE
    image = settings.engine == EROFS
    if image and not is_of_use(settings.files, settings.bytes, far=settings.far):
        return []  # there is nothing to do
    forked: list[Forked] = []
    count = starting.how_many(settings.fill, image=image)
    for number in range(count):
        told = FillerSettings(settings.store, settings.uid, settings.mountpoint, settings.log, (number, count), image)
        try:
            forked.append(starting.fork(told))
        except OSError as error:
            for each in forked:
                each.close()  # each brings its share alone
            return f"another process cannot be started: {error.strerror}"
    return forked


def _report(ready: socket.socket, error: MillpondError) -> int:
    log.error("%s", error)
    with contextlib.suppress(OSError):
        ready.sendall(json.dumps(error.to_wire()).encode() + b"\n")
    return 1


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """`python -m millpond.fusefs.holder READY_FD SOURCE_FD SETTINGS [DEVICE_FD]`: the same, standing alone; settings as
    JSON."""
    fds = [*sys.argv[1:3], *sys.argv[4:5]]
    sys.exit(run({"settings": json.loads(sys.argv[3])}, [int(fd) for fd in fds]))


if __name__ == "__main__":
    main()
