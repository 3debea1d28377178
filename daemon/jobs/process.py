"""What the standard library does not offer of prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
# Loaded here, so that a forked child has nothing to load.
_libc = ctypes.CDLL(None, use_errno=True)


def set_name(name: str) -> None:
    """The name that ps and top show: 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def die_with(parent: int) -> None:
    """Get SIGTERM when the parent ends; at once when it is gone already. For a process just forked by `parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM.value, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
