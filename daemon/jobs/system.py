"""System mode: the daemon as a user of its own, with a root spawner beside it.

`millpondd` started as root with MILLPOND_SYSTEM_USER (the daemon's user), MILLPOND_HOLDER_USER (who serves mounts) and
MILLPOND_STORE_GROUP (who may read the store) forks the spawner and then gives up root for good.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import socket
from collections.abc import Mapping
from typing import Any

import trio

from millpond.daemon.errors import AccessError, MountError, UsageError
from millpond.daemon.jobs import spawner
from millpond.daemon.jobs.spawner import Policy
from millpond.daemon.rpc import framing


class SystemMode:
    """The daemon's side of the spawner."""

    def __init__(self, sock: socket.socket, policy: Policy) -> None:
        self._raw = sock
        self._sock: trio.socket.SocketType | None = None
        self._lock = trio.Lock()
        self.holder_uid = policy.holder_uid
        self.store_group = policy.store_gid

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> SystemMode | None:
        """Fork the spawner and drop root, when the environment asks for it; None in user mode. Raises UsageError."""
        user = environ.get("MILLPOND_SYSTEM_USER")
        if not user:
            return None
        if os.getuid() != 0:
            raise UsageError(
                "system mode must be started as root", hint="unset MILLPOND_SYSTEM_USER for your own daemon"
            )
        daemon_uid, daemon_gid = _user(user)
        holder_uid, _ = _user(environ.get("MILLPOND_HOLDER_USER") or user)
        group = environ.get("MILLPOND_STORE_GROUP")
        policy = Policy(daemon_uid, holder_uid, _group(group) if group else daemon_gid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                spawner.serve(theirs, policy)
            finally:
                os._exit(0)
        theirs.close()
        os.setgroups([policy.store_gid])
        os.setresgid(daemon_gid, daemon_gid, daemon_gid)
        os.setresuid(daemon_uid, daemon_uid, daemon_uid)
        return cls(ours, policy)

    async def start_zygote(self, uid: int, role: str) -> socket.socket:
        """A `zygotes.Starter`. Raises AccessError when the spawner refuses."""
        answer, fds = await self._ask({"op": "zygote", "uid": uid, "role": role}, [])
        if not fds:
            raise AccessError(f"no process can be started for uid {uid}: {answer.get('error')}")
        return socket.socket(fileno=fds[0])

    async def mount(self, uid: int, directory: int, name: str) -> int:
        """Mount FUSE on the directory behind a descriptor, for `uid`; the /dev/fuse descriptor. Raises MountError."""
        answer, fds = await self._ask({"op": "mount", "uid": uid, "name": name}, [directory])
        if not fds:
            raise MountError(f"cannot mount: {answer.get('error')}", hint="the mountpoint must be a directory of yours")
        return fds[0]

    async def umount(self, uid: int, directory: int, lazy: bool) -> int | None:
        """Unmount a mount of `uid`; None, or the errno with which the kernel refused. Raises MountError."""
        answer, _ = await self._ask({"op": "umount", "uid": uid, "lazy": lazy}, [directory])
        if answer.get("errno"):
            return int(answer["errno"])
        if answer.get("error"):
            raise MountError(f"cannot unmount: {answer['error']}")
        return None

    async def _ask(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        async with self._lock:
            if self._sock is None:
                self._sock = trio.socket.from_stdlib_socket(self._raw)
            with trio.CancelScope(shield=True):  # an answer left unread would be taken for the next one's
                await self._sock.sendmsg([json.dumps(request).encode()], framing.ancillary(fds))
                data, control, _, _ = await self._sock.recvmsg(
                    spawner.MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            return json.loads(data or b"{}"), framing.received_fds(control)


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
