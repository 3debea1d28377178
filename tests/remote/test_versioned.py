"""Remotes that keep versions themselves: what real DVC pushes to a versioned bucket is read here, each version by its id."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.mounts.conftest import contents
from tests.project.realdvc import real_dvc
from tests.remote.servers import S3Server
from tests.remote.shared import Team, data_of
from tests.store.helpers import sample

LARGE = 9_000_000


@pytest.fixture(scope="module", params=["version_aware", pytest.param("worktree", marks=pytest.mark.long)])
def made(request: pytest.FixtureRequest, s3: S3Server) -> Iterator[tuple[Team, Home, dict[str, dict[str, bytes]]]]:
    """Somebody whose two versions real DVC pushed, and what they hold."""
    bucket = s3.bucket(f"v-{random.randrange(1 << 60):x}")
    s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with tempfile.TemporaryDirectory(prefix="mp-ver-", ignore_cleanup_errors=True) as folder:
        team = Team(Path(folder), f"s3://{bucket}/some/where", s3, [])
        ann = team.person("ann")
        with open(ann.repo / ".dvc/config", "a") as config:
            config.write(f"    {request.param} = true\n")
        versions = {}
        for number in (1, 2):
            (ann.repo / "data/sub").mkdir(parents=True, exist_ok=True)
            (ann.repo / "data/a.txt").write_bytes(b"%d" % number)
            (ann.repo / "data/sub/same").write_bytes(b"same")
            (ann.repo / f"data/only {number}").write_bytes(b"")
            (ann.repo / "data/large.bin").write_bytes(sample(number, LARGE))
            (ann.repo / "one.csv").write_bytes(b"one %d\n" % number)
            real_dvc().ok("add", "-q", "data", "one.csv", cwd=ann.repo)
            real_dvc().ok("push", "-q", cwd=ann.repo)
            ann.git("add", "-A")
            ann.git("commit", "-qm", f"{number}")
            ann.git("tag", f"v{number}")
            versions[f"v{number}"] = data_of(ann)
        yield team, ann, versions
        for home in team.people:
            home.close()


def test_both_versions_are_pulled(made: tuple[Team, Home, dict[str, dict[str, bytes]]]) -> None:
    team, ann, versions = made
    bob = team.person("bob", ann)
    assert set(json.loads(bob.run("status", "-c", "--json").stdout).values()) == {"deleted"}
    assert "6 files fetched" in bob.run("pull").stdout
    assert data_of(bob) == versions["v2"] and not bob.git("status", "--porcelain")
    assert json.loads(bob.run("status", "-c", "--json").stdout) == {}
    assert "up to date" in bob.run("status").stdout
    bob.git("checkout", "-q", "v1")
    bob.run("pull", "one.csv", "data/a.txt")
    assert (bob.repo / "one.csv").read_bytes() == b"one 1\n" and (bob.repo / "data/a.txt").read_bytes() == b"1"
    bob.run("pull", "-T")
    assert data_of(bob) == versions["v1"]
    assert json.loads(bob.run("data", "status", "--not-in-remote", "--granular", "--json").stdout) == {}
    # The pointer has the directory's files, not its manifest's name, which stays nevertheless.
    bob.run("gc", "-wf", "--grace", "0")
    shutil.rmtree(bob.repo / "data")
    bob.run("checkout")
    assert data_of(bob) == versions["v1"]


def test_mounts_read_lazily_by_version(made: tuple[Team, Home, dict[str, dict[str, bytes]]]) -> None:
    team, ann, versions = made
    eve = team.person("eve", ann)
    place = eve.path / "m"
    place.mkdir()
    for name in ("v1", "v2"):
        eve.run("mount", f"data@{name}", str(place))
        expected = {path: data for path, data in versions[name].items() if path != "one.csv"}
        with open(place / "large.bin", "rb") as file:
            file.seek(5_000_000)
            assert file.read(1000) == expected["large.bin"][5_000_000:5_001_000]
        assert contents(place) == expected
        eve.run("umount", str(place))
    eve.run("mount", "--versions", str(place))
    assert (place / "v1/one.csv").read_bytes() == b"one 1\n" and (place / "v2/data/a.txt").read_bytes() == b"2"


def test_what_is_not_there_as_the_pointer_says_is_an_error(
    made: tuple[Team, Home, dict[str, dict[str, bytes]]],
) -> None:
    team, ann, _ = made
    dan = team.person("dan", ann)
    pointer = dan.repo / "one.csv.dvc"
    text = pointer.read_text()
    first = ann.git("show", "v1:one.csv.dvc").partition("version_id: ")[2].split()[0]
    second = text.partition("version_id: ")[2].split()[0]
    # Another version of the same path never stands in.
    pointer.write_text(text.replace(second, first))
    done = dan.run("pull", "one.csv", code=9)
    sentence(done)
    assert first in done.stderr and "'one.csv'" in done.stderr and not (dan.repo / "one.csv").exists()
    etag = text.partition("etag: ")[2].split()[0]
    pointer.write_text(text.replace(second, first).replace(f"etag: {etag}", "etag: ''"))
    assert "is not what its name says" in dan.run("pull", "one.csv", code=6).stderr
    pointer.write_text(text.replace(second, "0123"))
    gone = dan.run("pull", "one.csv", code=None)
    sentence(gone)
    assert gone.returncode in (8, 9) and "one.csv" in gone.stderr
    assert not (dan.repo / "one.csv").exists()
    pointer.write_text(text.partition("  cloud:")[0])
    done = dan.run("pull", "one.csv", code=8)
    assert "'one.csv'" in done.stderr and "neither here nor on remote 'team'" in done.stderr
    shutil.copy(ann.repo / "one.csv.dvc", pointer)
    assert "1 file fetched" in dan.run("pull", "one.csv").stdout


def test_what_needs_objects_by_name_is_refused(made: tuple[Team, Home, dict[str, dict[str, bytes]]]) -> None:
    team, ann, _ = made
    before = team.keys()
    for words in (["push", "-A"], ["push", "--run-cache"], ["gc", "-cwf"], ["gc", "-wf", "--not-in-remote"]):
        done = ann.run(*words, code=None)
        sentence(done)
        assert done.returncode in (251, 254) and "only" in done.stderr and "'team'" in done.stderr
    assert team.keys() == before
