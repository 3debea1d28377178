"""Large objects read in order: what is on its way while the reader goes on, and how often a remote is listed for a mount."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from millpond.daemon.api.contents import ComingContent
from millpond.daemon.errors import CredentialsError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.remote import large, presence
from millpond.daemon.remote.backend import Entry
from millpond.daemon.remote.fetcher import Fetcher
from millpond.daemon.remote.layout import LEGACY, key_of
from millpond.daemon.remote.local import LocalBackend
from millpond.daemon.remote.partial import BLOCK_BYTES, WHOLE_BYTES, Partials
from millpond.daemon.remote.places import Places
from millpond.daemon.remote.settling import Settler
from millpond.daemon.remote.transfer import Transfer
from millpond.fusefs.asking import SourceClient

BLOCKS = 96


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A project with a folder as its remote."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(
        f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n"
    )
    return tmp_path / "remote"


def put(remote: Path, data: bytes) -> ObjectName:
    name = ObjectName("md5", hashlib.md5(data).hexdigest())
    path = remote / key_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def test_a_reader_who_goes_on_in_what_is_there_is_still_in_order(tmp_path: Path, remote: Path) -> None:
    data = b"".join(number.to_bytes(4, "big") * (BLOCK_BYTES // 4) for number in range(BLOCKS))
    name = put(remote, data)
    places = Places(lambda: config.load(str(tmp_path / ".dvc"), os.environ), os.environ)
    fetcher = Fetcher(places, Settler.to(str(tmp_path / "nobody")), Partials(str(tmp_path / "partial"), "m"))
    try:
        fd, whole = fetcher.open(name, len(data))
        assert not whole
        inode, at, asked = os.fstat(fd).st_ino, 0, []
        while at < len(data):
            found = fetcher.ensure(name, len(data), inode, at, 128 << 10)
            assert not isinstance(found, int)
            start, end = found
            assert start <= at < end
            assert os.pread(fd, end - at, at) == data[at:end]
            asked.append(end - at)
            at = end
        os.close(fd)
        # Far fewer questions than blocks, none of them for more than what leaves the rest of the window on its way.
        assert len(asked) < BLOCKS / 3
        assert max(asked) <= 10 * BLOCK_BYTES
        # And few requests: the window was not begun anew at each question.
        assert int(fetcher.told()["requests"]) < BLOCKS / 2
    finally:
        fetcher.close()


def test_an_object_larger_than_was_listed_is_not_brought_into_memory(tmp_path: Path, remote: Path) -> None:
    name = put(remote, bytes(WHOLE_BYTES + 1))
    places = Places(lambda: config.load(str(tmp_path / ".dvc"), os.environ), os.environ)
    fetcher = Fetcher(places, Settler.to(str(tmp_path / "nobody")), Partials(str(tmp_path / "partial"), "m"))
    try:
        with pytest.raises(StoreDamagedError, match="is not what its name says"):
            fetcher.open(name, 100)
        assert int(fetcher.told()["bytes"]) <= WHOLE_BYTES + 1
    finally:
        fetcher.close()


def test_a_program_waits_for_what_is_checked_as_a_whole_first(
    tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount does: objects under DVC 2's names, whoever reads them."""
    monkeypatch.setattr(large, "_COMING_S", 0.0)
    data = os.urandom(6 * BLOCK_BYTES)
    name = put(remote, data)
    places = Places(lambda: config.load(str(tmp_path / ".dvc"), os.environ), os.environ)
    partials = Partials(str(tmp_path / "partial"), "m")
    fetcher = Fetcher(places, Settler.to(str(tmp_path / "nobody")), partials, check_first=True)
    try:
        content = ComingContent(cast(SourceClient, fetcher), name, len(data), fetcher.open(name, len(data))[0])
        assert content.read(5, len(data)) == data[5:]
        content.close()
    finally:
        fetcher.close()


