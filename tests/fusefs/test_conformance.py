"""A mount and a plain copy of the same tree: programs must not be able to tell them apart."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fusefs.conftest import Pair
from tests.fusefs.helpers import EDGES, File, Link, run

from millpond.daemon.names import ObjectName
from millpond.daemon.store.reader import StoreReader

pytestmark = pytest.mark.fuse

# Reads a file by a mapping, forwards and at random places; prints the digest of what it saw. In a process of its own: a
# page fault holds the interpreter's lock.
_BY_MAPPING = """
import hashlib, mmap, random, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
    if sys.argv[2] == 'random':
        area.madvise(mmap.MADV_RANDOM)
        pages = list(range(0, len(area), 4096))
        random.Random(5).shuffle(pages)
        seen = {page: area[page:page + 4096] for page in pages}
        data = b''.join(seen[page] for page in sorted(seen))
    else:
        data = area[:]
print(hashlib.sha256(data).hexdigest())
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(pair: Pair) -> dict[bytes, bytes]:
    return {path: node.data for path, node in pair.tree.items() if isinstance(node, File)}


def is_image(pair: Pair) -> bool:
    """Whether the kernel reads an image: then inodes are places, and there is nothing that changes, nor direct reading."""
    return pair.engine == "erofs"


def full(folder: Path, path: bytes) -> bytes:
    return os.path.join(os.fsencode(folder), path)


def test_find_shows_the_same_names_types_modes_sizes_and_targets(pair: Pair) -> None:
    wanted = r"%P\t%y\t%m\t%l\0"
    assert sorted(run("find", pair.place, "-printf", wanted).split(b"\0")) == sorted(
        run("find", pair.plain, "-printf", wanted).split(b"\0")
    )
    sizes = ["-not", "-type", "d", "-printf", r"%P\t%s\0"]
    assert sorted(run("find", pair.place, *sizes).split(b"\0")) == sorted(run("find", pair.plain, *sizes).split(b"\0"))


def test_ls_and_du_show_the_same(pair: Pair) -> None:
    for folder in ("sizes", "names", "same", "links"):
        columns = [
            "-c",
            r"ls -lRN --time-style=+ --block-size=1 | sed -E '/^total/d; s/^(.{10}) +[0-9]+ [^ ]+ [^ ]+/\1/'",
        ]
        assert run("sh", *columns, cwd=pair.place / folder) == run("sh", *columns, cwd=pair.plain / folder)
        count = ["find", ".", "-type", "f", "-exec", "du", "-bl", "{}", "+"]
        assert sorted(run(*count, cwd=pair.place / folder).splitlines()) == sorted(
            run(*count, cwd=pair.plain / folder).splitlines()
        )


def test_du_counts_what_the_files_hold(pair: Pair) -> None:
    total = sum(len(data) for data in files_of(pair).values())
    links = sum(len(node.target) for node in pair.tree.values() if isinstance(node, Link))
    shown = int(run("du", "-sb", "--count-links", pair.place).split()[0])
    folders = run("find", pair.place, "-type", "d", "-printf", r"%s\n").split()
    # Names take room in an image. Equal contents share an inode, but nlink is 1: du counts each of them.
    assert all((int(size) > 0) == is_image(pair) for size in folders)
    assert shown == total + links + sum(map(int, folders))
    blocks = int(run("du", "-s", "--count-links", "--block-size=1", pair.place / "big").split()[0])
    large = [len(data) for path, data in files_of(pair).items() if path.startswith(b"big/")]
    unit = 4096 if is_image(pair) else 512
    assert 0 <= blocks - sum(large) < (len(large) + is_image(pair)) * unit


def test_tar_makes_the_same_archive(pair: Pair) -> None:
    options = [
        "--format=pax",
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--hard-dereference",
    ]
    options += ["--pax-option=delete=atime,delete=ctime", "--no-xattrs"]
    assert sha(run("tar", *options, "-cf", "-", "-C", pair.place, ".")) == sha(
        run("tar", *options, "-cf", "-", "-C", pair.plain, ".")
    )


def test_rsync_by_checksum_finds_no_difference(pair: Pair) -> None:
    for source, target in ((pair.place, pair.plain), (pair.plain, pair.place)):
        assert run("rsync", "-rlpcn", "--delete", "--itemize-changes", f"{source}/", f"{target}/") == b""


def test_rsync_copies_and_a_second_run_copies_nothing(pair: Pair, tmp_path: Path) -> None:
    first = run("rsync", "-rlt", "--itemize-changes", f"{pair.place}/same/", f"{tmp_path}/copy/")
    assert first.count(b">f") == 3
    assert run("rsync", "-rlt", "--itemize-changes", f"{pair.place}/same/", f"{tmp_path}/copy/") == b""


