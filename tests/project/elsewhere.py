"""Data that is elsewhere, for the tests of imports: repositories, a folder, a Git server; a project beside one in which real DVC works."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project
from tests.remote.servers import free_port

from millpond.daemon import wirepath
from millpond.daemon.store.store import Store, StoreSettings

_GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "protocol.file.allow=always"]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """`dvc`: a DVC repository with two versions (tags v1, v2), Git's files and a repository inside; `git`: one of Git alone;
    `files`: a folder that is in none."""

    top: Path

    @property
    def dvc(self) -> Path:
        return self.top / "dvc"

    @property
    def git(self) -> Path:
        return self.top / "git"

    @property
    def files(self) -> Path:
        return self.top / "files"


def git(folder: Path, *argv: str) -> str:
    return subprocess.run([*_GIT, *argv], cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def write(files: dict[str, str], top: Path) -> None:
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)


def commit(folder: Path, tag: str | None = None) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "c")
    if tag is not None:
        git(folder, "tag", tag)


@dataclass(slots=True)
class Pair:
    """The same project twice, in folders of one depth: ours, and one in which real DVC works."""

    ours: Project
    theirs: Path

    def dvc(self, *argv: str) -> str:
        return real_dvc().ok(*argv, cwd=self.theirs)

    def same(self) -> None:
        """All that is in the two but for Git's and DVC's folders: paths, bytes; of .gitignore the lines."""
        assert self._all(self.ours.root) == self._all(self.theirs)

    def _all(self, root: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_file() and not name.startswith((".git/", ".dvc/")):
                text = path.read_bytes()
                found[name] = sorted(text.split()) if path.name == ".gitignore" else (text, path.stat().st_mode & 0o111)
        return found


def run(project: Project, verb: str, url: str, source: str | None = None, /, **params: Any) -> dict[str, Any]:
    """One of the verbs, paths in wire form."""
    params["url"] = wirepath.encode(url)
    if source is not None:
        params["source"] = wirepath.encode(source)
    if params.get("out"):
        params["out"] = wirepath.encode(params["out"])
    return project.run(verb, **params)


@contextmanager
def opened_again(project: Project) -> Iterator[Project]:
    """The project with an empty store, as on another machine."""
    path = project.base / f"store-{len(list(project.base.iterdir()))}"
    store = Store.open(StoreSettings(path=path, threads=2, fsync=False, reserve_bytes=0))
    try:
        fresh = Project(project.base, store)
        fresh.root = project.root
        yield fresh
    finally:
        store.close()


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    port = free_port()
    command = ["git", "daemon", f"--base-path={folder}", "--export-all", f"--port={port}", "--listen=127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--reuseaddr"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
