"""Mounting: by mount(2) where this process may, else by fusermount3, which passes the descriptor on which the kernel asks.

The descriptor comes over the socket that `_FUSE_COMMFD` names, as libfuse's mount.c has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess

from millpond.daemon.errors import MountError
from millpond.daemon.mounts import syscalls
from millpond.daemon.mounts.syscalls import MountFlag
from millpond.daemon.rpc import framing
from millpond.fusefs.engines import FSTYPE, EngineRefused, EngineSettings, mount_options

DEVICE = "/dev/fuse"
PROGRAM = "fusermount3"
_SECONDS = 20.0
FLAGS = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOATIME
_NOT_PRIVILEGED = (errno.EPERM, errno.EACCES)
# linux/fuse.h: FUSE_DEV_IOC_CLONE, _IOR(229, 0, u32)
_CLONE = 0x8004E500


def mount(settings: EngineSettings) -> int:
    """Mount at `settings.place`; the descriptor of the kernel's requests. Raises MountError."""
    fd = _privileged(settings)
    return fd if fd is not None else _by_program(settings.place, mount_options(settings))


def mount_nowhere(name: str) -> tuple[int, int]:
    """Mount in no directory, for who may: descriptors of the kernel's requests, and of the mount's root. Raises EngineRefused, and OSError where there
    is no room for it just now."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = {
        "source": name,
        "subtype": FSTYPE.removeprefix("fuse."),
        "fd": str(fd),
        "rootmode": "40000",
        "user_id": str(os.getuid()),
        "group_id": str(os.getgid()),
    }
    try:
        return fd, syscalls.mount_nowhere("fuse", options)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise EngineRefused(f"the kernel mounts no file system without a directory ({error.strerror})") from error


def clone(fd: int) -> int:
    """Another descriptor of a mount; what is read from one is answered on the same. Raises OSError."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(device)
        raise
    return device


def _privileged(settings: EngineSettings) -> int | None:
    """Mount without help; None where this process may not. Raises MountError."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_device(settings.place, error) from error
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    if settings.allow_other:
        options += ",allow_other"
    try:
        syscalls.mount(settings.name.encode(), os.fsencode(settings.place), FSTYPE.encode(), FLAGS, options.encode())
    except OSError as error:
        os.close(fd)
        if error.errno in _NOT_PRIVILEGED:
            return None
        raise MountError(
            f"cannot mount on '{settings.place}': {error.strerror}",
            path=settings.place,
            hint="is it a directory that is there? millpond doctor tells what is missing",
        ) from error
    return fd


def _no_device(place: str, error: OSError) -> MountError:
    if error.errno in _NOT_PRIVILEGED:
        return MountError(
            f"cannot mount on '{place}': you may not use {DEVICE}",
            path=place,
            hint=f"ask the admin to make it usable: chmod 0666 {DEVICE}; in a container: --device {DEVICE}",
        )
    return MountError(
        f"cannot mount on '{place}': {DEVICE}: {error.strerror}",
        path=place,
        hint=f"load the kernel's module: modprobe fuse; in a container: --device {DEVICE} --cap-add SYS_ADMIN",
    )


def _by_program(place: str, options: list[str]) -> int:
    """Let fusermount3 mount. Raises MountError."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [PROGRAM, "-o", ",".join(options), "--", place]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise MountError(
                f"cannot mount on '{place}': {PROGRAM} is not installed",
                path=place,
                hint="install it: apt-get install fuse3",
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MountError(f"cannot run {PROGRAM} for '{place}': {error}", path=place) from error
        theirs.close()
        ours.settimeout(_SECONDS)
        fds = _received(ours)
        if done.returncode == 0 and len(fds) == 1:
            return fds[0]
        framing.close_all(fds)
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise MountError(
            f"cannot mount on '{place}': {said or f'{PROGRAM} gave no descriptor'}",
            path=place,
            hint="is the directory yours? millpond doctor tells what is missing",
        )


def _received(sock: socket.socket) -> list[int]:
    try:
        _, control, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return []
    return framing.received_fds(control)
