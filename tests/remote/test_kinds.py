"""Data shared over ssh, and read over http, by the whole program; real DVC beside it on the same remote."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.mounts.conftest import contents
from tests.remote.conftest import ended
from tests.remote.servers import SSHServer, WebServer
from tests.remote.shared import Team, data_of, key_of
from tests.remote.test_lazy import LARGE, begin, mount, stats

from millpond.daemon.project.manifest import serialise
from millpond.daemon.remote.presence import ASK_EACH

pytestmark = pytest.mark.fuse


@pytest.fixture
def over_ssh(ssh: SSHServer) -> Iterator[Team]:
    """People have a key in ~/.ssh, and the server's."""
    with tempfile.TemporaryDirectory(prefix="mp-rem-", ignore_cleanup_errors=True) as folder:
        made = Team(Path(folder), ssh.url(Path(folder) / "remote"), None, [])
        made.keys_for_all = ssh.home / ".ssh"
        with ended(made):
            yield made


def test_ssh(over_ssh: Team) -> None:
    ann = over_ssh.begin()
    assert ann.run("push").stdout.startswith("7 files pushed (")
    assert ann.run("push").stdout == "Everything is up to date.\n"
    bob = over_ssh.person("bob", ann)
    assert "7 files fetched" in bob.dvc("pull").stdout
    assert data_of(bob) == data_of(ann)
    assert bob.run("status", "-c").stdout.startswith("Cache and remote 'team' are in sync")
    ann.run("cache", "export", "-A")
    ann.dvc("push", "-A")
    carol = over_ssh.person("carol", ann)
    assert "7 files fetched" in carol.run("pull").stdout and data_of(carol) == data_of(ann)
    assert "3 files fetched" in carol.run("fetch", "-A").stdout
    modes = {path.stat().st_mode & 0o777 for path in (over_ssh.folder / "remote/files").rglob("*") if path.is_file()}
    assert modes == {0o644}, "DVC's and ours alike"


@pytest.mark.long
def test_a_version_that_is_on_an_ssh_server_alone_is_read(over_ssh: Team) -> None:
    bob, expected = begin(over_ssh)
    place = mount(bob)
    assert stats(place)["remote_bytes"] == 0
    with open(place / "large.bin", "rb") as file:
        file.seek(5_000_000)
        assert file.read(1000) == expected["large.bin"][5_000_000:5_001_000]
    assert stats(place)["remote_bytes"] < LARGE
    assert {key: value for key, value in contents(place).items() if not key.startswith(".")} == expected


@pytest.mark.parametrize("kind", ["open", pytest.param("norange", marks=pytest.mark.long)])
def test_http(web: WebServer, kind: str) -> None:
    """Ann writes into the web server's folder, Bob has only its address."""
    with tempfile.TemporaryDirectory(prefix="mp-rem-", ignore_cleanup_errors=True) as folder:
        name = f"{kind}-remote"
        team = Team(Path(folder), str(web.folder / name), None, [])
        with ended(team):
            bob, expected = begin(team)
            ann = team.people[0]
            _config(bob, web.url(kind, name))
            place = mount(bob)
            assert contents(place / "sub") == {
                key.removeprefix("sub/"): data for key, data in expected.items() if key.startswith("sub/")
            }
            assert (place / "large.bin").read_bytes() == expected["large.bin"]
            bob.run("umount", str(place))
            said = bob.run("pull").stdout
            assert "A       data/" in said and contents(bob.repo / "data") == expected
            assert bob.run("status", "-c").stdout.startswith("Cache and remote 'team' are in sync")
            if kind == "open":
                carol = team.person("carol", ann)
                _config(carol, web.url(kind, name))
                carol.dvc("pull")
                assert contents(carol.repo / "data") == expected
            (bob.repo / "new").write_bytes(b"new")
            bob.run("add", "-q", "new")
            refused = bob.run("push", "new", code=251).stderr
            assert "remote 'team'" in refused and "read-only" in refused and "-r NAME" in refused
            _config(bob, "http://127.0.0.1:9/away")
            assert "read-only" in bob.run("push", "new", code=251).stderr, "which matters more than that it is away"
            _config(bob, web.url(kind, name))
            shutil.rmtree(web.folder / name)
            dave = team.person("dave", ann)
            _config(dave, web.url(kind, name))
            assert "data" in dave.run("fetch", code=8).stderr


def _config(home: Home, url: str) -> None:
    (home.repo / ".dvc/config.local").write_text(f"['remote \"team\"']\n    url = {url}\n")


def test_a_version_whose_sizes_come_of_a_listing_is_as_the_remote_has_it(over_ssh: Team) -> None:
    """More files than are asked for one by one; two of them are one object, and the remote has others."""
    remote = over_ssh.folder / "remote"
    names = {
        f"{number // 100:02}/{number:04}": b"x" * (number % 900) + b"%d" % number for number in range(ASK_EACH + 150)
    }
    names |= {"again": names["00/0007"], "more than it.txt": b"others"}
    rows = []
    for path, data in [*names.items(), (None, b"of no version")]:
        value = hashlib.md5(data).hexdigest()
        place = remote / key_of(value)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        if path is not None:
            rows.append((path, value))
    manifest = serialise(sorted(rows))
    value = hashlib.md5(manifest).hexdigest() + ".dir"
    (remote / key_of(value)).parent.mkdir(exist_ok=True)
    (remote / key_of(value)).write_bytes(manifest)
    bob = over_ssh.person("bob")
    (bob.repo / "data.dvc").write_text(f"outs:\n- md5: {value}\n  nfiles: {len(rows)}\n  hash: md5\n  path: data\n")
    mounted = mount(bob)
    found = {path.relative_to(mounted).as_posix(): path.stat().st_size for path in mounted.rglob("*") if path.is_file()}
    found = {path: size for path, size in found.items() if not path.startswith(".millpond")}
    assert found == {path: len(data) for path, data in names.items()}
    for path in ("again", "00/0007", "11/1149"):
        assert (mounted / path).read_bytes() == names[path]
