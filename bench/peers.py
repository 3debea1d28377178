"""What millpond's mounts are measured against: plain files, squashfs, EROFS, Borg, restic, a FUSE server that does nothing else.
Each stores a tree and mounts it.

All compress with zstd at level 3 where they let one choose (EROFS with lz4, which every mkfs.erofs has, and packs fast), and none encrypts where
that can be left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.host import BenchError, disk_used, run, unmount, wait_for
from millpond.fusefs.engines import READ_AHEAD_KB


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted tree at `root`, ready after `ready_s`. `pid` is its server's, where it has one."""

    root: Path
    ready_s: float
    pid: int | None
    close: Callable[[], None]


class Peer(Protocol):
    """Stores versions of a tree, mounts one."""

    name: str

    def store(self, tree: Path, version: str) -> None:
        """Take in a tree; may be called for several versions."""

    def mount(self, version: str, place: Path) -> Mounted:
        """Mount at an empty directory; ready when it returns: a listing has been answered."""

    def backing(self) -> list[Path]:
        """What must leave the page cache to make reads cold."""

    def disk(self) -> int:
        """Bytes of disk used by all that was stored."""


class Plain:
    """The files themselves, on the disk's own file system."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._trees: dict[str, Path] = {}

    def store(self, tree: Path, version: str) -> None:
        self._trees[version] = tree

    def mount(self, version: str, place: Path) -> Mounted:
        return Mounted(self._trees[version], 0.0, None, lambda: None)

    def backing(self) -> list[Path]:
        return list(self._trees.values())

    def disk(self) -> int:
        return disk_used(*self._trees.values())


class SmallPages:
    """A copy of the files on ext4 that journals data too: Linux (6.18) then caches them in single pages of 4 KiB, as it does FUSE's,
    instead of large folios. What is slower than the disk's own files by this much is no server's fault (root only)."""

    name = "ext4, single pages"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def store(self, tree: Path, version: str) -> None:
        image = self._folder / f"{version}.ext4"
        if not image.exists():
            size = sum(path.stat().st_size + 8192 for path in tree.rglob("*"))
            with image.open("wb") as file:
                file.truncate(size * 5 // 4 + (64 << 20))
            run(["mkfs.ext4", "-q", "-d", tree, image], cwd=self._folder, env=os.environ)

    def mount(self, version: str, place: Path) -> Mounted:
        image = self._folder / f"{version}.ext4"
        options = ["-t", "ext4", "-o", "loop,noatime,data=journal"]
        ran = run(["mount", *options, image, place], cwd=self._folder, env=os.environ)
        return Mounted(place, ran.seconds, None, lambda: unmount(place))

    def backing(self) -> list[Path]:
        return [self._folder]

    def disk(self) -> int:
        return disk_used(self._folder)


class Squash:
    """An image a version, served by squashfuse, or by the kernel (root only)."""

    def __init__(self, folder: Path, *, kernel: bool) -> None:
        self.name = "squashfs (kernel)" if kernel else "squashfuse"
        self._folder, self.kernel = folder, kernel
        folder.mkdir(exist_ok=True)

    def store(self, tree: Path, version: str) -> None:
        image = self._image(version)
        if not image.exists():
            level = ["-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet"]
            run(["mksquashfs", tree, image, *level], cwd=self._folder, env=os.environ)

    def mount(self, version: str, place: Path) -> Mounted:
        image = self._image(version)
        if self.kernel:
            ran = run(["mount", "-t", "squashfs", "-o", "loop,ro", image, place], cwd=self._folder, env=os.environ)
            return Mounted(place, ran.seconds, None, lambda: unmount(place))
        return serve(["squashfuse", "-f", str(image), str(place)], place, place, os.environ)

    def backing(self) -> list[Path]:
        return [self._folder]

    def disk(self) -> int:
        return disk_used(self._folder)

    def _image(self, version: str) -> Path:
        return self._folder / f"{version}.squashfs"


class Erofs:
    """An image a version, read by the kernel (root only): lz4 in clusters of 64 KiB."""

    name = "EROFS (kernel)"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def store(self, tree: Path, version: str) -> None:
        image = self._folder / f"{version}.erofs"
        if not image.exists():
            run(["mkfs.erofs", "-zlz4", "-C65536", "--quiet", image, tree], cwd=self._folder, env=os.environ)

    def mount(self, version: str, place: Path) -> Mounted:
        image = self._folder / f"{version}.erofs"
        ran = run(["mount", "-t", "erofs", "-o", "loop,ro", image, place], cwd=self._folder, env=os.environ)
        return Mounted(place, ran.seconds, None, lambda: unmount(place))

    def backing(self) -> list[Path]:
        return [self._folder]

    def disk(self) -> int:
        return disk_used(self._folder)


class BareFuse(Plain):
    """The files themselves, by a FUSE server that does nothing but FUSE: what is the kernel's own part in a mount (barefuse.py)."""

    def mount(self, version: str, place: Path) -> Mounted:
        tree = self._trees[version]
        mounted = serve([sys.executable, "-m", "bench.barefuse", str(tree), str(place)], place, place, os.environ)
        device = os.stat(place).st_dev
        ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        ahead.write_text(str(READ_AHEAD_KB))
        return mounted


