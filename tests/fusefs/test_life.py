"""A holder's life: unmounted while it is used, killed, left alone by the daemon, asked over its socket."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fusefs.helpers import (
    ENGINES,
    TIMEOUT_S,
    File,
    Mounted,
    Node,
    eventually,
    mixed,
    mount,
    open_store,
    put,
    put_tree,
    used_inodes,
    waiting_reader,
)

from millpond.daemon import memfd
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc import framing
from millpond.daemon.store.store import Store, StoreSettings
from millpond.daemon.store.trees import TreeEntry, build_tree

pytestmark = [pytest.mark.fuse, pytest.mark.parametrize("engine", ENGINES, indirect=True)]

TREE: dict[bytes, Node] = {
    b"small": File(b"small content"),
    b"folder/large": File(mixed(6_000_000, 3)),
    b"folder/inner/x": File(b"x"),
}
LARGE = mixed(6_000_000, 3)
# What a program is told by a mount whose holder is gone.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}


def is_dead(mounted: Mounted, engine: str) -> None:
    """The mount of a holder that is gone says so. Of an image the kernel may still tell what it has read, rightly; nothing else."""
    if engine != "erofs":
        with pytest.raises(OSError) as refused:
            os.listdir(mounted.place)
        assert refused.value.errno == errno.ENOTCONN
        return
    with contextlib.suppress(OSError):
        assert sorted(os.listdir(mounted.place)) == ["folder", "small"]
    with pytest.raises(OSError) as refused:
        (mounted.place / "folder/inner/x").read_bytes()
    assert refused.value.errno == errno.EIO


def close_dead(fd: int) -> None:
    """Close a file of a dead mount: the flush that belongs to it fails, the descriptor is closed all the same."""
    with contextlib.suppress(OSError):
        os.close(fd)


@pytest.fixture
def stored(base: Path) -> tuple[Path, Store]:
    return base / "store", open_store(base / "store")


def test_unmounting_is_refused_while_a_file_is_open_and_ends_the_holder_afterwards(
    base: Path, stored: tuple[Path, Store]
) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        with open(mounted.place / "folder/large", "rb") as file:
            assert "busy" in mounted.umount().stderr.lower()
            assert file.read() == LARGE
        assert mounted.umount().returncode == 0
        assert mounted.ended() == 0
        assert mounted_at(os.fspath(mounted.place)) is None
        assert not mounted.control.exists()
        assert os.listdir(mounted.place) == []
    store.close()


def test_a_lazy_unmount_leaves_open_files_readable_to_their_end(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        folder = os.open(mounted.place / "folder", os.O_RDONLY | os.O_DIRECTORY)
        with open(mounted.place / "folder/large", "rb") as file:
            head = file.read(100_000)
            assert mounted.umount("-z").returncode == 0
            assert mounted_at(os.fspath(mounted.place)) is None
            assert head + file.read() == LARGE
            assert os.listdir(folder) == ["inner", "large"]
            inner = os.open("inner/x", os.O_RDONLY, dir_fd=folder)
            assert os.read(inner, 10) == b"x"
            os.close(inner)
        assert mounted.guard.poll() is None
        os.close(folder)
        assert mounted.ended() == 0
    store.close()


def test_a_killed_holder_gives_errors_at_once_and_the_place_can_be_mounted_again(
    base: Path, stored: tuple[Path, Store], engine: str
) -> None:
    path, store = stored
    totals = put_tree(store, TREE)
    with mount(path, totals, base / "m") as mounted:
        fd = os.open(mounted.place / "folder/large", os.O_RDONLY)
        os.kill(mounted.pid, signal.SIGKILL)
        mounted.ended()
        with pytest.raises(OSError) as refused:
            os.pread(fd, 1_000_000, 3_000_000)
        assert refused.value.errno in GONE
        close_dead(fd)
        is_dead(mounted, engine)
        assert mounted.umount("-z").returncode == 0
        with mount(path, totals, base / "m") as again:
            assert (again.place / "folder/large").read_bytes() == LARGE
    store.close()


def test_a_holder_killed_while_many_read_hangs_nobody(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    tree: dict[bytes, Node] = {b"%d" % number: File(mixed(3_000_000, number)) for number in range(8)}
    with mount(path, put_tree(store, tree), base / "m") as mounted:
        started = threading.Barrier(9, timeout=TIMEOUT_S)

        def read(name: bytes) -> int:
            """Over and over, past the kernel's pages, until it fails; the error."""
            started.wait()
            try:
                with open(os.path.join(os.fsencode(mounted.place), name), "rb") as file:
                    while True:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        file.seek(0)
                        file.read()
            except OSError as error:
                return error.errno or 0

        with ThreadPoolExecutor(8) as pool:
            reads = [pool.submit(read, name) for name in tree]
            started.wait()
            eventually(lambda: mounted.stats()["reads"] > 20, "reads are under way")
            os.kill(mounted.pid, signal.SIGKILL)
            found = {each.result(TIMEOUT_S) for each in reads}
        assert found <= GONE and found
    store.close()


