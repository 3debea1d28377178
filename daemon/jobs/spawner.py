"""The spawner: system mode's only root process. It starts zygotes for other uids, and mounts for them; nothing else.

It listens to one socket, that of the daemon which it trusts to name the right caller, and still checks every request:
never a zygote for root, for the daemon's own user, or below the first ordinary uid but the holder's; never a mount but on
a directory that was passed as a descriptor and belongs to the uid it is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from millpond.daemon.rpc import framing

MAX_MESSAGE = 16 << 10
FIRST_UID = 1000
_MS_NOSUID, _MS_NODEV, _MS_RDONLY = 2, 4, 1
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


@dataclass(frozen=True, slots=True)
class Policy:
    """Who the parts run as."""

    daemon_uid: int
    holder_uid: int
    store_gid: int


class Refused(Exception):
    """The request breaks the policy; the text goes back to the daemon."""


def serve(sock: socket.socket, policy: Policy) -> None:
    """Answer the daemon until it hangs up; then the zygotes end too, their children do not."""
    while True:
        data, control, _, _ = sock.recvmsg(MAX_MESSAGE, framing.ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        fds = framing.received_fds(control)
        if not data:
            return
        answer: dict[str, Any] = {}
        given: list[int] = []
        try:
            request = json.loads(data)
            if request["op"] == "zygote":
                given = [_zygote(policy, int(request["uid"]), str(request["role"]))]
            elif request["op"] == "mount":
                given = [_mount(policy, int(request["uid"]), fds[0], str(request["name"]))]
            elif request["op"] == "umount":
                _umount(int(request["uid"]), fds[0], bool(request["lazy"]))
            else:
                raise Refused(f"no operation '{request['op']}'")
        except Refused as error:
            answer = {"error": str(error)}
        except (OSError, ValueError, KeyError, IndexError) as error:
            answer = {"error": f"{error}", "errno": getattr(error, "errno", None)}
        for fd in fds:
            os.close(fd)
        sock.sendmsg([json.dumps(answer).encode()], framing.ancillary(given))
        for fd in given:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _zygote(policy: Policy, uid: int, role: str) -> int:
    if role == "holder":
        if uid != policy.holder_uid:
            raise Refused(f"uid {uid} is not the holders'")
    elif role != "caller" or uid < FIRST_UID or uid in (policy.daemon_uid, policy.holder_uid):
        raise Refused(f"no zygote for uid {uid}")
    groups, gid = _groups(policy, uid, role)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "millpond.daemon.jobs.zygote", str(theirs.fileno()), role],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={name: os.environ[name] for name in ("PYTHONPATH", "PATH", "LANG") if name in os.environ},
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    return ours.detach()


def _groups(policy: Policy, uid: int, role: str) -> tuple[list[int], int]:
    if role == "holder":
        return [], policy.store_gid
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return [], uid
    return os.getgrouplist(entry.pw_name, entry.pw_gid), entry.pw_gid


def _owned_directory(uid: int, fd: int) -> str:
    found = os.fstat(fd)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
        raise Refused(f"the mountpoint is not a directory of uid {uid}")
    return f"/proc/self/fd/{fd}"


def _mount(policy: Policy, uid: int, fd: int, name: str) -> int:
    """Mount on the directory behind `fd`, readable by `uid` only; the /dev/fuse descriptor."""
    if uid < FIRST_UID or uid == policy.daemon_uid:
        raise Refused(f"no mount for uid {uid}")
    path = _owned_directory(uid, fd)
    if "," in name or not name.isprintable():
        raise Refused("a mount's name is one printable word")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = (
            f"fd={device},rootmode=40000,user_id={uid},group_id={_groups(policy, uid, 'caller')[1]},default_permissions"
        )
        _mount2(name.encode(), path.encode(), options.encode())
    except OSError:
        os.close(device)
        raise
    return device


def _mount2(source: bytes, target: bytes, options: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, target, b"fuse.millpond", _MS_NOSUID | _MS_NODEV | _MS_RDONLY, options):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _umount(uid: int, fd: int, lazy: bool) -> None:
    """Unmount what is mounted at the directory behind `fd`, if it is a mount of ours for `uid`."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, tail = line.partition(" - ")
            ours = fields.split(" ")[4] == path and tail.split(" ")[0] == "fuse.millpond"
            if ours and f"user_id={uid}," in tail + ",":
                break
        else:
            raise Refused("there is no mount of this user there")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(path.encode(), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
