"""Imports over real servers, by the program: S3 beside real DVC, kills, two at once, mounts, garbage."""

from __future__ import annotations

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
from tests.mounts.conftest import contents, fill
from tests.mounts.test_kills import processes
from tests.project.realdvc import real_dvc
from tests.remote.servers import KEY, SECRET, S3Server
from tests.remote.shared import Team
from tests.store.helpers import sample

FILES = {"a": b"a\n", "sub/b": b"b\n", "sub/empty": b"", "large": sample(9, 9 << 20), "sp ace": b"s\n"}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket with a folder of files, and one file by itself; the large one in parts."""
    import io

    name = s3.bucket(f"i-{random.randrange(1 << 60):x}")
    client = s3.client()
    for path, data in {**{f"d/{path}": data for path, data in FILES.items()}, "d.txt": b"beside\n"}.items():
        client.upload_fileobj(io.BytesIO(data), name, path)
    return name


def with_s3(home: Home, s3: S3Server, bucket: str) -> None:
    """A remote `s3` for the bucket, credentials where they are not committed, and for urls in the environment."""
    home.extra |= s3.environ
    with open(home.repo / ".dvc/config.local", "a") as config:
        config.write(f"['remote \"s3\"']\n    access_key_id = {KEY}\n    secret_access_key = {SECRET}\n")
    with open(home.repo / ".dvc/config", "a") as config:
        config.write(f"['remote \"s3\"']\n    url = s3://{bucket}\n    endpointurl = {s3.endpoint}\n")


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_imports_from_s3_are_as_dvc_s(team: Team, s3: S3Server, bucket: str) -> None:
    ours, theirs = team.person("ann"), team.person("bob")
    for home in (ours, theirs):
        with_s3(home, s3, bucket)
    cases = (
        ("remote://s3/d",),
        ("remote://s3/d.txt", "one"),
        ("--no-download", "remote://s3/d", "partial"),
    )
    for words in cases:
        ours.run("import-url", "-q", *words)
        real_dvc().ok("import-url", "-q", *words, cwd=theirs.repo)
    for name in ("d.dvc", "one.dvc", "partial.dvc"):
        assert (ours.repo / name).read_bytes() == (theirs.repo / name).read_bytes()
    assert contents(ours.repo / "d") == FILES and (ours.repo / "one").read_bytes() == b"beside\n"
    assert ours.run("update", "d.dvc").stdout == "'d.dvc' didn't change, skipping\n"
    s3.client().put_object(Bucket=bucket, Key="d/a", Body=b"changed\n")
    ours.run("update", "-q", "d.dvc")
    ours.run("update", "-q", "--no-download", "partial.dvc")
    real_dvc().ok("update", "-q", "d.dvc", cwd=theirs.repo)
    assert (ours.repo / "d.dvc").read_bytes() == (theirs.repo / "d.dvc").read_bytes()
    # Lost here, and on no remote of the project: the bucket still has what it had.
    ours.run("daemon", "stop", "-q")
    shutil.rmtree(ours.path / "cache/millpond")
    shutil.rmtree(ours.repo / "d")
    ours.run("remote", "default", "-q", "-u")
    assert "A       d/\n" in ours.run("pull", "d.dvc", "partial.dvc").stdout
    assert contents(ours.repo / "d") == {**FILES, "a": b"changed\n"} == contents(ours.repo / "partial")
    listed = ours.run("list-url", "remote://s3", "-R").stdout.splitlines()
    assert listed == sorted(["d.txt", *(f"d/{path}" for path in FILES)])
    ours.run("get-url", "-q", "remote://s3/d/sub", "got")
    assert contents(ours.repo / "got") == {"b": b"b\n", "empty": b""}
    done = ours.run("get-url", "remote://s3/none", code=None)
    sentence(done)
    assert done.returncode == 255 and "there is nothing at 'remote://s3/none'" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_a_url_with_its_own_settings(team: Team, s3: S3Server, bucket: str) -> None:
    ours, theirs = team.person("ann"), team.person("bob")
    words = ("import-url", "-q", f"s3://{bucket}/d", "--fs-config", f"endpointurl={s3.endpoint}")
    for home in (ours, theirs):
        home.extra |= s3.environ
    ours.run(*words)
    theirs.dvc(*words)
    assert (ours.repo / "d.dvc").read_bytes() == (theirs.repo / "d.dvc").read_bytes()
    listed = ours.run("list-url", f"s3://{bucket}", "-R", *words[3:]).stdout.splitlines()
    assert listed == sorted(theirs.dvc("list-url", "-R", f"s3://{bucket}", *words[3:]).stdout.split("\n")[:-1])


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_to_a_remote_on_s3(team: Team, s3: S3Server, bucket: str) -> None:
    ann = team.person("ann")
    with_s3(ann, s3, bucket)
    ann.run("import-url", "-q", "--to-remote", "-r", "team", "remote://s3/d")
    assert not (ann.repo / "d").exists()
    bob = team.person("bob")
    with_s3(bob, s3, bucket)
    shutil.copy(ann.repo / "d.dvc", bob.repo)
    bob.dvc("pull", "d.dvc")
    assert contents(bob.repo / "d") == FILES
    ann.run("add", "-q", "--to-remote", "-r", "s3", str(bob.repo / "d"), "-o", "copy")
    shutil.rmtree(ann.repo / ".dvc/cache", ignore_errors=True)
    ann.run("pull", "-q", "-r", "s3", "copy.dvc")
    assert contents(ann.repo / "copy") == FILES


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
@pytest.mark.parametrize(
    "victim", ["worker", pytest.param("client", marks=pytest.mark.long), pytest.param("daemon", marks=pytest.mark.long)]
)
def test_an_import_that_is_killed_leaves_nothing_half_done(team: Team, s3: S3Server, bucket: str, victim: str) -> None:
    ann = team.person("ann")
    with_s3(ann, s3, bucket)
    rng = random.Random(len(victim))
    before = {path.name for path in ann.repo.iterdir()}
    for command in (("import-url", "remote://s3/d"), ("get-url", "remote://s3/d", "got")):
        for _ in range(2):
            shutil.rmtree(ann.repo / "got", ignore_errors=True)  # a folder that is there would be got into
            process = subprocess.Popen(
                ann.command(*command), cwd=ann.repo, env=ann.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(rng.uniform(0.1, 0.6))
            if victim == "client":
                process.kill()
            else:
                for pid in processes(ann, victim):
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
            for name in ("d", "got"):
                # Files of an import get their names one by one, each when it is whole; a folder that was only got, all at once.
                there = contents(ann.repo / name) if (ann.repo / name).exists() else {}
                assert all(FILES[path] == data for path, data in there.items())
                assert name == "d" or there in ({}, FILES)
            if (ann.repo / "d.dvc").exists():
                ann.run("checkout", "-q")
                assert contents(ann.repo / "d") == FILES
        shutil.rmtree(ann.repo / "got", ignore_errors=True)
        ann.run(command[0], "-q", "-f", *command[1:])
    assert contents(ann.repo / "d") == FILES == contents(ann.repo / "got")
    assert "clean" in ann.run("fsck", "--deep").stdout
    left = {path.name for path in ann.repo.iterdir()} - before - {"d", "d.dvc", "got", ".gitignore"}
    assert all(name.startswith(".millpond-") for name in left), "what is swept"


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_imports_at_once(team: Team, s3: S3Server, bucket: str) -> None:
    """Two of one place, one of which is told of the other's, and one beside; two clones of one repository."""
    ann, bob = team.begin(), team.person("bob")
    ann.run("push", "-q")
    ann.git("add", "-A")
    with_s3(bob, s3, bucket)
    commands = [
        ("import-url", "-q", "remote://s3/d"),
        ("import-url", "-q", "remote://s3/d"),
        ("import-url", "-q", "remote://s3/d", "other"),
        ("import", "-q", str(ann.repo), "data", "-o", "data"),
    ]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda words: bob.run(*words, code=None), commands))
    assert sorted(each.returncode for each in done) == [0, 0, 0, 255]
    assert [each for each in done if each.returncode][0].stderr.count("already exists") == 1
    assert contents(bob.repo / "d") == FILES == contents(bob.repo / "other")
    assert contents(bob.repo / "data") == contents(ann.repo / "data")


