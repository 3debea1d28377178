"""Versions that are on a remote alone, mounted and read, by a network that fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents, fill
from tests.mounts.test_kills import processes
from tests.remote import proxy as proxies
from tests.remote.proxy import Proxy, proxy
from tests.remote.servers import KEY, SECRET, S3Server
from tests.remote.shared import Team, key_of, local_if_long, s3_if_long
from tests.store.helpers import sample

pytestmark = pytest.mark.fuse
LARGE = 9_000_000


@pytest.fixture
def far(s3: S3Server) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as made:
        yield made


def begin(team: Team) -> tuple[Home, dict[str, bytes]]:
    """Ann's data is pushed, Bob has nothing of it but the pointers."""
    ann = team.person("ann")
    data = ann.repo / "data"
    expected = fill(data, 1)
    for number in range(40):
        expected[f"many/{number:02}"] = sample(100 + number, 1000 + 500 * number)
    expected["large.bin"] = sample(7, LARGE)
    for name, content in expected.items():
        (data / name).parent.mkdir(exist_ok=True, parents=True)
        (data / name).write_bytes(content)
    ann.run("add", "-q", "data")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "first")
    ann.run("push", "-q")
    return team.person("bob", ann), expected


def mount(home: Home, name: str = "m", *options: str, target: str = "data") -> Path:
    place = home.path / name
    place.mkdir()
    home.run("mount", "-q", target, str(place), *options)
    return place


def stats(place: Path) -> dict[str, float]:
    return dict(json.loads((place / ".millpond/stats").read_bytes()))


def through(home: Home, far: Proxy) -> None:
    """Have somebody's requests go through the proxy."""
    config = home.repo / ".dvc/config.local"
    config.write_text(config.read_text() + f"    endpointurl = {far.endpoint}\n")