def test_the_store_grows_beside_a_mount_and_the_mount_does_not_change(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        for number in range(5):
            put_tree(store, {b"other/%d" % n: File(mixed(20_000, 1000 * number + n)) for n in range(100)})
        assert (mounted.place / "folder/large").read_bytes() == LARGE
        store.close()
        assert (mounted.place / "small").read_bytes() == b"small content"
        assert sorted(os.listdir(mounted.place)) == ["folder", "small"]
        with_again = open_store(path)
        put(with_again, [b"and more"])
        with_again.close()
        assert (mounted.place / "folder/inner/x").read_bytes() == b"x"


def test_the_index_outgrows_its_map_beside_a_mount(base: Path) -> None:
    """The writer doubles the map; the holder's is then too small for what it must look at, and is renewed."""
    path = base / "store"
    store = Store.open(StoreSettings(path, fsync=False, reserve_bytes=0, map_bytes=1 << 20))
    totals = put_tree(store, TREE)
    with mount(path, totals, base / "m") as mounted:
        assert (mounted.place / "small").read_bytes() == b"small content"
        for number in range(12):
            put_tree(store, {b"f%d/%d" % (number, n): File(b"%d %d" % (number, n)) for n in range(1000)})
        assert store.reader.index.env.info()["map_size"] > 1 << 20
        assert (mounted.place / "folder/inner/x").read_bytes() == b"x"
        assert (mounted.place / "folder/large").read_bytes() == LARGE
    store.close()


def test_two_holders_of_one_store_are_apart(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    one = put_tree(store, TREE)
    two = put_tree(store, {**TREE, b"small": File(b"another")})
    with mount(path, one, base / "one") as first, mount(path, two, base / "two") as second:
        assert (first.place / "small").read_bytes() == b"small content"
        assert (second.place / "small").read_bytes() == b"another"
        os.kill(first.pid, signal.SIGKILL)
        first.ended()
        assert (second.place / "folder/large").read_bytes() == LARGE
    store.close()


def test_only_what_was_granted_is_read(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    totals = put_tree(store, TREE, uid=4242)
    with mount(path, totals, base / "m") as mounted:  # the mount is root's, the bytes are not
        with pytest.raises(OSError) as refused:
            (mounted.place / "small").read_bytes()
        assert refused.value.errno == errno.EIO
        assert "md5:" in mounted.stats()["last_error"]
        assert sorted(os.listdir(mounted.place)) == ["folder", "small"]
    store.close()


def test_a_name_like_the_hidden_folders_is_the_trees(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    totals = put_tree(store, {b".millpond": File(b"a file of the data"), b"x/.millpond/stats": File(b"deeper")})
    with mount(path, totals, base / "m") as mounted:
        assert sorted(os.listdir(mounted.place)) == [".millpond", "x"]
        assert (mounted.place / ".millpond").read_bytes() == b"a file of the data"
        assert (mounted.place / "x/.millpond/stats").read_bytes() == b"deeper"
    store.close()


def test_an_empty_version_mounts(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    with mount(path, build_tree(store, []), base / "m") as mounted:
        assert os.listdir(mounted.place) == []
        assert used_inodes(mounted) == 0
        with pytest.raises(FileNotFoundError):
            (mounted.place / "x").stat()
    store.close()


def test_folders_that_are_equal_are_different_directories(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    inner = put_tree(store, {b"x": File(b"x"), b"deeper/y": File(b"y")})
    twice = build_tree(store, [TreeEntry(b"a", folder=inner.root), TreeEntry(b"b", folder=inner.root)])
    with mount(path, twice, base / "m") as mounted:
        paths = ["a", "b", "a/deeper", "b/deeper"]
        assert len({(mounted.place / name).stat().st_ino for name in paths}) == 4
        for name in ("a", "b"):
            shown = subprocess.run(["pwd", "-P"], cwd=mounted.place / name / "deeper", capture_output=True, check=True)
            assert shown.stdout.decode().strip() == f"{mounted.place}/{name}/deeper"
    store.close()


@pytest.mark.root
def test_forgotten_directories_are_dropped_and_found_again(base: Path, stored: tuple[Path, Store], engine: str) -> None:
    path, store = stored
    tree: dict[bytes, Node] = {b"%d/%d/x" % (n // 40, n % 40): File(b"%d" % n) for n in range(1600)}
    with mount(path, put_tree(store, tree), base / "m") as mounted:
        subprocess.run(["find", mounted.place, "-type", "f"], check=True, capture_output=True, timeout=60)
        # The kernel does not tell who serves an image what it knows; where a directory lies is remembered, in 64 bytes.
        if engine != "erofs":
            assert mounted.stats()["known_directories"] > 1600
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2" if engine != "erofs" else "3")
        eventually(lambda: mounted.stats()["known_directories"] < 200, "the kernel forgets")
        for name, node in list(tree.items())[::97]:
            assert isinstance(node, File)
            assert (mounted.place / os.fsdecode(name)).read_bytes() == node.data
    store.close()


def send(mounted: Mounted, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(os.fspath(mounted.control))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # what was sent was more than the other side read
            while part := sock.recv(65536):
                answer += part
        return answer


def test_the_control_socket_is_private_and_survives_nonsense(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        assert stat.S_IMODE(mounted.control.stat().st_mode) == 0o600
        for nonsense in (
            b"",
            b"\n",
            b"{",
            b"[]\n",
            b"1\n",
            b'"x"\n',
            b"null\n",
            b'{"op": 5}\n',
            b"\xff\xfe\n",
            b"x" * 9000,
        ):
            send(mounted, nonsense)
        answer = json.loads(send(mounted, b'{"op": "state"}\n'))
        assert (answer["id"], answer["pid"]) == ("m", mounted.pid)
        assert answer["rss"] > 1 << 20
        assert (mounted.place / "small").read_bytes() == b"small content"
    store.close()


def test_state_is_told_while_every_read_waits(base: Path, stored: tuple[Path, Store]) -> None:
    """A stopped source holds up who reads from it, and nobody else."""
    path, store = stored
    missing = ObjectName("md5", "ab" * 16)
    here = put(store, [b"here"])[0]
    totals = build_tree(store, [TreeEntry(b"away", 10, name=missing), TreeEntry(b"here", 4, name=here)])
    with mount(path, totals, base / "m", source=lambda sock: None) as mounted, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit((mounted.place / "away").read_bytes)
        mounted.source.settimeout(TIMEOUT_S)
        assert json.loads(mounted.source.recv(4096))["op"] == "open"  # asked, and never answered
        assert (mounted.place / "here").read_bytes() == b"here"
        assert mounted.ask()["pid"] == mounted.pid
        assert not waiting.done()
        mounted.source.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError) as refused:
            waiting.result(TIMEOUT_S)
        assert refused.value.errno == errno.EIO
    store.close()


def test_abort_ends_the_mount_at_once(base: Path, stored: tuple[Path, Store], engine: str) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        fd = os.open(mounted.place / "small", os.O_RDONLY)
        send(mounted, b'{"op": "abort"}\n')
        mounted.ended()
        close_dead(fd)
        is_dead(mounted, engine)
    store.close()


def test_sigterm_and_sigint_do_not_take_data_away(base: Path, stored: tuple[Path, Store]) -> None:
    path, store = stored
    with mount(path, put_tree(store, TREE), base / "m") as mounted:
        os.kill(mounted.pid, signal.SIGTERM)
        assert (mounted.place / "folder/large").read_bytes() == LARGE
        os.kill(mounted.pid, signal.SIGINT)
        assert (mounted.place / "folder/inner/x").read_bytes() == b"x"
        assert mounted.guard.poll() is None
    store.close()


# Reads directly: a reader that waits for a page is woken by what ends him, and by nothing else; the kernel says no
# INTERRUPT for him.
_READS = """
import mmap, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
signal.signal(signal.SIGALRM, lambda *_: print("rang", flush=True))
print("open", flush=True)
with mmap.mmap(-1, 4096) as page:
    print(page[:os.preadv(fd, [page], 0)], flush=True)
"""


def test_a_reader_that_waits_can_be_ended_and_one_that_lives_on_gets_its_bytes(
    base: Path, stored: tuple[Path, Store], engine: str
) -> None:
    path, store = stored
    data = b"what the source has"
    entries = [TreeEntry(b"%d" % n, len(data), name=ObjectName("md5", f"{n:032x}")) for n in range(3)]
    totals = build_tree(store, entries)
    store.close()
    if engine != "direct":
        pytest.skip("libfuse's answer to an interrupt is the program's own matter; pyfuse3 has none")
    with mount(path, totals, base / "m", source=lambda sock: None) as mounted:
        for name, number in (("0", signal.SIGKILL), ("1", signal.SIGINT)):
            with waiting_reader(_READS, mounted, name) as reader:
                mounted.source.recv(4096)
                reader.send_signal(number)
                assert reader.wait(TIMEOUT_S) == -number
        with waiting_reader(_READS, mounted, "2") as reader:
            asked = json.loads(mounted.source.recv(4096))
            reader.send_signal(signal.SIGALRM)
            given = memfd.from_bytes(data)
            framing.send(mounted.source, framing.encode({"id": asked["id"], "size": len(data)}, [given]), [given])
            os.close(given)
            output, _ = reader.communicate(timeout=TIMEOUT_S)
            assert reader.returncode == 0 and f"{data!r}".encode() in output and b"rang" in output
        assert mounted.stats()["errors"] == 0
