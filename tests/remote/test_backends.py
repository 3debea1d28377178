"""One conformance suite that every backend passes."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.remote.servers import S3Server, SSHServer, WebServer

from millpond.daemon.errors import MillpondError, ObjectMissingError, RemoteChangedError, RemoteError
from millpond.daemon.remote.backend import PART_BYTES, Backend, Entry, Got
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.remotes import Remote, connect
from millpond.daemon.remote.s3 import S3Backend
from millpond.daemon.remote.s3boto import BotoBackend

KINDS = ["local", "s3", "s3-boto", "ssh", "http", "http-whole"]


def values(kind: str, server: S3Server) -> dict[str, str]:
    """What the config of such a remote says beside its url."""
    return {
        "endpointurl": server.endpoint,
        "access_key_id": "AKIDmillpond",
        "secret_access_key": "a-secret-of-the-tests",
        **({"acl": "private"} if kind == "s3-boto" else {}),
    }


class Served(LocalBackend):
    """A web server's folder: it is written to and listed as a folder, and read over http."""

    def __init__(self, folder: Path, reader: Backend) -> None:
        super().__init__("r", str(folder))
        self._reader = reader

    def head(self, key: str) -> Entry | None:
        return self._reader.head(key)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        return self._reader.get(key, start, size, etag=etag)

    def close(self) -> None:
        self._reader.close()


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    kind = request.param
    if kind == "local":
        made = connect(Remote("r", str(tmp_path / "remote"), {}), {})
    elif kind == "ssh":
        sshd: SSHServer = request.getfixturevalue("ssh")
        made = connect(Remote("r", sshd.url(tmp_path / "remote"), sshd.values), sshd.environ)
    elif kind.startswith("http"):
        web: WebServer = request.getfixturevalue("web")
        folder = Path(tempfile.mkdtemp(dir=web.folder))
        prefix = "open" if kind == "http" else "norange"
        made = Served(folder, connect(Remote("r", web.url(prefix, folder.name), {}), {}))
    else:
        server: S3Server = request.getfixturevalue("s3")
        bucket = server.bucket(f"b-{random.randrange(1 << 60):x}")
        made = connect(Remote("r", f"s3://{bucket}/some/where", values(kind, server)), {})
    yield made
    made.close()


def test_what_is_put_is_there(backend: Backend) -> None:
    data = os.urandom(100_000)
    assert backend.head("a/b/c") is None
    assert backend.put("a/b/c", data)
    entry = backend.head("a/b/c")
    assert entry is not None and (entry.key, entry.size) == ("a/b/c", len(data)) and entry.etag
    got = backend.get("a/b/c")
    assert bytes(got.data) == data and got.entry == entry
    assert backend.put("a/b/c", b"other") and bytes(backend.get("a/b/c").data) == b"other"
    after = backend.head("a/b/c")
    assert after is not None and after.etag != entry.etag


def test_many_are_removed_at_once(backend: Backend) -> None:
    keys = [f"a/{number}" for number in range(30)]
    for key in [*keys, "b"]:
        backend.put(key, b"x")
    backend.delete_many([*keys[:20], "is/not/there"])
    assert sorted(entry.key for entry in backend.list("")) == sorted([*keys[20:], "b"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 5000), start=st.integers(0, 6000), length=st.none() | st.integers(0, 7000))
def test_ranges(backend: Backend, size: int, start: int, length: int | None) -> None:
    data = random.Random(size).randbytes(size)
    backend.put("x", data)
    wanted = data[start:] if length is None else data[start : start + length]
    got = backend.get("x", start, length)
    assert bytes(got.data) == wanted and got.entry.size == size


@pytest.mark.parametrize("kind", ["s3", "s3-boto"])
def test_versions_are_read_by_their_ids(kind: str, s3: S3Server) -> None:
    bucket = s3.bucket(f"b-{random.randrange(1 << 60):x}")
    s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    contents = [b"one" * 1000, b"", b"three"]
    ids = [s3.client().put_object(Bucket=bucket, Key="p/a b/x", Body=data)["VersionId"] for data in contents]
    s3.client().delete_object(Bucket=bucket, Key="p/a b/x")
    made = connect(Remote("r", f"s3://{bucket}/p", values(kind, s3)), {})
    assert isinstance(made, S3Backend | BotoBackend) and made.head("a b/x") is None
    for version, data in zip(ids, contents, strict=True):
        entry = made.head_version("a b/x", version)
        assert entry is not None and entry.size == len(data)
        for start, size in ((0, None), (0, 10), (2, 2), (len(data), 5), (0, 0)):
            got = made.get_version("a b/x", version, start, size)
            assert bytes(got.data) == data[start : None if size is None else start + size]
            assert got.entry.size == len(data) and got.entry.etag == entry.etag
    assert made.head_version("a b/x", "no-such-version") is None
    with pytest.raises(ObjectMissingError):
        made.get_version("a b/x", "no-such-version")
    made.close()


