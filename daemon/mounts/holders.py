"""The processes of a mount, as the daemon starts and asks them: its holder, and its source."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import MountError, from_wire
from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.mounts import engines, place
from millpond.daemon.mounts.detach import detach
from millpond.daemon.mounts.mount import Mount
from millpond.daemon.mounts.records import MountRecord
from millpond.daemon.rpc import framing

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.mounts")

# A holder must have mounted within this time.
MOUNT_S = 30.0
CONTROL_S = 1.0
# A killed holder ends in this time, unless it waits in the kernel.
_END_S = 5.0
# Readers wait so long for another source when theirs has died; one that dies again and again is started with pauses.
SUCCESSOR_S = 20.0
_MAX_LINE = 1 << 20
# A holder that is not there, hangs up, takes too long, or talks nonsense.
NO_ANSWER = (OSError, ValueError, TypeError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class Holders:
    """Starts and asks holders."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def start(self, record: MountRecord, directory: int, environ: int, *, far: bool = False) -> tuple[Child, str]:
        """Fork source and holder, wait until the mount answers: the holder, and its engine. `far`: the source will be asked soon. Raises
        the holder's error."""
        system = self._daemon.system
        runtime = self._daemon.settings.runtime / "mounts"
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        if system is not None:
            os.chown(runtime, -1, system.store_group)
            runtime.chmod(0o770)
        ours, ready = socket.socketpair()
        source_a, source_b = socket.socketpair()
        device = -1
        try:
            if system is not None:
                device = await system.mount(record.uid, directory, place.source_of(record.name, record.id))
            await self.fork_source(record, source_b, environ, far=far)
            owner = system.holder_uid if system is not None else record.uid
            fds = [ready.fileno(), source_a.fileno(), *([device] if device >= 0 else [])]
            request = {"settings": self._holder_settings(record, os.fspath(runtime / f"{record.id}.sock"), far=far)}
            child = await self._daemon.zygotes.of(owner, "holder").fork("holder", request, fds)
        except BaseException:
            ours.close()
            raise
        finally:
            for sock in (ready, source_a, source_b):
                sock.close()
            if device >= 0:
                os.close(device)
        try:
            engine = await _await_ready(ours, record)
        except BaseException:
            with trio.CancelScope(shield=True):
                await child.kill(signal.SIGKILL)
                with trio.move_on_after(_END_S):
                    await child.wait()
                child.close()
                if system is None:
                    await trio.to_thread.run_sync(_take_away, record)
            raise
        return child, engine

    async def fork_source(self, record: MountRecord, sock: socket.socket, environ: int, *, far: bool = False) -> None:
        """`environ` is a memory file that only the source reads: there may be credentials in it. With `far` it connects at once."""
        settings = {
            "id": record.id,
            "repo": wirepath.encode(record.repo),
            "target": wirepath.encode(record.target),
            "socket": os.fspath(self._daemon.settings.socket),
            "umask": record.context.get("umask", 0o022),
            "caches": record.options.get("caches") or [],
            "verify": record.options.get("verify"),
            "far": far,
        }
        zygote = self._daemon.zygotes.of(record.uid)
        child = await zygote.fork("source", {"settings": settings}, [sock.fileno(), environ])
        child.close()

    def _holder_settings(self, record: MountRecord, control: str, *, far: bool) -> dict[str, Any]:
        options = record.options
        return {
            "id": record.id,
            "store": wirepath.encode(os.fspath(self._daemon.store.path)),
            "uid": record.uid,
            "mountpoint": wirepath.encode(record.mountpoint),
            "root": record.root or None,
            "files": record.files,
            "bytes": record.bytes,
            "control": wirepath.encode(control),
            "log": wirepath.encode(os.fspath(self._daemon.settings.log.with_name("holder.log"))),
            "engine": record.engine,
            "versions": record.versions,
            "far": far,
            "xattrs": bool(options.get("xattrs")),
            "materialize": int(options.get("materialize") or 0),
            "serving": min(int(options.get("serving") or 0), engines.MOST_SERVING),
            "serving_most": self._daemon.settings.serving_most or 0,
            "fill": self._daemon.settings.fill,
            "allow_other": bool(options.get("allow_other")),
            "verify": record.options.get("verify") or "blocks",
            "successor_s": SUCCESSOR_S,
            "name": place.source_of(record.name, record.id),
        }

    async def ask(self, mount: Mount, op: str = "state") -> dict[str, Any]:
        """A holder's state or what else it is asked, {} when it does not say it in time."""
        try:
            return await self.control(mount, {"op": op}, [], CONTROL_S)
        except MountError:
            return {}

    async def control(
        self, mount: Mount, request: dict[str, Any], fds: Sequence[int], seconds: float
    ) -> dict[str, Any]:
        """A holder's answer. Raises MountError when there is none in time, and the error that it answers with."""
        try:
            with trio.fail_after(seconds):
                async with await self.connect(mount) as stream:
                    await stream.socket.sendmsg([json.dumps(request).encode() + b"\n"], framing.ancillary(fds))
                    answers = [answer async for answer in lines(stream)]
        except NO_ANSWER as error:
            answers = []
            log.info("mount %s did not answer %s: %r", mount.record.id, request["op"], error)
        if not answers:
            raise MountError(f"the process of the mount on '{mount.record.mountpoint}' does not answer")
        if "error" in answers[0]:
            raise from_wire(answers[0]["error"])
        return answers[0]

    async def connect(self, mount: Mount) -> trio.SocketStream:
        """To a holder's control socket. Raises what is in NO_ANSWER."""
        return await trio.open_unix_socket(self._daemon.settings.runtime / "mounts" / f"{mount.record.id}.sock")


def _take_away(record: MountRecord) -> None:
    """Detach what a holder has mounted that was not to: a dead mount that no record tells of would be nobody's. For the user's own daemon, which has
    his rights."""
    there = place.mounted_at(record.mountpoint)
    if there is None or not place.is_of(there, record.id):
        return
    try:
        detach(record.mountpoint)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("'%s' cannot be unmounted: %s", record.mountpoint, error)


async def _await_ready(sock: socket.socket, record: MountRecord) -> str:
    """The holder's word: `{"engine"}`, or its error. Raises MountError."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    answer = b""
    async with stream:
        with trio.move_on_after(MOUNT_S):
            while not answer.endswith(b"\n"):
                part = await stream.receive_some(65536)
                if not part:
                    break
                answer += part
    if answer.endswith(b"\n"):
        told = json.loads(answer)
        if "engine" in told:
            return str(told["engine"])
        raise from_wire(told)
    raise MountError(
        f"the process for '{record.mountpoint}' ended before it had mounted",
        path=record.mountpoint,
        hint="see `millpond daemon logs`",
    )


async def lines(stream: trio.SocketStream) -> AsyncGenerator[dict[str, Any], None]:
    """What comes, JSON line by line, until the other side hangs up. Raises what is in NO_ANSWER."""
    waiting = b""
    while part := await stream.receive_some(65536):
        *lines, waiting = (waiting + part).split(b"\n")
        if len(waiting) > _MAX_LINE:
            raise ValueError("a line without an end")
        for line in lines:
            yield dict(json.loads(line))
