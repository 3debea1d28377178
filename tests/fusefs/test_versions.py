"""All versions in one mount, with a source that says what Git would."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import TIMEOUT_S, File, Mounted, Node, answering, eventually, mount, open_store, put_tree

from millpond.daemon import wirepath
from millpond.daemon.errors import DaemonUnavailableError, RevisionError

pytestmark = pytest.mark.fuse

OLD, NEW, OTHER = "1" * 40, "2" * 40, "3" * 64


@dataclass(slots=True)
class Repo:
    """What the source says: refs, and which revision is which commit."""

    roots: dict[str, bytes]
    refs: dict[str, str] = field(
        default_factory=lambda: {
            "main": NEW,
            "v1": OLD,
            "feature/one": OLD,
            "feature/deep/two": OTHER,
            "caf\udce9": OLD,
        }
    )
    revisions: dict[str, str] = field(default_factory=lambda: {"HEAD~1": OLD, "1111111": OLD, "v1^{}": OLD})
    asked: list[str] = field(default_factory=list)
    daemon_is_away: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)

    def answer(self, ask: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        if ask["op"] == "refs":
            return {"refs": {wirepath.encode(name): commit for name, commit in self.refs.items()}}, []
        revision = wirepath.decode(str(ask["rev"]))
        self.asked.append(revision)
        if self.daemon_is_away:
            return {"error": DaemonUnavailableError("the daemon does not answer").to_wire()}, []
        if revision == "slow":
            assert self.go_on.wait(TIMEOUT_S)
        commit = self.refs.get(revision) or self.revisions.get(revision) or revision
        if commit not in self.roots:
            return {"error": RevisionError(f"unknown Git revision '{revision}'").to_wire()}, []
        return {"commit": commit, "root": self.roots[commit].hex()}, []


@contextlib.contextmanager
def versions(base: Path) -> Iterator[tuple[Mounted, Repo]]:
    shared: dict[bytes, Node] = {b"same/file": File(b"in every version"), b"run": File(b"#!/bin/sh\n", executable=True)}
    store = open_store(base / "store")
    roots = {
        OLD: put_tree(store, {**shared, b"data/x": File(b"old")}).root,
        NEW: put_tree(store, {**shared, b"data/x": File(b"new"), b"data/more": File(b"m")}).root,
        OTHER: put_tree(store, {b"only": File(b"other")}).root,
    }
    store.close()
    repo = Repo(roots)
    with mount(base / "store", None, base / "m", source=answering(repo.answer), versions=True) as mounted:
        yield mounted, repo


def test_branches_and_tags_are_links_to_commits(base: Path) -> None:
    with versions(base) as (mounted, _):
        place = os.fsencode(mounted.place)
        assert sorted(os.listdir(place)) == [b"caf\xe9", b"feature", b"main", b"v1"]
        assert os.readlink(place + b"/main") == b".commits/" + NEW.encode()
        assert os.readlink(place + b"/feature/deep/two") == b"../../.commits/" + OTHER.encode()
        assert sorted(os.listdir(mounted.place / "feature")) == ["deep", "one"]
        assert (mounted.place / "main/data/x").read_bytes() == b"new"
        assert (mounted.place / "v1/data/x").read_bytes() == b"old"
        assert (mounted.place / "feature/deep/two/only").read_bytes() == b"other"
        with open(place + b"/caf\xe9/data/x", "rb") as file:
            assert file.read() == b"old"
        assert sorted(os.listdir(mounted.place / ".commits")) == [OLD, NEW, OTHER]


def test_any_revision_is_there_when_it_is_looked_up(base: Path) -> None:
    with versions(base) as (mounted, _):
        for name in ("HEAD~1", "1111111", "v1^{}", OLD):
            assert (mounted.place / name / "data/x").read_bytes() == b"old"
            assert os.readlink(mounted.place / name) == ".commits/" + OLD
        for name in ("nope", ".git", "feature/nope", "main/nope", ".commits/nope", ".commits/" + "9" * 40):
            assert not os.path.lexists(mounted.place / name)
        assert sorted(os.listdir(mounted.place)) == sorted(os.listdir(mounted.place))
        assert "nope" not in os.listdir(mounted.place)


def test_programs_that_look_for_dot_files_ask_nobody(base: Path) -> None:
    with versions(base) as (mounted, repo):
        for name in (".git", ".hidden", "._x", "__pycache__"):
            assert not (mounted.place / name).exists()
        assert repo.asked == []


def test_equal_files_of_two_versions_share_their_pages(base: Path) -> None:
    with versions(base) as (mounted, _):
        one, two = mounted.place / "main/same/file", mounted.place / "v1/same/file"
        assert one.stat().st_ino == two.stat().st_ino
        assert (mounted.place / "main/same").stat().st_ino != (mounted.place / "v1/same").stat().st_ino
        assert one.read_bytes() == b"in every version"
        reads = mounted.stats()["reads"]
        assert two.read_bytes() == b"in every version"
        assert mounted.stats()["reads"] == reads, "the second path must be served by the kernel"


def test_a_branch_that_moves_is_seen_and_the_versions_stay(base: Path) -> None:
    with versions(base) as (mounted, repo):
        held = os.open(mounted.place / "main/data/x", os.O_RDONLY)
        assert (mounted.place / "main/data/x").read_bytes() == b"new"
        repo.refs = {"main": OLD, "fresh": NEW}
        eventually(lambda: os.readlink(mounted.place / "main") == ".commits/" + OLD, "the branch moves")
        eventually(lambda: sorted(os.listdir(mounted.place)) == ["fresh", "main"], "the list of refs follows")
        assert (mounted.place / "main/data/x").read_bytes() == b"old"
        assert (mounted.place / ".commits" / NEW / "data/x").read_bytes() == b"new"
        assert os.pread(held, 10, 0) == b"new"
        os.close(held)


def test_what_is_known_is_read_on_while_the_daemon_is_away(base: Path) -> None:
    with versions(base) as (mounted, repo):
        assert (mounted.place / "main/data/x").read_bytes() == b"new"
        repo.daemon_is_away = True
        assert (mounted.place / "main/data/more").read_bytes() == b"m"
        with pytest.raises(OSError) as refused:
            (mounted.place / "v1/data/x").read_bytes()
        assert refused.value.errno == errno.EIO
        assert "v1" not in mounted.stats()["last_error"] and OLD in mounted.stats()["last_error"]
        repo.daemon_is_away = False
        assert (mounted.place / "v1/data/x").read_bytes() == b"old"


def test_a_slow_revision_holds_up_nobody_else(base: Path) -> None:
    with versions(base) as (mounted, repo):
        repo.revisions["slow"] = OLD
        assert (mounted.place / "main/data/x").read_bytes() == b"new"
        found: list[bytes] = []
        waiting = threading.Thread(target=lambda: found.append((mounted.place / "slow/data/x").read_bytes()))
        waiting.start()
        eventually(lambda: "slow" in repo.asked, "the source is asked")
        started = time.monotonic()
        assert (mounted.place / "main/same/file").read_bytes() == b"in every version"
        assert mounted.ask()["pid"] == mounted.pid
        assert time.monotonic() - started < 5 and not found
        repo.go_on.set()
        waiting.join(TIMEOUT_S)
        assert found == [b"old"]


def test_the_tree_of_versions_cannot_be_written_to(base: Path) -> None:
    with versions(base) as (mounted, _):
        for path in ("new", "main/new", ".commits/new", "feature/new"):
            with pytest.raises(OSError) as refused:
                (mounted.place / path).write_bytes(b"")
            assert refused.value.errno == errno.EROFS
        assert stat.S_IMODE((mounted.place / "feature").stat().st_mode) == 0o555
        assert os.access(mounted.place / "main/run", os.X_OK)


def test_statistics_are_there_too(base: Path) -> None:
    with versions(base) as (mounted, repo):
        assert '"opens"' in (mounted.place / ".millpond/stats").read_text()
        assert repo.asked == []
