"""mount, umount, mounts through the real program: what people see of them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home, Terminal

pytestmark = pytest.mark.fuse


@pytest.fixture
def repo(home: Home) -> Home:
    """Two versions of a directory, the first one tagged v1."""
    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    (home.repo / "data").mkdir()
    (home.repo / "data/a").write_text("first")
    home.run("add", "-q", "data")
    home.git("add", "-A")
    home.git("commit", "-qm", "1")
    home.git("tag", "v1")
    (home.repo / "data/b c").write_text("second")
    home.run("add", "-q", "data")
    home.git("commit", "-qam", "2")
    for name in ("m1", "m2"):
        (home.path / name).mkdir()
    return home


@pytest.fixture
def reader(repo: Home) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that stands in a directory until it is told to go."""
    made: list[subprocess.Popen[str]] = []

    def start(where: Path) -> subprocess.Popen[str]:
        code = "print('here', flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        made.append(process)
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        return process

    yield start
    for process in made:
        process.communicate("\n")


def test_a_version_is_mounted_listed_and_ended(repo: Home) -> None:
    commit = repo.git("rev-parse", "v1").strip()
    place = repo.path / "m1"
    assert repo.run("mount", "data@v1", "../m1").stdout == f"Mounted data@{commit[:12]} on {place} (1 file, 5 B)\n"
    assert os.listdir(place) == ["a"]
    assert (place / "a").read_text() == "first"
    header, row = repo.run("mounts").stdout.splitlines()
    assert header.split() == ["MOUNTPOINT", "VERSION", "STATE", "ENGINE", "PID", "SINCE", "READ"]
    assert row.split()[:4] == [str(place), f"data@{commit[:12]}", "mounted", "direct"]
    assert row.endswith("  5 B")
    (told,) = json.loads(repo.run("mounts", "--json").stdout)["mounts"]
    assert (told["mountpoint"], told["target"], told["commit"]) == (str(place), "data", commit)
    assert repo.run("umount", "../m1").stdout == f"Unmounted {place}\n"
    assert repo.run("mounts").stdout == "Nothing is mounted.\n"
    assert os.listdir(place) == []


def test_whole_revisions_and_all_versions(repo: Home) -> None:
    assert repo.run("mount", "@v1", "../m1").stdout.startswith("Mounted @")
    assert (repo.path / "m1/data/a").read_text() == "first"
    assert repo.run("mount", "--versions", "../m2").stdout == f"Mounted all versions on {repo.path / 'm2'}\n"
    assert (repo.path / "m2/main/data/b c").read_text() == "second"
    assert "all versions" in repo.run("mounts").stdout
    ended = json.loads(repo.run("umount", "--all", "--json").stdout)
    assert sorted(ended["unmounted"]) == [str(repo.path / "m1"), str(repo.path / "m2")]


def test_versions_without_a_commit_are_told_apart_and_empty_places_are_said(repo: Home) -> None:
    digest = (repo.repo / "data.dvc").read_text().partition("md5: ")[2][:12]
    repo.run("mount", "-q", "data", "../m1")
    assert f"data (md5 {digest})" in repo.run("mounts").stdout
    repo.run("checkout", "-q", "--mount")
    place = repo.repo / "data"
    said = repo.run("umount", "--all").stdout.splitlines()
    assert said[0] == f"Unmounted {repo.path / 'm1'}" and said[1].startswith(f"Unmounted {place}; its place")
    assert "millpond checkout" in said[1] and os.listdir(place) == []
    repo.run("checkout", "-q")
    assert sorted(os.listdir(place)) == ["a", "b c"]


def test_a_target_with_an_at_sign(repo: Home) -> None:
    (repo.repo / "we@ird").mkdir()
    (repo.repo / "we@ird/x").write_text("x")
    repo.run("add", "-q", "we@ird")
    repo.git("add", "-A")
    repo.git("commit", "-qm", "3")
    assert repo.run("mount", "we@ird", "../m1").stdout.startswith("Mounted we@ird on ")
    assert repo.run("mount", "we@ird@HEAD", "../m2").stdout.startswith("Mounted we@ird@")
    repo.run("umount", "../m2")
    assert json.loads(repo.run("mount", "--json", "--rev", "HEAD", "we@ird", "../m2").stdout)["target"] == "we@ird"


