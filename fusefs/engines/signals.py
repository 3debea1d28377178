"""Whether a program that was interrupted in a request is to end.

The kernel says INTERRUPT for any signal, also for those that a program lives through (SIGCHLD, SIGALRM, a profiler's
SIGPROF). On other file systems these never make a read of a regular file fail, and few programs expect it. So who asked is
looked at: EINTR is for one whom the signal ends, and for the signals by which people end programs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable


def _mask(numbers: Iterable[int]) -> int:
    return sum(1 << (number - 1) for number in numbers)


# Also when a program handles them: Python makes KeyboardInterrupt of SIGINT, if only the system call returns.
_ENDING = _mask((signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM))
# These do not end a program that has no handler for them: they stop it, continue it, or do nothing.
_HARMLESS = _mask(
    (
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCONT,
        signal.SIGCHLD,
        signal.SIGURG,
        signal.SIGWINCH,
    )
)


def is_ended(pid: int) -> bool:
    """Whether thread `pid` has a signal pending that ends its program, which has no handler for it. For where EINTR becomes another error on
    its way, which a program that handles the signal, and goes on, would take for the file's."""
    return is_ending(pid, handled=0)


def is_ending(pid: int, *, handled: int = _ENDING) -> bool:
    """Whether thread `pid` has a signal pending that ends its program or is meant to, as those of the mask `handled` are also when they have
    a handler; also when that cannot be seen."""
    masks = {}
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                name, _, value = line.partition(b":")
                if name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt"):
                    masks[name] = int(value, 16)
        pending = (masks[b"SigPnd"] | masks[b"ShdPnd"]) & ~masks[b"SigBlk"] & ~masks[b"SigIgn"]
        return bool(pending & (handled | ~masks[b"SigCgt"] & ~_HARMLESS))
    except (OSError, ValueError, KeyError):
        return True
