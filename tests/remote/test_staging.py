"""Objects on their way into a directory: what is on the disk before what has a name, and what a failure leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import eventually

from millpond.daemon.errors import CancelledError, RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.durable import sync_file_system
from millpond.daemon.remote import disks, landing, staging, upload
from millpond.daemon.remote.flow import RANGE_BYTES
from millpond.daemon.remote.layout import key_of
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.transfer import Transfer
from millpond.daemon.remote.upload import Upload


def contents(count: int) -> dict[ObjectName, bytes]:
    """Small contents by name, an empty one and one that is large among them."""
    made = random.Random(count)
    sizes = [0, RANGE_BYTES + 5, *(made.randrange(1, 3000) for _ in range(count - 2))]
    made.shuffle(sizes)
    return {ObjectName("md5", hashlib.md5(data).hexdigest()): data for data in map(made.randbytes, sizes)}


def going(objects: dict[ObjectName, bytes]) -> Iterator[Upload]:
    """Some of them in several pieces."""
    for number, (name, data) in enumerate(objects.items()):
        cut = number % 3 * len(data) // 5
        yield Upload(name, len(data), _lent([data[:cut], data[cut:]] if cut else [data]))


def _lent(pieces: list[bytes]) -> Iterator[memoryview]:
    """Each until the next one is asked for, as the daemon's memory files are."""
    for piece in pieces:
        with memoryview(piece) as view:
            yield view


def there(remote: Path) -> dict[str, bytes]:
    """All files of a remote, by key."""
    return {str(path.relative_to(remote)): path.read_bytes() for path in remote.rglob("*") if path.is_file()}


def as_keys(objects: dict[ObjectName, bytes]) -> dict[str, bytes]:
    return {key_of(name): data for name, data in objects.items()}


class Disk:
    """What is written, named and synced, as the real calls are made: a sync has on the disk what was there when it began; one of the
    whole file system nothing, where that is not `whole`."""

    def __init__(self, remote: Path, patch: pytest.MonkeyPatch, *, whole: bool = True) -> None:
        self.remote = remote
        self.folders: list[str] = []
        self.written: set[str] = set()
        self.named: set[str] = set()
        self.durable: set[str] = set()
        self.early: list[str] = []
        real: Any = {
            each: getattr(module, each)
            for module, names in (
                (os, ("close", "rename")),
                (disks, ("sync_file_system", "sync_folder")),
                (staging, ("sync_file",)),
            )
            for each in names
        }

        def close(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            real["close"](fd)
            if "/.millpond-" in path:
                self.written.add(path)

        def rename(old: str, new: str) -> None:
            inside = [f"/{each}" for each in os.listdir(old)] if os.path.isdir(old) else [""]
            self.early += [new + each for each in inside if old + each not in self.durable]
            real["rename"](old, new)
            self.named.update((new, *(new + each for each in inside)))

        def sync_file_system(place: int) -> None:
            self.synced(self.written | self.named if whole else set(), lambda: real["sync_file_system"](place))

        def sync_file(path: str) -> None:
            self.synced({path} & self.written, lambda: real["sync_file"](path))

        def sync_folder(folder: str) -> None:
            self.folders.append(folder)
            names = {path for path in self.named if os.path.dirname(path) == folder}
            self.synced(names, lambda: real["sync_folder"](folder))

        for module, made in ((os, (close, rename)), (disks, (sync_file_system, sync_folder)), (staging, (sync_file,))):
            for each in made:
                patch.setattr(module, each.__name__, each)

    def keeps(self, key: str) -> bool:
        """Whether a file has its name on the disk, and its folder, if that was renamed."""
        path = str(self.remote / key)
        return path in self.durable and ((folder := os.path.dirname(path)) not in self.named or folder in self.durable)

    def synced(self, what: set[str], sync: Any) -> None:
        before = set(what)
        sync()
        self.durable |= before


@pytest.mark.parametrize("files", [1, 7, 1000])
def test_no_name_before_the_bytes_and_nothing_told_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr(landing, "STAGED_FILES", files)
    disk = Disk(tmp_path / "remote", monkeypatch)
    objects = contents(40)
    told: list[ObjectName] = []

    def created(sent: Sequence[Upload]) -> None:
        told.extend(each.name for each in sent)
        disk.early += [each.key for each in sent if not disk.keeps(each.key)]

    with Transfer(LocalBackend("r", str(disk.remote))) as transfer:
        transfer.upload(going(objects), created=created)
        assert transfer.requests == len(objects) and transfer.moved == sum(map(len, objects.values()))
        # Few: synced one by one.
        manifest = ObjectName("md5", "0" * 32 + ".dir")
        transfer.upload([Upload(manifest, 2, [b"[]"])], created=created)
    assert told == [*objects, manifest] and disk.early == []
    assert there(disk.remote) == as_keys(objects | {manifest: b"[]"})


@pytest.mark.parametrize("files", [7, 1000])
def test_where_a_sync_of_all_is_not_handed_on_files_are_synced_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr(landing, "STAGED_FILES", files)
    disk = Disk(tmp_path / "remote", monkeypatch, whole=False)
    objects = contents(40)
    told: list[ObjectName] = []

    def created(sent: Sequence[Upload]) -> None:
        told.extend(each.name for each in sent)
        disk.early += [each.key for each in sent if not disk.keeps(each.key)]

    backend = LocalBackend("r", str(disk.remote))
    backend.staging._disks.one_by_one = True
    with Transfer(backend) as transfer:
        transfer.upload(going(objects), created=created)
    assert told == list(objects) and disk.early == []


@pytest.mark.parametrize("recent", [True, False])
def test_what_somebody_named_a_moment_ago_is_synced_before_it_is_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent: bool
) -> None:
    objects = contents(20)
    with Transfer(LocalBackend("r", str(tmp_path / "remote"))) as transfer:
        transfer.upload(going(objects), created=lambda sent: None)
    synced: list[object] = []
    monkeypatch.setattr(disks, "sync_file_system", synced.append)
    if not recent:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + staging._SETTLED_S + 60)
    with Transfer(LocalBackend("r", str(tmp_path / "remote"))) as transfer:
        transfer.sync_found([])
        transfer.sync_found([ObjectName("md5", "1" * 32)])
        assert not synced
        transfer.sync_found(list(objects)[:3])
    assert len(synced) == recent