def test_a_changed_object_is_not_read_on(backend: Backend) -> None:
    backend.put("x", b"one" * 1000)
    entry = backend.get("x", 0, 10).entry
    assert bytes(backend.get("x", 10, 10, etag=entry.etag).data) == (b"one" * 1000)[10:20]
    # A web server's ETag is of the file's size, and of the tick of the clock in which it was written.
    backend.put("x", b"two" * (1001 if isinstance(backend, Served) else 1000))
    with pytest.raises(RemoteChangedError):
        backend.get("x", 10, 10, etag=entry.etag)


def test_what_is_not_there(backend: Backend) -> None:
    for key, start, size in (("no/thing", 0, None), ("no/thing", 5, 5), ("no", 0, 0)):
        with pytest.raises(ObjectMissingError) as raised:
            backend.get(key, start, size)
        assert f"'{key}'" in str(raised.value) and "remote 'r'" in str(raised.value)
    backend.delete("no/thing")
    assert list(backend.list("no")) == [] and list(backend.list("")) == []


def test_create_is_done_once(backend: Backend) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda number: backend.put("lock", b"%d" % number, create=True), range(8)))
    assert done.count(True) == 1
    assert bytes(backend.get("lock").data) == b"%d" % done.index(True)
    assert backend.put("lock", b"again", create=True) is False


def test_listing(backend: Backend) -> None:
    keys = {f"files/md5/{number % 7:02x}/{number:04x}": bytes(number) for number in range(40)}
    keys |= {"files/md5x": b"", "runs/aa/b c+d%41~ü": b"odd"}
    backend.put_many(list(keys.items()))
    assert {entry.key: entry.size for entry in backend.list("")} == {key: len(data) for key, data in keys.items()}
    below = [entry.key for entry in backend.list("files/md5")]
    assert sorted(below) == sorted(key for key in keys if key.startswith("files/md5/"))
    assert len(list(backend.list("files/md5/03"))) == len([key for key in keys if key.startswith("files/md5/03/")])
    assert bytes(backend.get("runs/aa/b c+d%41~ü").data) == b"odd"
    backend.delete("files/md5x")
    assert backend.head("files/md5x") is None


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12345])
def test_streams(backend: Backend, size: int) -> None:
    data = random.Random(size).randbytes(size)
    told: list[int] = []
    backend.put_stream(
        "big",
        (data[at : at + 3_000_000] for at in range(0, size, 3_000_000)),
        size,
        told.append,
    )
    assert bytes(backend.get("big").data) == data
    # All of what came in parts.
    assert sum(told) == size and len(told) > 1 if size > PART_BYTES else sum(told) in (0, size)
    middle = size // 2
    assert bytes(backend.get("big", middle, 1000).data) == data[middle : middle + 1000]


@pytest.mark.parametrize("size", [100, 2 * PART_BYTES])
@pytest.mark.parametrize("kind", ["short", "long", "fails"])
def test_a_stream_that_ends_wrong_leaves_nothing(backend: Backend, size: int, kind: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(size // 2)
        if kind == "fails":
            raise RemoteError("the source failed")
        yield bytes(size // 2 + (1 if kind == "long" else -1))

    with pytest.raises(RemoteError, match="source failed" if kind == "fails" else "were expected"):
        backend.put_stream("big", pieces(), size)
    assert backend.head("big") is None and list(backend.list("")) == []
    if os.path.isabs(backend.url):
        assert [name for _, _, files in os.walk(backend.url) for name in files] == []


def test_many_threads(backend: Backend) -> None:
    def work(number: int) -> bool:
        data = random.Random(number).randbytes(number * 97)
        backend.put(f"t/{number:02}", data)
        return bytes(backend.get(f"t/{number:02}", 5, 50).data) == data[5:55]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(64)))
    assert len(list(backend.list("t"))) == 64


def test_two_writers_of_one_key_leave_one_whole(backend: Backend) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: backend.put("same", data), contents))
    assert bytes(backend.get("same").data) in contents


def test_a_pipe_in_an_object_s_place_is_no_object(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ObjectMissingError):
        LocalBackend("r", str(tmp_path)).get("x")


def test_a_folder_that_is_not_mounted_is_no_empty_remote(tmp_path: Path) -> None:
    backend = connect(Remote("nfs", str(tmp_path / "mnt/nas/store"), {}), {})
    for ask in (lambda: backend.head("a"), lambda: list(backend.list("")), lambda: backend.put("a", b"x")):
        with pytest.raises(MillpondError, match="cannot be reached"):
            ask()
    assert not (tmp_path / "mnt").exists()
