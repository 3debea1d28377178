"""Folders that a push makes get their names with all files in them: beside others who make the same, and after kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from dvc_objects.db import ObjectDB
from dvc_objects.fs.local import LocalFileSystem
from tests.remote.test_staging import as_keys, contents, going, there

from millpond.daemon.errors import RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote import landing
from millpond.daemon.remote.layout import MODERN
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.staging import Staging
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.upload import Upload

Objects = dict[ObjectName, bytes]


def send(remote: Path, objects: Objects) -> list[str]:
    """Upload them; keys in the order in which they were told of."""
    told: list[str] = []

    def created(sent: Sequence[Upload]) -> None:
        told.extend(each.key for each in sent)

    with Transfer(LocalBackend("r", str(remote))) as transfer:
        transfer.upload(going(objects), created=created)
    return told


def left(remote: Path) -> list[Path]:
    return list(remote.rglob(".millpond-*"))


def before_names(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have somebody act when all is written and nothing has its name."""
    real = Staging.settle

    def settle(self: Staging, files: Sequence[object]) -> None:
        patch.setattr(Staging, "settle", real)
        act()
        real(self, files)  # type: ignore[arg-type]

    patch.setattr(Staging, "settle", settle)


def test_each_folder_that_is_not_there_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = contents(600)
    first = dict(list(objects.items())[:40])
    renamed: list[str] = []
    real = os.rename

    def rename(old: str, new: str) -> None:
        renamed.append(new)
        real(old, new)

    assert send(tmp_path, first) == list(as_keys(first))
    folders = {str(each) for each in (tmp_path / MODERN).iterdir()}
    monkeypatch.setattr(os, "rename", rename)
    assert send(tmp_path, objects) == list(as_keys(objects)) and there(tmp_path) == as_keys(objects)
    in_old = {f"{tmp_path}/{key}" for key in as_keys(objects) if os.path.dirname(f"{tmp_path}/{key}") in folders}
    new = {str(each) for each in (tmp_path / MODERN).iterdir()} - folders
    assert len(renamed) == len(set(renamed)) and set(renamed) == in_old | new and new and not left(tmp_path)


@pytest.mark.parametrize("files", [7, 100])
def test_files_go_on_when_a_group_has_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(landing, "STAGED_FILES", files)
    objects = contents(600)
    assert send(tmp_path, objects) == list(as_keys(objects))
    assert there(tmp_path) == as_keys(objects) and not left(tmp_path)


@pytest.mark.parametrize("made", ["full", "empty", "link", "link to nothing"])
def test_somebody_else_makes_a_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    objects = contents(60)
    remote, elsewhere = tmp_path / "remote", tmp_path / "elsewhere"
    keys = list(as_keys(objects))
    folder = (remote / keys[5]).parent

    def make() -> None:
        if made.startswith("link"):
            folder.symlink_to(elsewhere)
            if made == "link":
                elsewhere.mkdir()
            return
        folder.mkdir()
        if made == "full":
            # An object of ours that was cut, and may not be written to; and one of his.
            (remote / keys[5]).write_bytes(b"half")
            (remote / keys[5]).chmod(0o444)
            (folder / "his").write_bytes(b"his")

    before_names(monkeypatch, make)
    if made == "link to nothing":
        with pytest.raises(Exception, match="No such file|File exists") as raised:
            send(remote, objects)
        assert "cannot write" in str(raised.value)
        assert there(remote).items() <= as_keys(objects).items()
    else:
        assert send(remote, objects) == keys
        his = {f"{folder.relative_to(remote)}/his": b"his"} if made == "full" else {}
        linked = {str(key): (remote / key).read_bytes() for key in keys if (remote / key).exists()}
        assert there(remote) | linked == as_keys(objects) | his
        assert folder.is_symlink() == (made == "link")
    assert not left(remote)


