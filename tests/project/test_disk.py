"""A full disk, and a place that cannot be written: one sentence, nothing half done, and it can be done again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.project.verbhelp import Project, opened

from millpond.daemon.errors import DiskFullError, InvalidFileError, MillpondError, TargetError
from millpond.daemon.project.durable import write_all

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Project]:
    """A project on a file system of 2 MiB; the store is elsewhere."""
    with opened(tmp_path) as project:
        place = tmp_path / "small"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=True)
        try:
            project.root = place / "repo"
            project.root.mkdir()
            project.git("init", "-q")
            project.run("init")
            yield project
        finally:
            subprocess.run(["umount", str(place)], check=True)


def fill_up(project: Project) -> Path:
    """Leave no block free."""
    ballast = project.root.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def test_add_on_a_full_disk(small: Project) -> None:
    small.write("a/f", "x" * 1000)
    small.write("b/g", "y")
    before = small.snapshot()
    ballast = fill_up(small)
    with pytest.raises(DiskFullError) as caught:
        small.add("a/f", "b/g")
    assert "no room left" in str(caught.value) and "\n" not in str(caught.value)
    assert small.snapshot() == before
    ballast.unlink()
    small.add("a/f", "b/g")
    assert small.status() == {}


def test_checkout_on_a_full_disk(small: Project) -> None:
    small.write("d/big", os.urandom(500_000))
    small.write("d/small", "s")
    small.add("d")
    (small.root / "d" / "big").unlink()
    ballast = fill_up(small)
    with pytest.raises(DiskFullError, match="no room left"):
        small.checkout()
    assert sorted(os.listdir(small.root / "d")) == ["small"], "no part of a file may be seen"
    ballast.unlink()
    small.checkout()
    assert small.status() == {}


def test_read_only_place(small: Project) -> None:
    small.write("f", "one")
    small.add("f")
    small.write("f", "two")
    subprocess.run(["mount", "-o", "remount,ro", str(small.root.parent)], check=True)
    assert small.status() == {"f.dvc": [{"changed outs": {"f": "modified"}}]}
    for verb, params, error in (
        ("add", {"targets": ["f"]}, InvalidFileError),
        ("checkout", {"force": True}, TargetError),
        ("init", {"force": True}, TargetError),
    ):
        with pytest.raises(error, match="cannot write") as caught:
            small.run(verb, **params)
        assert isinstance(caught.value, MillpondError) and "Read-only" in str(caught.value)
    subprocess.run(["mount", "-o", "remount,rw", str(small.root.parent)], check=True)
    small.add("f")
    assert small.status() == {}


def test_data_on_another_file_system(tmp_path: Path) -> None:
    """A mountpoint inside the project: other device, other clock, no rename across."""
    with opened(tmp_path) as project:
        (project.root / "d").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(project.root / "d")], check=True)
        try:
            project.write("d/a", "a")
            project.write("d/b", "b")
            project.add("d")
            assert project.status() == {}
            project.write("d/a", "A")
            assert project.status() != {}
            project.checkout(force=True)
            assert project.read("d/a") == "a" and project.status() == {}
        finally:
            subprocess.run(["umount", str(project.root / "d")], check=True)


def test_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without O_TMPFILE: a name of ours until the file is complete."""
    with opened(tmp_path) as project:
        project.write("d/a", "a")
        project.write("f", "f")
        project.add("d", "f")
        (project.root / "d" / "a").unlink()
        project.write("f", "edited")
        # A flag that no file system knows stands for one that lacks this one.
        monkeypatch.setattr("millpond.daemon.project.copying.os.O_TMPFILE", os.O_DIRECTORY | os.O_CREAT)
        project.checkout(force=True)
        assert project.read("d/a") == "a" and project.read("f") == "f"
        assert not list(project.root.rglob(".millpond-*"))


def test_write_all_is_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    (tmp_path / "one").chmod(0o640)
    with pytest.raises(FileNotFoundError):
        write_all({str(tmp_path / "one"): "new", str(tmp_path / "gone" / "two"): "new"})
    assert os.listdir(tmp_path) == ["one"] and (tmp_path / "one").read_text() == "old"
    write_all({str(tmp_path / "one"): "new", str(tmp_path / "two"): "2"})
    assert (tmp_path / "one").read_text() == "new" and (tmp_path / "two").read_text() == "2"
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
