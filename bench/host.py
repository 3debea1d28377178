"""The machine: commands with a time limit and their memory, the page cache, free space, mounts that are undone."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 300.0
POLL_S = 0.002
BUSY_S = 20.0


class BenchError(Exception):
    """A tool failed, or what it gave back is not what was put in: figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished command. `peak` is its largest resident memory in bytes (of the process itself)."""

    seconds: float
    stdout: str
    peak: int


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    codes: Iterable[int] = (0,),
    limit_s: float = LIMIT_S,
) -> Ran:
    """Run a command in a session of its own and time it. Raises BenchError on another exit code or after `limit_s`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [os.fspath(word) for word in command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        timer = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if process.returncode not in codes:
        words = " ".join(map(str, command))
        raise BenchError(
            f"`{words}` ended with {process.returncode} after {seconds:.1f} s: {(stderr or stdout)[-2000:]}"
        )
    return Ran(seconds, stdout, usage.ru_maxrss * 1024)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float = 60.0) -> float:
    """Seconds until `ready()`; for servers that do not tell when they serve. Raises BenchError when `process` ends."""
    began = time.perf_counter()
    while not ready():
        if process.poll() is not None:
            raise BenchError(f"`{process.args!r}` ended with {process.returncode} before its mount was there")
        if time.perf_counter() - began > limit_s:
            raise BenchError(f"`{process.args!r}` did not mount in {limit_s:.0f} s")
        time.sleep(POLL_S)
    return time.perf_counter() - began


class Host:
    """What this machine allows. `drop` False leaves the machine's page cache alone: cold then means the files' own pages."""

    def __init__(self, folder: Path, *, drop: bool) -> None:
        self.folder = folder
        self.drops = drop and os.geteuid() == 0 and os.access("/proc/sys/vm/drop_caches", os.W_OK)

    def settle(self) -> None:
        """Write back what is dirty, so that no figure pays for the work before it."""
        os.sync()

    def forget(self, *folders: Path) -> None:
        """Make reads cold: drop all clean pages, or (without root) those of the files below `folders`."""
        os.sync()
        if self.drops:
            Path("/proc/sys/vm/drop_caches").write_text("3")
            return
        for path in files_below(*folders):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def require(self, needed: int) -> None:
        """Raises BenchError unless `needed` bytes are free with a quarter to spare."""
        free = shutil.disk_usage(self.folder).free
        if free < needed * 1.25:
            raise BenchError(
                f"{self.folder} has {free / 1e9:.1f} GB free, {needed * 1.25 / 1e9:.1f} are needed: "
                "give another --dir or a smaller --scale"
            )

    def about(self) -> dict[str, object]:
        """Facts that figures depend on."""
        return {
            "cpus": os.cpu_count(),
            "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
            "page cache": "taken away when idle (DAMON)" if _reclaims() else "kept",
            "python": platform.python_version(),
            "disk": self.disk_type(),
            "cold": "page cache dropped, mounted anew" if self.drops else "files' pages dropped, mounted anew",
        }

    def disk_type(self) -> str:
        """The kind of file system that the bench works on, for instance `ext4`."""
        best, kind = "", "disk"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            place = left.split(" ")[4]
            if Path(os.path.realpath(self.folder)).is_relative_to(place) and len(place) >= len(best):
                best, kind = place, right.split(" ")[0]
        return kind


def files_below(*folders: Path) -> Iterable[Path]:
    """Regular files below folders, or the path itself where it is one."""
    for folder in folders:
        if folder.is_file():
            yield folder
        for name, _, names in os.walk(folder):
            yield from (Path(name, file) for file in names if Path(name, file).is_file())


def disk_used(*folders: Path) -> int:
    """Bytes of disk that files below folders take (blocks, as `du`)."""
    return sum(path.stat().st_blocks * 512 for path in files_below(*folders))


def memory(pid: int) -> dict[str, int]:
    """Bytes: `rss` now, `anon` of it (not pages of files), `peak`. Raises BenchError when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as error:
        raise BenchError(f"process {pid} is gone: its memory cannot be told") from error
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"rss": "VmRSS", "anon": "RssAnon", "peak": "VmHWM"}
    return {name: int(found[key].split()[0]) * 1024 for name, key in names.items()}


def processor_s(pid: int | None) -> float:
    """Seconds of processor time that a process has used, in steps of 10 ms; 0 for none. Raises BenchError when it is gone."""
    if pid is None:
        return 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError as error:
        raise BenchError(f"process {pid} is gone: its time cannot be told") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def unmount(place: Path, *, lazy: bool = False) -> None:
    """End a FUSE mount, or as root any other. One that is busy is tried again: the kernel may still be reading ahead of a
    file that was closed. Raises BenchError."""
    command = ["umount", *(["-l"] if lazy else []), str(place)]
    if os.geteuid() != 0:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(place)]
    until = time.monotonic() + BUSY_S
    while True:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        said = done.stderr.decode(errors="replace").strip()
        if not done.returncode or lazy:
            return
        if "busy" not in said or time.monotonic() > until:
            raise BenchError(f"`{' '.join(command)}`: {said}")
        time.sleep(0.1)


def mounts_below(folder: Path) -> list[Path]:
    """Mount points below a folder, the deepest first. Asks the kernel's table, never the mounts."""
    places = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((Path(place) for place in places if place.startswith(f"{folder}/")), reverse=True)


def clean(folder: Path) -> None:
    """Undo every mount below a folder, then remove it. A mount that stays keeps the folder, and is told."""
    for place in mounts_below(folder):
        unmount(place, lazy=True)
    left = mounts_below(folder)
    if left:
        raise BenchError(f"mounts are left, so {folder} is kept: {', '.join(map(str, left))}")
    shutil.rmtree(folder, ignore_errors=True)


def _first_value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return "unknown"


def _reclaims() -> bool:
    """Whether the kernel takes away memory that is idle: then "warm" holds for seconds only, for every tool alike."""
    schemes = Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/contexts/*/schemes/*/action")
    return any(scheme.read_text().strip() == "pageout" for scheme in schemes)
