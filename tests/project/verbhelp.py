"""A project of its own for a test, with a real store, in which our verbs and real DVC are run."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.project.realdvc import real_dvc

from millpond.daemon import wirepath
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.checkout import checkout
from millpond.daemon.project.context import LocalContext
from millpond.daemon.project.destroy import destroy
from millpond.daemon.project.doctor import doctor
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.statcache import Moment
from millpond.daemon.project.verbs import VERBS
from millpond.daemon.store.local import LocalObjectStore
from millpond.daemon.store.store import Store, StoreSettings

_GIT = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]


class Project:
    """A Git and DVC repository at `root`; `base` is the folder around it, with the store and the user's cache."""

    def __init__(self, base: Path, store: Store) -> None:
        self.base = base
        self.root = base / "repo"
        self.store = LocalObjectStore(store, os.getuid())
        self.environ = os.environ | {
            "XDG_CACHE_HOME": str(base / "xdg-cache"),
            "XDG_CONFIG_HOME": str(base / "xdg-config"),
            "DVC_SYSTEM_CONFIG_DIR": str(base / "system"),
            "DVC_GLOBAL_CONFIG_DIR": str(base / "global"),
        }
        self.steps: list[tuple[str, Any, Any]] = []
        self.context = LocalContext(self.store, os.getuid(), lambda *step: self.steps.append(step))

    def run(self, verb: str, *targets: str, cwd: Path | None = None, **params: Any) -> dict[str, Any]:
        """Run one of our verbs as a worker would: in `cwd`, with the environment of the user."""
        before, environ = os.getcwd(), dict(os.environ)
        if targets:
            params["targets"] = [wirepath.encode(target) for target in targets]
        os.chdir(cwd or self.root)
        os.environ.update(self.environ)
        try:
            # The table's checkout and destroy belong to the mounts, and pass on what is not theirs.
            return {**VERBS, "checkout": checkout, "destroy": destroy, "doctor": doctor}[verb](self.context, params)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environ)

    def add(self, *targets: str, **params: Any) -> dict[str, Any]:
        return self.run("add", *targets, **params)

    def status(self, *targets: str, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.run("status", *targets, **params)["status"]
        return found

    def checkout(self, *targets: str, **params: Any) -> dict[str, Any]:
        return self.run("checkout", *targets, **params)

    def git(self, *argv: str) -> str:
        return subprocess.run(
            ["git", *_GIT, *argv], cwd=self.root, check=True, text=True, stdout=subprocess.PIPE
        ).stdout

    def commit(self, message: str = "c") -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def dvc(self, *argv: str, cwd: Path | None = None) -> str:
        return real_dvc().ok(*argv, cwd=cwd or self.root)

    def write(self, path: str, data: str | bytes = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        return file

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def open(self) -> Repo:
        return Repo.open(str(self.root), self.environ)

    def export(self) -> None:
        """Put all tracked objects into DVC's own cache, so that real DVC can judge."""
        repo = self.open()
        for output in repo.outputs():
            if output.name is None:
                continue
            self._export(repo, output.name)
            if output.name.is_dir:
                raw = self.store.read(output.name)
                for entry in manifest.parse(raw, source=output.path):
                    self._export(repo, entry.name)

    def _export(self, repo: Repo, name: ObjectName) -> None:
        path = repo.cache.path_of(name)
        assert path is not None
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_bytes(self.store.read(name))

    def settle(self) -> None:
        """Wait until the clock of the files has ticked: what is on disk now is not racy any more."""
        first = Moment.now(str(self.root)).ns
        while Moment.now(str(self.root)).ns == first:
            pass

    def snapshot(self) -> dict[str, tuple[int, bytes | str]]:
        """Everything of the project but Git's and DVC's own folders: mode and content by path."""
        found: dict[str, tuple[int, bytes | str]] = {}
        for folder, folders, files in os.walk(self.root):
            if folder == str(self.root):
                folders[:] = [name for name in folders if name not in (".git", ".dvc")]
            for name in [*files, *folders]:
                path = os.path.join(folder, name)
                mode = os.lstat(path).st_mode
                if os.path.islink(path):
                    found[os.path.relpath(path, self.root)] = mode, os.readlink(path)
                elif os.path.isfile(path):
                    found[os.path.relpath(path, self.root)] = mode, Path(path).read_bytes()
                else:
                    found[os.path.relpath(path, self.root)] = mode, b""
        return found


@contextmanager
def opened(base: Path, *, git: bool = True) -> Iterator[Project]:
    """A new project below `base`, made by our `init`."""
    store = Store.open(StoreSettings(path=base / "store", threads=2, fsync=False, reserve_bytes=0))
    try:
        project = Project(base, store)
        project.root.mkdir()
        if git:
            project.git("init", "-q")
        project.run("init", no_scm=not git)
        yield project
    finally:
        store.close()


def random_tree(folder: Path, rnd: random.Random, files: int) -> None:
    """A folder of files with awkward names and sizes, some executable, some empty folders."""
    stems = ["a", "b", "sub", "sub.x", "data", "ünï", "sp ace", "Z", "0", "-x", "a-b", "trail ", "#h", "q'uo\"te", "名"]
    folders = [folder]
    folder.mkdir(parents=True)
    for _ in range(files // 3):
        path = rnd.choice(folders) / rnd.choice(stems)
        if not path.exists():
            path.mkdir()
            folders.append(path)
    for _ in range(files):
        path = rnd.choice(folders) / (rnd.choice(stems) + rnd.choice(["", ".csv", ".txt"]))
        if not os.path.lexists(path):
            path.write_bytes(rnd.randbytes(rnd.choice([0, 1, 10, 500, 5000])))
            if rnd.random() < 0.2:
                path.chmod(0o755)
