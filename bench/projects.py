"""millpond and DVC at work in a repository of their own, driven by their command lines as a user drives them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench.host import BenchError, Ran, disk_used, memory, run
from bench.peers import Mounted

BIN = Path(sys.executable).parent
SOURCES = Path(__file__).resolve().parents[1] / ".src"


def _program(name: str, module: str) -> list[str]:
    """The installed command, else the module."""
    return [str(BIN / name)] if (BIN / name).exists() else [sys.executable, "-m", module]


class Project:
    """A repository without Git, with an environment of its own below `folder`."""

    name = ""

    def __init__(self, folder: Path, program: Sequence[str]) -> None:
        self.folder, self.repo = folder, folder / "repo"
        self.repo.mkdir(parents=True)
        (folder / "run").mkdir(mode=0o700)
        self._program = list(program)
        self.env = {
            "HOME": str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(SOURCES),
            "LANG": "C.UTF-8",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            # A bench that was killed must not leave a daemon behind for ever.
            "MILLPOND_IDLE_EXIT": "1800",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }

    def command(self, *args: str | Path, codes: Sequence[int] = (0,)) -> Ran:
        """Run a verb in the repository."""
        return run([*self._program, *args], cwd=self.repo, env=self.env, codes=codes)

    def init(self) -> None:
        self.command("init", "-q", "--no-scm")

    def take(self, tree: Path, target: str) -> None:
        """Put a copy of a tree in the workspace, in place of what was there."""
        self.drop(target)
        shutil.copytree(tree, self.repo / target)

    def drop(self, target: str) -> None:
        """Remove a target from the workspace; what is stored of it stays."""
        shutil.rmtree(self.repo / target, ignore_errors=True)

    def pointer(self, target: str) -> dict[str, str]:
        """The pointer's fields that name the data."""
        lines = (self.repo / f"{target}.dvc").read_text().replace("- ", "  ").splitlines()
        fields = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        return {key: value for key, value in fields.items() if key in ("md5", "size", "nfiles", "path")}

    def _unstore(self, *folders: Path) -> None:
        for pointer in self.repo.glob("*.dvc"):
            if pointer.is_file():
                pointer.unlink()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


class Dvc(Project):
    """Real DVC with its default settings."""

    name = "dvc"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _program("dvc", "dvc"))

    def reset(self) -> None:
        """Back to a repository in which nothing was ever added."""
        self._unstore(self.repo / ".dvc/cache", self.repo / ".dvc/tmp", self.folder / "site", self.folder / "cache")

    def disk(self) -> int:
        return disk_used(self.repo / ".dvc/cache")

    def close(self) -> None:
        """DVC leaves nothing running."""


class Millpond(Project):
    """millpond in user mode with a store of its own. Also a peer: it stores trees and mounts them."""

    name = "millpond"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _program("millpond", "millpond.cli"))

    def reset(self, *, fsync: bool = True) -> None:
        """Back to an empty store and a repository in which nothing was ever added; a fresh daemon runs."""
        self.stop()
        self._unstore(self.folder / "cache", self.folder / "state")
        self.env["MILLPOND_FSYNC"] = "1" if fsync else "0"
        self.command("daemon", "start", "-q")

    def command(self, *args: str | Path, codes: Sequence[int] = (0,)) -> Ran:
        """As any project's; an error tells the end of the daemon's log too, which goes away with the folder."""
        try:
            return super().command(*args, codes=codes)
        except BenchError as error:
            log = self.folder / "state/millpond/log/daemon.log"
            end = log.read_text(errors="replace")[-2000:] if log.exists() else "empty"
            raise BenchError(f"{error}\nThe daemon's log: {end}") from error

    def stop(self) -> None:
        # 3: it did not run.
        self.command("daemon", "stop", "-q", codes=(0, 3))

    def daemon(self) -> int:
        """The running daemon's pid."""
        return int(json.loads(self.command("daemon", "status", "--json").stdout)["pid"])

    def daemon_peak(self) -> int:
        """The most resident memory that the running daemon has had, bytes."""
        return memory(self.daemon())["peak"]

    def store(self, tree: Path, version: str) -> None:
        """Add a tree as the target `version`, and take it out of the workspace again."""
        self.take(tree, version)
        self.command("add", "-q", version)
        self.drop(version)

    def mount(self, version: str, place: Path, *options: str) -> Mounted:
        seconds = self.command("mount", "-q", *options, version, place).seconds
        os.listdir(place)
        mounts = json.loads(self.command("mounts", "--json").stdout)["mounts"]
        pid = next(int(entry["pid"]) for entry in mounts if entry["mountpoint"] == str(place))
        return Mounted(place, seconds, pid, lambda: self.unmount(place))

    def unmount(self, place: Path) -> None:
        self.command("umount", "-q", place)

    def backing(self) -> list[Path]:
        return [self.folder / "cache"]

    def disk(self) -> int:
        return disk_used(self.folder / "cache")

    def close(self) -> None:
        """End mounts and the daemon, whatever state they are in."""
        with suppress(BenchError):
            run([*self._program, "-q", "umount", "--all", "--lazy"], cwd=self.repo, env=self.env, limit_s=30)
        with suppress(BenchError):
            run([*self._program, "-q", "daemon", "stop"], cwd=self.repo, env=self.env, codes=(0, 3), limit_s=30)
