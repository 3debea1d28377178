"""What lazy reads are measured against: rclone and s3fs, which mount the plain tree from S3, and DVC, which pulls all of it first.

Each reads through the same service (s3.py), from an empty cache of its own. rclone and s3fs are given the files under their own
names, which is the easier case: a DVC remote mounted by them is a heap of digests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from bench.host import BenchError, memory
from bench.peers import Mounted, serve
from bench.projects import Dvc, Millpond
from bench.s3 import BUCKET, S3


class Reader(Protocol):
    """Gives a tree that is on the service, named by its data set; nothing of it is here before."""

    name: str

    def open(self, data: str, place: Path) -> Mounted:
        """The tree, so that its files can be read. Raises BenchError."""

    def memory(self, mounted: Mounted) -> int:
        """Bytes that its processes had in memory at most, together; 0 where it has none."""


class Rclone:
    """`rclone mount`, with all reads through its cache on disk, as its manual has it for programs that seek."""

    name = "rclone"

    def __init__(self, folder: Path, service: S3) -> None:
        self._folder = folder
        folder.mkdir()
        values = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENV_AUTH": "true",
            "ENDPOINT": service.endpoint,
            "FORCE_PATH_STYLE": "true",
        }
        config = {f"RCLONE_CONFIG_R_{key}": value for key, value in values.items()}
        # It cannot take this setting, which is for HTTPS.
        plain = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
        self._env = plain | service.environ | config | {"RCLONE_CONFIG": str(folder / "none.conf")}

    def open(self, data: str, place: Path) -> Mounted:
        cache = self._folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        options = ["--read-only", "--vfs-cache-mode", "full", "--cache-dir", str(cache), "--dir-cache-time", "1h"]
        return serve(["rclone", "mount", f"r:{BUCKET}/tree/{data}", str(place), *options], place, place, self._env)

    def memory(self, mounted: Mounted) -> int:
        return 0 if mounted.pid is None else memory(mounted.pid)["peak"]


class S3fs:
    """`s3fs` with its cache on disk."""

    name = "s3fs"

    def __init__(self, folder: Path, service: S3) -> None:
        self._folder, self._service = folder, service
        folder.mkdir()
        self._passwords = folder / "passwd"
        self._passwords.write_text("bench:bench\n")
        self._passwords.chmod(0o600)

    def open(self, data: str, place: Path) -> Mounted:
        cache = self._folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        options = {
            "url": self._service.endpoint,
            "passwd_file": self._passwords,
            "use_cache": cache,
            "endpoint": "us-east-1",
        }
        told = ",".join(
            [f"{key}={value}" for key, value in options.items()]
            + ["ro", "use_path_request_style", "stat_cache_expire=3600"]
        )
        return serve(["s3fs", f"{BUCKET}:/tree/{data}", str(place), "-f", "-o", told], place, place, os.environ)

    def memory(self, mounted: Mounted) -> int:
        return 0 if mounted.pid is None else memory(mounted.pid)["peak"]


class _Pulled:
    """A user who has the pointer and the config, and nothing else."""

    def __init__(self, folder: Path, service: S3, pointers: Path, make: Callable[[Path], Millpond | Dvc]) -> None:
        self._folder, self._service, self._pointers, self._make = folder, service, pointers, make
        self._count = 0
        folder.mkdir()

    def _user(self, data: str) -> Millpond | Dvc:
        self._count += 1
        user = self._make(self._folder / str(self._count))
        user.env |= self._service.environ
        user.init()
        (user.repo / ".dvc/config").write_text(self._service.config("team"))
        shutil.copy(self._pointers / f"{data}.dvc", user.repo)
        return user


class DvcPull(_Pulled):
    """`dvc pull`, then plain files."""

    name = "dvc pull"

    def __init__(self, folder: Path, service: S3, pointers: Path) -> None:
        super().__init__(folder, service, pointers, Dvc)

    def open(self, data: str, place: Path) -> Mounted:
        user = self._user(data)
        ran = user.command("pull", "-q")
        return Mounted(user.repo / data, ran.seconds, None, lambda: shutil.rmtree(user.folder))

    def memory(self, mounted: Mounted) -> int:
        return 0


class Lazy(_Pulled):
    """A mount of millpond's, by a user whose daemon runs."""

    name = "millpond"

    def __init__(self, folder: Path, service: S3, pointers: Path) -> None:
        super().__init__(folder, service, pointers, Millpond)
        self._user_of: dict[Path, Millpond] = {}

    def open(self, data: str, place: Path) -> Mounted:
        user = self._user(data)
        assert isinstance(user, Millpond)
        user.command("daemon", "start", "-q")
        try:
            mounted = user.mount(data, place)
        except BenchError:
            user.close()
            raise

        def close() -> None:
            user.close()
            shutil.rmtree(user.folder)

        self._user_of[place] = user
        return Mounted(place, mounted.ready_s, mounted.pid, close)

    def memory(self, mounted: Mounted) -> int:
        """The daemon's and its fetcher's: the mount's source, which has moved the bytes."""
        user = self._user_of[mounted.root]
        daemon = user.daemon()
        [zygote] = _children(daemon)
        sources = [pid for pid, name in _children(zygote).items() if name == "millpond-source"]
        if not sources:
            raise BenchError("the mount has no source")
        return user.daemon_peak() + sum(memory(pid)["peak"] for pid in sources)


def _children(parent: int) -> dict[int, str]:
    """The children of a process, with their names (proc_pid_stat(5): fields 1, 2 and 4)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            if int(fields.split()[1]) == parent:
                found[int(pid)] = name
    return found