@pytest.mark.fuse
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_imports_are_mounted_kept_and_brought_back(team: Team) -> None:
    """From a repository whose data only its remote has, through a clone-free path; gc keeps what a pointer names."""
    ann = team.begin()
    ann.run("push", "-q", "-A")
    bob = team.person("bob")
    bob.run("remote", "default", "-q", "-u")
    bob.run("import", "-q", str(ann.repo), "data", "--rev", "v1")
    fill(bob.repo / "own", 4)
    bob.run("add", "-q", "own")
    bob.git("add", "-A")
    bob.git("commit", "-qm", "imported")
    shutil.rmtree(bob.repo / "data")
    bob.run("gc", "-w", "-f", "-q", "--grace", "0")
    bob.run("checkout", "-q")
    kept = contents(bob.repo / "data")
    ann.run("daemon", "stop", "-q")
    shutil.rmtree(ann.path / "cache/millpond")
    bob.run("daemon", "stop", "-q")
    shutil.rmtree(bob.path / "cache/millpond")
    place = bob.path / "m"
    place.mkdir()
    bob.run("mount", "-q", "data", str(place))
    assert contents(place) == kept
    bob.run("umount", "-q", str(place))
    shutil.rmtree(ann.repo)
    bob.run("daemon", "stop", "-q")
    shutil.rmtree(bob.path / "cache/millpond")
    done = bob.run("fetch", "data.dvc", code=253)
    sentence(done)
    assert "there is no repository at" in done.stderr


@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_secrets_are_not_in_pointers(team: Team) -> None:
    ann = team.person("ann")
    for key, value in (("secret_access_key", SECRET), ("access_key_id", KEY)):
        done = ann.run("import-url", "s3://b/k", "--fs-config", f"{key}={value}", code=254)
        sentence(done)
        assert value not in done.stderr and not list(Path(ann.repo).glob("?*.dvc"))
