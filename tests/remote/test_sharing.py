"""push, fetch and pull, real DVC on the other side of the same remote."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.mounts.conftest import fill
from tests.mounts.test_kills import processes
from tests.project.realdvc import real_dvc
from tests.remote.servers import KEY, SECRET, S3Server
from tests.remote.shared import Team, data_of, key_of, local_if_long, s3_if_long
from tests.store.helpers import sample

from millpond.daemon.errors import RemoteConfigError, RemoteError
from millpond.daemon.remote.remotes import Remote, connect


@local_if_long
def test_what_is_pushed_real_dvc_pulls(team: Team) -> None:
    ann = team.begin()
    said = ann.run("push").stdout
    assert said.startswith("7 files pushed (")
    bob = team.person("bob", ann)
    assert "7 files fetched" in bob.dvc("pull").stdout
    assert data_of(bob) == data_of(ann)
    assert bob.dvc("status", "-c").stdout.startswith("Cache and remote 'team' are in sync")
    assert ann.run("push", "-A").stdout.startswith("3 files pushed")
    shutil.rmtree(bob.repo / ".dvc/cache")
    bob.dvc("fetch", "-A")
    assert bob.dvc("push", "-A").stdout == "Everything is up to date.\n"


@s3_if_long
def test_what_dvc_pushed_is_pulled(team: Team) -> None:
    ann = team.begin()
    ann.run("cache", "export", "-A")
    ann.dvc("push", "-A")
    bob = team.person("bob", ann)
    said = bob.run("pull").stdout
    assert "A       data/\n" in said and "7 files fetched" in said
    assert data_of(bob) == data_of(ann)
    assert bob.run("pull").stdout == "Everything is up to date.\n" and "up to date" in bob.run("status").stdout
    bob.git("checkout", "-q", "v1")
    assert "3 files fetched" in bob.run("pull", "--all-tags").stdout
    assert (bob.repo / "one.csv").read_bytes() == b"one\n"
    assert bob.run("fetch", "-A").stdout == "Everything is up to date.\n"
    assert not (bob.repo / ".dvc/cache").exists(), "who does not use DVC here needs no copies for it"


@s3_if_long
def test_pushing_twice_moves_nothing_and_asks_little(team: Team) -> None:
    ann = team.begin()
    first = json.loads(ann.run("push", "--json").stdout)
    again = json.loads(ann.run("push", "--json").stdout)
    assert (first["objects"], again["objects"], again["there"]) == (7, 0, 7)
    assert again["requests"] == 3, "whether garbage is collected there, the manifest, the single file"
    assert ann.run("push").stdout == "Everything is up to date.\n"


@s3_if_long
def test_what_vanished_from_the_remote_is_pushed_again(team: Team) -> None:
    """Notes of what a remote held are believed only while its manifest is there; a manifest goes up last."""
    ann = team.begin()
    ann.run("push")
    there = team.keys()
    for key in there:
        team.put(key, None)
    assert ann.run("push").stdout.startswith("7 files pushed")
    assert team.keys() == there
    # What went behind its manifest's back is sent again once somebody has seen that.
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    team.put(key_of(value), None)
    assert "new" in ann.run("status", "-c").stdout
    assert ann.run("push").stdout.startswith("2 files pushed"), "and the manifest behind it"
    assert team.keys() == there


@s3_if_long
def test_status_of_the_cloud_is_as_dvc_s(team: Team) -> None:
    ann = team.begin()
    ann.run("cache", "export", "-A")

    def both(home: Home, *options: str) -> dict[str, str]:
        expected = json.loads(home.dvc("status", "-c", "--json", *options).stdout)
        found = json.loads(home.run("status", "-c", "--json", *options).stdout)
        assert found == expected
        return dict(found)

    assert set(both(ann).values()) == {"new"}
    ann.run("push", "one.csv")
    both(ann)
    assert "data/a.txt" in ann.run("status", "-c").stdout and ann.run("status", "-c", "-q", code=1).stdout == ""
    ann.run("push")
    assert both(ann) == {}
    assert ann.run("status", "-c").stdout == ann.dvc("status", "-c").stdout
    assert both(ann, "-T")
    bob = team.person("bob", ann)
    assert set(both(bob).values()) == {"deleted"}
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    team.put(key_of(value), None)
    assert json.loads(bob.run("status", "--cloud", "--json", "data").stdout)["data/a.txt"] == "missing"


@s3_if_long
def test_parts_are_pushed_and_pulled(team: Team) -> None:
    ann = team.begin()
    assert ann.run("push", "data/sub/deep").stdout.startswith("2 files pushed")
    assert not any(key.endswith(".dir") for key in list(team.keys())), "its manifest would name what is not there"
    ann.run("push")
    bob = team.person("bob", ann)
    assert "2 files fetched" in bob.run("pull", "data/sub/one.bin").stdout, "the manifest, and the file"
    assert [path.name for path in (bob.repo / "data").rglob("*") if path.is_file()] == ["one.bin"]
    assert "A       one.csv\n" in bob.run("pull", "one.csv").stdout
    assert (
        bob.run("fetch", "--max-size", "100").stdout
        == "1 file fetched (0 B)\n3 files larger than --max-size left on remote 'team'\n"
    )


@s3_if_long
def test_what_is_on_no_remote_is_named(team: Team) -> None:
    ann = team.begin()
    ann.run("push")
    bob = team.person("bob", ann)
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    team.put(key_of(value), None)
    done = bob.run("pull", code=8)
    sentence(done)
    assert f"'data/a.txt' (md5:{value})" in done.stderr and "remote 'team'" in done.stderr
    assert not (bob.repo / "data").exists() and not (bob.repo / "one.csv").exists()
    assert f"md5:{value}" in bob.run("fetch", code=8).stderr
    bob.run("pull", "--allow-missing")
    assert data_of(bob) == {name: data for name, data in data_of(ann).items() if name != "a.txt"}
    bob.run("push", code=8)
    assert ann.run("push", code=0).stdout == "Everything is up to date.\n", (
        "seen there an hour ago, and its manifest still is"
    )


@local_if_long
def test_wrong_bytes_are_never_taken_for_the_object(team: Team) -> None:
    ann = team.begin()
    ann.run("push")
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    for wrong in (sample(6, 300_000), sample(5, 300_000)[:-1], b""):
        team.put(key_of(value), wrong)
        bob = team.person(f"b{len(wrong)}", ann)
        done = bob.run("pull", code=6)
        sentence(done)
        assert f"'data/a.txt' (md5:{value})" in done.stderr
        assert not (bob.repo / "data").exists()
        assert bob.run("checkout", code=None).returncode != 0
        team.put(key_of(value), sample(5, 300_000))
        bob.run("pull")
        assert data_of(bob) == data_of(ann)


@s3_if_long
def test_a_cut_object_is_written_again(team: Team) -> None:
    ann = team.begin()
    ann.run("push")
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    team.put(key_of(value), sample(5, 1000))
    cat = team.person("cat", ann)  # who has no notes of the remote
    fill(cat.repo / "data", 1)
    (cat.repo / "data/a.txt").write_bytes(sample(5, 300_000))
    cat.run("commit", "-q", "-f", "data.dvc")
    assert cat.run("push", "data").stdout.startswith("2 files pushed"), "and the manifest behind it"
    assert team.keys()[key_of(value)] == 300_000
    manifest, size = next(item for item in team.keys().items() if item[0].endswith(".dir"))
    for who in (ann, cat):
        team.put(manifest, b"")
        assert who.run("push").stdout.startswith("1 file"), "a manifest, whether noted as complete or not"
        assert team.keys()[manifest] == size


@s3_if_long
def test_without_the_data_push_names_what_is_missing(team: Team) -> None:
    ann = team.begin()
    bob = team.person("bob", ann)
    done = bob.run("push", code=8)
    sentence(done)
    assert "2 objects could not be pushed" in done.stderr and "'one.csv'" in done.stderr and team.keys() == {}


@pytest.mark.parametrize(
    "victim", ["worker", pytest.param("client", marks=pytest.mark.long), pytest.param("daemon", marks=pytest.mark.long)]
)
@s3_if_long
def test_a_push_that_is_killed_leaves_whole_objects(team: Team, victim: str) -> None:
    ann = team.begin()
    for number in range(60):
        (ann.repo / "data" / f"n{number}").write_bytes(sample(100 + number, 200_000))
    (ann.repo / "data/large").write_bytes(sample(99, 20_000_000))
    ann.run("add", "-q", "data")
    ann.git("commit", "-qam", "third")
    rng = random.Random(len(victim))
    for _ in range(3):
        _killed(ann, victim, rng.uniform(0.05, 0.5), "push", "-A")
        for key, size in team.keys().items():
            if "tmp" not in key:
                _is_right(team, ann, key, size)
    ann.run("push", "-A")
    bob = team.person("bob", ann)
    bob.dvc("pull")
    assert data_of(bob) == data_of(ann)


@pytest.mark.long
@pytest.mark.parametrize(
    "victim", ["worker", pytest.param("client", marks=pytest.mark.long), pytest.param("daemon", marks=pytest.mark.long)]
)
@s3_if_long
def test_a_pull_that_is_killed_is_ended_by_the_next(team: Team, victim: str) -> None:
    ann = team.begin()
    (ann.repo / "data/large").write_bytes(sample(99, 20_000_000))
    for number in range(60):
        (ann.repo / "data" / f"n{number}").write_bytes(sample(100 + number, 200_000))
    ann.run("add", "-q", "data")
    ann.git("commit", "-qam", "third")
    ann.run("push", "-A")
    bob = team.person("bob", ann)
    rng = random.Random(len(victim))
    for _ in range(3):
        _killed(bob, victim, rng.uniform(0.05, 0.5), "pull")
    bob.run("pull")
    assert data_of(bob) == data_of(ann) and "clean" in bob.run("fsck", "--deep").stdout


@s3_if_long
def test_two_pushes_at_once(team: Team) -> None:
    ann = team.begin()
    bob = team.person("bob", ann)
    fill(bob.repo / "data", 1)
    (bob.repo / "data/a.txt").write_bytes(sample(5, 300_000))
    (bob.repo / "one.csv").write_bytes(b"one, later\n")
    bob.run("commit", "-q", "-f")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda home: home.run("push"), (ann, bob, ann, bob)))
    cat = team.person("cat", ann)
    cat.dvc("pull")
    assert data_of(cat) == data_of(ann)


@s3_if_long
def test_settings_that_cannot_work_are_named(team: Team) -> None:
    ann = team.begin()
    cases = {
        "there is no remote 'nope'": ("push", "-r", "nope"),
        "'gs' is a kind of remote that DVC has": ("push", "-r", "cloud"),
        "'wat' is no kind of remote": ("fetch", "-r", "typo"),
        "names no bucket": ("push", "-r", "bare"),
        "there is no remote 'nobody'": ("push", "-r", "chain"),
        "cannot read ssl_verify's file": ("push", "-r", "tls"),
        "is the repository itself": ("push", "-r", "self"),
        "this project's own cache": ("fetch", "-r", "own"),
        "cannot be reached": ("push", "-r", "away"),
    }
    for name, url in (
        ("cloud", "gs://x/y"),
        ("typo", "wat://x"),
        ("bare", "s3://"),
        ("chain", "remote://nobody/x"),
        ("tls", "s3://bucket/x\n    endpointurl = https://127.0.0.1:9\n    ssl_verify = /no/file"),
        ("self", str(ann.repo)),
        ("own", str(ann.repo / ".dvc/cache")),
        ("away", "/no/where/at/all"),
    ):
        with open(ann.repo / ".dvc/config", "a") as config:
            config.write(f"['remote \"{name}\"']\n    url = {url}\n")
    for text, command in cases.items():
        done = ann.run(*command, code=None)
        sentence(done)
        assert done.returncode in (9, 251) and text in done.stderr, done.stderr
    bob = team.person("bob", ann)
    for name in ("config", "config.local"):
        (bob.repo / ".dvc" / name).write_text("")
    done = bob.run("pull", code=251)
    sentence(done)
    assert "'data' (md5:" in done.stderr and "remote add" in done.stderr


def test_a_service_that_is_not_there_or_refuses_is_told_in_a_line(s3: S3Server, tmp_path: Path) -> None:
    """Each names the remote and the reason, and nothing of a secret."""
    cases = {
        "Connection refused": ("bucket", "http://127.0.0.1:9", RemoteError),
        "there is no bucket": ("not-there", s3.endpoint, RemoteConfigError),
    }
    for text, (bucket, endpoint, kind) in cases.items():
        values = {"endpointurl": endpoint, "access_key_id": KEY, "secret_access_key": SECRET}
        backend = connect(Remote("team", f"s3://{bucket}/x", values), {})
        with pytest.raises(kind, match=text) as raised:
            backend.get("files/md5/ab/cd", 0, 10)
        assert "'team'" in str(raised.value) and "\n" not in str(raised.value)
        assert SECRET not in str(raised.value) and "Signature" not in str(raised.value)


@s3_if_long
def test_outputs_with_a_remote_of_their_own(team: Team) -> None:
    ann = team.begin()
    other = team.folder / "other"
    with open(ann.repo / ".dvc/config", "a") as config:
        config.write(f"['remote \"own\"']\n    url = {other}\n")
    pointer = ann.repo / "one.csv.dvc"
    pointer.write_text(pointer.read_text() + "  remote: own\n")
    (ann.repo / "never.txt").write_text("a secret")
    ann.run("add", "-q", "never.txt")
    never = ann.repo / "never.txt.dvc"
    never.write_text(never.read_text() + "  push: false\n")
    assert ann.run("push").stdout.startswith("7 files pushed")
    assert len([path for path in other.rglob("*") if path.is_file()]) == 1
    assert len(team.keys()) == 6
    ann.git("add", "-A")
    ann.git("commit", "-qm", "own")
    bob = team.person("bob", ann)
    bob.run("pull", "data", "one.csv")
    assert data_of(bob) == data_of(ann)


def _killed(home: Home, victim: str, after_s: float, *command: str) -> None:
    process = subprocess.Popen(
        home.command(*command), cwd=home.repo, env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(after_s)
    if victim == "client":
        process.kill()
    else:
        for pid in processes(home, victim):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)


def _is_right(team: Team, home: Home, key: str, size: int) -> None:
    """An object that is seen under its key is whole."""
    if team.server is None:
        with open(f"{team.url}/{key}", "rb") as file:
            data = file.read()
    else:
        bucket, _, prefix = team.url.removeprefix("s3://").partition("/")
        data = team.server.client().get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read()
    value = key.removeprefix("files/md5/").replace("/", "").removesuffix(".dir")
    assert hashlib.md5(data).hexdigest() == value and len(data) == size
    if key.endswith(".dir"):
        there = team.keys()
        assert all(key_of(entry["md5"]) in there for entry in json.loads(data)), "a manifest goes up last"


@s3_if_long
def test_objects_of_dvc_2_are_pulled(team: Team) -> None:
    """Their names are of text without CRs: such text goes to DVC's own cache, the rest to the store."""
    ann = team.person("ann")
    contents = {"text": b"a\r\nb\r\n", "binary": bytes(range(256)) * 50, "plain": b"no carriage return\n"}
    for name, data in contents.items():
        value = hashlib.md5(data.replace(b"\r\n", b"\n") if name == "text" else data).hexdigest()
        (ann.repo / f"{name}.dvc").write_text(f"outs:\n- md5: {value}\n  size: {len(data)}\n  path: {name}\n")
        team.put(f"{value[:2]}/{value[2:]}", data)
    assert "3 files fetched" in ann.run("pull").stdout
    assert {name: (ann.repo / name).read_bytes() for name in contents} == contents
    cached = [path for path in (ann.repo / ".dvc/cache").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in cached] == [contents["text"]]
    assert (
        ann.run("fetch").stdout == "Everything is up to date.\n"
        and "up to date" in ann.dvc("status", "text.dvc").stdout
    )
    value = hashlib.md5(b"a\nb\n").hexdigest()
    bob = team.person("bob")
    (bob.repo / "text.dvc").write_text((ann.repo / "text.dvc").read_text())
    team.put(f"{value[:2]}/{value[2:]}", b"a\r\nc\r\n")
    assert "not what" in bob.run("pull", code=6).stderr
    assert not (bob.repo / "text").exists() and not (bob.repo / ".dvc/cache" / value[:2] / value[2:]).exists()


