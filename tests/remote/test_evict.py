"""`cache evict`, and eviction under a limit: mounts read on, adds find room, and what is only here stays, also when the
daemon is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents, fill
from tests.mounts.test_kills import processes
from tests.remote.shared import Team, s3_if_long
from tests.remote.test_lazy import mount

# Everything but manifests and folders of a few bytes.
LITTLE = 100_000
local = pytest.mark.parametrize("team", ["local"], indirect=True)
over_s3 = pytest.mark.parametrize("team", ["s3"], indirect=True)
ROUNDS = 20 if os.environ.get("MILLPOND_TESTS") == "long" else 2


def write(home: Home, name: str, seed: int) -> dict[str, bytes]:
    """A folder of 30 small files and a large one, 5 MB in all."""
    rng = random.Random(seed)
    found = {f"{number:02}": rng.randbytes(20_000 + 2000 * number) for number in range(30)}
    found["large"] = rng.randbytes(3_500_000)
    (home.repo / name).mkdir(exist_ok=True)
    for path, data in found.items():
        (home.repo / name / path).write_bytes(data)
    return found


def evict(home: Home, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.run("cache", "evict", "--json", *options).stdout)
    return found


def kept(report: dict[str, Any]) -> dict[str, int]:
    return {row["why"]: row["objects"] for row in report["kept"]}


@s3_if_long
@pytest.mark.fuse
def test_mounts_go_on_and_sizes_stay_known(team: Team) -> None:
    ann = team.person("ann")
    expected = write(ann, "d", 1)
    ann.run("add", "-q", "d")
    place = mount(ann, target="d")
    report = evict(ann, "--to", "0", "--dry")
    assert report["evicted"]["objects"] == 0 and report["projects"][0]["objects"] == 31, "nothing is pushed"
    ann.run("push", "-q")
    assert evict(ann, "--to", "0", "--dry")["evicted"]["objects"] == 31
    with open(place / "large", "rb") as large, open(place / "01", "rb") as small:
        assert large.read(1_000_000) == expected["large"][:1_000_000]
        assert "Evicted 31 objects, " in ann.run("cache", "evict", "--to", "0").stdout
        assert evict(ann, "--to", "0")["stored"] < LITTLE
        os.posix_fadvise(large.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert large.read() == expected["large"][1_000_000:], "an open file goes on where it was"
        assert small.read() == expected["01"]
    listed = ann.run("list", ".", "d", "--size", "--json").stdout
    assert {row["path"]: row["size"] for row in json.loads(listed)} == {
        name: len(data) for name, data in expected.items()
    }
    assert "Only on remotes: " in ann.run("cache", "info").stdout
    assert contents(place) == expected
    again = mount(ann, "n", target="d")
    assert contents(again) == expected
    eventually(lambda: evict(ann, "--to", "0", "--dry")["remote_only"]["objects"] < 31, "what is read is stored again")
    assert "is clean" in ann.run("fsck", "--deep").stdout
    shutil.rmtree(ann.repo / "d")
    ann.run("pull", "-q")
    assert contents(ann.repo / "d") == expected


@pytest.mark.long
@local
def test_an_add_a_fetch_and_a_reader_find_room(team: Team) -> None:
    ann = team.person("ann")
    first = write(ann, "d", 1)
    ann.run("add", "-q", "d")
    ann.run("push", "-q")
    ann.run("cache", "limit", "8MB")
    time.sleep(1)  # what was granted in the second in which an add begins may be its own
    second = write(ann, "e", 2)
    said = ann.run("add", "-q", "e")
    assert "Traceback" not in said.stderr
    assert contents(ann.repo / "e") == second and not ann.run("status").stderr
    report = evict(ann, "--to", "8MB", "--dry")
    assert report["remote_only"]["objects"] > 0 and report["projects"][0]["bytes"] > 4_000_000
    time.sleep(1)
    write(ann, "f", 3)
    refused = ann.run("add", "f", code=7)
    sentence(refused)
    assert "has reached its limit" in refused.stderr and f"on no remote of '{ann.repo}'" in refused.stderr
    ann.run("push", "-q")
    ann.run("add", "-q", "f")
    ann.run("push", "-q", "f")
    time.sleep(1)
    assert "fetched" in ann.run("fetch", "d").stdout, "room was made for what comes from the remote"
    assert evict(ann, "--dry")["stored"] <= 8_000_000
    shutil.rmtree(ann.repo / "d")
    ann.run("checkout", "-q", "d")
    assert contents(ann.repo / "d") == first
    assert "is clean" in ann.run("fsck", "--deep").stdout


@pytest.mark.long
@local
@pytest.mark.fuse
def test_what_a_mount_reads_finds_room_to_be_kept(team: Team) -> None:
    ann = team.person("ann")
    first, _ = write(ann, "d", 1), write(ann, "e", 2)
    ann.run("add", "-q", "d", "e")
    ann.run("push", "-q")
    evict(ann, "--to", "0")
    ann.run("fetch", "-q", "e")
    stored = evict(ann, "--to", "0", "--dry")["stored"]
    ann.run("cache", "limit", f"{(stored + 1_000_000) // 1000}kB")
    place = mount(ann, target="d")
    assert contents(place) == first
    ann.run("umount", str(place))

    def is_kept() -> bool:
        return not json.loads(ann.run("fetch", "d", "--max-size", "0", "--json").stdout)["beyond"]

    eventually(is_kept, "what was read is kept, and something else went")


@local
def test_what_vanished_from_the_remote_stays_here(team: Team) -> None:
    ann = team.person("ann")
    expected = write(ann, "d", 1)
    ann.run("add", "-q", "d")
    ann.run("push", "-q")
    other = ann.path / "other"
    shutil.copytree(ann.repo, other)
    (other / ".dvc/config").write_text(f"[core]\n    remote = own\n['remote \"own\"']\n    url = {ann.path}/own\n")
    ann.run("add", "-q", "d", cwd=other)
    report = evict(ann, "--to", "0")
    assert report["evicted"]["objects"] == 0, "what was pushed by one project is on no remote of the other's"
    assert [Path(row["path"]).name for row in report["projects"]] == ["other"]
    ann.run("push", "-q", cwd=other)
    for key in sorted(name for name in list(team.keys()) if not name.endswith(".dir"))[
        :5
    ]:  # noted as there a moment ago
        team.put(key, None)
    report = evict(ann, "--to", "0")
    assert report["evicted"]["objects"] == 31 - 5 and report["projects"][0]["objects"] == 5
    ann.run("forget-project", str(other))
    place = ann.path / "m"
    place.mkdir()
    shutil.rmtree(ann.repo / "d")
    ann.run("pull", "-q")
    assert contents(ann.repo / "d") == expected


@local
def test_pins_and_reasons(team: Team) -> None:
    ann = team.person("ann")
    write(ann, "d", 1)
    ann.run("add", "-q", "d")
    assert "say how far" in ann.run("cache", "evict", code=254).stderr
    ann.run("push", "-q")
    ann.run("pin", "d")
    assert kept(evict(ann, "--to", "0")) == {"manifest": 1, "pinned": 31}
    ann.run("unpin", "d")
    config = ann.repo / ".dvc/config"
    before = config.read_text()
    config.write_text(before.replace(team.url, "gdrive://elsewhere"))
    said = ann.run("cache", "evict", "--to", "0").stdout
    assert "its remotes cannot be asked: " in said and "Evicted 0 objects" in said
    assert "its remotes cannot be asked: " in ann.run("cache", "info").stdout
    config.write_text("")
    assert "no remote is configured" in ann.run("cache", "evict", "--to", "0").stdout
    config.write_text(before)
    assert evict(ann, "--to", "0")["evicted"]["objects"] == 31


@over_s3
@pytest.mark.long
def test_without_credentials_nothing_goes(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q", "-A")
    secrets = ann.repo / ".dvc/config.local"
    before = secrets.read_text()
    secrets.unlink()
    no = {"AWS_EC2_METADATA_DISABLED": "true"}
    said = ann.run("cache", "evict", "--to", "0", env=no).stdout
    assert "Evicted 0 objects" in said and "no credentials" in said
    said = ann.run("cache", "info", env=no).stdout
    assert "May be evicted: 0 objects" in said and "no credentials" in said
    secrets.write_text(before)
    assert evict(ann, "--to", "0")["evicted"]["objects"] > 5


@local
@pytest.mark.long
def test_a_remote_that_does_not_answer_holds_up_nobody_for_long(team: Team) -> None:
    ann = team.person("ann")
    write(ann, "d", 1)
    ann.run("add", "-q", "d")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (ann.repo / ".dvc/config").write_text(
            f"[core]\n    remote = r\n['remote \"r\"']\n    url = s3://bucket/path\n    endpointurl = {endpoint}\n"
            "    access_key_id = key\n    secret_access_key = secret\n"
        )
        said = ann.run("cache", "info").stdout
    assert "have not answered in 10 s" in said and "May be evicted: 0 objects" in said


@pytest.mark.long
@local
@pytest.mark.fuse
@pytest.mark.parametrize("victim", ["daemon", pytest.param("worker", marks=pytest.mark.long)])
def test_killed_at_any_moment_all_is_here_or_there(team: Team, victim: str) -> None:
    ann = team.person("ann")
    expected = write(ann, "d", 1) | fill(ann.repo / "d", 2)
    ann.run("add", "-q", "d")
    ann.run("push", "-q")
    only_here = write(ann, "e", 2)
    ann.run("add", "-q", "e")
    place, other = mount(ann, target="d"), mount(ann, "n", target="e")
    rng = random.Random(victim)
    lasting = set(processes(ann, "worker"))
    for _ in range(ROUNDS):
        ann.run("daemon", "start")
        command = ann.command("cache", "evict", "--to", "0")
        with subprocess.Popen(
            command, cwd=ann.repo, env=ann.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        ) as evicting:
            time.sleep(rng.uniform(0.05, 0.5))
            for pid in set(processes(ann, victim)) - lasting:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert evicting.stderr is not None
            assert b"Traceback" not in evicting.stderr.read()
        ann.run("daemon", "start")
        assert "is clean" in ann.run("fsck", "--deep").stdout
        assert contents(other) == only_here and contents(place) == expected
        ann.run("fetch", "-q")
    evict(ann, "--to", "0")
    assert contents(ann.repo / "e") == only_here
    shutil.rmtree(ann.repo / "e")
    ann.run("checkout", "-q", "e")
    assert contents(ann.repo / "e") == only_here, "what was nowhere else has stayed"
