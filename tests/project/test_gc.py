"""Roots of real repositories, beside real DVC's opinion of what is used; and `gc` by the real program."""

from __future__ import annotations

import hashlib
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

from millpond.daemon.project.roots import ProjectRoots, Scope
from millpond.daemon.store.ledger import roots_in


def versions(home: Home) -> dict[str, str]:
    """A repository with a version each in a branch, a tag, a stash, a reflog, Git's index and the workspace; what each
    has as content of `f`."""

    def add(text: str) -> None:
        (home.repo / "f").write_text(text)
        home.run("add", "-q", "f")

    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    made = {}
    for number, name in enumerate(("first", "branch", "tag", "dropped", "head")):
        if name == "branch":
            home.git("checkout", "-qb", "other")
        if name == "tag":
            home.git("checkout", "-q", "main")
        add(name * 1000)
        (home.repo / "code.py").write_text(f"{number}\n")
        home.git("add", "-A")
        home.git("commit", "-qm", name)
        made[name] = name * 1000
        if name == "tag":
            home.git("tag", "v1")
        if name == "dropped":
            home.git("reset", "-q", "--hard", "HEAD~1")
    for name in ("stashed", "staged", "workspace"):
        add(name * 1000)
        made[name] = name * 1000
        if name == "stashed":
            home.git("stash", "-q")
        if name == "staged":
            home.git("add", "f.dvc")
    return made


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Home, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="mp-gc-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        found = versions(home)
        try:
            yield home, found
        finally:
            home.close()


def names_of(home: Home, contents: list[str]) -> set[bytes]:
    return {b"\0" + hashlib.md5(text.encode()).digest() for text in contents}


def test_every_place_that_can_name_a_version_is_a_root(made: tuple[Home, dict[str, str]]) -> None:
    home, found = made
    roots = ProjectRoots(str(home.repo), str(home.repo), home.env)
    assert roots.everything() == names_of(home, list(found.values()))
    git_dir = roots.git_dir
    assert git_dir == os.path.realpath(home.repo / ".git")


@pytest.mark.parametrize(
    ("scope", "kept"),
    [
        (Scope(), ["staged", "workspace"]),
        (Scope(all_tags=True), ["tag"]),
        (Scope(all_branches=True), ["branch", "head"]),
        (Scope(all_branches=True, number=2), ["branch", "first", "head", "tag"]),
        (Scope(revs=("v1",)), ["tag"]),
        (Scope(revs=("main",), number=-1), ["head", "tag", "first"]),
        (Scope(all_commits=True), ["first", "branch", "tag", "head", "stashed"]),
        (Scope(since=0.0), ["first", "branch", "tag", "head", "stashed"]),
        (Scope(since=1e12), []),
    ],
    ids=str,
)
def test_the_scope_is_what_was_asked_for(made: tuple[Home, dict[str, str]], scope: Scope, kept: list[str]) -> None:
    home, found = made
    roots = ProjectRoots(str(home.repo), str(home.repo), home.env)
    wanted = names_of(home, [found[name] for name in {*kept, "staged", "workspace"}])
    assert roots.scoped(scope) == wanted


def test_broken_pointers_and_work_trees_keep_what_they_name(made: tuple[Home, dict[str, str]], tmp_path: Path) -> None:
    home, found = made
    repo = tmp_path / "repo"
    shutil.copytree(home.repo, repo, symlinks=True)
    home.git("worktree", "add", "-q", "--detach", str(tmp_path / "tree"), cwd=repo)
    extra, broken = "a" * 31 + "1", "b" * 31 + "2"
    (tmp_path / "tree" / "g.dvc").write_text(f"outs:\n- md5: {extra}\n  path: g\n")
    (repo / "h.dvc").write_text(f"<<<<<<< ours\nouts:\n- md5: '{broken}.dir'\n=======\n")
    everything = ProjectRoots(str(repo), str(repo), home.env).everything()
    assert {b"\0" + bytes.fromhex(extra), b"\x80" + bytes.fromhex(broken)} <= everything
    assert names_of(home, list(found.values())) <= everything
    assert roots_in(b"rev_lock: " + b"c" * 40 + b" md5: " + b"D" * 32) == set()


def gc(home: Home, *args: str, **more: Any) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(home.run("gc", "--json", "-f", "--grace", "0", *args, **more).stdout)
    return report


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-gc-", ignore_cleanup_errors=True) as folder:
        opened = Home(Path(folder))
        try:
            yield opened
        finally:
            opened.close()


def track(home: Home, repo: Path, texts: dict[str, str], message: str) -> None:
    for name, text in texts.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(text)
    home.run("add", "-q", *{name.split("/")[0] for name in texts}, cwd=repo)
    home.git("add", "-A", cwd=repo)
    home.git("commit", "-qm", message, cwd=repo)


