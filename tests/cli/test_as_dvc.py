"""Texts, JSON and exit codes beside real DVC, in repositories in the same state."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture(scope="module")
def made() -> Iterator[Home]:
    """A user with a repository made by DVC: a folder, two files, two commits, a populated cache."""
    with tempfile.TemporaryDirectory(prefix="mp-dvc-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        for name in ("d/a", "d/sub/b", "f1", "two words", "sub/f3"):
            path = home.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"first {name}\n")
        home.dvc("add", "-q", "d", "f1", "two words", "sub/f3")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        (home.repo / "d/a").write_text("second\n")
        (home.repo / "d/new").write_text("new\n")
        (home.repo / "f4").write_text("f4\n")
        home.dvc("add", "-q", "d", "f4")
        home.git("rm", "-q", "f1.dvc")
        home.git("add", "-A")
        home.git("commit", "-qm", "second")
        (home.repo / "f1").unlink()
        try:
            yield home
        finally:
            home.close()


@pytest.fixture
def twins(made: Home) -> Iterator[tuple[Path, Path]]:
    """Two copies of the repository: DVC works in the first, millpond in the second."""
    # DVC keeps a state of its own outside of the repository, by path: each test has other paths.
    folder = Path(tempfile.mkdtemp(dir=made.path))
    paths = folder / "theirs" / "repo", folder / "ours" / "repo"
    for path in paths:
        shutil.copytree(made.repo, path, symlinks=True)
    yield paths
    shutil.rmtree(folder)


def files(root: Path) -> dict[str, bytes]:
    """The workspace's files, without the tools' own."""
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and relative.parts[0] not in (".dvc", ".git"):
            found[str(relative)] = path.read_bytes()
    return found


def change_data(root: Path) -> None:
    (root / "d/a").write_text("third\n")
    (root / "f4").unlink()


def lose_cache(root: Path) -> None:
    """All of it: real DVC then says that nothing is in its cache, and so do we, for the store has nothing either."""
    shutil.rmtree(root / ".dvc/cache")


def nothing(root: Path) -> None:
    assert root.is_dir()


def groups(text: str) -> dict[str, list[str]]:
    """The status text by stage: DVC's order of stages is that of a set."""
    found: dict[str, list[str]] = {}
    stage = ""
    for line in text.splitlines():
        if not line.startswith("\t"):
            stage = line
            assert stage not in found
            found[stage] = []
        else:
            found[stage].append(line)
    return found


@pytest.mark.parametrize("change", [nothing, change_data, lose_cache])
def test_status(made: Home, twins: tuple[Path, Path], change: Callable[[Path], None]) -> None:
    theirs, ours = twins
    for root in twins:
        change(root)
    expected, found = made.dvc("status", cwd=theirs), made.run("status", cwd=ours)
    assert groups(found.stdout) == groups(expected.stdout)
    assert found.stderr == ""
    for words in ([], ["f4.dvc", "two words"]):
        told = made.dvc("status", "--json", *words, cwd=theirs).stdout
        assert json.loads(made.run("status", "--json", *words, cwd=ours).stdout) == json.loads(told)
    quiet = made.run("status", "-q", cwd=ours, code=1 if told != "{}\n" else 0)
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_status_in_a_subdirectory(made: Home, twins: tuple[Path, Path]) -> None:
    theirs, ours = (root / "sub" for root in twins)
    for root in twins:
        change_data(root)
    expected, found = made.dvc("status", cwd=theirs), made.run("status", cwd=ours)
    assert groups(found.stdout) == groups(expected.stdout)
    assert made.run("root", cwd=ours).stdout == made.dvc("root", cwd=theirs).stdout
    assert made.run("--cd", "sub", "root", cwd=ours.parent).stdout == "..\n"


@pytest.mark.parametrize("words", [[], ["--summary"], ["--summary", "d"]])
def test_checkout_to_another_commit(made: Home, twins: tuple[Path, Path], words: list[str]) -> None:
    theirs, ours = twins
    # Both put the data there themselves, so both take away again what the other commit does not have.
    for name in ("d", "f4", "two words", "sub/f3"):
        for root in twins:
            shutil.rmtree(root / name) if name == "d" else (root / name).unlink()
    placed = made.run("checkout", cwd=ours).stdout
    assert sorted(placed.splitlines()) == sorted(made.dvc("checkout", cwd=theirs).stdout.splitlines())
    for root in twins:
        made.git("checkout", "-q", "HEAD~1", cwd=root)
    expected = made.dvc("checkout", "--force", *words, cwd=theirs)
    found = made.run("checkout", "--force", *words, cwd=ours)
    assert sorted(found.stdout.splitlines()) == sorted(expected.stdout.splitlines())
    if not words:
        assert files(ours) == files(theirs)
    again = made.run("checkout", "--summary", *words, cwd=ours).stdout
    assert again == made.dvc("checkout", "--summary", *words, cwd=theirs).stdout == "No changes.\n"


def test_checkout_keeps_changed_files(made: Home, twins: tuple[Path, Path]) -> None:
    theirs, ours = twins
    for root in twins:
        change_data(root)
    made.dvc("checkout", cwd=theirs, code=255)
    found = made.run("checkout", cwd=ours, code=1)
    assert "d/a" in found.stderr and found.stdout == ""
    assert (ours / "d/a").read_text() == "third\n"
    assert not (ours / "f4").exists(), "nothing is done"
    made.dvc("checkout", "--force", cwd=theirs)
    made.run("checkout", "--force", cwd=ours)
    assert files(ours) == files(theirs)