@pytest.mark.long
def test_what_is_not_on_the_remote_is_as_dvc_s(team: Team) -> None:
    ann = team.begin()
    ann.run("cache", "export", "-A")

    def both(home: Home, *options: str) -> list[str]:
        words = ["data", "status", "--not-in-remote", "--json", *options]
        found = json.loads(home.run(*words).stdout)
        expected = json.loads(real_dvc().ok(*words, cwd=home.repo))
        for told in (found, expected):
            told["not_in_cache"] = []  # that of bob is in the store
        assert {key: sorted(value) for key, value in found.items() if isinstance(value, list)} == {
            key: sorted(value) for key, value in expected.items() if isinstance(value, list)
        }
        return sorted(found.get("not_in_remote", []))

    assert both(ann) == ["data/", "one.csv"]
    assert "data/a.txt" in both(ann, "--granular")
    ann.run("push", "one.csv")
    assert both(ann) == ["data/"] and both(ann, "data/a.txt", "one.csv", "--granular") == ["data/a.txt"]
    assert json.loads(ann.run("data", "status", "--not-in-remote", "--json", "--no-remote-refresh").stdout) == {
        "not_in_remote": ["data/"]
    }
    said = ann.run("data", "status", "--not-in-remote").stdout.replace("millpond", "dvc")
    assert said == real_dvc().ok("data", "status", "--not-in-remote", cwd=ann.repo) and "Not in remote:" in said
    ann.run("push")
    assert both(ann, "--granular") == []
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    team.put(key_of(value), None)
    asked = ["data", "status", "--not-in-remote", "--json", "--granular"]
    assert "not_in_remote" not in ann.run(*asked, "--no-remote-refresh").stdout, "nobody asked"
    bob = team.person("bob", ann)
    assert both(bob, "--granular") == ["data/a.txt"]
    ann.run("data", "status", "--not-in-remote", "-r", "nope", code=251)
    (ann.repo / ".dvc/config").write_text("")
    (ann.repo / ".dvc/config.local").unlink(missing_ok=True)
    assert both(ann) == ["data/", "one.csv"]


