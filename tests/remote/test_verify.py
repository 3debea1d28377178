"""What is checked before it is read: large files of mounts with --verify=whole, and objects that have DVC 2's names."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from pathlib import Path

import pytest
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents
from tests.remote.shared import Team, key_of, s3_if_long
from tests.remote.test_lazy import LARGE, begin, fails, mount, stats
from tests.remote.test_revival import shown

from millpond.daemon.project.hashing import md5_dos2unix_of

pytestmark = pytest.mark.fuse


def part_of(path: Path, offset: int, size: int) -> bytes:
    """Read there only."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


@s3_if_long
def test_with_verify_whole_no_byte_of_a_wrong_object_is_given_out(team: Team) -> None:
    bob, expected = begin(team)
    key = key_of(hashlib.md5(expected["large.bin"]).hexdigest())
    team.put(key, expected["large.bin"][:-1] + b"X")
    place = mount(bob, "m", "--verify", "whole")
    with pytest.raises(OSError, match="Input/output error"):
        part_of(place / "large.bin", 0, 100)
    assert "not what its name says" in str(stats(place)["last_error"])
    assert shown(bob)["verify"] == "whole" and stats(place)["unverified"] == 0
    said = bob.run("mounts", "-v").stdout
    assert "before they are read; 0 objects in part" in said and "s for remotes, 0.0 s for the disk, 0.0 s for" in said
    bob.run("umount", str(place))
    team.put(key, expected["large.bin"])
    again = mount(bob, "n", "--verify", "whole")
    assert part_of(again / "large.bin", 5_000_000, 100) == expected["large.bin"][5_000_000:5_000_100]
    assert stats(again)["remote_bytes"] >= LARGE, "all of it came first"
    assert contents(again) == expected
    eventually(lambda: not list((bob.path / "cache/millpond-user/partial").glob("*")), "it is stored")
    bob.run("umount", str(again))
    by_default = mount(bob, "o")
    assert contents(by_default) == expected and shown(bob)["verify"] == "blocks"


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_what_is_here_in_part_is_counted_until_it_is_checked(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    part_of(place / "large.bin", 5_000_000, 100)
    assert shown(bob)["unverified"] == 1 == stats(place)["unverified"]
    assert (place / "large.bin").read_bytes() == expected["large.bin"]
    eventually(lambda: shown(bob)["unverified"] == 0, "it is checked")
    assert contents(place) == expected == contents(place)
    now = shown(bob)
    assert now["waited_s"] > 0 and 0 <= now["hit_rate"] < 1
    assert min(now["waited_disk_s"], now["waited_unpacking_s"]) >= 0


@pytest.mark.long
@s3_if_long
def test_objects_of_dvc_2_are_read_lazily(team: Team) -> None:
    """Text is named by what it is without CRs, part by part: it comes whole, is checked, and is kept in DVC's cache."""
    ann = team.person("ann")
    line = b"some, values, of a table\r\n"
    data = {
        "text": b"a\r\nb\r\n",
        "binary": bytes(range(256)) * 50,
        "table.csv": line * (6_000_000 // len(line)),
        "wrong": b"1\r\n",
        "large wrong": line * 200_000,
    }
    names = {}
    for name, content in data.items():
        value = names[name] = md5_dos2unix_of(BytesIO(content))
        (ann.repo / f"{name}.dvc").write_text(f"outs:\n- md5: {value}\n  size: {len(content)}\n  path: {name}\n")
        content = content.replace(b"\n", b"\t") if "wrong" in name else content
        team.put(f"{value[:2]}/{value[2:]}", content)
    ann.git("add", "-A")
    ann.git("commit", "-qm", "first")
    place = mount(ann, target="@HEAD")
    right = {name: content for name, content in data.items() if "wrong" not in name}
    assert part_of(place / "table.csv", 3_000_000, 100) == data["table.csv"][3_000_000:3_000_100]
    assert {name: (place / name).read_bytes() for name in right} == right
    assert fails(place / "wrong") and fails(place / "large wrong")
    cache = ann.repo / ".dvc/cache"

    def kept() -> bool:
        found = [path for path in cache.rglob("*") if path.is_file()]
        return sorted(path.read_bytes() for path in found) == sorted(right.values())

    eventually(kept, "they are where DVC keeps them")
    assert "up to date" in ann.run("fetch", "text", "table.csv", "binary").stdout
    ann.dvc("checkout", "text.dvc", "table.csv.dvc", "binary.dvc")
    assert {name: (ann.repo / name).read_bytes() for name in right} == right, "DVC finds them there"
    ann.run("umount", str(place))
    again = mount(ann, "n", target="@HEAD")
    assert {name: (again / name).read_bytes() for name in right} == right
    assert stats(again)["remote_requests"] == 0
