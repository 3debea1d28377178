"""A pull writes the folders that are not there yet while their files come, and gives each its place by one rename."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from random import Random

import pytest
from tests.faults.cases import away
from tests.mounts.conftest import contents
from tests.project.verbhelp import Project, random_tree
from tests.store.helpers import sample

from millpond.daemon.errors import CancelledError, RemoteError
from millpond.daemon.jobs import batches

FILES = {
    "data/empty": b"",
    "data/a": sample(1, 20_000),
    "data/twice/a": sample(1, 20_000),
    "data/twice/deep/er/a": sample(1, 20_000),
    "data/big": sample(2, 17_000_000),
    **{f"data/many/{number:02d}": sample(100 + number, 900_000) for number in range(20)},
}


def made(project: Project, files: dict[str, bytes]) -> dict[str, tuple[int, bytes | str]]:
    """A folder that is on a remote, and nowhere else; what the workspace had."""
    for path, data in files.items():
        project.write(path, data)
    project.add("data")
    before = project.snapshot()
    away(project)
    return before


def by_checkout(project: Project) -> int:
    """Files that the checkout itself had to write."""
    return max([files[0] for phase, files, _ in project.steps if phase == "checking out"], default=0)


def leavings(project: Project) -> list[str]:
    return [name for name in os.listdir(project.root / ".dvc/tmp") if name.startswith(".millpond-")]


def test_what_arrives_is_in_place_and_known(project: Project) -> None:
    before = made(project, FILES)
    project.steps.clear()
    told = project.run("pull")
    assert told["checkout"]["added"] == ["data/"] and told["checkout"]["files"]["added"] == len(FILES)
    assert {path: row for path, row in project.snapshot().items() if path in before} == before
    assert by_checkout(project) == 1, "the one that is larger than a batch"
    assert leavings(project) == []
    project.steps.clear()
    assert project.status() == {} and project.checkout()["unchanged"] == 1
    assert not [phase for phase, files, _ in project.steps if phase == "comparing" and files[0]], (
        "nothing was read again"
    )


def test_names_and_links_as_they_come(project: Project) -> None:
    random_tree(project.root / "data", Random(7), 60)
    before = made(project, {})
    project.run("pull")
    assert contents(project.root / "data") == {
        path.removeprefix("data/"): data for path, (_, data) in before.items() if path.startswith("data/") and data
    } | {path: data for path, data in contents(project.root / "data").items() if not data}
    assert project.status() == {}


def test_what_is_in_the_store_already_comes_from_there(project: Project) -> None:
    made(project, FILES)
    for path in ("data/a", "data/many/03"):
        project.store.put_bytes(FILES[path])
    project.store.commit()
    project.steps.clear()
    project.run("pull")
    assert contents(project.root / "data") == {path[5:]: data for path, data in FILES.items()}
    assert by_checkout(project) == 5, "the large one, three of one content, and one"
    assert project.status() == {}


def test_a_folder_that_is_there_is_brought_file_by_file(project: Project) -> None:
    made(project, FILES)
    project.write("data/a", FILES["data/a"])
    inode = os.stat(project.root / "data").st_ino
    project.run("pull", force=True)
    assert os.stat(project.root / "data").st_ino == inode
    assert contents(project.root / "data") == {path[5:]: data for path, data in FILES.items()}


def test_nothing_is_in_place_while_something_is_missing(project: Project) -> None:
    made(project, FILES)
    [gone] = (project.root / "the-remote/files/md5").glob(f"*/{_digest(FILES['data/many/07'])[2:]}")
    gone.unlink()
    told = project.run("pull")
    assert len(told["missing"]) == 1 and told["checkout"] is None
    assert not (project.root / "data").exists() and leavings(project) == []
    project.run("pull", allow_missing=True)
    assert contents(project.root / "data").keys() == {path[5:] for path in FILES} - {"many/07"}


def test_damaged_bytes_get_no_place(project: Project) -> None:
    made(project, FILES)
    [wrong] = (project.root / "the-remote/files/md5").glob(f"*/{_digest(FILES['data/a'])[2:]}")
    wrong.write_bytes(sample(3, 20_000))
    told = project.run("pull")
    assert len(told["damaged"]) == 1 and told["checkout"] is None
    assert not (project.root / "data").exists() and leavings(project) == []


def test_an_error_leaves_nothing(project: Project) -> None:
    made(project, FILES)
    [wrong] = (project.root / "the-remote/files/md5").glob(f"*/{_digest(FILES['data/many/19'])[2:]}")
    wrong.unlink()
    wrong.symlink_to(wrong.name)  # it cannot be opened
    with pytest.raises(RemoteError):
        project.run("pull")
    assert not (project.root / "data").exists() and leavings(project) == []


def test_cancelled_it_leaves_nothing(project: Project) -> None:
    made(project, FILES)

    def cancel(phase: str, files: tuple[int, int | None] | None, size: object) -> None:
        if phase == "fetching" and files is not None and files[0] > 5:
            raise CancelledError("the request was cancelled")

    project.context.on_progress = cancel
    with pytest.raises(CancelledError):
        project.run("pull")
    assert not (project.root / "data").exists() and leavings(project) == []
    project.context.on_progress = None
    project.run("pull")
    assert contents(project.root / "data") == {path[5:]: data for path, data in FILES.items()}


def test_modes_are_the_umask_s(project: Project) -> None:
    made(project, {"data/sub/a": b"a"})
    before = os.umask(0o027)
    try:
        project.run("pull")
    finally:
        os.umask(before)
    assert [os.stat(project.root / path).st_mode & 0o777 for path in ("data", "data/sub", "data/sub/a")] == [
        0o750,
        0o750,
        0o640,
    ]


def test_what_a_kill_left_goes_after_a_day(project: Project) -> None:
    left = project.root / ".dvc/tmp/.millpond-killed.tmp"
    (left / "0/sub").mkdir(parents=True)
    (left / "0/sub/a").write_bytes(b"a")
    project.write("one", "1")
    project.add("one")
    assert left.exists()
    old = time.time() - 90_000
    os.utime(left, (old, old))
    project.write("two", "2")
    project.add("two")
    assert not left.exists()


def test_what_a_kill_left_goes_with_the_next_pull(project: Project) -> None:
    made(project, {"data/sub/a": b"a"})
    left, living = (project.root / f".dvc/tmp/.millpond-pull-{name}.tmp" for name in ("left", "living"))
    for each in (left, living):
        (each / "0/sub").mkdir(parents=True)
        (each / "lock").touch()
    fd = os.open(living / "lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    project.run("pull")
    assert leavings(project) == [living.name]
    os.close(fd)


def test_what_is_new_has_the_group_and_the_acl_of_the_folder_that_it_is_in(project: Project) -> None:
    made(project, {"data/sub/a": b"a"})
    os.chown(project.root, -1, 12345)
    os.chmod(project.root, 0o2775)
    project.run("pull")
    assert {os.stat(project.root / path).st_gid for path in ("data", "data/sub", "data/sub/a")} == {12345}
    away(project)
    # u::rwx, g::rwx, group 54321:rwx, m::rwx, o::---
    entries = [(1, 7, -1), (4, 7, -1), (8, 7, 54321), (16, 7, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in entries
    )
    try:
        os.setxattr(project.root, "system.posix_acl_default", acl)
    except OSError:
        return  # a file system that has no ACLs
    project.run("pull")
    for path in ("data", "data/sub", "data/sub/a"):
        assert struct.pack("<I", 54321) in os.getxattr(project.root / path, "system.posix_acl_access"), path


def test_batches_cut_no_small_content() -> None:
    memory = batches.Memory(reuse=True)
    data = sample(5, 700_000)
    told: list[bytes] = []
    for batch in batches.piece_batches(((data, True, False) for _ in range(60)), memory):
        names = [None for piece in batch.pieces if piece[1]]
        batches.tell_whole(batch, names, lambda _, view: told.append(bytes(view)))  # type: ignore[arg-type]
        memory.give_back(batch)
    memory.close()
    assert told == [data] * 60


def _digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
