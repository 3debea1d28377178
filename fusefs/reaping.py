"""Children that have ended, waited for without keeping others from anything."""

from __future__ import annotations

import contextlib
import os

import trio

# How often it is looked whether a child has ended where there is no descriptor for it.
_LOOK_S = 1.0


async def reaped(pid: int) -> None:
    """Wait for a child's end, however long that takes: one that waits in the kernel may be killed, and end much later."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # there is no room for another descriptor, which is no reason to give up what the child was for
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:  # noqa: ASYNC110, ASYNC222  it does not wait
                await trio.sleep(_LOOK_S)
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  it has ended
    finally:
        os.close(pidfd)