def test_cp_diff_and_grep(pair: Pair, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", pair.place, tmp_path / "copy"], check=True, timeout=60)
    run("diff", "-r", "--no-dereference", tmp_path / "copy", pair.plain)
    found = run("grep", "-rlx", "the same content", ".", cwd=pair.place).split()
    assert sorted(found) == [b"./same/one", b"./same/runs", b"./same/two"]


def test_every_file_reads_as_it_was(pair: Pair) -> None:
    for path, data in files_of(pair).items():
        with open(full(pair.place, path), "rb") as file:
            assert file.read() == data, path


@pytest.mark.parametrize("size", EDGES)
def test_reads_at_the_edges_of_a_file_and_beyond(pair: Pair, size: int) -> None:
    data = files_of(pair)[b"sizes/%d" % size]
    fd = os.open(full(pair.place, b"sizes/%d" % size), os.O_RDONLY)
    try:
        assert os.fstat(fd).st_size == size == os.lseek(fd, 0, os.SEEK_END)
        for offset in {0, 1, size // 2, max(0, size - 4097), max(0, size - 1), size, size + 1, size + 5000}:
            for length in (0, 1, 4096, 100_000, size + 10):
                assert os.pread(fd, length, offset) == data[offset : offset + length], (offset, length)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"big/mixed.bin", b"big/holes.bin", b"big/zeros.bin"])
def test_reads_at_the_edges_of_chunks(pair: Pair, path: bytes) -> None:
    data = files_of(pair)[path]
    reader = StoreReader.open(pair.place.parent / "store")
    try:
        name = ObjectName("md5", hashlib.md5(data, usedforsecurity=False).hexdigest())
        (content,) = reader.resolve([name], os.getuid())
        assert content is not None
        edges = reader.layout(content).offsets
    finally:
        reader.close()
    assert len(edges) > 3
    fd = os.open(full(pair.place, path), os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for edge in edges:
            for begin in {max(0, edge - 1), edge, edge + 1}:
                for length in (1, 2, 5000):
                    assert os.pread(fd, length, begin) == data[begin : begin + length], (edge, begin, length)
    finally:
        os.close(fd)


def test_reads_that_do_not_want_to_wait(pair: Pair) -> None:
    """Right bytes, or none."""
    data = files_of(pair)[b"big/mixed.bin"]
    fd = os.open(full(pair.place, b"big/mixed.bin"), os.O_RDONLY)
    try:
        for offset in (0, 1_000_000, 0, len(data) - 10):
            buffer = bytearray(4096)
            try:
                count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
            except OSError as error:
                assert error.errno in (errno.EAGAIN, errno.EOPNOTSUPP)
                assert os.pread(fd, 4096, offset) == data[offset : offset + 4096]
            else:
                assert bytes(buffer[:count]) == data[offset : offset + count]
    finally:
        os.close(fd)


def test_random_reads_of_a_large_file(pair: Pair) -> None:
    data = files_of(pair)[b"big/mixed.bin"]
    rng = random.Random(11)
    fd = os.open(full(pair.place, b"big/mixed.bin"), os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(500):
            offset, length = rng.randrange(len(data)), rng.choice((1, 4096, 60_000, 300_000))
            assert os.pread(fd, length, offset) == data[offset : offset + length]
    finally:
        os.close(fd)


def test_many_readers_at_once(pair: Pair) -> None:
    files = {path: data for path, data in files_of(pair).items() if path.startswith((b"big/", b"sizes/"))}
    expected = {path: sha(data) for path, data in files.items()}
    barrier = threading.Barrier(16, timeout=30)

    def read_all(seed: int) -> int:
        rng = random.Random(seed)
        order = sorted(files)
        rng.shuffle(order)
        barrier.wait()
        for path in order:
            fd = os.open(full(pair.place, path), os.O_RDONLY)
            try:
                if seed % 3 == 0:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                digest = hashlib.sha256()
                while part := os.read(fd, rng.choice((4096, 100_000, 1 << 20))):
                    digest.update(part)
                assert digest.hexdigest() == expected[path], path
            finally:
                os.close(fd)
        return len(order)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read_all, range(16))) == [len(files)] * 16


@pytest.mark.parametrize("how", ["forwards", "random"])
@pytest.mark.parametrize("path", [b"big/mixed.bin", b"sizes/65537", b"sizes/1"])
def test_a_mapping_reads_the_same(pair: Pair, path: bytes, how: str) -> None:
    found = run(sys.executable, "-c", _BY_MAPPING, full(pair.place, path), how)
    assert found.decode().strip() == sha(files_of(pair)[path])


