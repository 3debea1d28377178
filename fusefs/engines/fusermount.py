"""Mounting without privilege: fusermount3 does it, and passes the descriptor on which the kernel asks.

The descriptor comes over the socket that `_FUSE_COMMFD` names, as libfuse's mount.c has it.
"""

from __future__ import annotations

import os
import socket
import subprocess

from millpond.daemon.errors import MountError
from millpond.daemon.rpc import framing

PROGRAM = "fusermount3"
_SECONDS = 20.0
_HINT = "is /dev/fuse there, fusermount3 installed, and the directory yours? millpond doctor tells"


def mount(place: str, options: list[str]) -> int:
    """Mount at `place`; the descriptor of the kernel's requests. Raises MountError."""
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
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MountError(f"cannot run {PROGRAM} for '{place}': {error}", path=place, hint=_HINT) from error
        theirs.close()
        ours.settimeout(_SECONDS)
        fds = _received(ours)
        if done.returncode == 0 and len(fds) == 1:
            return fds[0]
        framing.close_all(fds)
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise MountError(
            f"cannot mount on '{place}': {said or 'fusermount3 gave no descriptor'}", path=place, hint=_HINT
        )


def umount(place: str) -> None:
    """Take a mount away at once, whoever uses it; it may be gone already."""
    subprocess.run([PROGRAM, "-u", "-z", "-q", "--", place], capture_output=True, timeout=_SECONDS, check=False)


def _received(sock: socket.socket) -> list[int]:
    try:
        _, control, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return []
    return framing.received_fds(control)
