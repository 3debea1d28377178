"""Ignore rules: against real DVC on generated trees and rules, and bad files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.project.realdvc import real_dvc

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.project.ignore import IgnoreRules

NAMES = ["a", "b", "ab", "a.t", "b.t", ".x", "c d"]
ATOMS = [*NAMES, "*", "?", "*.t", "a*", "[ab]", "**", ".*", "\\a", "[!b]"]


def make_tree(root: Path, rnd: random.Random) -> tuple[list[str], list[str]]:
    """Folders (with a slash at the end) and files, relative to `root`."""
    folders = [""]
    for _ in range(12):
        path = rnd.choice(folders) + rnd.choice(NAMES)
        if not os.path.lexists(root / path):
            (root / path).mkdir()
            folders.append(path + "/")
    files = []
    for _ in range(40):
        path = rnd.choice(folders) + rnd.choice(NAMES)
        if not os.path.lexists(root / path):
            (root / path).touch()
            files.append(path)
    return folders, files


def pattern(rnd: random.Random) -> str:
    text = "/".join(rnd.choice(ATOMS) for _ in range(rnd.choice([1, 1, 1, 2, 3])))
    # DVC 3.67.1 with pathspec 1.x never matches these two at the root with a slash behind; ours does, as Git.
    if not text.strip("*") or text.startswith(("*/", "**/")):
        text = "b/" + text
    prefix = rnd.choice(["", "", "", "/"])
    text = prefix + text + rnd.choice(["", "", "/"])
    text = rnd.choice(["", "", "!"]) + text
    return rnd.choice(["", "", "", "", "", "#", "  "]) + text + rnd.choice(["", "", "", "  ", "\r"])


def compare(root: Path, seed: int, trials: int) -> int:
    """Compare verdicts on every path for `trials` sets of rules; how many paths were ignored in all."""
    rnd = random.Random(seed)
    folders, files = make_tree(root, rnd)
    paths = folders[1:] + files
    ignored = 0
    for trial in range(trials):
        for folder in folders:
            rules = root / folder / ".dvcignore"
            rules.unlink(missing_ok=True)
            if folder == "" or rnd.random() < 0.4:
                rules.write_text("".join(pattern(rnd) + "\n" for _ in range(rnd.randint(0, 4))))
        mine = IgnoreRules(str(root))
        got = [mine.is_ignored(path.rstrip("/"), path.endswith("/")) for path in paths]
        wanted = real_dvc().ignored(root, paths)
        wrong = [(path, want) for path, have, want in zip(paths, got, wanted, strict=True) if have != want]
        texts = {str(file): file.read_text() for file in root.rglob(".dvcignore")}
        assert not wrong, f"seed {seed}, trial {trial}: DVC says {wrong} of {texts}"
        ignored += sum(got)
    return ignored


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    real_dvc().ok("init", "-q", "--no-scm", cwd=tmp_path)
    return tmp_path


@pytest.mark.parametrize("seed", range(3))
def test_same_as_dvc(repo: Path, seed: int) -> None:
    assert compare(repo, seed, trials=6) > 10


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_same_as_dvc_long(repo: Path, seed: int) -> None:
    assert compare(repo, seed, trials=40) > 60


def test_builtin_and_other_repositories(repo: Path) -> None:
    for folder in ("d/.git", "d/.hg", "sub/.dvc", "e/x"):
        (repo / folder).mkdir(parents=True)
    for file in ("d/.git/f", "d/.hg/f", "sub/f", "sub/.dvc/f", "e/.git", "e/x/.hg", "d/f"):
        (repo / file).touch()
    paths = [
        "d/.git/",
        "d/.git/f",
        "d/.hg/",
        "d/.hg/f",
        "sub/",
        "sub/f",
        "e/.git",
        "e/x/.hg",
        "d/f",
        ".dvc/",
        ".dvc/tmp/",
    ]
    mine = IgnoreRules(str(repo))
    got = [mine.is_ignored(path.rstrip("/"), path.endswith("/")) for path in paths]
    assert got == real_dvc().ignored(repo, paths)
    assert mine.explain("sub/f", False) == "another repository in 'sub'"
    assert mine.explain("d/.hg", True) == "built-in rule for '.hg'"
    assert mine.at("sub") is None and mine.at("d/.git") is None
    inside = mine.at("e/x")
    assert inside is not None and inside.folder == "e/x/"


def test_explain_names_file_line_and_pattern(repo: Path) -> None:
    (repo / "a").mkdir()
    (repo / ".dvcignore").write_text("# rules\n\n*.tmp\n")
    (repo / "a" / ".dvcignore").write_text("!keep.tmp\nlog/\n")
    mine = IgnoreRules(str(repo))
    assert mine.explain("a/x.tmp", False) == ".dvcignore:3:*.tmp"
    assert mine.explain("a/keep.tmp", False) is None
    assert mine.explain("a/log/deep/x", False) == "a/.dvcignore:2:log/"


def test_all_folders_pattern_as_git(repo: Path) -> None:
    (repo / ".dvcignore").write_text("*\n!*/\n!*.csv\n")
    mine = IgnoreRules(str(repo))
    assert not mine.is_ignored("a/b/x.csv", False)
    assert mine.is_ignored("a/b/x.txt", False)
    assert mine.is_ignored(".git", True) and mine.is_ignored("a/.dvc", True)


@pytest.mark.parametrize(("raw", "line"), [(b"ok\n!\n", 2), (b"\xff\n", 1), (b"# \xff is in no pattern\n\\\n", 1)])
def test_bad_rules_name_the_line(repo: Path, raw: bytes, line: int) -> None:
    (repo / ".dvcignore").write_bytes(raw)
    with pytest.raises(InvalidFileError) as caught:
        IgnoreRules(str(repo)).is_ignored("x", False)
    assert caught.value.details["line"] == line
    assert str(repo / ".dvcignore") in caught.value.message and "\n" not in caught.value.message


def test_names_of_any_bytes(repo: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.t")
    (repo / ".dvcignore").write_text("*.t\n")
    mine = IgnoreRules(str(repo))
    assert mine.is_ignored(name, False)
    assert not mine.is_ignored(name + "x", False)
