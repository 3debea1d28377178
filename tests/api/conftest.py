"""A user whose environment is this process's own, and a repository that was made once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.store.helpers import sample

from millpond.daemon.api import connections

# More than comes whole.
LARGE = 18 << 20


@dataclass
class Made:
    """Two versions, `v1` and the workspace's: what the data of `v1` is, by path from the root. The remote has all of both."""

    home: Home
    first: dict[str, bytes]
    remote: Path

    @property
    def repo(self) -> str:
        return str(self.home.repo)

    def make(self) -> None:
        home, repo = self.home, self.home.repo
        self.first = {
            "data/a.csv": b"x,y\n1,2\n3,4\n",
            "data/empty": b"",
            "data/large.bin": sample(7, LARGE),
            "data/sub/b.csv": b"x,y\n5,6\n",
            "data/sub/deep/\xfc \xf1%.txt": b"not ASCII",
            "model.pkl": sample(8, 300_000),
            **{f"data/many/{number:03}.bin": sample(100 + number, 2000) for number in range(60)},
        }
        home.git("init", "-q", "-b", "main")
        home.run("init", "-q")
        for path, data in self.first.items():
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).write_bytes(data)
        (repo / "readme.md").write_text("first\n")
        (repo / "link.md").symlink_to("readme.md")
        (repo / "code").mkdir()
        (repo / "code/run.py").write_text("print(1)\n")
        home.run("remote", "add", "-d", "team", str(self.remote))
        home.run("add", "-q", "data", "model.pkl")
        self.commit("v1")
        (repo / "data/a.csv").write_bytes(b"x,y\n9,9\n")
        (repo / "readme.md").write_text("second\n")
        home.run("add", "-q", "data")
        self.commit("v2")
        home.run("push", "-q", "-A")

    def commit(self, tag: str) -> None:
        self.home.git("add", "-A")
        self.home.git("commit", "-qm", tag)
        self.home.git("tag", tag)


@pytest.fixture(scope="session")
def _user() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-api-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        try:
            yield home
        finally:
            home.close()


@pytest.fixture(scope="session")
def _made(_user: Home) -> Made:
    made = Made(_user, {}, _user.path / "remote")
    made.make()
    return made


@pytest.fixture
def made(_made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """The repository; this process is its user."""
    with _living_as(_made.home, monkeypatch):
        yield _made


@pytest.fixture
def far(_made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Somebody else with a clone: all data is on the remote only."""
    with tempfile.TemporaryDirectory(prefix="mp-api-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        shutil.rmtree(home.repo)
        home.git("clone", "-q", _made.repo, str(home.repo), cwd=home.path)
        try:
            with _living_as(home, monkeypatch):
                yield Made(home, _made.first, _made.remote)
        finally:
            home.close()


@contextlib.contextmanager
def _living_as(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has a user's environment; its connections are closed in the end."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "MILLPOND_", "GIT_")):
            monkeypatch.delenv(name)
    for name, value in home.env.items():
        monkeypatch.setenv(name, value)
    try:
        yield
    finally:
        connections.close()
