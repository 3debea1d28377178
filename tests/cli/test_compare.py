"""`diff` and `data status` beside real DVC, in repositories in the same state; and answers too long for a frame."""

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


STATUS_WORDS = [
    [],
    ["--granular"],
    ["--unchanged"],
    ["--granular", "--unchanged"],
    ["--untracked-files"],
    ["--granular", "--untracked-files", "all", "--unchanged"],
    ["d"],
    ["--granular", "d/sub", "f"],
    ["nothing"],
]


def sections(text: str) -> dict[str, list[str]]:
    """The lines of each section: DVC's order inside is that of its index."""
    found: dict[str, list[str]] = {"": []}
    section = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            section = line
            found[section] = []
        elif line:
            found[section].append(line.replace("dvc commit", "X").replace("dvc checkout", "X").replace("dvc add", "X"))
    return {section: sorted(lines) for section, lines in found.items()}


def ordered(value: object) -> object:
    if isinstance(value, dict):
        return {key: ordered(each) for key, each in value.items()}
    return sorted(map(json.dumps, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("words", STATUS_WORDS, ids=" ".join)
def test_data_status_says_the_same(home: Home, words: list[str]) -> None:
    theirs = home.dvc("data", "status", *words).stdout
    ours = home.run("data", "status", *words).stdout.replace("millpond ", "dvc ")
    assert sections(ours) == sections(theirs)
    told = json.loads(home.dvc("data", "status", "--json", *words).stdout)
    assert ordered(json.loads(home.run("data", "status", "--json", *words).stdout)) == ordered(told)


@pytest.mark.parametrize("granular", [[], ["--granular"]])
def test_data_status_of_lost_data(home: Home, granular: list[str]) -> None:
    lost = home.path / f"lost-status-{len(granular)}"
    shutil.copytree(home.repo, lost)
    cache = lost / ".dvc/cache/files/md5"
    for data in (b"first kept\n", b"new\n"):
        digest = hashlib.md5(data).hexdigest()
        (cache / digest[:2] / digest[2:]).unlink()
    told = json.loads(home.dvc("data", "status", "--json", *granular, cwd=lost).stdout)
    assert "kept" in told["not_in_cache"]
    assert ordered(json.loads(home.run("data", "status", "--json", *granular, cwd=lost).stdout)) == ordered(told)


def test_data_status_before_the_first_commit_and_without_git(home: Home) -> None:
    for name, words in (("first", []), ("plain", ["--no-scm"])):
        place = home.path / f"status-{name}"
        place.mkdir()
        if not words:
            home.git("init", "-q", cwd=place)
        home.dvc("init", "-q", *words, cwd=place)
        (place / "x").write_text("x")
        theirs = home.dvc("data", "status", cwd=place).stdout
        assert home.run("data", "status", cwd=place).stdout == theirs
        home.dvc("add", "-q", "x", cwd=place)
        told = json.loads(home.dvc("data", "status", "--json", "--unchanged", cwd=place).stdout)
        assert json.loads(home.run("data", "status", "--json", "--unchanged", cwd=place).stdout) == told