def begin(home: Home, repo: Path) -> None:
    repo.mkdir(exist_ok=True)
    home.git("init", "-q", "-b", "main", cwd=repo)
    home.run("init", "-q", cwd=repo)


@pytest.mark.long
def test_all_experiments_are_those_that_dvc_saved_and_all_in_its_queue(home: Home) -> None:
    begin(home, home.repo)
    track(home, home.repo, {"f": "committed\n"}, "one")
    (home.repo / "params.yaml").write_text("v: 1\n")
    (home.repo / "dvc.yaml").write_text("stages:\n  s:\n    cmd: echo done > o\n    params: [v]\n    outs: [o]\n")
    home.dvc("repro", "-q")
    home.git("add", "-A")
    home.git("commit", "-qm", "two")
    baseline = ProjectRoots(str(home.repo), str(home.repo), home.env)
    assert baseline.scoped(Scope(all_experiments=True)) == baseline.scoped(Scope())
    ways: list[tuple[str, tuple[str, ...]]] = [
        *((f"saved {number}\n", ("exp", "save", "-q", "-n", f"save-{number}")) for number in range(2)),
        *((f"queued {number}\n", ("exp", "run", "-q", "--queue", "-n", f"queue-{number}")) for number in range(3)),
    ]
    for text, words in ways:
        (home.repo / "f").write_text(text)
        home.run("add", "-q", "f")
        home.dvc(*words)
        home.git("reset", "-q", "--hard")
    roots = ProjectRoots(str(home.repo), str(home.repo), home.env)
    wanted = names_of(home, [text for text, _ in ways])
    assert wanted <= roots.everything()
    assert not wanted & roots.scoped(Scope()) and not wanted & roots.scoped(Scope(all_branches=True))
    assert wanted <= roots.scoped(Scope(all_experiments=True))
    shutil.rmtree(home.repo / ".dvc" / "cache")
    gc(home, "--all-experiments")
    pointer = (home.repo / "f.dvc").read_text()
    for text, _ in ways:
        digest, size = hashlib.md5(text.encode()).hexdigest(), len(text)
        (home.repo / "f.dvc").write_text(f"outs:\n- md5: {digest}\n  size: {size}\n  hash: md5\n  path: f\n")
        home.run("checkout", "-q", "--force", "f")
        assert (home.repo / "f").read_text() == text
    (home.repo / "f.dvc").write_text(pointer)
    home.run("checkout", "-q", "--force", "f")
    assert gc(home, "-w")["removed"]["objects"] == len(ways)


def test_what_a_collection_leaves_is_what_real_dvc_leaves(home: Home) -> None:
    """The same history with both tools: what is kept in DVC's cache is kept in the store, and the rest is not."""
    begin(home, home.repo)
    for number in range(3):
        texts = {f"d/{n}": f"{n} {number if n < number + 2 else 'same'}" * 50 for n in range(6)}
        track(home, home.repo, texts, str(number))
        home.dvc("commit", "-q", "-f")
    home.git("tag", "v1", "HEAD~1")
    cache = home.repo / ".dvc" / "cache" / "files" / "md5"
    before = {path.parent.name + path.name for path in cache.rglob("*") if path.is_file()}
    home.dvc("gc", "-q", "-T", "-f")
    left = {path.parent.name + path.name for path in cache.rglob("*") if path.is_file()}
    report = gc(home, "-T")
    assert before != left
    assert (report["kept"]["objects"], report["removed"]["objects"]) == (len(left), len(before) - len(left))
    shutil.rmtree(cache)
    shutil.rmtree(home.repo / "d")
    home.run("checkout", "-q")
    assert home.run("status").stdout == "Data and pipelines are up to date.\n"
    home.git("checkout", "-q", "v1")
    home.run("checkout", "-q")
    home.git("checkout", "-q", "main~2")
    home.run("checkout", code=8)
    assert "clean" in home.run("fsck", "--deep").stdout