class Borg:
    """A repository without encryption, an archive a version."""

    name = "borg"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._repo = folder / "repo"
        self._env = os.environ | {"BORG_BASE_DIR": str(folder), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        run(["borg", "init", "-e", "none", self._repo], cwd=folder, env=self._env)

    def store(self, tree: Path, version: str) -> None:
        run(["borg", "create", "-C", "zstd,3", f"{self._repo}::{version}", "."], cwd=tree, env=self._env)

    def mount(self, version: str, place: Path) -> Mounted:
        return serve(["borg", "mount", "-f", f"{self._repo}::{version}", str(place)], place, place, self._env)

    def backing(self) -> list[Path]:
        return [self._repo]

    def disk(self) -> int:
        return disk_used(self._repo)


class Restic:
    """A repository of format 2 (zstd, always encrypted), a snapshot a version."""

    name = "restic"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._repo, self._snapshots = folder / "repo", dict[str, str]()
        cache = {"RESTIC_CACHE_DIR": str(folder / "cache"), "RESTIC_PASSWORD": "bench"}
        self._env = os.environ | cache | {"RESTIC_REPOSITORY": str(self._repo)}
        run(["restic", "-q", "init", "--repository-version", "2"], cwd=folder, env=self._env)

    def store(self, tree: Path, version: str) -> None:
        said = run(["restic", "--json", "backup", "."], cwd=tree, env=self._env).stdout
        self._snapshots[version] = json.loads(said.splitlines()[-1])["snapshot_id"][:8]

    def mount(self, version: str, place: Path) -> Mounted:
        tree = place / "ids" / self._snapshots[version]
        return serve(["restic", "mount", "--no-lock", str(place)], place, tree, self._env)

    def backing(self) -> list[Path]:
        return [self._repo]

    def disk(self) -> int:
        return disk_used(self._repo)


def serve(command: Sequence[str], place: Path, tree: Path, env: Mapping[str, str]) -> Mounted:
    """Start a FUSE server in the foreground and wait until `tree` on its mount answers a listing."""
    below = os.stat(place).st_dev
    process = subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def ready() -> bool:
        return os.stat(place).st_dev != below and bool(os.listdir(tree))

    def close() -> None:
        unmount(place)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    try:
        seconds = wait_for(ready, process)
    except BaseException:
        with suppress(BenchError):
            unmount(place, lazy=True)
        process.kill()
        process.wait(20)
        raise
    return Mounted(tree, seconds, process.pid, close)


def installed(folder: Path, disk: str) -> list[Peer]:
    """The peers whose programs are here, the plain files first. Makes their repositories below `folder`."""
    peers: list[Peer] = [Plain(disk)]
    kinds = Path("/proc/filesystems").read_text()
    may_loop = os.geteuid() == 0 and Path("/dev/loop0").exists()
    if os.geteuid() == 0 and "\tfuse\n" in kinds:
        peers.append(BareFuse("bare FUSE"))
    if may_loop and shutil.which("mkfs.ext4"):
        peers.append(SmallPages(folder / "pages"))
    if shutil.which("mksquashfs"):
        if shutil.which("squashfuse"):
            peers.append(Squash(folder / "squash", kernel=False))
        if may_loop and "\tsquashfs\n" in kinds:
            peers.append(Squash(folder / "squash", kernel=True))
    if shutil.which("mkfs.erofs") and may_loop and "\terofs\n" in kinds:
        peers.append(Erofs(folder / "erofs"))
    if shutil.which("borg"):
        peers.append(Borg(folder / "borg"))
    if shutil.which("restic"):
        peers.append(Restic(folder / "restic"))
    return peers
