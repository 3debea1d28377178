"""The directory underneath a mount, and records of mounts."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.daemon.errors import MountError, NotMountedError
from millpond.daemon.mounts import place
from millpond.daemon.mounts.records import MountRecord, MountRecords, StandsIn, new_id


def test_the_place_is_marked_and_read_only_while_mounted_and_as_before_afterwards(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with place.prepared(str(tmp_path), target="data", version="abc") as mode:
        assert "data" in (tmp_path / place.MARKER).read_text()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == place.READ_ONLY
    with pytest.raises(NotMountedError):
        place.require_mounted(str(tmp_path / "below" / "it"))
    place.released(str(tmp_path), mode)
    place.released(str(tmp_path), mode)
    assert os.listdir(tmp_path) == [] and stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
    place.require_mounted(str(tmp_path))


def test_a_place_of_any_name_is_marked(tmp_path: Path) -> None:
    where = os.fsencode(tmp_path) + b"/odd\n\xff name"
    os.mkdir(where)
    with place.prepared(os.fsdecode(where), target=os.fsdecode(b"\xfe"), version="abc"):
        found = Path(os.fsdecode(where), place.MARKER).read_bytes()
    assert where in found and b"\xfe" in found


def test_a_mount_that_fails_leaves_the_place_as_it_was(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(MountError), place.prepared(str(tmp_path), target="data", version="abc"):
        raise MountError("no")
    assert os.listdir(tmp_path) == [] and stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_place_is_prepared_by_one_at_a_time(tmp_path: Path) -> None:
    with place.prepared(str(tmp_path), target="data", version="abc") as mode:
        with pytest.raises(MountError, match="another command"), place.prepared(str(tmp_path), target="b", version="2"):
            raise AssertionError("the second is let in")
        assert "data" in (tmp_path / place.MARKER).read_text()
    place.released(str(tmp_path), mode)


def test_a_marker_left_by_a_dead_mount_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / place.MARKER).write_text("")
    place.check(str(tmp_path))
    (tmp_path / "other").write_text("")
    with pytest.raises(MountError, match="not empty"):
        place.check(str(tmp_path))


def test_the_mount_table_knows_proc() -> None:
    found = place.mounted_at("/proc")
    assert found is not None and found.fstype == "proc"
    assert place.mounted_at("/proc/self") is None


def record(folder: str = "/mnt/x") -> MountRecord:
    return MountRecord(
        new_id(),
        1000,
        folder,
        "/repo",
        "data",
        "c" * 40,
        None,
        "ab" * 32,
        False,
        3,
        10,
        0o755,
        "auto",
        {},
        {},
        1,
        2,
        3.0,
    )


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw))
def test_records_keep_any_path(raw: bytes) -> None:
    made = record("/" + os.fsdecode(raw))
    assert MountRecord.from_json(made.to_json()) == made
    assert MountRecord.from_json({**made.to_json(), "of a newer version": 1}) == made


def test_records_are_kept_and_a_damaged_one_is_set_aside(tmp_path: Path) -> None:
    records = MountRecords(tmp_path / "mounts")
    first, second = record(), record("/mnt/y")
    records.save(first)
    records.save(second)
    changed = dataclasses.replace(first, pid=99)
    records.save(changed)
    (tmp_path / "mounts" / f"{second.id}.json").write_text("{")
    assert MountRecords(tmp_path / "mounts").load() == [changed]
    assert (tmp_path / "mounts" / f"{second.id}.damaged").exists()
    records.remove(first.id)
    records.remove(first.id)
    assert records.load() == []


def test_a_place_that_is_made_for_a_mount_is_never_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "deep" / "er" / "data"
    seen: list[bool] = []

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            found = real(*args, **options)
            seen.append(where.exists())
            assert not where.exists() or (where / place.MARKER).exists(), f"after {name} of {args}"
            return found

        monkeypatch.setattr(os, name, call)

    for name in ("mkdir", "open", "rename", "unlink", "rmdir", "chmod", "close"):
        watched(name)
    above = place.made(str(where), target="data", version="abc")
    assert above == [str(tmp_path / "deep"), str(tmp_path / "deep" / "er")] and place.is_marked(str(where))
    with place.prepared(str(where), target="data", version="abc"):
        pass
    place.taken_away(str(where))
    place.taken_away(str(where))
    assert True in seen and os.listdir(tmp_path / "deep" / "er") == []


def test_a_place_that_holds_more_than_the_marker_stays(tmp_path: Path) -> None:
    where = tmp_path / "data"
    place.made(str(where), target="data", version="abc")
    (where / "more").write_text("1")
    assert not place.is_marked(str(where))
    place.taken_away(str(where))
    assert os.listdir(where) == ["more"]


def test_what_stands_in_for_a_file_goes_only_if_it_leads_to_the_mount(tmp_path: Path) -> None:
    mountpoint = tmp_path / "kept" / "mount"
    where = tmp_path / "made" / "file"
    for leads, left in (("../kept/mount/file", False), ("../kept/other/file", True)):
        place.made(str(mountpoint), target="file", version="abc")
        where.parent.mkdir(exist_ok=True)
        where.symlink_to(leads)
        StandsIn(str(where), (str(where.parent),)).remove(str(mountpoint))
        assert where.is_symlink() == left and where.parent.exists() == left and not mountpoint.exists()


def test_the_table_tells_what_a_mount_shows() -> None:
    shown, other = place.source_of("md5:ab.dir", "012345abcdef"), place.source_of(None, "012345abcdef")
    assert (shown, other) == ("millpond:md5:ab.dir:012345abcdef", "millpond:012345abcdef")
    for source in (shown, other):
        entry = place.MountEntry("/m", place.FSTYPE, source, "0:50")
        assert place.is_of(entry, "012345abcdef") and not place.is_of(entry, "012345abcdee")
    # Of a millpond of before; of another program.
    assert place.is_of(place.MountEntry("/m", place.FSTYPE, "millpond:md5:ab.dir", "0:50"), "012345abcdef")
    assert not place.is_of(place.MountEntry("/m", "tmpfs", other, "0:50"), "012345abcdef")
    assert place.shown_objects() == {} or all(path.startswith("/") for path in place.shown_objects())
