"""Mounts as a person uses them: the real program, real DVC's repo, real FUSE."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.mounts.conftest import DvcRepo, contents

from millpond.daemon.mounts.place import MARKER, mounted_at

pytestmark = pytest.mark.fuse


def mounts(repo: DvcRepo) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(repo.home.run("mounts", "--json").stdout)["mounts"]
    return found


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for what other processes are about to do."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_a_repo_made_by_dvc_mounts_with_no_other_step(repo: DvcRepo) -> None:
    old, new = repo.place("old"), repo.place("new")
    repo.home.run("mount", "data@HEAD~1", str(old))
    repo.home.run("mount", "data", str(new))
    assert contents(old) == repo.first
    assert contents(new) == repo.second


def test_a_version_is_read_when_the_workspace_copy_is_gone(repo: DvcRepo) -> None:
    subprocess.run(["rm", "-r", str(repo.home.repo / "data")], check=True)
    place = repo.place("m")
    repo.home.run("mount", "data@v1", str(place))
    assert contents(place) == repo.first


def test_a_whole_revision_shows_git_files_and_data(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "@v1", str(place))
    assert (place / "code.py").read_text() == "print('one')\n"
    assert (place / "model.bin").read_bytes() == b"model one"
    assert contents(place / "data") == repo.first
    assert (place / "data.dvc").read_text() == repo.home.git("show", "v1:data.dvc")


def test_a_path_inside_and_a_tracked_file_are_targets(repo: DvcRepo) -> None:
    inner, file = repo.place("inner"), repo.place("file")
    repo.home.run("mount", "data/sub/deep@v1", str(inner))
    repo.home.run("mount", "model.bin@v1", str(file))
    assert sorted(os.listdir(inner)) == ["two.bin", "x y.csv"]
    assert contents(file) == {"model.bin": b"model one"}


def test_all_versions_side_by_side(repo: DvcRepo) -> None:
    repo.home.git("branch", "feature/deep")
    place = repo.place("m")
    repo.home.run("mount", "--versions", str(place))
    assert sorted(os.listdir(place)) == ["feature", "main", "v1"]
    assert contents(place / "v1" / "data") == repo.first
    assert contents(place / "feature" / "deep" / "data") == repo.second
    assert contents(place / "HEAD~1" / "data") == repo.first
    assert not (place / "no-such-revision").exists()
    same = [(place / name / "data" / "sub" / "one.bin").stat().st_ino for name in ("v1", "main")]
    assert same[0] == same[1], "equal files of two versions must share their pages"


def test_the_mount_is_read_only_and_tells_its_size(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data", str(place))
    with pytest.raises(OSError) as refused:
        (place / "other").write_bytes(b"x")
    assert refused.value.errno == errno.EROFS
    with pytest.raises(OSError) as refused:
        os.unlink(place / "a.txt")
    assert refused.value.errno == errno.EROFS
    found = os.statvfs(place)
    assert found.f_files == len(repo.second)
    assert found.f_blocks * found.f_frsize >= sum(map(len, repo.second.values()))


def test_umount_of_a_busy_mount_says_who_holds_it(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data", str(place))
    with open(place / "a.txt", "rb") as held:
        done = repo.home.run("umount", str(place), code=9)
        assert f"pid {os.getpid()}" in done.stderr and "umount --lazy" in done.stderr
        repo.home.run("umount", "--lazy", str(place))
        assert held.read() == b"changed"
    assert mounts(repo) == [] and os.listdir(place) == []
    (place / "writable-again").write_bytes(b"")


def test_a_killed_holder_is_replaced_and_never_looks_like_an_empty_data_set(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data@v1", str(place))
    before = mounts(repo)[0]["pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: mounts(repo)[0]["state"] == "mounted" and mounts(repo)[0]["pid"] != before)
    assert contents(place) == repo.first


def test_the_mount_outlives_a_killed_daemon_and_is_adopted(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data@v1", str(place))
    holder = mounts(repo)[0]["pid"]
    daemon = json.loads(repo.home.run("daemon", "status", "--json").stdout)["pid"]
    os.kill(daemon, signal.SIGKILL)
    assert contents(place) == repo.first
    assert [(m["pid"], m["state"]) for m in mounts(repo)] == [(holder, "mounted")]
    repo.home.run("umount", str(place))
    eventually(lambda: not Path(f"/proc/{holder}").exists())


def test_daemon_and_holder_killed_together_come_back_by_the_next_command(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data@v1", str(place))
    daemon = json.loads(repo.home.run("daemon", "status", "--json").stdout)["pid"]
    holder = mounts(repo)[0]["pid"]
    os.kill(daemon, signal.SIGKILL)
    os.kill(holder, signal.SIGKILL)
    with pytest.raises(OSError):
        os.listdir(place)
    eventually(lambda: mounts(repo)[0]["state"] == "mounted")
    assert contents(place) == repo.first


def test_underneath_a_mount_lies_a_marker_and_not_an_empty_folder(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data", str(place))
    subprocess.run(["umount", "-l", str(place)], check=True)
    eventually(lambda: mounted_at(str(place)) is not None or (place / MARKER).exists())
    repo.home.run("umount", str(place), code=None)
    assert not (place / MARKER).exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: place.rmdir(), "does not exist"),
        (lambda place: (place / "x").write_bytes(b""), "not empty"),
        (lambda place: (place.rmdir(), place.write_bytes(b"")), "not a directory"),
    ],
)
def test_a_wrong_mountpoint_is_refused_with_a_reason(repo: DvcRepo, make: Callable[[Path], Any], words: str) -> None:
    place = repo.place("m")
    make(place)
    done = repo.home.run("mount", "data", str(place), code=9)
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert mounts(repo) == []


def test_mounting_twice_or_inside_tracked_data_is_refused(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "data", str(place))
    assert "already a mountpoint" in repo.home.run("mount", "data@v1", str(place), code=9).stderr
    inside = repo.home.repo / "data" / "empty-folder"
    inside.mkdir()
    assert "inside of the tracked 'data'" in repo.home.run("mount", "data@v1", str(inside), code=9).stderr
    assert len(mounts(repo)) == 1


def test_of_several_who_mount_on_one_place_at_once_one_does(repo: DvcRepo) -> None:
    """Else they lie one above the other, and only the last is known."""
    place = repo.place("m")
    home = repo.home
    home.run("daemon", "start")
    command = home.command("mount", "-q", "data", str(place))
    begun = [
        subprocess.Popen(command, cwd=home.repo, env=home.env, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    answers = [each.communicate(timeout=30)[1] for each in begun]
    codes = sorted(each.returncode for each in begun)
    assert codes == [0, 9, 9], answers
    assert all("another command is mounting on" in each or "already a mount" in each for each in answers if each)
    assert len(mounts(repo)) == 1 and contents(place) == repo.second
    home.run("umount", str(place))
    assert mounted_at(os.fspath(place)) is None and os.listdir(place) == [] and mounts(repo) == []


def test_an_unknown_revision_or_target_is_refused(repo: DvcRepo) -> None:
    place = repo.place("m")
    assert "unknown Git revision 'nope'" in repo.home.run("mount", "data@nope", str(place), code=255).stderr
    assert "neither tracked data" in repo.home.run("mount", "other@v1", str(place), code=255).stderr
    assert os.listdir(place) == []


def test_missing_objects_are_named_and_nothing_is_mounted(repo: DvcRepo) -> None:
    name = next(iter(repo.first))
    digest = hashlib.md5(repo.first[name]).hexdigest()
    os.unlink(repo.home.repo / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    place = repo.place("m")
    done = repo.home.run("mount", "data@v1", str(place), code=8)
    assert name in done.stderr and "millpond fetch" in done.stderr
    assert mounted_at(str(place)) is None and os.listdir(place) == []


def test_a_corrupted_cache_object_gives_an_error_and_never_wrong_bytes(repo: DvcRepo) -> None:
    digest = hashlib.md5(repo.first["sub/one.bin"]).hexdigest()
    path = repo.home.repo / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    path.chmod(0o644)
    path.write_bytes(repo.first["sub/one.bin"][:-1] + b"?")
    place = repo.place("m")
    repo.home.run("mount", "data@v1", str(place))
    with pytest.raises(OSError) as refused:
        (place / "sub/one.bin").read_bytes()
    assert refused.value.errno == errno.EIO
    assert (place / "a.txt").read_bytes() == repo.first["a.txt"]


def test_a_cache_in_dvc_2_layout_mounts(repo: DvcRepo) -> None:
    """What DVC 2 wrote: no `hash:` in the pointer, objects below `.dvc/cache/ab/`, and a manifest among them."""
    cache = repo.home.repo / ".dvc/cache"
    pointer = repo.home.repo / "data.dvc"
    pointer.write_text(pointer.read_text().replace("  hash: md5\n", ""))
    for path in (cache / "files/md5").iterdir():
        path.rename(cache / path.name)
    place = repo.place("m")
    repo.home.run("mount", "data", str(place))
    assert contents(place) == repo.second


def test_checkout_mount_puts_the_data_in_its_place_and_switches_with_the_pointer(repo: DvcRepo) -> None:
    data = repo.home.repo / "data"
    repo.home.run("checkout", "--mount")
    assert mounted_at(str(data)) is not None and contents(data) == repo.second
    assert (repo.home.repo / "model.bin").read_bytes() == b"model one"
    assert json.loads(repo.home.run("status", "--json").stdout) == {}
    repo.home.git("checkout", "-q", "v1", "--", "data.dvc")
    repo.home.run("checkout")
    assert contents(data) == repo.first


def test_checkout_mount_never_replaces_what_is_saved_nowhere(repo: DvcRepo) -> None:
    (repo.home.repo / "data" / "a.txt").write_bytes(b"only copy")
    done = repo.home.run("checkout", "--mount", code=1)
    assert "not replaced by a mount" in done.stderr
    assert (repo.home.repo / "data" / "a.txt").read_bytes() == b"only copy"


def test_what_is_mounted_is_hashed_from_its_manifest(repo: DvcRepo) -> None:
    home = repo.home
    subprocess.run(["rm", "-r", str(home.repo / "data")], check=True)
    home.run("checkout", "-q", "--mount", "data")
    assert json.loads(home.run("status", "--json").stdout) == {}
    [mount] = mounts(repo)
    assert mount["read_bytes"] == 0, "nothing of it is read"
    (home.repo / "data.dvc").write_text(home.git("show", "v1:data.dvc"))
    assert json.loads(home.run("status", "--json").stdout) == {"data.dvc": [{"changed outs": {"data": "modified"}}]}
    # Made again it shows what it showed, not what the pointer names by now.
    os.kill(mount["pid"], signal.SIGKILL)
    eventually(lambda: mounts(repo)[0]["pid"] not in (None, mount["pid"]))
    assert contents(home.repo / "data") == repo.second
    assert json.loads(home.run("status", "--json").stdout) == {"data.dvc": [{"changed outs": {"data": "modified"}}]}
