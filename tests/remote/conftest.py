from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.remote.servers import S3Server, SSHServer, WebServer, s3_server, ssh_server, web_server
from tests.remote.shared import Team


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with web_server(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    """Paths are short: daemons' sockets lie below them."""
    with tempfile.TemporaryDirectory(prefix="mp-rem-", ignore_cleanup_errors=True) as folder:
        if request.param == "local":
            made = Team(Path(folder), f"{folder}/remote", None, [])
        else:
            server: S3Server = request.getfixturevalue("s3")
            bucket = server.bucket(f"t-{random.randrange(1 << 60):x}")
            made = Team(Path(folder), f"s3://{bucket}/team", server, [])
        with ended(made):
            yield made


@contextlib.contextmanager
def ended(team: Team) -> Iterator[None]:
    """At the end nobody's daemon runs, and nothing is mounted below the team's folder."""
    try:
        yield
    finally:
        for home in team.people:
            home.close()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split(" ")[4]
            if place.startswith(str(team.folder)):
                subprocess.run(["umount", "-l", place], check=False, timeout=20)
