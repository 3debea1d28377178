"""What killed processes of an image's mount have left: a connection that nobody answers, because one of them cannot end.

A filler (fusefs/filling/) that waits in the kernel for a page which only an answer unlocks has its descriptor of the connection until then, and the
connection lives as long as that. The FUSE mount below an image is in no directory, and numbers of connections are given again: so it is by the process itself
that the connection is found, as long as that is there. Which mount it belongs to says the name of a memory file that all of them have open. A process may end
while it is looked at, and its number and its connection's be another's: so the connection's control file is opened, which stays that one's, and then looked again.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from millpond.daemon.mounts import syscalls
from millpond.daemon.mounts.busy import FILLER
from millpond.daemon.mounts.connections import CONTROL
from millpond.daemon.mounts.filling import IN_CONTAINER
from millpond.daemon.mounts.kernel import is_machines

_NAMES = (b"millpond-holder", FILLER.encode(), b"millpond-server")
_DEVICE = "/dev/fuse"
# In /proc/PID/fdinfo of that, since Linux 6.11.
_NUMBER = "fuse_connection:"


def memory_name(source: str) -> str:
    """The name of a mount's memory file; `source` is what the kernel's table calls the mount (place.source_of)."""
    return f"millpond-image-{source.rpartition(':')[2]}"


def why_not(device: int) -> str:
    """Why a connection, of which this is a descriptor, could not be ended if all its processes were killed; "" when the daemon would."""
    if not is_machines("pid"):
        return IN_CONTAINER
    if _number_of(f"/proc/self/fdinfo/{device}") is None:
        return "this kernel does not tell which connection a process has open"
    try:
        os.close(open_control())
    except OSError as error:
        return f"nobody could end the mount if its processes were killed: fusectl cannot be used ({error.strerror})"
    return ""


def abort(record: str) -> int:
    """End the connections that processes of the mount of the record with this id have open, whose holder is gone; how many there were. Who waits for
    one gets an error. Raises OSError where it may not be done."""
    memory = f"/memfd:{memory_name(record)} (deleted)"
    found = [(pid, number) for pid in _processes() for number in connections_of(pid, memory)]
    if not found:
        return 0
    control = open_control()
    try:
        return len({number for pid, number in found if end(control, number, pid, memory)})
    finally:
        os.close(control)


def end_own(device: int) -> None:
    """End the connection of which this is a descriptor, if the kernel tells which that is. Raises OSError where it may not be done."""
    number = _number_of(f"/proc/self/fdinfo/{device}")
    if number is None:
        return
    control = open_control()
    try:
        with _abort_file(control, number) as file:
            file.write(b"1")
    finally:
        os.close(control)


def end(control: int, number: int, pid: int, memory: str) -> bool:
    """End a connection, if it is one that this process has open together with this memory file; whether it was. `control` is from `open_control`. Raises
    OSError where it may not be done."""
    try:
        file = _abort_file(control, number)
    except FileNotFoundError:  # it has ended
        return False
    with file:
        # Not before: what is open here is the same connection's also when its number is given again, and then does nothing.
        if number not in connections_of(pid, memory):
            return False
        file.write(b"1")
        return True


def open_control() -> int:
    """The folder of fusectl: where it is mounted, else mounted nowhere. Raises OSError."""
    if os.path.ismount(CONTROL):
        return os.open(CONTROL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return syscalls.mount_nowhere("fusectl", {}, writable=True)


def _abort_file(control: int, number: int) -> io.FileIO:
    """What ends a connection when something is written to it. Raises OSError."""
    return io.FileIO(os.open(f"{number}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control), "w")


def _processes() -> Iterator[int]:
    """Those that may be of a mount, also such as were killed and have not ended."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Bytes: a name may be anything, and is cut off in the middle of a letter.
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm", "rb") as file:
                if file.read().strip() in _NAMES:
                    yield int(name)


def connections_of(pid: int, memory: str) -> set[int]:
    """Numbers of the connections that a process has open; none if it has not this memory file. Also its threads are asked: the
    first one may have ended, while another waits."""
    for task in _listed(f"/proc/{pid}/task"):
        base = f"/proc/{pid}/task/{task}"
        links = {fd: _link(f"{base}/fd/{fd}") for fd in _listed(f"{base}/fd")}
        if memory in links.values():
            found = {_number_of(f"{base}/fdinfo/{fd}") for fd, link in links.items() if link == _DEVICE}
            return {number for number in found if number is not None}
    return set()


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _number_of(path: str) -> int | None:
    """The connection of a descriptor of /dev/fuse, by its fdinfo."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for line in file:
            if line.startswith(_NUMBER):
                return int(line.removeprefix(_NUMBER))
    return None
