"""Children that have ended, waited for without keeping others from anything."""

from __future__ import annotations

import contextlib
import os

import trio


async def reaped(pid: int) -> None:
    """Wait for a child's end, however long that takes: one that waits in the kernel may be killed, and end much later."""
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  it has ended
    finally:
        os.close(pidfd)
