"""`diff` beside real DVC, in repositories in the same state; and answers that are too long for a frame."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Two commits made by DVC with an addition, a modification, deletions and renames, and a changed workspace."""
    with tempfile.TemporaryDirectory(prefix="mp-diff-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        for name in ("d/a", "d/sub/b", "d/sub/same", "f", "g", "kept", "turns"):
            path = home.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"first {name}\n")
        home.dvc("add", "-q", "d", "f", "g", "kept", "turns")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        (home.repo / "d/a").write_text("second\n")
        (home.repo / "d/sub/b").rename(home.repo / "d/c")
        (home.repo / "d/new").write_text("new\n")
        (home.repo / "g").rename(home.repo / "h")
        (home.repo / "g.dvc").unlink()
        (home.repo / "turns").unlink()
        (home.repo / "turns").mkdir()
        (home.repo / "turns/x").write_text("a folder now\n")
        home.dvc("add", "-q", "d", "h", "turns")
        home.git("add", "-A")
        home.git("commit", "-qm", "second")
        (home.repo / "f").unlink()
        (home.repo / "h").write_text("third\n")
        (home.repo / "d/sub/same").unlink()
        try:
            yield home
        finally:
            home.close()


WORDS = [
    [],
    ["--md"],
    ["--json"],
    ["--show-hash"],
    ["--md", "--show-hash"],
    ["--json", "--show-hash", "HEAD~1"],
    ["HEAD~1", "HEAD"],
    ["HEAD~1", "HEAD", "--md"],
    ["HEAD", "HEAD~1", "--show-hash"],
    ["HEAD", "HEAD"],
    ["HEAD~1", "--hide-missing"],
    ["HEAD~1", "--targets", "d"],
    ["HEAD~1", "--targets", "d/a", "f"],
    ["HEAD~1", "--targets", "d/sub", "--json"],
    ["HEAD~1", "--targets", "d.dvc"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_diff_says_the_same(home: Home, words: list[str]) -> None:
    assert home.run("diff", *words).stdout == home.dvc("diff", *words).stdout


def test_what_nobody_has_is_not_in_the_cache(home: Home) -> None:
    # Elsewhere: DVC remembers by path what manifests it has read.
    lost = home.path / "lost"
    shutil.copytree(home.repo, lost)
    cache = lost / ".dvc/cache/files/md5"
    folder = (lost / "d.dvc").read_text().split("md5: ")[1].split()[0]
    for digest in (hashlib.md5(b"first kept\n").hexdigest(), folder):
        (cache / digest[:2] / digest[2:]).unlink()
    for words in (["--json"], [], ["--hide-missing"], ["HEAD~1", "HEAD"]):
        assert home.run("diff", *words, cwd=lost).stdout == home.dvc("diff", *words, cwd=lost).stdout


def test_what_cannot_be_compared_is_said(home: Home) -> None:
    assert "unknown Git revision 'nope'" in home.run("diff", "nope", code=255).stderr
    assert "'nope' is tracked in neither" in home.run("diff", "--targets", "nope", code=255).stderr
    fresh = home.path / "fresh"
    fresh.mkdir()
    home.git("init", "-q", cwd=fresh)
    home.run("init", "-q", cwd=fresh)
    assert home.run("diff", cwd=fresh).stdout == home.dvc("diff", cwd=fresh).stdout == ""
    bare = home.path / "no-git"
    bare.mkdir()
    home.run("init", "-q", "--no-scm", cwd=bare)
    assert "not in a Git repository" in home.run("diff", cwd=bare, code=255).stderr


def test_an_answer_longer_than_a_frame_comes_whole(home: Home) -> None:
    count = 40_000
    rows = [{"md5": hashlib.md5(b"%d" % number).hexdigest(), "relpath": f"{number:08d}"} for number in range(count)]
    data = json.dumps(rows).encode()
    digest = hashlib.md5(data).hexdigest() + ".dir"
    place = home.repo / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    pointer = home.repo / "many.dvc"
    pointer.write_text(f"outs:\n- md5: {digest}\n  size: {count}\n  nfiles: {count}\n  hash: md5\n  path: many\n")
    home.git("checkout", "-qb", "many")
    home.git("add", "many.dvc")
    home.git("commit", "-qm", "many files")
    try:
        found = json.loads(home.run("diff", "HEAD~1", "HEAD", "--json").stdout)
        assert [row["path"] for row in found["added"]] == ["many/", *(f"many/{number:08d}" for number in range(count))]
    finally:
        home.git("checkout", "-q", "main")
