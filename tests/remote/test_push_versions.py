"""`push` to remotes that keep versions themselves, beside real DVC: where files go, what pointers are told, what a cut push leaves."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.mounts.conftest import contents
from tests.project.realdvc import real_dvc
from tests.remote.conftest import ended
from tests.remote.servers import S3Server
from tests.remote.shared import Team, data_of
from tests.store.helpers import sample

from millpond.daemon.project import yamlio

STAGES = """\
stages:
  m:
    cmd: mkdir -p o && echo hi > o/x && cp one.csv p && echo m > np
    deps:
    - one.csv
    outs:
    - o
    - p
    - np:
        push: false
"""
_VERSION = re.compile(r"version_id: .*")


@contextlib.contextmanager
def team_at(s3: S3Server, flag: str, *, versions: bool = True) -> Iterator[Team]:
    """A team whose remote is a folder in a bucket of its own."""
    bucket = s3.bucket(f"p-{random.randrange(1 << 60):x}")
    if versions:
        s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with tempfile.TemporaryDirectory(prefix="mp-pv-", ignore_cleanup_errors=True) as folder:
        team = Team(Path(folder), f"s3://{bucket}/{flag}", s3, [])
        with ended(team):
            yield team


def person(team: Team, name: str, flag: str, url: str) -> Home:
    team.url = url
    home = team.person(name)
    with open(home.repo / ".dvc/config", "a") as config:
        config.write(f"    {flag} = true\n")
    return home


def begin(home: Home) -> None:
    (home.repo / "data/sub").mkdir(parents=True)
    for path, data in {"a.txt": b"1\n", "sub/same": b"same\n", "copy": b"same\n", "empty": b"", "ü ä": b"u"}.items():
        (home.repo / "data" / path).write_bytes(data)
    (home.repo / "one.csv").write_bytes(b"one\n")
    (home.repo / "dvc.yaml").write_text(STAGES)


def versions(s3: S3Server, url: str) -> dict[str, list[tuple[str, str, int]]]:
    """All versions below a url: key, then (id, ETag, size) of each, the latest first. There are no signs of removal."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found: dict[str, list[tuple[str, str, int]]] = {}
    for page in s3.client().get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for each in page.get("Versions", ()):
            row = each["VersionId"], each["ETag"].strip('"'), each["Size"]
            found.setdefault(each["Key"].removeprefix(f"{prefix}/"), []).append(row)
    return found


def told(home: Home) -> dict[str, str]:
    """The version that the pointers name of each path."""
    found = {}

    def note(path: str, entry: dict[str, Any]) -> None:
        for said in entry.get("cloud", {}).values():
            found[path] = said["version_id"]

    entries = [out for file in home.repo.glob("?*.dvc") for out in yamlio.load(file.read_text(), file.name)["outs"]]
    if (home.repo / "dvc.lock").exists():
        entries += yamlio.load((home.repo / "dvc.lock").read_text(), "dvc.lock")["stages"]["m"]["outs"]
    for entry in entries:
        note(entry["path"], entry)
        for file in entry.get("files", ()):
            note(f"{entry['path']}/{file['relpath']}", file)
    return found


def below(pid: int) -> list[int]:
    """All processes that a process began."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        with contextlib.suppress(OSError):
            parent = waiting.pop()
            children = [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            found, waiting = found + children, waiting + children
    return found


def same(ours: Home, theirs: Home) -> None:
    """Pointers and lock files are DVC's, but for the ids of versions."""
    for name in ("data.dvc", "one.csv.dvc", "dvc.lock"):
        mine, other = ((home.repo / name).read_text() for home in (ours, theirs))
        assert _VERSION.sub("version_id: X", mine) == _VERSION.sub("version_id: X", other), name


@contextlib.contextmanager
def pair(s3: S3Server, flag: str) -> Iterator[tuple[Team, Home, Home]]:
    """Two people with the same data and pipeline: one pushed his by millpond, the other by real DVC, each below the team's url."""
    with team_at(s3, flag) as team:
        top = team.url
        ours, theirs = (person(team, name, flag, f"{top}/{name}") for name in ("ours", "theirs"))
        team.url = top
        for home in (ours, theirs):
            begin(home)
        ours.run("add", "-q", "data", "one.csv")
        ours.run("repro", "-q")
        real_dvc().ok("add", "-q", "data", "one.csv", cwd=theirs.repo)
        real_dvc().ok("repro", "-q", cwd=theirs.repo)
        assert ours.run("push").stdout.startswith("8 files pushed")
        assert "8 files pushed" in real_dvc().ok("push", cwd=theirs.repo)
        same(ours, theirs)
        yield team, ours, theirs


