"""The spawner: system mode's only root process. It starts zygotes for other uids, and mounts for them; nothing else.

It listens to one socket, that of the daemon which it trusts to name the right caller, and still checks every request:
never a zygote for root, for the daemon's own user, or below the first ordinary uid but the holder's; never a mount but on
a directory that was passed as a descriptor and belongs to the uid it is for; never the end of a mount that is not ours.

Messages are JSON over SOCK_SEQPACKET, one request and one answer at a time:

    {"op": "zygote", "uid", "role"}                    -> {} + the zygote's socket
    {"op": "mount", "uid", "name"} + directory         -> {} + a /dev/fuse descriptor, mounted there
    {"op": "umount", "uid", "name", "lazy"} + parent   -> {}
    {"op": "abort", "uid", "place", "record"}          -> {}
    any of them                                        -> {"error", "errno" | null}
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from millpond.daemon.jobs import process
from millpond.daemon.jobs.start import start_zygote
from millpond.daemon.mounts import connections, syscalls
from millpond.daemon.mounts.place import FSTYPE, is_of, mounted_at
from millpond.daemon.mounts.syscalls import MountFlag
from millpond.daemon.rpc import framing

MAX_MESSAGE = 16 << 10
FIRST_UID = 1000
# uid_t's -1, which setuid(2) takes for "leave it as it is".
_NO_UID = 2**32 - 1
_FLAGS = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOATIME
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,96}\Z")


@dataclass(frozen=True, slots=True)
class Policy:
    """Who the parts run as, and the module of verbs that callers' zygotes load."""

    daemon_uid: int
    holder_uid: int
    store_gid: int
    verbs: str


class Refused(Exception):
    """The request breaks the policy; the text goes back to the daemon."""


class Spawner:
    """The loop."""

    def __init__(self, sock: socket.socket, policy: Policy) -> None:
        self._sock = sock
        self._policy = policy
        self._zygotes: list[subprocess.Popen[bytes]] = []

    def serve(self) -> None:
        """Answer the daemon until it hangs up."""
        while True:
            data, control, _, _ = self._sock.recvmsg(MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            fds = framing.received_fds(control)
            if not data:
                return
            answer: dict[str, Any] = {}
            given: list[int] = []
            try:
                self._perform(json.loads(data), fds, given)
            except Refused as error:
                answer = {"error": str(error), "errno": None}
            except (OSError, ValueError, KeyError, IndexError, TypeError, subprocess.SubprocessError) as error:
                answer = {"error": str(error), "errno": getattr(error, "errno", None)}
            finally:
                framing.close_all(fds)
            try:
                self._sock.sendmsg([json.dumps(answer).encode()], framing.ancillary(given))
            except BrokenPipeError:
                return
            finally:
                framing.close_all(given)
            self._zygotes = [zygote for zygote in self._zygotes if zygote.poll() is None]

    def _perform(self, request: dict[str, Any], fds: list[int], given: list[int]) -> None:
        uid = request["uid"]
        if type(uid) is not int or not 0 <= uid < _NO_UID:
            raise Refused(f"{uid!r} is not a uid")
        if request["op"] == "zygote":
            given.append(self._zygote(uid, str(request["role"])))
        elif request["op"] == "mount":
            given.append(self._mount(uid, fds[0], str(request["name"])))
        elif request["op"] == "umount":
            _umount(uid, fds[0], os.fsencode(request["name"]), bool(request["lazy"]))
        elif request["op"] == "abort":
            _abort(uid, str(request["place"]), str(request["record"]))
        else:
            raise Refused(f"no operation '{request['op']}'")

    def _zygote(self, uid: int, role: str) -> int:
        policy = self._policy
        if role == "holder":
            if uid != policy.holder_uid:
                raise Refused(f"uid {uid} is not the holders'")
            groups, gid = list[int](), policy.store_gid
        elif role != "caller" or uid < FIRST_UID or uid in (policy.daemon_uid, policy.holder_uid):
            raise Refused(f"no zygote for uid {uid}")
        else:
            groups, gid = _groups(uid)
        sock, zygote = start_zygote(role, policy.verbs, user=uid, group=gid, extra_groups=groups)
        self._zygotes.append(zygote)
        return sock.detach()

    def _mount(self, uid: int, fd: int, name: str) -> int:
        """Mount on the directory behind `fd`, readable by `uid` only; the /dev/fuse descriptor."""
        if uid < FIRST_UID or uid == self._policy.daemon_uid:
            raise Refused(f"no mount for uid {uid}")
        if not _NAME.match(name):
            raise Refused("a mount's name is one plain word")
        found = os.fstat(fd)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
            raise Refused(f"the mountpoint is not a directory of uid {uid}")
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            gid = _groups(uid)[1]
            options = f"fd={device},rootmode=40000,user_id={uid},group_id={gid},default_permissions"
            target = f"/proc/self/fd/{fd}".encode()
            syscalls.mount(name.encode(), target, FSTYPE.encode(), _FLAGS, options.encode())
        except OSError:
            os.close(device)
            raise
        return device


def _groups(uid: int) -> tuple[list[int], int]:
    """Supplementary groups and the first group of an ordinary user."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return [], uid
    return os.getgrouplist(entry.pw_name, entry.pw_gid), entry.pw_gid


def _umount(uid: int, parent: int, name: bytes, lazy: bool) -> None:
    """Unmount `name` in the folder behind `parent`, if it is a mount of ours for `uid`.

    A descriptor of the mount itself would keep it busy. Nobody can put something else in its place meanwhile: the kernel
    does not let a mount point be renamed.
    """
    if not name or b"/" in name or name in (b".", b".."):
        raise Refused("a mountpoint's name is one part of a path")
    path = os.readlink(f"/proc/self/fd/{parent}".encode())
    if not _is_ours(uid, os.path.join(path, name)):
        raise Refused("there is no mount of this user there")
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.fchdir(parent)
        syscalls.umount(name, lazy=lazy)
    finally:
        os.fchdir(before)
        os.close(before)


def _abort(uid: int, place: str, record: str) -> None:
    """Have the requests of the mount that was made at a place for this user, and for the record with this id, end with an error, for ever. The place is
    looked up in the table alone: on the way there may be a file system of the user's that never answers."""
    entry = mounted_at(place)
    if entry is None or not is_of(entry, record) or not _is_ours(uid, os.fsencode(place)):
        raise Refused("there is no mount of this user there")
    connections.abort_by_number(entry)


def _is_ours(uid: int, path: bytes) -> bool:
    """Whether the topmost mount at `path` is one that was made here for `uid` (proc_pid_mountinfo(5))."""
    ours = False
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, tail = line.rstrip(b"\n").partition(b" - ")
            if _unescape(fields.split(b" ")[4]) == path:
                kind, _, options = tail.split(b" ", 2)
                ours = kind == FSTYPE.encode() and f"user_id={uid}".encode() in options.split(b",")
    return ours


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def main() -> None:
    """`python -m millpond.daemon.jobs.spawner FD DAEMON_UID HOLDER_UID STORE_GID VERBS`, as root."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.set_name("millpond-spawn")
    policy = Policy(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    with contextlib.suppress(ConnectionResetError):
        Spawner(sock, policy).serve()


if __name__ == "__main__":
    main()