def test_what_somebody_took_out_of_a_folder_before_it_got_its_name_is_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `gc --cloud` does where a push stood still for a week: it may be half done with a folder."""
    objects = contents(60)
    told: list[str] = []

    def sweep() -> None:
        next(path for each in left(tmp_path) for path in each.iterdir()).unlink()

    before_names(monkeypatch, sweep)
    with Transfer(LocalBackend("r", str(tmp_path))) as transfer, pytest.raises(RemoteError, match="No such file"):
        transfer.upload(going(objects), created=lambda sent: told.extend(each.key for each in sent))
    assert not told


def test_two_who_push_the_same_at_once_both_end_with_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = contents(300)
    before_names(monkeypatch, lambda: send(tmp_path, objects))
    assert send(tmp_path, objects) == list(as_keys(objects))
    assert there(tmp_path) == as_keys(objects) and not left(tmp_path)


def test_where_files_are_not_of_this_machine_folders_are_made_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, remote = contents(60), tmp_path / "remote"
    backend = LocalBackend("r", str(remote))
    backend.staging._disks.is_local = False
    seen: list[bool] = []
    before_names(monkeypatch, lambda: seen.append(any(each.is_dir() for each in left(remote))))
    with Transfer(backend) as transfer:
        transfer.upload(going(objects), created=lambda sent: None)
    assert seen == [False] and there(remote) == as_keys(objects)


def _push_and_die(remote: Path, objects: Objects, after: int) -> None:
    """Be killed instead of giving the name after so many."""
    real = os.rename
    names = 0

    def rename(old: str, new: str) -> None:
        nonlocal names
        if names == after:
            os.kill(os.getpid(), signal.SIGKILL)
        names += 1
        real(old, new)

    os.rename = rename  # type: ignore[assignment]
    send(remote, objects)


@pytest.mark.parametrize("after", [0, 1, 20, pytest.param(100, marks=pytest.mark.long)])
def test_a_push_that_is_killed_between_two_names_leaves_whole_folders_and_what_is_swept(
    tmp_path: Path, after: int
) -> None:
    objects = contents(300)
    process = multiprocessing.get_context("fork").Process(target=_push_and_die, args=(tmp_path, objects, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    named = {str(path) for path in (tmp_path / MODERN).iterdir() if not path.name.startswith(".")}
    by_key = as_keys(objects)
    whole = {key: data for key, data in by_key.items() if os.path.dirname(f"{tmp_path}/{key}") in named}
    assert len(named) == after and len(left(tmp_path)) > 20
    # DVC finds what we do.
    backend = LocalBackend("r", str(tmp_path))
    assert {entry.key for entry in backend.list(MODERN)} == whole.keys()
    theirs = ObjectDB(LocalFileSystem(), str(tmp_path / MODERN))  # type: ignore[no-untyped-call]
    assert {f"{MODERN}/{oid[:2]}/{oid[2:]}" for oid in theirs._list_oids()} == whole.keys()
    assert {key: (tmp_path / key).read_bytes() for key in whole} == whole
    # The next one brings all of it, and what was left goes once nobody has touched it for long.
    assert send(tmp_path, objects) == list(by_key)
    assert list(backend.staging.sweep(MODERN, 1.0)) == [] and left(tmp_path)
    swept = list(backend.staging.sweep(MODERN, os.stat(tmp_path / MODERN).st_mtime + 9))
    assert len(swept) == len(by_key) - len(whole)
    assert there(tmp_path) == by_key and not left(tmp_path)


def test_a_folder_that_is_still_written_to_is_not_swept(tmp_path: Path) -> None:
    backend = LocalBackend("r", str(tmp_path))
    folder = tmp_path / MODERN / ".millpond-a-1.tmp"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / str(number)).write_bytes(b"x")
    old = 1_000_000.0
    for path in (folder / "0", folder / "1", folder):
        os.utime(path, (old, old))
    assert list(backend.staging.sweep(MODERN, old + 1)) == []
    os.utime(folder / "2", (old, old))
    assert list(backend.staging.sweep(MODERN, old)) == [] and len(list(folder.iterdir())) == 3
    (empty := folder.with_name(".millpond-a-2.tmp")).mkdir()
    os.utime(empty, (old, old))
    assert list(backend.staging.sweep(MODERN, old + 1)) == [1, 1, 1] and not folder.exists() and not empty.exists()