def test_a_busy_mount_names_who_holds_it(repo: Home, reader: Callable[[Path], subprocess.Popen[str]]) -> None:
    for name, target in (("m1", "data@v1"), ("m2", "data")):
        repo.run("mount", "-q", target, f"../{name}")
    process = reader(repo.path / "m1")
    busy = repo.run("umount", "../m1", code=9)
    assert f"(pid {process.pid}, " in busy.stderr and busy.stderr.count("\n") == 1
    rest = repo.run("umount", "--all", code=9)
    assert rest.stdout == f"Unmounted {repo.path / 'm2'}\n", "the others are ended, and told"
    assert f"(pid {process.pid}, " in rest.stderr
    assert repo.run("umount", "--lazy", "../m1").stdout == f"Unmounted {repo.path / 'm1'}\n"


def test_a_killed_mount_is_told_and_restored(repo: Home) -> None:
    repo.run("mount", "-q", "data@v1", "../m1")
    (told,) = json.loads(repo.run("mounts", "--json").stdout)["mounts"]
    repo.run("daemon", "stop")
    process = os.pidfd_open(told["pid"])
    os.kill(told["pid"], signal.SIGKILL)
    assert select.select([process], [], [], 10)[0]
    os.close(process)
    # The daemon that this starts restores it by itself, or the request does: it is there when the request is answered.
    assert repo.run("mounts", "--restore").stdout in (f"Restored {repo.path / 'm1'}\n", "Nothing to restore.\n")
    assert (repo.path / "m1/a").read_text() == "first"
    assert "mounted" in repo.run("mounts").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data@nope", "../m1"], 255, "nope"),
        (["nothing", "../m1"], 255, "nothing"),
        (["data", "../missing"], 9, "mkdir -p "),
        (["data", "."], 9, "not empty"),
        (["data", "data"], 9, "data"),
        (["data", "data/a"], 9, "data/a"),
        (["--rev", "a\tb", "data", "../m1"], 254, "not printable"),
    ],
)
def test_what_cannot_be_mounted(repo: Home, words: list[str], code: int, said: str) -> None:
    done = repo.run("mount", *words, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("ERROR: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_mountpoints_are_completed(repo: Home) -> None:
    repo.run("mount", "-q", "data", "../m1")
    typed = f"umount\n{repo.path}/\n."
    done = subprocess.run(
        repo.command(), env=repo.env | {"_MILLPOND_COMPLETE": "zsh", "_MILLPOND_WORDS": typed}, capture_output=True
    )
    assert done.stdout.decode() == f"plain\t{repo.path}/m1\t\n"


def test_a_mount_in_use_outlives_the_terminal(repo: Home, terminal: Callable[..., Terminal]) -> None:
    mounting = terminal(repo, "mount", "data", "../m1")
    assert mounting.finish() == 0
    assert sorted(os.listdir(repo.path / "m1")) == ["a", "b c"]


@pytest.mark.parametrize("text", ['[{"md5": "0cc175b9c0f1b6a831c399e269772661", "relpath": "a"}]', "no manifest"])
def test_a_manifest_of_dvcs_cache_that_is_not_what_its_name_says_is_not_mounted(repo: Home, text: str) -> None:
    digest = "5" * 32
    bad = repo.repo / ".dvc/cache/files/md5" / digest[:2] / f"{digest[2:]}.dir"
    bad.parent.mkdir(parents=True)
    bad.write_text(text)
    (repo.repo / "other.dvc").write_text(f"outs:\n- md5: {digest}.dir\n  hash: md5\n  path: other\n")
    ran = repo.run("mount", "other", str(repo.path / "m1"), code=6)
    assert f"'{bad}' in the DVC cache is not what its name says: it hashes to " in ran.stderr
    assert os.listdir(repo.path / "m1") == []