def test_a_group_before_the_first_file_that_must_be_synced_by_itself_is_told_of_when_its_names_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the remote may be a link to another file system, which is met late."""
    monkeypatch.setattr(landing, "STAGED_FILES", 2)
    disk = Disk(tmp_path / "remote", monkeypatch)
    objects = contents(40)
    for key in as_keys(objects):
        (disk.remote / key).parent.mkdir(parents=True, exist_ok=True)
    told: list[ObjectName] = []
    real = staging.Staging.settle

    def settle(self: staging.Staging, files: Sequence[staging.Staged]) -> None:
        real(self, files)
        self._disks.one_by_one = True

    def created(sent: Sequence[Upload]) -> None:
        told.extend(each.name for each in sent)
        disk.early += [each.key for each in sent if not disk.keeps(each.key)]

    monkeypatch.setattr(staging.Staging, "settle", settle)
    with Transfer(LocalBackend("r", str(disk.remote))) as transfer:
        transfer.upload(going(objects), created=created)
    assert told == list(objects) and disk.early == []


@pytest.mark.parametrize(
    ("kind", "one_by_one", "is_local"),
    [("ext4", False, True), ("overlay", False, True), ("nfs4", False, False), ("ceph", False, False)]
    + [(kind, True, False) for kind in ("cifs", "fuse.sshfs", "9p", "virtiofs", "vboxsf", "prl_fs")],
)
def test_what_is_synced_how_and_who_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, one_by_one: bool, is_local: bool
) -> None:
    """A virtual machine's shared folder is another machine's: not each hands on that all is to be synced."""
    monkeypatch.setattr(disks, "file_system", lambda folder: kind)
    found = disks.Disks(str(tmp_path))
    found.write_to(str(tmp_path))
    assert (found.one_by_one, found.is_local) == (one_by_one, is_local)
    found.close()


def test_a_folder_that_was_made_is_synced_in_the_one_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remote's own, too: without its name nothing of it is there."""
    disk = Disk(tmp_path / "remote", monkeypatch)
    backend = LocalBackend("r", str(disk.remote))
    backend.put("files/md5/ab/c", b"1")
    above = [str(disk.remote / each) for each in ("files/md5/ab", "files/md5", "files", "")]
    assert [each.rstrip("/") for each in disk.folders] == [*(each.rstrip("/") for each in above), str(tmp_path)]
    disk.folders.clear()
    backend.put("files/md5/ab/d", b"1")
    assert disk.folders == above[:1]


