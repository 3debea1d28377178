"""`list` and `du` beside real DVC, in one repository; a difference is allowed only where DVC does not know a size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Git's files, tracked data (of which a part is gone and a part is new), rules, links, an empty folder, two versions."""
    with tempfile.TemporaryDirectory(prefix="mp-list-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        for name in ("data/a", "data/sub/b", "data/sub/c", "code/x.py", "code/deep/y.txt", "code/m.bin", "root.txt"):
            path = home.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"first {name}\n")
        (home.repo / "code/x.py").chmod(0o755)
        (home.repo / "link").symlink_to("root.txt")
        (home.repo / "broken").symlink_to("nowhere")
        home.dvc("add", "-q", "data", "code/m.bin")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        (home.repo / "un.txt").write_text("untracked\n")
        (home.repo / ".dvcignore").write_text("secret*\n")
        (home.repo / "secret.txt").write_text("no\n")
        (home.repo / "empty").mkdir()
        (home.repo / "data/new").write_text("new\n")
        (home.repo / "data/a").unlink()
        (home.repo / "code/m.bin").chmod(0o755)
        try:
            yield home
        finally:
            home.close()


WORDS = [
    ["."],
    [".", "data"],
    [".", "data/sub/b"],
    [".", "-R"],
    [".", "code", "-R", "--size", "--show-hash"],
    [".", "-R", "--size"],
    [".", "--rev", "HEAD"],
    [".", "-R", "--rev", "HEAD"],
    [".", "data", "--rev", "HEAD", "--show-hash"],
    [".", "code", "--rev", "HEAD", "-T", "--show-hash"],
    [".", "-T"],
    [".", "-T", "-L", "1"],
    [".", "data", "-T", "--show-hash"],
    [".", "-R", "--dvc-only", "--show-hash"],
    [".", "--dvc-only"],
    [".", "-R", "-L", "1"],
    [".", "-R", "-L", "2"],
    [".", "-R", "-L", "0"],
    [".", "code/m.bin", "--show-hash", "--size"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_list_says_the_same(home: Home, words: list[str]) -> None:
    theirs = home.dvc("ls", *words).stdout
    if words == [".", "-R", "--size"]:  # DVC does not know the size of what is not checked out
        theirs = theirs.replace("    data/a\n", "13  data/a\n")
    assert home.run("ls", *words).stdout == theirs


@pytest.mark.parametrize(
    "words", [["."], [".", "deep"], ["..", "deep", "-R"], [".", "code", "--rev", "HEAD"]], ids=" ".join
)
def test_from_a_folder_inside_paths_are_meant_as_dvc_means_them(home: Home, words: list[str]) -> None:
    inside = home.repo / "code"
    assert home.run("list", *words, cwd=inside).stdout == home.dvc("list", *words, cwd=inside).stdout


def test_a_repository_elsewhere_is_listed_by_its_path(home: Home) -> None:
    elsewhere = home.path
    for words in ([str(home.repo)], [str(home.repo / "code")], [str(home.repo), "code", "-R"]):
        assert home.run("ls", *words, cwd=elsewhere).stdout == home.dvc("ls", *words, cwd=elsewhere).stdout
    plain = home.path / "plain"
    plain.mkdir()
    home.git("init", "-q", cwd=plain)
    (plain / "a").write_text("a")
    assert home.run("ls", ".", cwd=plain).stdout == home.dvc("ls", ".", cwd=plain).stdout == "a\n"


@pytest.mark.parametrize(
    "words", [[], ["data"], ["code", "-R"], ["--rev", "HEAD"], ["data", "-R", "--rev", "HEAD"]], ids=" ".join
)
def test_json_is_dvcs_with_the_sizes_that_it_does_not_know(home: Home, words: list[str]) -> None:
    theirs = json.loads(home.dvc("ls", ".", *words, "--json").stdout)
    ours = json.loads(home.run("ls", ".", *words, "--json").stdout)
    sizes = {path.name: path.stat().st_size for path in (home.repo / "data").rglob("*") if path.is_file()}
    sizes["a"] = len("first data/a\n")
    for row, known in zip(ours, theirs, strict=True):
        if row["isdir"]:
            # Of a folder DVC gives what the file system says of it as a file.
            assert row["size"] is None or row["isout"]
            row["size"] = known["size"] = None
        elif known["size"] is None:
            assert row["size"] == sizes[Path(row["path"]).name]
            known["size"] = row["size"]
    assert ours == theirs


def test_du_counts_what_is_there_and_what_is_only_stored(home: Home) -> None:
    def rows(text: str) -> dict[str, str]:
        return {line.split(None, 1)[1]: line.split()[0] for line in text.splitlines()}

    assert rows(home.run("du", ".", "code").stdout) == rows(home.dvc("du", ".", "code").stdout)
    assert home.run("du", ".", "root.txt").stdout == home.dvc("du", ".", "root.txt").stdout
    expected = {"data/a": "13", "data/new": "4", "data/sub": "34", "data": "51"}
    assert rows(home.run("du", ".", "data").stdout) == expected
    assert home.run("du", ".", "data", "-s").stdout == "51  data\n"
    at_head = json.loads(home.run("du", ".", "data", "--rev", "HEAD", "--json").stdout)
    assert at_head == [{"path": "data/a", "size": 13}, {"path": "data/sub", "size": 34}, {"path": "data", "size": 47}]


def test_what_cannot_be_listed_is_said(home: Home) -> None:
    for words, says in (
        ((".", "nope"), "'nope' is not in the repository"),
        ((".", "--rev", "nope"), "unknown Git revision 'nope'"),
        ((".", "nope", "--rev", "HEAD"), "'nope' is not in the repository at HEAD"),
        (("http://127.0.0.1:9/repo",), "Git cannot get 'http://127.0.0.1:9/repo'"),
        ((".", "-T", "--json"), "do not go together"),
        ((".", "--remote", "x"), "there is no remote 'x'"),
        (("/nowhere",), "there is no repository at '/nowhere'"),
        ((".", ".."), "outside of the repository"),
    ):
        ran = home.run("ls", *words, code=None)
        assert ran.returncode != 0 and says in ran.stderr and ran.stderr.count("\n") == 1, words


def test_a_folder_whose_manifest_is_nowhere_is_never_shown_as_empty(home: Home) -> None:
    lost = home.path / "lost"
    home.git("clone", "-q", str(home.repo), str(lost), cwd=home.path)
    ran = home.run("ls", ".", "-R", cwd=lost, code=None)
    assert ran.returncode != 0 and "the files of 'data' are not listed" in ran.stderr
    assert "root.txt" in ran.stdout.splitlines()
    for words in (("ls", ".", "data"), ("ls", ".", "data/sub"), ("du", ".", "data"), ("du", ".")):
        ran = home.run(*words, cwd=lost, code=None)
        assert ran.returncode != 0 and "manifest" in ran.stderr and not ran.stdout, words
    assert home.run("ls", ".", cwd=lost).stdout == home.dvc("ls", ".", cwd=lost).stdout
    shutil.rmtree(lost)


def test_many_files_in_order(home: Home, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(home.run("ls", ".", "-R", "--json").stdout)
    paths = [row["path"] for row in rows]
    assert paths == sorted(paths)


@pytest.mark.long
def test_folders_deeper_in_each_other_than_python_calls(tmp_path: Path) -> None:
    depth = 1200
    home = Home(tmp_path)
    try:
        home.git("init", "-q", "-b", "main")
        home.run("init", "-q")
        fd = os.open(home.repo, os.O_RDONLY)
        for number in range(depth):
            name = "data" if not number else "d"
            os.mkdir(name, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
            with open(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as file:
                file.write(f"{number}\n")
        os.close(fd)
        home.run("add", "-q", "data")
        home.git("add", "-A")
        home.git("commit", "-qm", "deep")
        for words in ((), ("--rev", "HEAD")):
            found = home.run("ls", ".", "-R", "--dvc-only", *words).stdout.splitlines()
            assert len(found) == depth and max(found, key=len) == f"data/{'d/' * (depth - 1)}f"
            total = sum(len(f"{number}\n") for number in range(depth))
            assert json.loads(home.run("du", ".", "data", "--summarize", "--json", *words).stdout) == [
                {"path": "data", "size": total}
            ]
        assert home.run("status").stdout == "Data and pipelines are up to date.\n"
        subprocess.run(["rm", "-r", home.repo / "data/d"], check=True)
        home.run("checkout", "-q")
        back = subprocess.run(
            ["find", "data", "-name", "f"], cwd=home.repo, stdout=subprocess.PIPE, check=True
        ).stdout.splitlines()
        assert len(back) == depth
    finally:
        home.close()
        subprocess.run(["rm", "-r", home.repo], check=True)  # what Python's own functions cannot