def test_checkout_of_data_that_is_nowhere(made: Home, twins: tuple[Path, Path]) -> None:
    theirs, ours = twins
    for root in twins:
        (root / "f4").unlink()
        lose_cache(root)
    made.dvc("checkout", "f4", cwd=theirs, code=255)
    found = made.run("checkout", "f4", cwd=ours, code=8)
    assert "whose data is neither in the store nor in a cache: 'f4'" in found.stderr and "millpond pull" in found.stderr
    made.dvc("checkout", "--allow-missing", "f4", cwd=theirs)
    made.run("checkout", "--allow-missing", "f4", cwd=ours)


def test_add_says_the_same(made: Home, twins: tuple[Path, Path]) -> None:
    theirs, ours = twins
    for root in twins:
        (root / "new dir").mkdir()
        (root / "new dir/x").write_text("x")
        (root / "sub/it's").write_text("y")
    for folder, words in ((".", ["new dir"]), ("sub", ["it's"]), (".", ["d", "sub/f3"]), (".", ["d"])):
        expected, found = made.dvc("add", *words, cwd=theirs / folder), made.run("add", *words, cwd=ours / folder)
        head, hint = found.stdout.split("To enable auto staging, run:")
        their_head, _ = expected.stdout.split("To enable auto staging, run:")
        assert sorted(head.split()) == sorted(their_head.split()), "the order of names is that of a set in DVC"
        assert head.splitlines()[:3] == their_head.splitlines()[:3]
    config = hint.strip().splitlines()[0]
    assert config == "git config -f .dvc/config core.autostage true"
    for path in sorted(path for path in theirs.rglob("*.dvc") if path.is_file()):
        assert (ours / path.relative_to(theirs)).read_text() == path.read_text()
    # The hint does what it says, for both.
    for root in twins:
        made.git(*config.split()[1:], cwd=root)
        (root / "staged").write_text("z")
    assert made.run("add", "staged", cwd=ours).stdout == made.dvc("add", "staged", cwd=theirs).stdout == ""
    assert made.git("status", "--short", "staged.dvc", cwd=ours) == "A  staged.dvc\n"


def test_init_says_the_same_first(made: Home) -> None:
    folders = made.path / "i1", made.path / "i2"
    for folder in folders:
        folder.mkdir()
    for words, code in (
        ([], 1),
        (["--no-scm"], 0),
        (["--no-scm"], 1),
        (["--no-scm", "-f"], 0),
        (["-q", "-f", "--no-scm"], 0),
    ):
        expected = made.dvc("init", *words, cwd=folders[0], code=code)
        found = made.run("init", *words, cwd=folders[1], code=None)
        assert (found.returncode == 0) == (code == 0), found.stderr
        cut = "What's next?"
        assert found.stdout.split(cut)[0] == expected.stdout.split(cut)[0]
    git = made.path / "i3"
    git.mkdir()
    made.git("init", "-q", cwd=git)
    assert "You can now commit the changes to git." in made.run("init", cwd=git).stdout
    nested = git / "inner"
    made.run("init", "inner", "--subdir", cwd=git)
    assert made.dvc("root", cwd=nested).stdout == made.run("root", cwd=nested).stdout == ".\n"


def test_exit_codes_that_are_dvc_s(made: Home, tmp_path: Path) -> None:
    for words in (["root"], ["add", "x"]):
        expected = made.dvc(*words, cwd=tmp_path, code=253)
        found = made.run(*words, cwd=tmp_path, code=253)
        assert found.stderr.startswith(expected.stderr.rstrip("\n"))
    for words in (["status", "--bogus"], ["add"]):
        made.dvc(*words, cwd=tmp_path, code=254)
        made.run(*words, cwd=tmp_path, code=254)
    assert made.run("-q", "root").stdout == "" != made.run("root").stdout


def test_an_empty_repository(made: Home, tmp_path: Path) -> None:
    made.run("init", "--no-scm", "-q", cwd=tmp_path)
    assert made.run("checkout", "--summary", cwd=tmp_path).stdout == "No changes.\n"
    assert made.run("status", "--json", cwd=tmp_path).stdout == "{}\n"
    first = made.dvc("status", cwd=tmp_path).stdout.splitlines()[0]
    assert made.run("status", cwd=tmp_path).stdout.splitlines()[0] == first


def test_config_and_cache_dir(made: Home, twins: tuple[Path, Path]) -> None:
    theirs, ours = twins
    steps = [
        ["config", "core.autostage", "true"],
        ["config", "--local", "remote.Far.url", "../far"],
        ["config", "core.autostage"],
        ["config", "core.nothing"],
        ["config", "--list", "--show-origin"],
        ["config", "--show-origin", "--local", "remote.far.url"],
        ["cache", "dir", "--local", "elsewhere"],
        ["cache", "dir"],
        ["cache", "dir", "--local", "--unset"],
        ["config", "-u", "core.autostage"],
    ]
    for words in steps:
        if words[:2] == ["config", "--list"]:  # DVC has no file for a list of all levels' origins
            found = made.run(*words, cwd=ours).stdout
            assert ".dvc/config\tcore.autostage=true\n" in found and ".dvc/config.local\tremote.far.url=" in found
            continue
        expected, told = made.dvc(*words, cwd=theirs), made.run(*words, cwd=ours)
        assert told.stdout == expected.stdout.replace(str(theirs.parent), str(ours.parent)), words
        for name in ("config", "config.local"):
            files = [root / ".dvc" / name for root in twins]
            assert (files[0].exists() and files[0].read_bytes()) == (files[1].exists() and files[1].read_bytes())
    made.run("config", "--local", "core.autostage", cwd=ours, code=255)
    made.run("config", "nodot", "x", cwd=ours, code=254)
    made.run("config", "--local", "--project", "-l", cwd=ours, code=254)
    made.run("config", "-l", "core.remote", cwd=ours, code=254)