def test_a_writable_mapping_is_private_or_refused(pair: Pair) -> None:
    with open(pair.place / "same/one", "rb") as file:
        with pytest.raises(PermissionError):
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as area:
            area[:3] = b"THE"
    assert (pair.place / "same/one").read_bytes() == b"the same content"


def test_sendfile_and_splice(pair: Pair) -> None:
    data = files_of(pair)[b"big/mixed.bin"]
    ours, theirs = socket.socketpair()
    with ours, theirs, open(pair.place / "big/mixed.bin", "rb") as file, ThreadPoolExecutor(1) as pool:

        def drain() -> str:
            digest, left = hashlib.sha256(), len(data)
            while left and (part := theirs.recv(1 << 20)):
                digest.update(part)
                left -= len(part)
            return digest.hexdigest()

        theirs.settimeout(30)
        got = pool.submit(drain)
        sent = 0
        while sent < len(data):
            sent += os.sendfile(ours.fileno(), file.fileno(), sent, len(data) - sent)
        assert got.result(30) == sha(data)
        out, into = os.pipe()
        with open(out, "rb") as pipe, open(into, "wb") as mouth:
            count = os.splice(file.fileno(), mouth.fileno(), 50_000, offset_src=1_000_001)
            assert pipe.read(count) == data[1_000_001 : 1_000_001 + count] and count > 0


@pytest.mark.parametrize("path", [b"big/mixed.bin", b"sizes/65537", b"sizes/4095", b"empty"])
def test_direct_reads(pair: Pair, path: bytes) -> None:
    data = files_of(pair)[path]
    if is_image(pair):
        # The kernel does not offer it for images in files, and says so as it does on other file systems without it.
        with pytest.raises(OSError) as refused:
            os.open(full(pair.place, path), os.O_RDONLY | os.O_DIRECT)
        assert refused.value.errno == errno.EINVAL
        return
    fd = os.open(full(pair.place, path), os.O_RDONLY | os.O_DIRECT)
    try:
        found = b""
        with mmap.mmap(-1, 1 << 20) as buffer:  # memory that begins on a page
            while count := os.preadv(fd, [buffer], len(found)):
                found += buffer[:count]
        assert found == data
    finally:
        os.close(fd)
    block = "bs=1M" if len(data) > 1 << 20 else "bs=4096"
    copied = subprocess.run(
        ["dd", b"if=" + full(pair.place, path), "iflag=direct", block], capture_output=True, timeout=30
    )
    assert copied.returncode == 0 and copied.stdout == data


def test_readv_seek_data_and_fadvise(pair: Pair) -> None:
    data = files_of(pair)[b"big/random.bin"]
    fd = os.open(full(pair.place, b"big/random.bin"), os.O_RDONLY)
    try:
        buffers = [bytearray(7), bytearray(100_000), bytearray(3)]
        assert os.preadv(fd, buffers, 123_457) == 100_010
        assert b"".join(buffers) == data[123_457 : 123_457 + 100_010]
        assert os.lseek(fd, 1000, os.SEEK_DATA) == 1000
        assert os.lseek(fd, 1000, os.SEEK_HOLE) == len(data)
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_RANDOM, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(fd, 0, 0, advice)
            assert os.pread(fd, 10, 4_000_000) == data[4_000_000:4_000_010]
    finally:
        os.close(fd)


def test_names_of_any_bytes_are_listed_found_and_opened(pair: Pair) -> None:
    wanted = {path.removeprefix(b"names/"): node for path, node in pair.tree.items() if path.startswith(b"names/")}
    folder = full(pair.place, b"names")
    assert sorted(os.listdir(folder)) == sorted(wanted)
    assert sorted(run("find", folder, "-mindepth", "1", "-printf", r"%f\0").split(b"\0")[:-1]) == sorted(wanted)
    for name, node in wanted.items():
        assert isinstance(node, File)
        with open(os.path.join(folder, name), "rb") as file:
            assert file.read() == node.data


def test_names_that_are_not_there(pair: Pair) -> None:
    for path in (b"no", b"names/" + b"y" * 255, b"sizes/01", b"sizes/4096/", b"sizes/4096/x", b"deep/level0/level1/x"):
        wanted = NotADirectoryError if path.startswith(b"sizes/4096/") else FileNotFoundError
        with pytest.raises(wanted):
            os.stat(full(pair.place, path))
    with pytest.raises(OSError, match="File name too long"):
        os.stat(full(pair.place, b"names/" + b"z" * 256))


def test_executables_run_and_others_do_not(pair: Pair) -> None:
    assert run(pair.place / "run.sh", "it") == b"ran it\n"
    with pytest.raises(PermissionError):
        subprocess.run([pair.place / "same/one"], check=False, timeout=10)
    assert stat.S_IMODE((pair.place / "same/runs").stat().st_mode) == 0o555


