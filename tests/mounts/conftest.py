"""A user, a repository made by real DVC, and mounts that are always undone."""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture
def home() -> Iterator[Home]:
    """A fresh user. The path is short: the daemon's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="mp-mnt-", ignore_cleanup_errors=True) as folder:
        made = Home(Path(folder))
        try:
            yield made
        finally:
            made.close()
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                place = line.split(" ")[4]
                if place.startswith(folder):
                    subprocess.run(["umount", "-l", place], check=False, timeout=20)


def expected(seed: int) -> dict[str, bytes]:
    """Files of many sizes: path -> content."""
    rng = random.Random(seed)
    sizes = {"a.txt": 10, "empty": 0, "sub/one.bin": 70_000, "sub/deep/two.bin": 3_000_000, "sub/deep/x y.csv": 4096}
    made = {}
    for name, size in sizes.items():
        made[name] = rng.randbytes(size // 2) + b"x" * (size - size // 2)
    return made


def fill(folder: Path, seed: int) -> dict[str, bytes]:
    """Write `expected` below a folder."""
    made = expected(seed)
    for name, data in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """What lies below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class DvcRepo:
    """Two commits made by real DVC: `first` and `second` are what `data/` held; nothing of millpond has run."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.first = expected(1)
        self.second = {**self.first, "a.txt": b"changed", "new.txt": b"new"}

    def make(self) -> None:
        """Run DVC."""
        home = self.home
        fill(home.repo / "data", 1)
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        (home.repo / "model.bin").write_bytes(b"model one")
        (home.repo / "code.py").write_text("print('one')\n")
        home.dvc("add", "-q", "data", "model.bin")
        home.git("add", "-A")
        home.git("commit", "-qm", "one")
        home.git("tag", "v1")
        (home.repo / "data" / "a.txt").write_bytes(b"changed")
        (home.repo / "data" / "new.txt").write_bytes(b"new")
        home.dvc("add", "-q", "data")
        home.git("add", "-A")
        home.git("commit", "-qm", "two")

    def place(self, name: str) -> Path:
        """An empty directory to mount on."""
        path = self.home.path / name
        path.mkdir()
        return path


@pytest.fixture(scope="session")
def made_by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, made once: DVC takes seconds."""
    home = Home(tmp_path_factory.mktemp("made-by-dvc") / "home")
    DvcRepo(home).make()
    return home.repo


@pytest.fixture
def repo(home: Home, made_by_dvc: Path) -> DvcRepo:
    """A copy of it for one test."""
    home.repo.rmdir()
    subprocess.run(["cp", "-a", str(made_by_dvc), str(home.repo)], check=True)
    return DvcRepo(home)