def test_other_projects_pins_and_the_grace_period_keep_their_data(home: Home) -> None:
    other = home.path / "other"
    for repo, word in ((home.repo, "ours"), (other, "theirs")):
        begin(home, repo)
        track(home, repo, {"f": f"{word} one" * 500}, "one")
        track(home, repo, {"f": f"{word} two" * 500}, "two")
    assert f"\t{other}: 2 objects, 10.0 kB" in home.run("cache", "info").stdout
    home.run("pin", "f@HEAD~1")
    assert "f@" in home.run("pins").stdout
    report = gc(home, "-w", "--dry")
    assert (report["removed"]["objects"], report["kept"]["objects"]) == (0, 4)
    home.run("unpin", "f@HEAD~1")
    young = json.loads(home.run("gc", "-wf", "--json").stdout)
    assert (young["removed"]["objects"], young["young"]["objects"]) == (0, 1)
    report = gc(home, "-w", "--dry")
    assert report["projects"] == {str(home.repo): {"objects": 1, "bytes": 4000}}
    moved = home.path / "moved"
    other.rename(moved)
    report = gc(home, "-w")
    assert report["removed"]["objects"] == 1
    assert [item["path"] for item in report["unreadable"]] == [str(other)]
    home.run("forget-project", str(other))
    home.run("forget-project", str(other), code=255)
    assert gc(home, "-w")["removed"]["objects"] == 2
    (home.repo / "f").unlink()
    home.run("checkout", "-q")
    assert (home.repo / "f").read_text() == "ours two" * 500


def test_a_mounted_version_stays(home: Home) -> None:
    begin(home, home.repo)
    track(home, home.repo, {f"d/{n}": f"{n} old" * 3000 for n in range(5)}, "old")
    track(home, home.repo, {f"d/{n}": f"{n} new" * 3000 for n in range(5)}, "new")
    place = home.path / "mnt"
    place.mkdir()
    home.run("mount", "d@HEAD~1", str(place))
    assert gc(home, "-w")["removed"]["objects"] == 1, "the old manifest is not needed by the mount"
    assert [(place / str(n)).read_text() for n in range(5)] == [f"{n} old" * 3000 for n in range(5)]
    home.run("umount", str(place))
    assert gc(home, "-w")["removed"]["objects"] == 5


def test_it_asks_first_and_refuses_what_it_cannot_do(home: Home) -> None:
    begin(home, home.repo)
    track(home, home.repo, {"f": "one" * 500}, "one")
    assert "say what is to be kept" in home.run("gc", code=254).stderr
    track(home, home.repo, {"f": "two" * 500}, "two")
    done = home.run("gc", "-w", "--grace", "0", code=1)
    assert "removes 1 object (1.50 kB)" in done.stdout and "--force" in done.stderr
    for option in ("--cloud", "--not-in-remote"):
        assert "no remote is configured" in home.run("gc", "-w", option, code=251).stderr
    assert "not allowed together" in home.run("gc", "-w", "-c", "--not-in-remote", code=254).stderr
    assert "--cloud" in home.run("gc", "-w", "-r", "x", code=254).stderr
    home.run("gc", "-f", "--rev", "nothing", code=255)
    home.run("gc", "-f", "--date", "yesterday", code=254)
    home.run("gc", "-f", "-w", "-n", "3", code=254)


def test_the_stores_size_may_be_limited(home: Home) -> None:
    begin(home, home.repo)
    assert "no limit" in home.run("cache", "limit").stdout
    assert "at most 1.5 kB" in home.run("cache", "limit", "1.5kB").stdout.replace("1.50", "1.5")
    (home.repo / "f").write_bytes(os.urandom(5000))
    assert "limit" in home.run("add", "f", code=7).stderr
    assert not (home.repo / "f.dvc").exists()
    home.run("daemon", "restart")
    assert json.loads(home.run("cache", "limit", "--json").stdout)["bytes"] == 1500
    home.run("cache", "limit", "none")
    home.run("add", "-q", "f")
    home.run("cache", "limit", "much", code=254)


def test_a_collection_beside_an_add_waits_for_it_and_loses_nothing(home: Home) -> None:
    """Adds of what was garbage a moment ago, in a second project, against collections in the first."""
    other = home.path / "other"
    for repo in (home.repo, other):
        begin(home, repo)
    track(home, home.repo, {"f": "kept" * 500}, "kept")
    shared = {f"d/{n}": f"shared {n}" * 3000 for n in range(40)}
    for _ in range(3):
        track(home, home.repo, shared, "shared")
        home.git("rm", "-q", "--cached", "d.dvc")
        (home.repo / "d.dvc").unlink()
        for name, data in shared.items():
            (other / name).parent.mkdir(exist_ok=True)
            (other / name).write_text(data)
        adding = subprocess.Popen(home.command("add", "-q", "d"), cwd=other, env=home.env)
        gc(home, "-w")
        assert adding.wait(30) == 0
        assert "clean" in home.run("fsck", "--deep").stdout
        shutil.rmtree(other / "d")
        home.run("checkout", "-q", cwd=other)
        assert {name: (other / name).read_text() for name in shared} == shared
        (other / "d.dvc").unlink()
        shutil.rmtree(other / "d")
        shutil.rmtree(home.repo / "d")
        home.git("commit", "-qam", "gone")
