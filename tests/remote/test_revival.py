"""Mounts whose source died, or which remotes refuse: they go on by themselves, or with the credentials of the next command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents
from tests.mounts.test_kills import processes
from tests.remote import proxy as proxies
from tests.remote.proxy import Proxy
from tests.remote.servers import KEY, SECRET, s3_server
from tests.remote.shared import Team, s3_if_long
from tests.remote.test_lazy import begin, fails, far, mount, stats, through

__all__ = ["far"]
pytestmark = pytest.mark.fuse
SECRETS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
only_s3 = pytest.mark.parametrize("team", ["s3"], indirect=True)


def shown(home: Home) -> dict[str, Any]:
    """The home's only mount."""
    [found] = json.loads(home.run("mounts", "--json").stdout)["mounts"]
    return dict(found)


def source_of(home: Home) -> int:
    """The pid of the home's only source."""
    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(OSError):
            found[:] = [
                pid for pid in processes(home, "worker") if Path(f"/proc/{pid}/comm").read_text() == "millpond-source\n"
            ]
        return len(found) == 1

    eventually(look, "there is a source")
    return found[0]


@pytest.mark.long
@s3_if_long
def test_a_source_that_was_killed_is_followed_by_another(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    holder = shown(bob)["pid"]
    fd = os.open(place / "large.bin", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(fd, 1000, 0) == expected["large.bin"][:1000]
        for _ in range(2):
            os.kill(source_of(bob), signal.SIGKILL)
            assert (place / "many/01").read_bytes() == expected["many/01"]
        assert os.pread(fd, 1000, 8_000_000) == expected["large.bin"][8_000_000:8_001_000], "what is open goes on"
    finally:
        os.close(fd)
    assert contents(place) == expected
    now = stats(place)
    assert now["errors"] == 0 and now["source_starts"] >= 2
    assert shown(bob)["pid"] == holder, "nothing was mounted anew"


@pytest.mark.long
def test_readers_wait_for_the_daemon_that_starts_a_source(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    source, [daemon] = source_of(bob), processes(bob, "daemon")
    os.kill(daemon, signal.SIGKILL)
    os.kill(source, signal.SIGKILL)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((place / "many/02").read_bytes()))
    reader.start()
    bob.run("status", "-q", code=None)  # starts another
    reader.join(30)
    assert read == [expected["many/02"]]


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_without_a_daemon_readers_are_told_in_bounded_time(team: Team) -> None:
    bob, expected = begin(team)
    place = mount(bob)
    source, [daemon] = source_of(bob), processes(bob, "daemon")
    os.kill(daemon, signal.SIGKILL)
    os.kill(source, signal.SIGKILL)
    read = subprocess.run(["cat", str(place / "many/02")], capture_output=True, timeout=40, check=False)
    assert b"Input/output error" in read.stderr
    bob.run("status", "-q", code=None)
    assert contents(place) == expected


@only_s3
def test_credentials_of_the_environment_come_back_with_the_next_command(team: Team) -> None:
    bob, expected = begin(team)
    (bob.repo / ".dvc/config.local").unlink()
    place = bob.path / "m"
    place.mkdir()
    bob.run("mount", "-q", "data", str(place), env=SECRETS)
    assert (place / "many/01").read_bytes() == expected["many/01"]
    for victim, name in ((source_of(bob), "sub/one.bin"), (shown(bob)["pid"], "large.bin")):
        os.kill(victim, signal.SIGKILL)

        def is_refused(name: str = name) -> bool:
            return fails(place / name) and shown(bob)["state"] == "needs-credentials"

        eventually(is_refused, "nobody kept them")
        assert "no credentials for remote 'team'" in shown(bob)["error"]
        assert "no credentials" in str(stats(place)["needs_credentials"])
        text = bob.run("mounts").stdout
        assert "needs-credentials" in text and "millpond remote login" in text
        bob.run("status", "-q", code=None)
        bob.run("status", "-q", code=None, env={**SECRETS, "AWS_SECRET_ACCESS_KEY": ""})
        assert shown(bob)["state"] == "needs-credentials", "a command without any gives none"
        bob.run("status", "-q", code=None, env=SECRETS)
        eventually(lambda: shown(bob)["state"] == "mounted", "any command in the project brings them")
        assert (place / name).read_bytes() == expected[name]
    assert contents(place) == expected
    found = subprocess.run(["grep", "-rlF", SECRET, str(bob.path)], capture_output=True, text=True, check=False).stdout
    assert found == "", "no file of the daemon, its log or its records has them"
    for pid in (*processes(bob, "daemon"), *processes(bob, "worker"), shown(bob)["pid"]):
        for part in ("environ", "cmdline"):
            assert SECRET.encode() not in Path(f"/proc/{pid}/{part}").read_bytes()


@pytest.mark.long
@only_s3
def test_login_gives_a_mount_what_lets_it_in(team: Team, far: Proxy) -> None:
    bob, expected = begin(team)
    through(bob, far)
    place = mount(bob)
    far.fault = proxies.denied
    assert fails(place / "many/39")
    assert shown(bob)["state"] == "needs-credentials"
    done = bob.run("remote", "login", code=10)
    sentence(done)
    assert "have expired" in done.stderr
    sentence(bob.run("remote", "login", "nowhere", code=None))
    far.fault = None
    said = json.loads(bob.run("remote", "login", "team", "--json").stdout)
    assert said == {"remote": "team", "mounts": [str(place)], "failed": []}
    assert shown(bob)["state"] == "mounted", "at once"
    assert "1 mount has these credentials now" in bob.run("remote", "login").stdout
    assert contents(place) == expected


@pytest.mark.long
def test_a_key_that_was_deleted_is_followed_by_another_in_a_file(tmp_path: Path) -> None:
    """A service that checks who asks: the mount says what it says, and takes the new key from the project's own config."""
    import boto3

    with s3_server(tmp_path / "log") as server, tempfile.TemporaryDirectory(prefix="mp-rem-") as folder:
        iam = boto3.client("iam", endpoint_url=server.endpoint, region_name="us-east-1", **as_boto(KEY, SECRET))
        keys = {}
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        for user in ("admin", "bob"):
            iam.create_user(UserName=user)
            iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=json.dumps(policy))
            keys[user] = iam.create_access_key(UserName=user)["AccessKey"]
        server.bucket("team")
        team = Team(Path(folder), "s3://team/data", server, [])
        try:
            bob, expected = begin(team)
            checking = urllib.request.Request(
                f"{server.endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
            )
            urllib.request.urlopen(checking).close()
            write_key(bob, keys["bob"])
            place = mount(bob)
            assert (place / "many/01").read_bytes() == expected["many/01"]
            admin = boto3.client(
                "iam",
                endpoint_url=server.endpoint,
                region_name="us-east-1",
                **as_boto(keys["admin"]["AccessKeyId"], keys["admin"]["SecretAccessKey"]),
            )
            admin.delete_access_key(UserName="bob", AccessKeyId=keys["bob"]["AccessKeyId"])
            assert fails(place / "large.bin")
            assert shown(bob)["state"] == "needs-credentials" and "InvalidAccessKeyId" in shown(bob)["error"]
            bob.run("status", "-q", code=None)
            assert shown(bob)["state"] == "needs-credentials"
            write_key(bob, admin.create_access_key(UserName="bob")["AccessKey"])
            bob.run("status", "-q", code=None)
            eventually(lambda: shown(bob)["state"] == "mounted", "it has the new key")
            assert contents(place) == expected
        finally:
            for home in team.people:
                home.close()


def as_boto(key: str, secret: str) -> dict[str, Any]:
    return {"aws_access_key_id": key, "aws_secret_access_key": secret}


def write_key(home: Home, key: dict[str, Any]) -> None:
    (home.repo / ".dvc/config.local").write_text(
        f"['remote \"team\"']\n    access_key_id = {key['AccessKeyId']}\n"
        f"    secret_access_key = {key['SecretAccessKey']}\n"
    )
