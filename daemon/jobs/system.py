"""System mode: the daemon as a user of its own, with a root spawner beside it.

`millpondd` started as root with MILLPOND_SYSTEM_USER (the daemon's user), MILLPOND_HOLDER_USER (who serves mounts) and
MILLPOND_STORE_GROUP (who may read the store) makes the folders, starts the spawner, and gives up root for good.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from millpond.daemon.errors import AccessError, MountError, UsageError
from millpond.daemon.jobs import spawner
from millpond.daemon.jobs.spawner import Policy
from millpond.daemon.jobs.start import clean_environment
from millpond.daemon.rpc import framing
from millpond.daemon.settings import Settings


class SystemMode:
    """The daemon's side of the spawner."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes], policy: Policy) -> None:
        self._raw = sock
        self._process = process
        self._sock: trio.socket.SocketType | None = None
        self._lock = trio.Lock()
        self.holder_uid = policy.holder_uid
        self.store_group = policy.store_gid

    @classmethod
    def begin(cls, environ: Mapping[str, str], settings: Settings) -> SystemMode:
        """Make the folders, start the spawner, drop root. Raises UsageError, AccessError."""
        if os.getuid() != 0:
            raise UsageError(
                "system mode must be started as root", hint="unset MILLPOND_SYSTEM_USER for your own daemon"
            )
        uid, gid = _user(environ["MILLPOND_SYSTEM_USER"])
        holder_uid, _ = _user(environ.get("MILLPOND_HOLDER_USER") or environ["MILLPOND_SYSTEM_USER"])
        group = environ.get("MILLPOND_STORE_GROUP")
        policy = Policy(uid, holder_uid, _group(group) if group else gid, settings.verbs.partition(":")[0])
        if not uid or not holder_uid:
            raise UsageError("in system mode neither the daemon nor the holders may run as root")
        for folder in (settings.store, settings.state, settings.runtime, settings.socket.parent):
            _make_folder(folder, uid, gid)
        sock, process = _start_spawner(policy)
        os.setgroups([policy.store_gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return cls(sock, process, policy)

    async def start_zygote(self, uid: int, role: str) -> socket.socket:
        """A `zygotes.Starter`. Raises AccessError when the spawner refuses."""
        answer, fds = await self._ask({"op": "zygote", "uid": uid, "role": role}, [])
        if len(fds) != 1:
            framing.close_all(fds)
            raise AccessError(f"no process can be started for uid {uid}: {answer.get('error')}")
        return socket.socket(fileno=fds[0])

    async def mount(self, uid: int, directory: int, name: str) -> int:
        """Mount FUSE on the directory behind a descriptor, for `uid`; the /dev/fuse descriptor. Raises MountError."""
        answer, fds = await self._ask({"op": "mount", "uid": uid, "name": name}, [directory])
        if len(fds) != 1:
            framing.close_all(fds)
            raise MountError(f"cannot mount: {answer.get('error')}", hint="the mountpoint must be a directory of yours")
        return fds[0]

    async def umount(self, uid: int, parent: int, name: str, lazy: bool) -> int | None:
        """Unmount a mount of `uid`, `name` in the folder behind `parent`.

        None, or the errno with which the kernel refused. Raises MountError when it is no mount of this user.
        """
        answer, fds = await self._ask({"op": "umount", "uid": uid, "name": name, "lazy": lazy}, [parent])
        framing.close_all(fds)
        if answer.get("errno"):
            return int(answer["errno"])
        if answer.get("error"):
            raise MountError(f"cannot unmount: {answer['error']}")
        return None

    async def abort(self, uid: int, place: str, record: str) -> None:
        """End the mount at a place that was made for a user's record, and whose holder is gone. Raises MountError when it is not there, or cannot be."""
        answer, fds = await self._ask({"op": "abort", "uid": uid, "place": place, "record": record}, [])
        framing.close_all(fds)
        if answer.get("error"):
            raise MountError(f"cannot end the mount: {answer['error']}", path=place)

    async def _ask(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        async with self._lock:
            if self._sock is None:
                self._sock = trio.socket.from_stdlib_socket(self._raw)
            with trio.CancelScope(shield=True):  # an answer left unread would be taken for the next one's
                try:
                    await self._sock.sendmsg([json.dumps(request).encode()], framing.ancillary(fds))
                    data, control, _, _ = await self._sock.recvmsg(
                        spawner.MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                    )
                except OSError:
                    data, control = b"", []
            return json.loads(data or b'{"error": "the spawner is gone"}'), framing.received_fds(control)


def _make_folder(folder: Path, uid: int, gid: int) -> None:
    """A folder of the daemon's user; one that is there stays as it is, but must not be another user's."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(mode=0o755)
            os.chown(path, uid, gid)
    except OSError as error:
        raise AccessError(f"cannot make '{folder}': {error.strerror}", path=str(folder)) from error
    owner = folder.stat().st_uid
    if owner not in (0, uid):
        raise AccessError(f"'{folder}' belongs to uid {owner}, not to the daemon's {uid}", path=str(folder))


def _start_spawner(policy: Policy) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        numbers = [theirs.fileno(), policy.daemon_uid, policy.holder_uid, policy.store_gid]
        command = [sys.executable, "-P", "-m", "millpond.daemon.jobs.spawner", *map(str, numbers), policy.verbs]
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    return ours, process


def _user(text: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
        return entry.pw_uid, entry.pw_gid
    except KeyError:
        if text.isdigit():
            return int(text), int(text)
        raise UsageError(f"there is no user '{text}' on this machine") from None


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(f"there is no group '{text}' on this machine") from None