@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_what_is_in_dvc_s_cache_needs_no_remote(team: Team) -> None:
    ann = team.begin()
    ann.run("cache", "export")
    bob = team.person("bob", ann)
    shutil.copytree(ann.repo / ".dvc/cache", bob.repo / ".dvc/cache")
    (bob.repo / ".dvc/config").write_text("")
    assert bob.run("fetch").stdout == "Everything is up to date.\n"
    value = hashlib.md5(sample(5, 300_000)).hexdigest()
    (bob.repo / ".dvc/cache" / key_of(value)).unlink()
    done = bob.run("fetch", code=251)
    sentence(done)
    assert "'data'" in done.stderr and "no remote is configured" in done.stderr and "one.csv" not in done.stderr


@pytest.mark.long
@s3_if_long
def test_what_is_damaged_hides_nothing_that_is_missing(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q")
    bob = team.person("bob", ann)
    a_txt = hashlib.md5((ann.repo / "data/a.txt").read_bytes()).hexdigest()
    one = hashlib.md5((ann.repo / "one.csv").read_bytes()).hexdigest()
    team.put(key_of(a_txt), b"damaged")
    team.put(key_of(one), None)
    for verb in ("fetch", "pull"):
        done = bob.run(verb, code=6)
        sentence(done)
        assert "1 object on remote 'team' is not what its name says: 'data/a.txt'" in done.stderr
        assert "1 object is neither here nor on remote 'team': 'one.csv'" in done.stderr
        assert "push it again" in done.stderr and "push it from where it is still" in done.stderr
    lost = bob.run("checkout", code=8)
    sentence(lost)
    assert "checkout failed for 2 targets" in lost.stderr and "'data'" in lost.stderr and "millpond pull" in lost.stderr


@pytest.mark.long
@s3_if_long
def test_patterns_find_data_that_is_not_here(team: Team) -> None:
    ann = team.begin()
    ann.run("push", "-q", "--glob", "da*")
    assert ann.run("push").stdout.startswith("1 file pushed")
    bob = team.person("bob", ann)
    assert "A       one.csv\n" in bob.run("pull", "--glob", "o*").stdout
    assert (bob.repo / "one.csv").read_bytes() == b"one, later\n" and not (bob.repo / "data").exists()
    assert "--glob 'none*' has no matches" in bob.run("pull", "--glob", "none*", code=255).stderr
    carol = team.person("carol", ann)
    carol.dvc("pull", "--glob", "o*")
    assert (carol.repo / "one.csv").exists() and not (carol.repo / "data").exists()
