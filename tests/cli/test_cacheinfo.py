"""`cache info`: what projects keep, what is the only copy, and what the daemon found when it had nothing else to do."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-info-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder), extra={"MILLPOND_SCRUB": "0.2"})
        home.git("init", "-q", "-b", "main")
        home.run("init", "-q")
        try:
            yield home
        finally:
            home.close()


def info(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.run("cache", "info", "--json").stdout)
    return found


def test_what_each_project_keeps_and_what_is_nowhere_else(home: Home) -> None:
    (home.repo / "d").mkdir()
    for name, size in (("a", 1000), ("b", 2000), ("c", 4000)):
        (home.repo / "d" / name).write_bytes(os.urandom(size))
    home.run("add", "d")
    other = home.path / "other"
    shutil.copytree(home.repo, other)
    (other / "d/c").write_bytes(os.urandom(8000))
    home.run("add", "d", cwd=other)
    rows = {Path(row["path"]).name: row for row in info(home)["projects"]}
    assert {name: row["objects"] for name, row in rows.items()} == {"repo": 4, "other": 4}
    manifest = rows["repo"]["bytes"] - 7000
    assert rows["repo"]["alone"] == 4000 + manifest and rows["other"]["alone"] == 8000 + manifest
    assert rows["repo"]["only"] == {"objects": 4, "bytes": 7000 + manifest}
    home.run("cache", "export")
    rows = {Path(row["path"]).name: row for row in info(home)["projects"]}
    assert rows["repo"]["only"] == {"objects": 0, "bytes": 0} and rows["other"]["only"]["objects"] == 4
    text = home.run("cache", "info").stdout
    assert f"{other}: 4 objects, " in text and "not in its DVC cache: the only copy on this machine" in text
    shutil.rmtree(other)
    rows = {Path(row["path"]).name: row for row in info(home)["projects"]}
    assert rows["other"]["only"] is None
    assert "forget-project" in home.run("cache", "info").stdout


def test_an_idle_daemon_finds_damage_and_tells_it(home: Home) -> None:
    data = os.urandom(50_000)
    (home.repo / "f").write_bytes(data)
    home.run("add", "f")
    (segment,) = (home.path / "cache/millpond/segments").glob("*.seg")
    raw = segment.read_bytes()
    with open(segment, "r+b") as file:
        at = raw.find(data[:64])
        file.seek(at)
        file.write(bytes([raw[at] ^ 1]))
    mountpoint = home.path / "mnt"
    mountpoint.mkdir()
    home.run("mount", "f", mountpoint.as_posix())
    deadline = time.monotonic() + 60
    while not (found := info(home)["scrub"])["passed"]:
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["passed_damaged"] == 1 and len(found["hurt"]) == 1
    assert "DAMAGED:      1 record" in home.run("cache", "info").stdout
    told = json.loads((mountpoint / ".millpond/stats").read_text())
    assert told["store_damaged"] == 1 and told["store_checked"] == found["passed"]
    home.run("umount", mountpoint.as_posix())
    home.run("fsck", "--repair", code=None)
    assert home.run("fsck").returncode == 0
    assert info(home)["scrub"]["passed_damaged"] == 0