def test_equal_files_share_an_inode_and_others_do_not(pair: Pair) -> None:
    inodes = {name: (pair.place / "same" / name).stat().st_ino for name in ("one", "two", "runs")}
    assert (inodes["one"] == inodes["two"]) != is_image(pair) and inodes["two"] != inodes["runs"]
    found = [os.lstat(full(pair.place, path)) for path in files_of(pair)]
    by_inode: dict[int, set[tuple[int, int]]] = {}
    for each in found:
        assert each.st_nlink == 1
        by_inode.setdefault(each.st_ino, set()).add((each.st_size, each.st_mtime_ns))
    assert all(len(kinds) == 1 for kinds in by_inode.values())


def test_links_resolve_within_the_mount(pair: Pair) -> None:
    assert (pair.place / "links/file").read_bytes() == (pair.place / "run.sh").read_bytes()
    assert sorted(os.listdir(pair.place / "links/folder")) == sorted(str(size) for size in EDGES)
    assert os.path.realpath(pair.place / "links/file") == os.path.realpath(pair.place / "run.sh")
    assert len(os.readlink(pair.place / "links/long")) == 2001
    with pytest.raises(OSError, match="Invalid argument"):
        os.readlink(pair.place / "run.sh")


def test_working_directories_know_where_they_are(pair: Pair) -> None:
    deep = pair.place / "deep" / Path(*(f"level{level}" for level in range(40)))
    assert run("pwd", "-P", cwd=deep).decode().strip() == os.fspath(deep)
    assert run("cat", "bottom", cwd=deep) == b"reached"
    assert run("ls", "..", cwd=deep) == b"level39\n"


def test_a_folder_is_read_again_from_any_place_in_it(pair: Pair) -> None:
    """seekdir and rewinddir, by two programs that read a folder at once and one that reads it twice."""
    folder = pair.place / "names"
    with os.scandir(folder) as one, os.scandir(folder) as two:
        mixed = [(first.name, second.name) for first, second in zip(one, two, strict=True)]
    assert len(mixed) == len(os.listdir(folder)) and all(first == second for first, second in mixed)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == os.listdir(fd)
    finally:
        os.close(fd)


def test_statfs_tells_the_version_and_no_room(pair: Pair) -> None:
    found = os.statvfs(pair.place)
    nodes = pair.tree.values()
    total = sum(len(node.data) if isinstance(node, File) else len(node.target) for node in nodes)
    if is_image(pair):  # which says how many there are by how many there could be yet
        assert found.f_files - found.f_ffree == len(pair.tree)
    else:
        assert found.f_files == len(pair.tree) and found.f_ffree == 0
    assert found.f_namemax == 255 and found.f_flag & os.ST_RDONLY
    assert 0 <= found.f_blocks * found.f_frsize - total < found.f_frsize
    assert found.f_bfree == found.f_bavail == 0
    assert b"millpond" in run("df", "--output=source,pcent", pair.place)


def test_xattrs_name_the_object(pair: Pair) -> None:
    data = files_of(pair)[b"big/mixed.bin"]
    path = pair.place / "big/mixed.bin"
    if is_image(pair):
        assert os.listxattr(path) == []
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(path, "user.millpond.object")
        return
    assert sorted(os.listxattr(path)) == ["user.millpond.object", "user.millpond.stored"]
    assert os.getxattr(path, "user.millpond.object") == b"md5:" + hashlib.md5(data).hexdigest().encode()
    assert os.getxattr(path, "user.millpond.stored") == b"yes"
    assert os.listxattr(pair.place / "big") == []
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(path, "user.other")


def test_the_hidden_folder_is_found_but_not_listed(pair: Pair) -> None:
    assert ".millpond" not in os.listdir(pair.place)
    if is_image(pair):
        assert not (pair.place / ".millpond").exists()
        return
    assert os.listdir(pair.place / ".millpond") == ["stats"]
    first = (pair.place / ".millpond/stats").read_text()
    (pair.place / "same/one").read_bytes()
    second = (pair.place / ".millpond/stats").read_text()
    assert '"opens"' in first and first != second


def test_what_was_read_once_is_kept_by_the_kernel(pair: Pair) -> None:
    path = pair.place / "big/random.bin"
    path.read_bytes()
    before = pair.mounted.stats()["reads"]
    assert sha(path.read_bytes()) == sha(files_of(pair)[b"big/random.bin"])
    for entry in os.scandir(pair.place / "names"):
        entry.stat()
    assert pair.mounted.stats()["reads"] == before
