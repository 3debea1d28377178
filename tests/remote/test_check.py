"""`remote check`: what is told of remotes of all kinds, and that nothing is left there."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from tests.cli.conftest import home as home
from tests.cli.helpers import Home
from tests.remote.servers import S3Server, SSHServer, WebServer
from tests.remote.test_backends import values

from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Backend
from millpond.daemon.remote.checks import FAILED, NO, OK, SKIPPED, Check, check
from millpond.daemon.remote.remotes import Remote, connect

ALL = ["reach", "list", "layout", "read", "write", "read back", "create", "clock", "versions", "delete"]
NAME = ObjectName("md5", "ab" * 16)


def checked(backend: Backend, *, write: bool = True, names: tuple[ObjectName, ...] = ()) -> dict[str, Check]:
    try:
        return {each.name: each for each in check(backend, names, write=write)}
    finally:
        backend.close()


def folder(path: Path) -> Backend:
    return connect(Remote("r", str(path), {}), {})


def bucket(s3: S3Server, **more: str) -> Backend:
    name = s3.bucket(f"c-{random.randrange(1 << 60):x}")
    return connect(Remote("r", f"s3://{name}/some/where", values("s3", s3) | more), {})


@pytest.mark.parametrize("kind", ["local", "s3", "s3-boto", "ssh"])
def test_a_remote_that_can_all_of_it(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    if kind.startswith("s3"):
        backend = bucket(request.getfixturevalue("s3"), **({"acl": "private"} if kind == "s3-boto" else {}))
    elif kind == "ssh":
        sshd: SSHServer = request.getfixturevalue("ssh")
        backend = connect(Remote("r", sshd.url(tmp_path / "remote"), sshd.values), sshd.environ)
    else:
        backend = folder(tmp_path / "remote")
    found = list(check(backend, [], write=True))
    assert [each.name for each in found] == ALL
    assert {each.name: each.detail for each in found if each.state != OK} == {"read": "nothing is there to be read"}
    told = {each.name: each.detail for each in found}
    assert (told["layout"], told["clock"], told["versions"]) == ("empty", "the same", "none are kept")
    assert (
        list(backend.list("")) == [] and [file for _, _, files in os.walk(tmp_path / "remote") for file in files] == []
    )
    backend.close()


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    def told(*keys: str) -> str:
        for key in keys:
            (tmp_path / "r" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "r" / key).write_bytes(b"1")
        found = checked(folder(tmp_path / "r"), write=False)
        assert list(found) == ALL[:4] and found["read"].state == (OK if keys else SKIPPED)
        return found["layout"].detail

    assert told() == "empty"
    assert told("notes/todo") == "none of DVC's: it holds other things"
    assert told("ff/" + "0" * 30) == "DVC 2"
    assert told("files/md5/ff/" + "0" * 30) == "DVC 3 (files/md5/) and DVC 2"
    assert told(*(f"aa/{number:030x}" for number in range(1000))) == "DVC 3 (files/md5/) and DVC 2"


def test_old_versions_of_what_was_tried_go_too(s3: S3Server) -> None:
    backend = bucket(s3)
    name = backend.url.removeprefix("s3://").partition("/")[0]
    s3.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    found = checked(backend)
    assert found["versions"].detail == "old versions are kept" and found["delete"].state == OK
    left = s3.client().list_object_versions(Bucket=name)
    assert "Versions" not in left and "DeleteMarkers" not in left


def test_over_http_what_the_project_has_there_is_read(web: WebServer) -> None:
    def tell() -> dict[str, Check]:
        return checked(connect(Remote("r", web.url("open", "checked"), {}), {}), write=False, names=(NAME,))

    found = tell()
    assert (found["list"].state, found["layout"].state, found["read"].state) == (NO, NO, SKIPPED)
    assert found["clock"].detail == "the same"
    place = web.folder / "checked/files/md5/ab" / ("ab" * 15)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"data")
    found = tell()
    assert (found["layout"].detail, found["read"].state) == ("DVC 3 (files/md5/)", OK)


def test_what_is_refused_is_named_and_the_rest_is_tried() -> None:
    """Nobody writes there, root neither."""
    found = checked(folder(Path("/sys/kernel")))
    assert (found["list"].state, found["write"].state) == (OK, FAILED) and "read back" not in found
    error = found["write"].error
    assert error is not None and error.kind == "needs-credentials" and "remote 'r'" in found["write"].detail


def test_by_command(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    assert "no remote is configured" in home.run("remote", "check", code=251).stderr
    home.run("remote", "add", "-d", "near", str(home.path / "near"))
    said = home.run("remote", "check").stdout.splitlines()
    assert [line[9:18].strip() for line in said] == ALL and {line[:9].strip() for line in said} == {"ok", "skipped"}
    found = json.loads(home.run("remote", "check", "near", "--read-only", "--json").stdout)
    assert (found["remote"], found["error"]) == ("near", None)
    assert [each["name"] for each in found["checks"]] == ALL[:4]
    home.run("remote", "add", "far", "http://127.0.0.1:9/data")
    done = home.run("remote", "check", "far", code=9)
    assert done.stdout.startswith("failed") and len(done.stdout.splitlines()) == 1
    assert "remote 'far'" in done.stderr and "Connection refused" in done.stderr and len(done.stderr.splitlines()) == 1