@pytest.mark.long
def test_a_push_is_as_dvc_s_and_a_second_one_moves_nothing(s3: S3Server) -> None:
    with pair(s3, "version_aware") as (team, ours, theirs):
        before = {file: file.read_bytes() for file in ours.repo.glob("?*.dvc")}
        assert ours.run("push").stdout == "Everything is up to date.\n"
        assert {file: file.read_bytes() for file in ours.repo.glob("?*.dvc")} == before
        assert json.loads(ours.run("status", "-c", "--json").stdout) == {}
        assert json.loads(ours.run("status", "--json").stdout) == {}
        mine = versions(s3, f"{team.url}/ours")
        assert {key: rows[0][0] for key, rows in mine.items()} == told(ours)
        # So does a stage that runs again and makes the same.
        lock = (ours.repo / "dvc.lock").read_bytes()
        ours.run("repro", "-q", "-f")
        assert (ours.repo / "dvc.lock").read_bytes() == lock
        # An add of something else keeps the versions of what is as it was, as DVC's.
        for home in (ours, theirs):
            (home.repo / "data/a.txt").write_bytes(b"2\n")
        ours.run("add", "-q", "data")
        real_dvc().ok("add", "-q", "data", cwd=theirs.repo)
        same(ours, theirs)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("flag", ["version_aware", "worktree"])
def test_later_pushes_and_clones_are_as_dvc_s(s3: S3Server, flag: str) -> None:
    with pair(s3, flag) as (team, ours, theirs):
        top = team.url
        ours.git("add", "-A")
        ours.git("commit", "-qm", "1")
        ours.git("tag", "v1")
        first = data_of(ours)
        for home in (ours, theirs):
            (home.repo / "data/a.txt").write_bytes(b"2\n")
            (home.repo / "data/new").write_bytes(b"new\n")
            (home.repo / "data/empty").unlink()
            (home.repo / "one.csv").write_bytes(b"two\n")
        ours.run("add", "-q", "data", "one.csv")
        real_dvc().ok("add", "-q", "data", "one.csv", cwd=theirs.repo)
        status = json.loads(ours.run("status", "-c", "--json").stdout)
        assert {"data/a.txt", "data/new", "one.csv"} <= set(status) and "data/copy" not in status
        assert "3 files pushed" in ours.run("push").stdout
        assert "3 files pushed" in real_dvc().ok("push", cwd=theirs.repo)
        same(ours, theirs)
        # The same keys, as many versions of each; what is no part of the data any more stays.
        mine, other = versions(s3, f"{top}/ours"), versions(s3, f"{top}/theirs")
        assert {key: [row[1:] for row in rows] for key, rows in mine.items()} == {
            key: [row[1:] for row in rows] for key, rows in other.items()
        }
        assert {key: rows[0][0] for key, rows in mine.items() if key != "data/empty"} == told(ours)
        assert "np" not in mine and len(mine["data/a.txt"]) == 2 and len(mine["data/copy"]) == 1
        # Real DVC finds all that ours pushed, and ours what real DVC did.
        for home in (ours, theirs):
            home.git("add", "-A")
            home.git("commit", "-qm", "2")
        last = data_of(ours)
        team.url = f"{top}/ours"
        for name in ("bob", "dan"):
            home = team.person(name, ours)

            def pull(*targets: str, home: Home = home, name: str = name) -> None:
                (home.run if name == "bob" else home.dvc)("pull", "-q", *targets)

            pull("data", "one.csv", "o", "p")
            assert data_of(home) == last and (home.repo / "o/x").read_text() == "hi\n"
            home.git("checkout", "-q", "v1")
            pull("data", "one.csv")
            assert data_of(home) == first
        team.url = f"{top}/theirs"
        eve = team.person("eve", theirs)
        eve.run("pull", "-q", "data", "one.csv")
        assert data_of(eve) == last and eve.run("push", "data", "one.csv").stdout == "Everything is up to date.\n"
        assert not eve.git("status", "--porcelain")
        # Out of the repository, by somebody who has nothing of it and finds the remote in its config.
        fay = team.person("fay")
        fay.extra |= s3.environ
        fay.run("get", f"file://{ours.repo}", "data", "-o", "got", "--rev", "HEAD")
        assert {path: data for path, data in last.items() if path != "one.csv"} == contents(fay.repo / "got")


