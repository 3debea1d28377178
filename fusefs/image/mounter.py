"""The process that mounts an image: forked by the holder before that has anything open, gone when it is mounted.

Mounting asks for blocks of the image, which the holder answers. Would a thread of the holder do it, and be killed while it waits in the kernel, it
would keep the holder's descriptor of the connection open, and wait for itself for ever. This process has no such descriptor: with
the holder the connection ends, and all that waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import MountError
from millpond.daemon.jobs import process
from millpond.daemon.mounts import syscalls
from millpond.daemon.mounts.place import IMAGE_FSTYPE
from millpond.daemon.rpc import framing
from millpond.fusefs.engines import EngineRefused
from millpond.fusefs.engines.mounting import FLAGS
from millpond.fusefs.engines.readahead import names, one_at_a_time, set_read_ahead
from millpond.fusefs.image import trial
from millpond.fusefs.reaping import reaped

_MESSAGE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """The image `name` on `place`; read `directly`, not through its own page cache, of which so much is read ahead."""

    name: str
    place: str
    read_ahead_kb: int
    directly: bool


@dataclass(slots=True)
class Mounter:
    """The holder's end."""

    pid: int
    sock: socket.socket

    async def mount(self, wanted: Wanted, nowhere: int) -> tuple[str, int]:
        """Have the image of the mount whose root is open as `nowhere` mounted: what the mount is called where its read-ahead is set ("" if that
        cannot be told), and a descriptor of the image. Raises EngineRefused where the kernel is not fit for it, MountError."""
        told = {
            "name": wanted.name,
            "place": wirepath.encode(wanted.place),
            "read_ahead_kb": wanted.read_ahead_kb,
            "directly": wanted.directly,
        }
        message, fds = b"", list[int]()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed, before it took what was sent
            self.sock.sendmsg([json.dumps(told).encode()], framing.ancillary([nowhere]))
            self.sock.setblocking(False)
            await trio.lowlevel.wait_readable(self.sock)
            message, control, _, _ = self.sock.recvmsg(_MESSAGE_BYTES, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            fds = framing.received_fds(control)
        # It has nothing more to do; and who is cancelled here would not know that there is a mount.
        with trio.CancelScope(shield=True):
            await reaped(self.pid)
        answer = json.loads(message) if message else {"error": "the process that mounts was killed"}
        if "refused" in answer:
            raise EngineRefused(answer["refused"])
        if "error" in answer or not fds:
            raise MountError(
                f"cannot mount on '{wanted.place}': {answer.get('error', 'no image came back')}",
                path=wanted.place,
                hint="is it a directory that is there? millpond doctor tells what is missing",
            )
        return str(answer["made"]), fds[0]

    def close(self) -> None:
        """It is not needed any more: it ends, if it has not."""
        self.sock.close()


def fork() -> Mounter:
    """For a process without threads that has nothing open of a mount. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Mounter(pid, ours)
    try:
        process.keep_only(theirs.fileno())
        process.set_name("millpond-mount")
        process.die_with(parent, signal.SIGKILL)
        _serve(theirs)
    finally:
        # Not by sys.exit: what the holder has set up is not this process's to end.
        os._exit(0)


def _serve(sock: socket.socket) -> None:
    """One mount; undone when the holder is gone by then."""
    message, control, _, _ = sock.recvmsg(_MESSAGE_BYTES, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = framing.received_fds(control)
    if not message or not fds:
        return  # there will be none
    told = json.loads(message)
    wanted = Wanted(told["name"], wirepath.decode(told["place"]), told["read_ahead_kb"], told["directly"])
    (nowhere,) = fds
    if refused := trial.fails(nowhere):
        sock.send(json.dumps({"refused": refused}).encode())
        return
    source = f"/proc/self/fd/{nowhere}/{wanted.name}"
    try:
        set_read_ahead(os.fstat(nowhere).st_dev, wanted.read_ahead_kb)
        # Closed here once: so the kernel learns that closing concerns nobody (ENOSYS to FLUSH). Else the holder would have to answer itself when
        # it closes the image, for ever if that was because it was killed.
        os.close(os.open(source, os.O_RDONLY | os.O_CLOEXEC))
        image = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        process.live_on()  # killed from here on with the holder, it could not undo what it does
        made = _mount(source, wanted)
    except OSError as error:
        sock.send(json.dumps({"error": error.strerror or str(error)}).encode())
        return
    try:
        sock.sendmsg([json.dumps({"made": made}).encode()], framing.ancillary([image]))
    except OSError:
        syscalls.umount(os.fsencode(wanted.place), lazy=True)


def _mount(source: str, wanted: Wanted) -> str:
    """What it is called where its read-ahead is set; "" if that cannot be told. Raises OSError."""
    options = b"directio" if wanted.directly else b""
    with one_at_a_time():
        before = names(IMAGE_FSTYPE)
        syscalls.mount(source.encode(), os.fsencode(wanted.place), IMAGE_FSTYPE.encode(), FLAGS, options)
        made = names(IMAGE_FSTYPE) - before
    return made.pop() if len(made) == 1 else ""
