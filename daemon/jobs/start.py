"""How a zygote is started. Small imports only: the daemon does this before it loads anything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any


def start_zygote(role: str, verbs: str, **identity: Any) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A new zygote and the socket to it; `identity` is Popen's user, group and extra_groups, for root only.

    Its environment is empty but for what Python needs to start the same program.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                # -P: nothing is ever imported from a current directory.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "millpond.daemon.jobs.zygote",
                    str(theirs.fileno()),
                    role,
                    verbs.partition(":")[0],
                ],
                pass_fds=[theirs.fileno()],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                **identity,
            )
        except BaseException:
            ours.close()
            raise
    return ours, process


def clean_environment() -> dict[str, str]:
    """What Python needs to start the same program, and nothing else of this process's environment."""
    kept = ("PYTHONPATH", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "VIRTUAL_ENV", "MALLOC_ARENA_MAX")
    return {name: os.environ[name] for name in kept if name in os.environ}