@pytest.mark.long
def test_a_cut_push_leaves_pointers_that_are_right_and_is_gone_on_with(s3: S3Server) -> None:
    with team_at(s3, "version_aware") as team:
        ann = person(team, "ann", "version_aware", team.url)
        (ann.repo / "data").mkdir()
        for number in range(60):
            (ann.repo / f"data/{number:02}").write_bytes(sample(number, 40_000))
        (ann.repo / "large").write_bytes(sample(99, 20_000_000))
        ann.run("add", "-q", "large", "data")
        plain = {file: file.read_bytes() for file in ann.repo.glob("?*.dvc")}
        assert "1 file pushed" in ann.run("push", "large").stdout
        # As after a kill between the object and its pointer.
        (ann.repo / "large.dvc").write_bytes(plain[ann.repo / "large.dvc"])
        slow = subprocess.Popen(
            ann.command("push"), cwd=ann.repo, env=ann.env | {"MILLPOND_RATE": "150K"}, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(versions(s3, team.url)) < 12:
            assert time.monotonic() < deadline and slow.poll() is None
            time.sleep(0.05)
        pid = json.loads(ann.run("daemon", "status", "--json").stdout)["pid"]
        for child in below(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        slow.send_signal(signal.SIGKILL)
        slow.wait()
        there = versions(s3, team.url)
        named = told(ann)
        assert len(there) < 61 and all(version in [row[0] for row in there[path]] for path, version in named.items())
        for name in ("data.dvc", "large.dvc"):
            assert ann.run("status", name.removesuffix(".dvc")).stdout == "Data and pipelines are up to date.\n"
        done = json.loads(ann.run("push", "--json").stdout)
        after = versions(s3, team.url)
        assert len(after) == 61 and done["there"] >= len(there) and done["objects"] == 61 - done["there"]
        assert {path: rows[0][0] for path, rows in after.items()} == told(ann)
        # Nothing that was there whole was sent again, the large one's parts included.
        assert [path for path, rows in after.items() if len(rows) > 1] == []
        bob = team.person("bob", None)
        for file in (".dvc/config", "data.dvc", "large.dvc"):
            shutil.copy(ann.repo / file, bob.repo / file)
        bob.run("pull", "-q")
        assert (bob.repo / "large").read_bytes() == sample(99, 20_000_000)


@pytest.mark.long
def test_refusals_change_neither_bucket_nor_pointers(s3: S3Server) -> None:
    """A bucket without versions, data that is nowhere, a name of DVC 2, a second remote."""
    with team_at(s3, "version_aware", versions=False) as team:
        ann = person(team, "ann", "version_aware", team.url)
        begin(ann)
        ann.run("add", "-q", "data", "one.csv")
        before = {file: file.read_bytes() for file in ann.repo.glob("?*.dvc")}
        for words in ((), ("data/a.txt",)):
            done = ann.run("push", *words, code=251)
            sentence(done)
            assert "keeps no versions" in done.stderr and "'team'" in done.stderr
        assert team.keys() == {} and {file: file.read_bytes() for file in ann.repo.glob("?*.dvc")} == before
        bucket = team.url.removeprefix("s3://").partition("/")[0]
        s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        # A part of a folder; what is not there has no version in the pointer, and is new.
        assert "1 file pushed" in ann.run("push", "data/a.txt").stdout
        assert set(told(ann)) == {"data/a.txt"}
        assert "data/copy" in json.loads(ann.run("status", "-c", "data", "--json").stdout)
        assert "4 files pushed" in ann.run("push", "data").stdout
        # What is lost is named; the rest is pushed, and told.
        pointer = ann.repo / "lost.dvc"
        pointer.write_text(before[ann.repo / "one.csv.dvc"].decode().replace("one.csv", "lost").replace("5bbf", "6bbf"))
        done = ann.run("push", code=8)
        assert "lost" in done.stderr and "one.csv" in told(ann) and "cloud" not in pointer.read_text()
        pointer.write_text("outs:\n- md5: 5bbf5a52328e7439ae6e719dfe712200\n  size: 4\n  path: lost\n")
        done = ann.run("push", "lost", code=254)
        sentence(done)
        assert "name of DVC 2" in done.stderr
        pointer.unlink()
        # A pointer has room for one remote: it says where the data went last.
        with open(ann.repo / ".dvc/config", "a") as config:
            config.write(
                f"['remote \"two\"']\n    url = s3://{bucket}/two\n    endpointurl = {s3.endpoint}\n    worktree = true\n"
            )
        shutil.copy(ann.repo / ".dvc/config.local", ann.path / "local")
        text = (ann.path / "local").read_text()
        (ann.repo / ".dvc/config.local").write_text(text + text.replace("team", "two"))
        assert "6 files pushed" in ann.run("push", "-r", "two").stdout
        assert (
            "two:" in (ann.repo / "one.csv.dvc").read_text() and "team:" not in (ann.repo / "one.csv.dvc").read_text()
        )
        assert ann.run("push", "-r", "two").stdout == ann.run("push").stdout == "Everything is up to date.\n"
        (ann.repo / "data" / os.fsdecode(b"\xff")).write_bytes(b"")
        ann.run("add", "-q", "data")
        done = ann.run("push", code=254)
        sentence(done)
        assert "no UTF-8" in done.stderr
