"""What the standard library does not offer of prctl(2) and /proc."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
# Loaded here, so that a forked child has nothing to load.
_libc = ctypes.CDLL(None, use_errno=True)


def set_name(name: str) -> None:
    """The name that ps and top show: 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def die_with(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Get a signal when the parent ends; at once when it is gone already. For a process just forked by `parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, number.value, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def live_on() -> None:
    """Undo `die_with`."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def keep_only(fd: int) -> None:
    """Close all descriptors but this and the standard ones. For a process just forked: what else is open is its parent's, whose end must be seen by
    those who wait for it."""
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_ticks(pid: int) -> int:
    """When a process began, in ticks since boot (proc_pid_stat(5), field 22); 0 when there is none, or none that lives."""
    fields = stat_fields(pid)
    return 0 if fields is None or fields[0] == b"Z" else int(fields[19])


def stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third, the state, on; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None


def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def pid_space() -> str:
    """Where numbers of processes mean the same: on this machine, since it was started, in this container."""
    found = ""
    with contextlib.suppress(OSError):
        found = boot_id()
        found += f" {os.readlink('/proc/self/ns/pid')}"
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process here. One that has ended and was not waited for is gone: in a container nobody may ever do that."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return pid > 0
    fields = stat_fields(pid)
    return pid > 0 and fields is not None and fields[0] not in (b"Z", b"X")


def session_members(leader: int) -> dict[int, str]:
    """What belongs to the session of `leader`, but for itself: pid and name.

    Those in the session, and what they have started since, also in sessions of its own while its parent lives. A process
    that has left both, a daemon, is not among them.
    """
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):
        fields = stat_fields(int(name)) if name.isdecimal() else None
        if fields is None or fields[0] in (b"Z", b"X"):
            continue
        parents[int(name)] = int(fields[1])
        if int(fields[3]) == leader and int(name) != leader:
            found[int(name)] = ""
    more = True
    while more:
        more = False
        for pid, parent in parents.items():
            if parent in found and pid not in found:
                found[pid] = ""
                more = True
    return {pid: _name(pid) for pid in found}


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
            return file.read().strip()
    except OSError:
        return "?"