@pytest.mark.long
def test_bytes_that_the_disk_lost_while_another_program_synced_get_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a write that failed once to each who was there, and not to who comes later."""
    if os.geteuid():
        pytest.skip("only root may mount")
    monkeypatch.setattr(landing, "STAGED_S", 600.0)
    small, mounted = tmp_path / "small", tmp_path / "mounted"
    for folder in (small, mounted):
        folder.mkdir()

    def run(*command: object) -> str:
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()

    run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small)
    loop = ""
    try:
        with open(small / "image", "wb") as file:
            file.truncate(400 << 20)
        loop = run("losetup", "--find", "--show", small / "image")
        run("mkfs.ext4", "-q", "-O", "^has_journal", loop)
        run("mount", loop, mounted)
        objects = {
            ObjectName("md5", hashlib.md5(data).hexdigest()): data for data in (os.urandom(1 << 20) for _ in range(40))
        }
        remote, told = mounted / "remote", list[Upload]()
        other = os.open(mounted, os.O_RDONLY)

        def source() -> Iterator[Upload]:
            for number, (name, data) in enumerate(objects.items()):
                if number == 36:
                    with pytest.raises(OSError):
                        sync_file_system(other)
                    run("mount", "-o", "remount,size=600m", small)
                yield Upload(name, len(data), [data])

        with Transfer(LocalBackend("r", str(remote))) as transfer, pytest.raises(RemoteError, match="cannot sync"):
            transfer.upload(source(), created=told.extend)
        os.close(other)
        assert not told
    finally:
        subprocess.run(["umount", "-l", mounted], check=False)
        if loop:
            subprocess.run(["losetup", "-d", loop], check=False)
        subprocess.run(["umount", "-l", small], check=False)


def test_an_error_names_the_object_that_it_is_about(tmp_path: Path) -> None:
    objects = contents(30)
    keys = list(as_keys(objects))
    (tmp_path / keys[3] / "folder").mkdir(parents=True)
    with Transfer(LocalBackend("r", str(tmp_path))) as transfer, pytest.raises(RemoteError) as raised:
        transfer.upload(going(objects), created=lambda sent: None)
    assert keys[3] in str(raised.value)


def test_a_folder_that_cannot_be_looked_at_is_not_an_absent_one(tmp_path: Path) -> None:
    """A plain user meets this where a folder above is closed to him."""
    backend = LocalBackend("r", str(tmp_path))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/md5").symlink_to("md5")
    with pytest.raises(RemoteError, match="cannot look at 'files/md5/ab/c'"):
        backend.sizes_of(["files/md5/ab/c"])


@pytest.mark.parametrize("call", ["open", "write", "rename", "sync_file_system"])
def test_the_nth_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(landing, "STAGED_FILES", 8)
    objects = contents(30)
    module = disks if call == "sync_file_system" else os
    real = getattr(module, call)
    calls = 0

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal calls
        if "remote" in str(args[0]) or call in ("write", "sync_file_system"):
            calls += 1
            # A folder that gets no name is tried file by file.
            if calls == fails or (call == "rename" and calls > fails):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **more)

    for fails in (*range(1, 12), 17, 29, 31, 1000):
        remote, calls = tmp_path / f"remote-{fails}", 0
        told: list[str] = []

        def created(sent: Sequence[Upload], told: list[str] = told) -> None:
            told.extend(each.key for each in sent)

        with Transfer(LocalBackend("r", str(remote))) as transfer, pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, call, failing)
            try:
                transfer.upload(going(objects), created=created)
            except RemoteError as error:
                assert calls >= fails and "No space left" in str(error) and "make room" in str(error.hint)
                assert told == list(as_keys(objects))[: len(told)] and len(told) < len(objects)
            else:
                assert calls < fails and told == list(as_keys(objects))
        left = there(remote) if remote.exists() else {}
        assert left.items() <= as_keys(objects).items(), "half an object, or a temporary file"
        assert set(told) <= left.keys()


@pytest.mark.parametrize("wrong", ["short", "long", "cancelled"])
def test_what_fails_midway_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(landing, "STAGED_FILES", 8)
    objects = contents(30)
    name = ObjectName("md5", "f" * 32)

    def pieces() -> Iterator[bytes]:
        yield b"12345"
        if wrong == "cancelled":
            raise CancelledError("the request was cancelled")
        yield b"6" if wrong == "short" else b"67890123"

    def source() -> Iterator[Upload]:
        yield from going(objects)
        yield Upload(name, 10, pieces())

    remote = tmp_path / "remote"
    with Transfer(LocalBackend("r", str(remote))) as transfer, pytest.raises((RemoteError, CancelledError)) as raised:
        transfer.upload(source(), created=lambda sent: None)
    assert ("expected" in str(raised.value)) == (wrong != "cancelled")
    # A thread may be naming the group before.
    transfer._flow._pool.shutdown(wait=True)
    assert there(remote).items() <= as_keys(objects).items()


def test_where_making_files_is_slow_several_threads_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_SLOW_S", 0.0)
    monkeypatch.setattr(upload, "GROUP_FILES", 50)
    groups: list[int] = []

    class Told(LocalBackend):
        def put_many(self, items: Sequence[tuple[str, Any]]) -> None:
            groups.append(len(items))
            super().put_many(items)

    objects, told = contents(300), list[ObjectName]()
    with Transfer(Told("r", str(tmp_path / "remote"))) as transfer:
        transfer.upload(going(objects), created=lambda sent: told.extend(each.name for each in sent))
    assert sum(groups) > 200 and told == list(objects) and there(tmp_path / "remote") == as_keys(objects)


def test_a_rate_holds_within_an_object(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 << 20)
    name = ObjectName("md5", hashlib.md5(data).hexdigest())
    began = time.monotonic()
    # The first second's worth is free.
    with Transfer(LocalBackend("r", str(tmp_path / "remote")), rate=2 << 20) as transfer:
        transfer.upload([Upload(name, len(data), _lent([data]))], created=lambda sent: None)
    assert time.monotonic() - began > 0.4 and there(tmp_path / "remote") == as_keys({name: data})


def test_sizes_of_many_are_those_of_each(tmp_path: Path) -> None:
    objects = contents(30)
    backend = LocalBackend("r", str(tmp_path / "remote"))
    backend.put_many([(key_of(name), data) for name, data in objects.items()])
    (tmp_path / "remote/files/md5/aa/folder").mkdir(parents=True, exist_ok=True)
    keys = [*map(key_of, objects), "files/md5/aa/folder", "files/md5/zz/absent", "none/at/all", "files/md5"]
    heads = [backend.head(key) for key in keys]
    assert backend.sizes_of(keys) == [None if each is None else each.size for each in heads]
    assert backend.sizes_of(keys)[-4:] == [None] * 4


@pytest.mark.fuse
def test_on_fuse_each_file_and_folder_is_synced_with_who_keeps_it(tmp_path: Path) -> None:
    """The kernel does not hand on a sync of all there."""
    place, folder = tmp_path / "place", tmp_path / "folder"
    for each in (place, folder):
        each.mkdir()
    command = [sys.executable, str(Path(__file__).parent / "keeper.py"), str(place), str(folder)]
    log = tmp_path / "log"
    objects = contents(20)
    with open(log, "wb") as out:
        server = subprocess.Popen(command, stdout=out)
    try:
        eventually(lambda: log.read_bytes() == b"ready\n", "it is mounted")
        told: list[str] = []
        synced: list[set[str]] = []

        def created(sent: Sequence[Upload]) -> None:
            told.extend(each.key for each in sent)
            synced.append(set(log.read_text().splitlines()))

        with Transfer(LocalBackend("r", f"{place}/remote")) as transfer:
            transfer.upload(going(objects), created=created)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=True)
        server.wait(30)
    assert told == list(as_keys(objects)) and there(folder / "remote") == as_keys(objects)
    lines = log.read_text().splitlines()
    renames = [number for number, line in enumerate(lines) if line.startswith("rename")]
    assert len(renames) == len(objects)
    for number in renames:
        _, before, after = lines[number].split(" ")
        assert f"fsync {before}" in lines[:number], after
        assert f"fsyncdir {os.path.dirname(after)}" in lines[number:]
    assert {"fsyncdir .", "fsyncdir remote", "fsyncdir remote/files/md5"} <= synced[-1]
