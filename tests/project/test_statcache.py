"""The stat cache: round trips, what counts as unchanged, racy writes, damage, bounds."""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.daemon.project import statcache
from millpond.daemon.project.ignore import FolderRules
from millpond.daemon.project.statcache import Moment, Snapshot, StatCache
from millpond.daemon.project.walk import FIELDS, Listing, list_folder


def snapshot_of(listing: Listing, since: Moment, tree: str = "") -> Snapshot:
    digests = b"".join(index.to_bytes(16, "big") for index in range(len(listing.paths)))
    return Snapshot("md5", tree, list(listing.paths), since.settled(listing.stats), digests)


def listed(folder: Path) -> Listing:
    return list_folder(str(folder), FolderRules(str(folder), "", ()))


def later(folder: Path, than: int) -> Moment:
    """The first moment whose clock is past `than`: the clock ticks a few times a second at the worst."""
    while (now := Moment.now(str(folder))).ns <= than:
        pass
    return now


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    return folder


def settled(data: Path) -> tuple[Listing, Snapshot]:
    """A listing of `data` and a snapshot that began after all its writes."""
    listing = listed(data)
    return listing, snapshot_of(listing, later(data, max(listing.stats[4::FIELDS])), "x.dir")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(NAMES, st.tuples(*[NUMBERS] * FIELDS), st.binary(min_size=16, max_size=16))), scope=NAMES
)
def test_round_trip(rows: list[tuple[str, tuple[int, ...], bytes]], scope: str) -> None:
    stats = array("q", [number for _, numbers, _ in rows for number in numbers])
    kept = Snapshot("md5", "t.dir", [path for path, _, _ in rows], stats, b"".join(digest for _, _, digest in rows))
    with tempfile.TemporaryDirectory() as folder:
        cache = StatCache(folder)
        assert cache.load(scope) is None
        cache.save(scope, kept)
        assert cache.load(scope) == kept
        assert cache.load(scope + "x") is None


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    kept = Snapshot("md5", "", [name], array("q", range(FIELDS)), bytes(16))
    cache = StatCache(str(tmp_path))
    cache.save("/r", kept)
    assert cache.load("/r") == kept


def test_unchanged_is_known_and_every_change_is_seen(data: Path) -> None:
    listing, snapshot = settled(data)
    assert snapshot.same(listed(data))
    (data / "b").write_text("B")
    again = listed(data)
    assert not snapshot.same(again)
    assert [digest is None for digest in snapshot.known(again)] == [False, True, False]
    (data / "a").chmod(0o755)
    (data / "c").rename(data / "d")
    assert snapshot.known(listed(data)) == [None, None, None]


def test_same_size_and_restored_mtime_is_seen_by_ctime(data: Path) -> None:
    listing, snapshot = settled(data)
    before = os.stat(data / "a")
    (data / "a").write_text("A")
    os.utime(data / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(data / "a").st_mtime_ns == before.st_mtime_ns
    assert snapshot.known(listed(data))[0] is None


def test_racy_entries_never_match(data: Path) -> None:
    listing = listed(data)
    newest = max(listing.stats[4::FIELDS])
    snapshot = snapshot_of(listing, Moment(newest, listing.stats[0]))
    assert not snapshot.same(listed(data))
    known = snapshot.known(listed(data))
    racy = [ctime >= newest for ctime in listing.stats[4::FIELDS]]
    assert [digest is None for digest in known] == racy
    assert True in racy


def test_write_within_one_tick_is_seen(data: Path) -> None:
    """Whatever the clock's grain: write, snapshot, write again with equal size; the second write must be noticed."""
    for turn in range(50):
        text = "xy"[turn % 2]
        (data / "a").write_text(text)
        since = Moment.now(str(data))
        snapshot = snapshot_of(listed(data), since)
        (data / "a").write_text("z")
        assert snapshot.known(listed(data))[0] is None


def test_another_device_needs_slack() -> None:
    moment = Moment(10_000_000_000, 5)
    assert not moment.is_racy(5, 9_999_999_999)
    assert moment.is_racy(5, 10_000_000_000)
    assert moment.is_racy(6, 9_999_999_999)
    assert not moment.is_racy(6, 7_000_000_000)


def test_moment_without_a_writable_folder(tmp_path: Path) -> None:
    assert Moment.now(str(tmp_path / "missing")).dev is None


@pytest.mark.parametrize("at", [0, 5, 9, 17, 30, 60, -1])
def test_damage_is_no_snapshot(data: Path, tmp_path: Path, at: int) -> None:
    _, snapshot = settled(data)
    cache = StatCache(str(tmp_path / "cache"))
    cache.save("/r", snapshot)
    (file,) = (tmp_path / "cache" / "stat").iterdir()
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    assert cache.load("/r") is None
    file.write_bytes(raw[: len(raw) // 2])
    assert cache.load("/r") is None
    cache.save("/r", snapshot)
    assert cache.load("/r") == snapshot


def test_private_and_bounded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statcache, "MAX_FILES", 8)
    _, snapshot = settled(data)
    cache = StatCache.of_user({"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    for number in range(30):
        cache.save(f"/r{number}", snapshot)
    folder = tmp_path / "xdg" / "millpond-user" / "stat"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert 1 <= len(list(folder.iterdir())) <= 8
    assert cache.load("/r29") == snapshot


def test_what_is_gone_is_dropped_and_nothing_else(data: Path, tmp_path: Path) -> None:
    _, snapshot = settled(data)
    cache, project, away = StatCache(str(tmp_path / "cache")), tmp_path / "project", tmp_path / "away"
    (project / ".dvc").mkdir(parents=True)
    long = project / "/".join(["x" * 250] * 15)
    for folder in (project / "there", project / "gone", away / "project/data", long):
        folder.mkdir(parents=True)
        cache.save(str(folder), snapshot)
    cache.save(f"{project}/", snapshot)
    (project / "file").touch()
    cache.save(f"{project}/file/below", snapshot)
    for folder in (project / "gone", away, long):
        folder.rmdir() if folder != away else shutil.rmtree(away)
    for _ in range(3):
        cache.save(str(project / "new, and not there yet"), snapshot)
    kept = (f"{project}/there", f"{project}/", f"{away}/project/data", f"{project}/new, and not there yet")
    assert [cache.load(scope) for scope in kept] == [snapshot] * len(kept)
    assert [cache.load(str(scope)) for scope in (project / "gone", long, project / "file/below")] == [None] * 3


def test_unwritable_place_is_no_error(data: Path) -> None:
    _, snapshot = settled(data)
    cache = StatCache("/proc/nowhere")
    cache.save("/r", snapshot)
    assert cache.load("/r") is None


@pytest.mark.root
def test_another_users_file_is_not_believed(data: Path, tmp_path: Path) -> None:
    _, snapshot = settled(data)
    cache = StatCache(str(tmp_path / "cache"))
    cache.save("/r", snapshot)
    (file,) = (tmp_path / "cache" / "stat").iterdir()
    os.chown(file, 12345, -1)
    assert cache.load("/r") is None