class Listed(LocalBackend):
    """A folder that is asked as if it were far away, and tells what it was asked to list."""

    near = False

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name, path)
        self.prefixes: list[str] = []

    def list(self, prefix: str) -> Iterator[Entry]:
        self.prefixes.append(prefix)
        return super().list(prefix)


def test_a_remote_is_listed_once_for_all_that_is_asked_for_in_parts(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    names = [put(remote, b"%d" % number) for number in range(3300)]
    absent = [ObjectName("md5", hashlib.md5(b"absent %d" % number).hexdigest()) for number in range(3)]
    backend = Listed("r", str(remote))
    with Transfer(backend) as transfer:
        for start in (0, 1500, 3000):
            part = names[start : start + 1500]
            assert transfer.present([*part, *absent], more=True) == {
                name: len(str(start + number)) for number, name in enumerate(part)
            }
        # One to see how much there is, then the others.
        assert len(backend.prefixes) == 256


@pytest.mark.parametrize("jobs", [None, 1])
def test_a_listing_that_was_begun_answers_all(tmp_path: Path, jobs: int | None) -> None:
    remote = tmp_path / "remote"
    names = [put(remote, b"%d" % number) for number in range(1500)]
    put(remote, b"another")
    (remote / "files/md5/00").mkdir(exist_ok=True)
    (remote / "files/md5/00/no object").write_bytes(b"")
    backend = Listed("r", str(remote))
    with Transfer(backend, jobs=jobs) as transfer:
        assert transfer.listed([names[0].value]) == [None], "none was begun"
        transfer.expect(1000)
        assert transfer.listed([names[0].value]) == [None] and backend.prefixes == [], "it would not pay"
        transfer.expect(1500)
        sizes = [len(str(number)) for number in range(1500)]
        assert transfer.listed([*(name.value for name in names), "f" * 32]) == [*sizes, None]
        came = transfer.came()
        assert len(came) == 1502 and dict(came).items() > {(names[0].value, 1), (names[-1].value, 4)}
        assert transfer.came() == []
        assert transfer.present(names, more=True) == dict(zip(names, sizes, strict=True))
        assert len(backend.prefixes) == 256


def test_a_remote_that_holds_very_much_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = tmp_path / "remote"
    names = [put(remote, b"%d" % number) for number in range(3300)]
    rows: list[int] = []

    class Counted(Listed):
        def sizes(self, prefix: str, wanted: Callable[[str], bool] | None = None) -> list[tuple[str, int]]:
            found = super().sizes(prefix, wanted)
            rows.append(len(found))
            return found

    monkeypatch.setattr(presence, "_MAX_LISTED", 2000)
    with Transfer(Counted("r", str(remote))) as transfer:
        transfer.expect(5000)
        assert transfer.listed([names[0].value]) == [None] and len(rows) == 1, "it would not be kept"
        for more in (False, True):
            rows.clear()
            part = names[:1100]
            assert transfer.present(part, more=more).keys() == set(part)
            assert len(rows) == 256 and sum(rows[1:]) <= len(part)


def test_why_a_listing_failed_is_told_to_who_asks(tmp_path: Path) -> None:
    class Closed(Listed):
        def list(self, prefix: str) -> Iterator[Entry]:
            raise CredentialsError("it may not be listed")

    with Transfer(Closed("r", str(tmp_path))) as transfer:
        transfer.expect(5000)
        with pytest.raises(CredentialsError):
            transfer.listed(["0" * 32])


@pytest.mark.parametrize("more", [False, True])
def test_many_objects_are_found_where_dvc_2_put_them(tmp_path: Path, more: bool) -> None:
    remote = tmp_path / "remote"
    old = [ObjectName(LEGACY, hashlib.md5(b"%d" % number).hexdigest()) for number in range(1500)]
    for name in old:
        path = remote / key_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    backend = Listed("r", str(remote))
    with Transfer(backend) as transfer:
        for _ in range(2):
            assert transfer.present(old, more=more) == dict.fromkeys(old, 3)
        assert len(backend.prefixes) == (512 if more else 2 * 512)