@local_if_long
def test_a_version_that_is_on_a_remote_alone_is_read(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    assert {str(path.relative_to(place)): path.stat().st_size for path in place.rglob("*") if path.is_file()} == {
        name: len(data) for name, data in expected.items()
    }, "sizes are known before anything is read"
    assert stats(place)["remote_bytes"] == 0
    with open(place / "large.bin", "rb") as file:
        file.seek(5_000_000)
        assert file.read(1000) == expected["large.bin"][5_000_000:5_001_000]
    assert stats(place)["remote_bytes"] < LARGE / 2, "a part is read, not the file"
    assert contents(place) == expected
    bob.run("umount", str(place))
    eventually(lambda: "is clean" in bob.run("fsck", "--deep").stdout, "what was read is stored")
    said = bob.run("fetch").stdout
    # Of an empty file nothing is read; it may have come with the others of its folder.
    assert said in ("1 file fetched (0 B)\n", "Everything is up to date.\n"), "what was read is here now, and granted"
    bob.run("checkout", "-q")
    assert contents(bob.repo / "data") == expected


@s3_if_long
def test_what_was_read_in_part_is_not_asked_for_again(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    some_parts(place / "large.bin", expected["large.bin"])
    bob.run("umount", str(place))
    partial = bob.path / "cache/millpond-user/partial"
    [sparse] = [path for path in partial.iterdir() if path.suffix != ".map"]
    with open(sparse, "r+b") as raw:  # bit rot in a block that was there
        raw.seek(500_000)
        raw.write(b"rot")
    again = mount(bob, "n")
    some_parts(again / "large.bin", expected["large.bin"])
    assert stats(again)["remote_bytes"] == 1 << 20, (
        "the first block alone, which is damaged, and shows the ETag in any case"
    )
    assert (again / "large.bin").read_bytes() == expected["large.bin"]
    eventually(lambda: not list(partial.glob("*")), "it is stored as a whole")
    eventually(lambda: not [path for path in open_at(bob) if "/partial/" in path], "and its room comes back")
    assert "is clean" in bob.run("fsck", "--deep").stdout


def open_at(home: Home) -> list[str]:
    """What the user's workers and sources have open; holders close what is read through them in their own time."""
    holders = {mount["pid"] for mount in json.loads(home.run("mounts", "--json").stdout)["mounts"]}
    found = []
    for pid in set(processes(home, "worker")) - holders:
        with contextlib.suppress(OSError):
            found += [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert found, "there is a source"
    return found


def some_parts(path: Path, expected: bytes) -> None:
    """Read here and there, so that nothing is brought ahead."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in (500_000, 8_500_000, 3_000_000):
            assert os.pread(fd, 10_000, offset) == expected[offset : offset + 10_000]
    finally:
        os.close(fd)


@pytest.mark.long
@pytest.mark.parametrize("team", ["s3"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    ["truncated", pytest.param("slow_down", marks=pytest.mark.long), pytest.param("broken", marks=pytest.mark.long)],
)
def test_what_fails_now_and_then_is_not_seen(team: Team, far: Proxy, fault: str) -> None:
    bob, expected = begin(team)
    through(bob, far)
    spoil = getattr(proxies, fault)
    far.fault = lambda request, given: spoil(request, given) if far.count % 3 == 0 else given
    place = mount(bob)
    assert contents(place) == expected
    assert stats(place)["errors"] == 0
    far.fault = lambda request, given: spoil(request, given) if far.count % 4 == 0 else given
    bob.run("umount", str(place))
    assert bob.run("pull").stdout.startswith("A       data/")
    assert contents(bob.repo / "data") == expected


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_wrong_bytes_are_an_error_and_are_not_kept(team: Team, far: Proxy) -> None:
    bob, expected = begin(team)
    place_name = "many/07"
    value = hashlib.md5(expected[place_name]).hexdigest()
    through(bob, far)
    far.fault = lambda request, given: (
        proxies.wrong(request, given) if value[2:].encode() in request and request.startswith(b"GET") else given
    )
    place = mount(bob)
    with pytest.raises(OSError, match="Input/output error"):
        (place / place_name).read_bytes()
    assert "not what its name says" in str(stats(place)["last_error"])
    assert (place / "many/08").read_bytes() == expected["many/08"]
    assert "not what its name says" in bob.run("mounts", "--json").stdout
    done = bob.run("fetch", code=6)
    sentence(done)
    assert f"'data/{place_name}'" in done.stderr
    far.fault = None
    assert contents(place) == expected, "and it is read once the remote is right"


@pytest.mark.long
@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_a_large_object_with_wrong_bytes_is_found_out_in_the_end(team: Team, far: Proxy) -> None:
    """Blocks are given out before the whole is checked; then the file is an error, and never stored."""
    bob, expected = begin(team)
    value = hashlib.md5(expected["large.bin"]).hexdigest()
    team.put(key_of(value), b"X" + expected["large.bin"][1:])
    place = mount(bob)
    with open(place / "large.bin", "rb") as file:
        data = file.read()
        assert data[1:] == expected["large.bin"][1:]
    eventually(lambda: bob.run("fetch", "data/large.bin", code=None).returncode == 6, "it is not stored")

    bob.run("umount", str(place))
    again = mount(bob, "n")
    team.put(key_of(value), expected["large.bin"])
    assert (again / "large.bin").read_bytes() == expected["large.bin"], "nothing of the wrong one was kept"


@pytest.mark.long
@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_an_object_that_changes_while_it_is_read_is_an_error(team: Team) -> None:
    bob, expected = begin(team)
    value = hashlib.md5(expected["large.bin"]).hexdigest()
    place = mount(bob)
    fd = os.open(place / "large.bin", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # else all of it may be here already
    try:
        assert os.pread(fd, 100, 0) == expected["large.bin"][:100]
        team.put(key_of(value), sample(8, LARGE))
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 100, 8_000_000)
    finally:
        os.close(fd)
    assert "was changed on the remote" in str(stats(place)["last_error"])
    team.put(key_of(value), expected["large.bin"])
    eventually(lambda: not fails(place / "large.bin"), "it can be read again")
    assert (place / "large.bin").read_bytes() == expected["large.bin"], "nothing of the other one was kept"


@pytest.mark.long
@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_an_outage_ends_without_mounting_again(team: Team, far: Proxy) -> None:
    bob, expected = begin(team)
    through(bob, far)
    place = mount(bob)
    assert (place / "many/01").read_bytes() == expected["many/01"]
    far.fault = proxies.denied
    eventually(lambda: fails(place / "many/39"), "its credentials have expired")
    assert "have expired" in str(stats(place)["last_error"])
    far.fault = None
    eventually(lambda: not fails(place / "many/39"), "renewed credentials are taken")
    assert contents(place) == expected


def fails(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_readers_share_a_request(team: Team, far: Proxy) -> None:
    bob, expected = begin(team)
    through(bob, far)
    place = mount(bob)
    far.delay_s = 0.3
    far.seen.clear()
    name = "sub/one.bin"
    value = hashlib.md5(expected[name]).hexdigest()
    readers = [subprocess.Popen(["md5sum", str(place / name)], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert {reader.communicate(timeout=30)[0].split()[0] for reader in readers} == {value}
    assert len([line for line in far.seen if value[2:].encode() in line]) == 1


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_credentials_come_with_the_mount_and_are_kept_nowhere(team: Team) -> None:
    bob, expected = begin(team)
    (bob.repo / ".dvc/config.local").unlink()
    place = bob.path / "m"
    place.mkdir()
    done = bob.run("mount", "data", str(place), code=10)
    sentence(done)
    assert "no credentials" in done.stderr and "'team'" in done.stderr
    secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    bob.run("mount", "-q", "data", str(place), env=secrets)
    assert contents(place) == expected
    found = subprocess.run(
        ["grep", "-rlF", SECRET, str(bob.path)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert found == [], "no file of the daemon, its log or its records has them"
    [daemon] = processes(bob, "daemon")
    for part in ("environ", "cmdline"):
        assert SECRET.encode() not in Path(f"/proc/{daemon}/{part}").read_bytes()


@s3_if_long
def test_kill_9_of_daemon_and_source_leaves_a_mount_that_can_be_used_again(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    assert (place / "many/01").read_bytes() == expected["many/01"]
    [daemon] = processes(bob, "daemon")
    os.kill(daemon, signal.SIGKILL)
    with open(place / "large.bin", "rb") as file:
        assert file.read(2_000_000) == expected["large.bin"][:2_000_000], "fetched while the daemon is away"
    bob.run("status", "-q", code=None)  # starts another
    assert contents(place) == expected
    eventually(
        lambda: bob.run("fetch").stdout in ("1 file fetched (0 B)\n", "Everything is up to date.\n"), "and stored by it"
    )
    assert "is clean" in bob.run("fsck", "--deep").stdout


@s3_if_long
def test_warm_brings_what_a_mount_would_show(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob, "m", target="data@HEAD")
    assert bob.run("warm", "data/many@HEAD").stdout.startswith("40 files fetched")
    assert (place / "many/05").read_bytes() == expected["many/05"] and stats(place)["remote_requests"] == 0
    bob.run("warm", "@HEAD")
    assert bob.run("warm", "data@main").stdout == bob.run("warm").stdout == "Everything is up to date.\n"
    assert contents(place) == expected and stats(place)["remote_requests"] == 0
    assert "nowhere" in bob.run("warm", "data@nowhere", code=None).stderr


@pytest.mark.long
@s3_if_long
def test_whole_revisions_and_all_versions(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob, "m", target="@HEAD")
    assert (place / "data/many/03").read_bytes() == expected["many/03"]
    assert (place / "data.dvc").read_bytes() == (bob.repo / "data.dvc").read_bytes()
    versions = bob.path / "v"
    versions.mkdir()
    bob.run("mount", "-q", "--versions", str(versions))
    assert (versions / "main/data/sub/one.bin").read_bytes() == expected["sub/one.bin"]
    shutil.rmtree(bob.repo / "data", ignore_errors=True)
    bob.run("checkout", "-q", "--mount")
    assert contents(bob.repo / "data") == expected
