"""Several remotes: what one lacks, has damaged or cannot give comes from another, without waiting for the first again and again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents
from tests.remote.shared import Team, key_of
from tests.remote.test_lazy import begin, mount

from millpond.daemon.names import ObjectName
from millpond.daemon.project import config
from millpond.daemon.remote.places import Places
from millpond.daemon.remote.presence import ASK_EACH

pytestmark = pytest.mark.fuse
local = pytest.mark.parametrize("team", ["local"], indirect=True)
# Nobody listens there.
NOWHERE = (
    "    url = s3://gone/team\n    endpointurl = http://127.0.0.1:9\n    access_key_id = a\n    secret_access_key = b\n"
)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def with_disk(team: Team, home: Home) -> Path:
    """A second remote, with all that the default one has; which is nowhere from now on."""
    disk = team.folder / "disk"
    shutil.copytree(team.url, disk)
    (home.repo / ".dvc/config.local").write_text(
        f"['remote \"team\"']\n{NOWHERE}['remote \"disk\"']\n    url = {disk}\n"
    )
    return disk


@pytest.mark.long
@local
def test_a_remote_that_is_away_hides_no_other(team: Team) -> None:
    bob, expected = begin(team)
    with_disk(team, bob)
    place = mount(bob)
    began = time.monotonic()
    assert contents(place) == expected
    # 40 objects and more, each of which would have waited for the first contact by itself.
    assert time.monotonic() - began < 40
    carol = team.person("carol")
    carol.run("get", str(bob.repo), "data", "-o", "got")
    assert contents(carol.repo / "got") == expected
    dave = team.person("dave", bob)
    shutil.copy(bob.repo / ".dvc/config.local", dave.repo / ".dvc/config.local")
    refused = dave.run("fetch", code=9)
    assert "remote 'team'" in refused.stderr, "as with DVC, other remotes are not asked"


@pytest.mark.long
@local
def test_what_no_other_has_is_the_first_ones_error(team: Team) -> None:
    bob, expected = begin(team)
    lost = key_of(md5(expected["many/07"]))
    (with_disk(team, bob) / lost).unlink()
    (bob.path / "m").mkdir()
    said = bob.run("mount", "data", str(bob.path / "m"), code=9)
    sentence(said)
    assert "remote 'team'" in said.stderr


@pytest.mark.long
@local
def test_what_one_has_not_or_has_damaged_comes_from_another(team: Team) -> None:
    bob, expected = begin(team)
    disk = team.folder / "disk"
    shutil.copytree(team.url, disk)
    (bob.repo / ".dvc/config.local").write_text(f"['remote \"disk\"']\n    url = {disk}\n")
    lost, rotten, cut, large = (key_of(md5(expected[name])) for name in ("many/01", "many/02", "many/03", "large.bin"))
    team.put(lost, None)
    team.put(rotten, bytes(len(expected["many/02"])))
    team.put(cut, expected["many/03"][:10])
    team.put(large, bytes(len(expected["large.bin"])))
    place = mount(bob, "m", "--verify=whole")
    for name in ("many/01", "many/02"):
        assert (place / name).read_bytes() == expected[name]
    with contextlib.suppress(
        OSError
    ):  # it is found out when all of it is here, and another one opened when the kernel asks again
        (place / "large.bin").read_bytes()
    assert (place / "large.bin").read_bytes() == expected["large.bin"]
    carol = team.person("carol")
    carol.run("get", str(bob.repo), "data/many", "-o", "got")
    assert contents(carol.repo / "got") == {
        name.removeprefix("many/"): data for name, data in expected.items() if name.startswith("many/")
    }


@pytest.mark.long
@local
def test_a_remote_that_is_back_is_asked_first_again(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    (ann.repo / ".dvc/config.local").write_text(
        f"['remote \"team\"']\n    url = http://127.0.0.1:{port}\n['remote \"disk\"']\n    url = {team.url}\n"
    )
    places = Places(lambda: config.load(str(ann.repo / ".dvc"), ann.env), ann.env, aside_s=0.2)
    one = ObjectName("md5", md5(b"one, later\n"))
    for _ in range(3):
        assert places.read(one) == b"one, later\n"
    web, disk = places.transfers()
    assert (web.moved, disk.moved) == (0, 33)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=team.url)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def is_back() -> bool:
            return places.read(one) == b"one, later\n" and web.moved > 0

        eventually(is_back, "it was looked for")
        server.shutdown()
    assert places.read(one) == b"one, later\n", "and it is away again"
    places.close()


@contextlib.contextmanager
def silent() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port where connections are taken, and never answered; those that were."""
    met: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    met.append(sock.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield sock.getsockname()[1], met
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in met:
                each.close()


@local
def test_one_that_never_answers_is_waited_for_once(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q")
    with silent() as (port, met):
        (ann.repo / ".dvc/config.local").write_text(
            f"['remote \"team\"']\n    url = http://127.0.0.1:{port}\n    read_timeout = 1\n"
            f"['remote \"disk\"']\n    url = {team.url}\n"
        )
        places = Places(lambda: config.load(str(ann.repo / ".dvc"), ann.env), ann.env, patience_s=0.5)
        for _ in range(3):
            assert places.read(ObjectName("md5", md5(b"one, later\n"))) == b"one, later\n"
        places.close()
        assert len(met) == 1


def with_silent(team: Team, home: Home, port: int) -> None:
    """The default remote answers nobody; another one has all."""
    gone = NOWHERE.replace("127.0.0.1:9", f"127.0.0.1:{port}")
    disk = f"['remote \"disk\"']\n    url = {team.url}\n"
    (home.repo / ".dvc/config.local").write_text(f"['remote \"team\"']\n{gone}{disk}")


@local
@pytest.mark.long
@pytest.mark.parametrize("known", [False, True])
def test_a_mount_waits_for_one_that_never_answers_only_as_long_as_it_takes_to_ask_the_others(
    team: Team, known: bool
) -> None:
    """`known`: the manifest is here, so that only sizes are asked for."""
    bob, expected = begin(team)
    if known:
        lost = key_of(md5(expected["many/07"]))
        team.put(lost, None)
        (bob.path / "before").mkdir()
        bob.run("mount", "data", str(bob.path / "before"), code=8)
        team.put(lost, expected["many/07"])
    with silent() as (port, met):
        with_silent(team, bob, port)
        (bob.path / "m").mkdir()
        began = time.monotonic()
        said = bob.run("mount", "data", str(bob.path / "m"))
        assert time.monotonic() - began < 15
        assert "waiting for remote 'team', which does not answer" in said.stderr and met
        assert contents(bob.path / "m") == expected


@pytest.mark.long
@local
def test_the_only_one_that_never_answers_is_told_of_and_given_up(team: Team) -> None:
    bob, _ = begin(team)
    with silent() as (port, met):
        gone = NOWHERE.replace("127.0.0.1:9", f"127.0.0.1:{port}")
        (bob.repo / ".dvc/config.local").write_text(f"['remote \"team\"']\n{gone}")
        (bob.path / "m").mkdir()
        began = time.monotonic()
        said = bob.run("mount", "data", str(bob.path / "m"), code=9)
        assert 3 < time.monotonic() - began < 40 and met
        assert "waiting for remote 'team', which does not answer" in said.stderr
        assert "remote 'team'" in said.stderr.splitlines()[-1]


@pytest.mark.long
@local
@pytest.mark.parametrize("begun", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_listing_that_fails_hides_no_other_remote(team: Team, begun: bool) -> None:
    """`begun`: it answers until the listing is asked for."""
    ann = team.person("ann")
    (ann.repo / "data").mkdir()
    expected = {str(number): b"%d" % number for number in range(ASK_EACH + 1)}
    for name, data in expected.items():
        (ann.repo / "data" / name).write_bytes(data)
    ann.run("add", "-q", "data")
    ann.run("push", "-q")
    bob = team.person("bob")
    shutil.copy(ann.repo / "data.dvc", bob.repo)
    with_disk(team, bob)
    if begun:
        places = Places(lambda: config.load(str(bob.repo / ".dvc"), bob.env), bob.env)
        names = [ObjectName("md5", md5(data)) for data in expected.values()]
        places.expect(len(names))
        assert places.listed([name.value for name in names]) == [None] * len(names)
        assert places.sizes(names, more=True) == {
            name: len(data) for name, data in zip(names, expected.values(), strict=True)
        }
        places.close()
    else:
        assert contents(mount(bob)) == expected


@local
@pytest.mark.parametrize("how", ["it is mended", pytest.param("it is here", marks=pytest.mark.long)])
def test_sizes_that_a_remote_had_wrong_are_believed_no_longer_than_they_must_be(team: Team, how: str) -> None:
    bob, expected = begin(team)
    cut = {name: key_of(md5(expected[name])) for name in ("many/03", "large.bin")}
    for name, key in cut.items():
        team.put(key, expected[name][:-100])
    place = mount(bob)
    with pytest.raises(OSError):
        (place / "many/03").read_bytes()
    with contextlib.suppress(OSError):  # it is found out when all of it is here
        (place / "large.bin").read_bytes()
    for name, key in cut.items():
        team.put(key, expected[name])
    if how == "it is mended":
        bob.run("umount", str(place))
    else:  # the first one stays, and nobody looks at it
        bob.run("fetch", "-q", "data")
    assert contents(mount(bob, "again")) == expected
