"""`mount --diff`: what changed between two revisions as a directory."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Two revisions: of tracked data and of Git's files some were added, changed, removed, made executable."""
    with tempfile.TemporaryDirectory(prefix="mp-mdiff-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.run("init", "-q")
        for name in ("d/a", "d/sub/b", "d/sub/gone", "d/same", "f", "kept", "code.py", "run.sh"):
            path = home.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"first {name}")
        home.run("add", "-q", "d", "f", "kept")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        home.git("tag", "v1")
        (home.repo / "d/a").write_text("second")
        (home.repo / "d/sub/gone").unlink()
        (home.repo / "d/new").mkdir()
        (home.repo / "d/new/x").write_text("new")
        (home.repo / "f").write_text("second f")
        (home.repo / "code.py").write_text("second code")
        (home.repo / "run.sh").chmod(0o755)
        (home.repo / "link").symlink_to("code.py")
        home.run("add", "-q", "d", "f")
        home.git("add", "-A")
        home.git("commit", "-qm", "second")
        home.git("tag", "v2")
        try:
            yield home
        finally:
            home.close()


def shown(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in place.rglob("*")
        if (path.is_file() or path.is_symlink()) and ".millpond" not in path.parts
    }


def mounted(home: Home, *words: str, name: str = "m") -> Path:
    place = home.path / name
    place.mkdir(exist_ok=True)
    home.run("mount", *words, str(place))
    return place


def test_each_change_is_in_its_folder(home: Home) -> None:
    place = mounted(home, "--diff", "v1", "v2")
    assert {path: text for path, text in shown(place).items() if not path.endswith((".dvc", ".gitignore"))} == {
        "added/d/new/x": "new",
        "added/link": "code.py",
        "deleted/d/sub/gone": "first d/sub/gone",
        "modified/before/d/a": "first d/a",
        "modified/after/d/a": "second",
        "modified/before/f": "first f",
        "modified/after/f": "second f",
        "modified/before/code.py": "first code.py",
        "modified/after/code.py": "second code",
        "modified/before/run.sh": "first run.sh",
        "modified/after/run.sh": "first run.sh",
    }
    assert os.access(place / "modified/after/run.sh", os.X_OK)
    assert (place / "modified/after/d.dvc").exists(), "the pointers are Git's files, and differ"
    assert "@" in home.run("mounts").stdout and ".." in home.run("mounts").stdout
    home.run("umount", str(place))


def test_a_target_and_the_way_back(home: Home) -> None:
    place = mounted(home, "--diff", "v2", "v1", "d/sub")
    assert shown(place) == {"added/d/sub/gone": "first d/sub/gone"}
    home.run("umount", str(place))
    place = mounted(home, "--diff", "v1", "HEAD", "f.dvc")
    assert shown(place) == {"modified/before/f": "first f", "modified/after/f": "second f"}
    home.run("umount", str(place))


def test_it_stays_what_it_was_and_comes_back_when_its_process_is_killed(home: Home) -> None:
    home.git("branch", "moving", "v1")
    place = mounted(home, "--diff", "moving", "v2", "d")
    before = shown(place)
    home.git("branch", "-f", "moving", "v2")
    (row,) = json.loads(home.run("mounts", "--json").stdout)["mounts"]
    os.kill(row["pid"], signal.SIGKILL)

    def again() -> bool:
        (now,) = json.loads(home.run("mounts", "--json").stdout)["mounts"]
        return bool(now["state"] == "mounted" and now["pid"] != row["pid"])

    deadline = time.monotonic() + 30
    while not again():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert shown(place) == before
    home.run("umount", str(place))


def test_what_cannot_be_shown_is_said(home: Home) -> None:
    place = home.path / "m2"
    place.mkdir()
    for words, says in (
        (("--diff", "v1", "v1"), "nothing differs between "),
        (("--diff", "v1", "v2", "kept"), "nothing differs in 'kept'"),
        (("--diff", "v1", "nope"), "unknown Git revision 'nope'"),
        (("--diff", "v1", "v2", "nowhere"), "is at neither of the two revisions"),
        (("--diff", "v1", "v2", "--rev", "v1", "d"), "names its two revisions itself"),
        (("--diff", "v1", "v2", "d@v1"), "names its two revisions itself"),
        (("--diff", "v1", "v2", "--versions"), "names its two revisions itself"),
    ):
        ran = home.run("mount", *words, str(place), code=None)
        assert ran.returncode != 0 and says in ran.stderr and ran.stderr.count("\n") == 1, (words, ran.stderr)
        assert list(place.iterdir()) == []
