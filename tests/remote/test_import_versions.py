"""Imports that note versions of objects in a bucket, beside real DVC: pointers, updates, what is brought again when the bucket went on."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.mounts.conftest import contents
from tests.project.realdvc import real_dvc
from tests.remote.servers import S3Server
from tests.remote.shared import Team
from tests.remote.test_importing import with_s3
from tests.store.helpers import sample

FILES = {"a": b"a\n", "sub/b": b"b\n", "sub/empty": b"", "large": sample(9, 5 << 20), "sp ace": b"s\n"}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = s3.bucket(f"v-{random.randrange(1 << 60):x}")
    s3.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for path, data in {**{f"d/{path}": data for path, data in FILES.items()}, "f.txt": b"first\n"}.items():
        s3.client().put_object(Bucket=name, Key=path, Body=data)
    return name


@pytest.fixture
def pair(team: Team, s3: S3Server, bucket: str) -> Iterator[tuple[Home, Home]]:
    ours, theirs = team.person("ann"), team.person("bob")
    for home in (ours, theirs):
        with_s3(home, s3, bucket)
    yield ours, theirs


def equal(pair: tuple[Home, Home], *names: str) -> None:
    for name in names:
        assert (pair[0].repo / f"{name}.dvc").read_text() == (pair[1].repo / f"{name}.dvc").read_text()


def version_of(home: Home, name: str) -> str:
    found = re.search("version_id: (.*)", (home.repo / f"{name}.dvc").read_text())
    assert found is not None
    return found[1]


pytestmark = pytest.mark.parametrize("team", ["local"], indirect=True)


def test_imports_of_versions_are_as_dvc_s(team: Team, s3: S3Server, bucket: str, pair: tuple[Home, Home]) -> None:
    ours, theirs = pair

    for words in (
        ("remote://s3/d",),
        ("remote://s3/f.txt", "one"),
        ("--no-download", "remote://s3/d", "partial"),
        ("--no-exec", "remote://s3/f.txt", "later"),
    ):
        ours.run("import-url", "-q", "--version-aware", *words)
        real_dvc().ok("import-url", "-q", "--version-aware", *words, cwd=theirs.repo)
    equal(pair, "d", "one", "partial", "later")
    assert contents(ours.repo / "d") == FILES and (ours.repo / "one").read_bytes() == b"first\n"
    ours.run("remove", "later.dvc")
    client = s3.client()
    client.put_object(Bucket=bucket, Key="f.txt", Body=b"second\n")
    client.put_object(Bucket=bucket, Key="d/a", Body=b"changed\n")
    client.delete_object(Bucket=bucket, Key="d/sp ace")
    for home in pair:  # what is frozen is not looked at
        for name in ("d", "one"):
            file = home.repo / f"{name}.dvc"
            file.write_text(file.read_text().replace("frozen: true", "frozen: false"))
    status = json.loads(ours.run("status", "--json", "d", "one").stdout)
    assert status == json.loads(real_dvc().ok("status", "--json", "d", "one", cwd=theirs.repo))
    assert "update available" in str(status["one.dvc"]) and "modified" in str(status["d.dvc"])
    for home in pair:
        for name in ("d", "one"):
            file = home.repo / f"{name}.dvc"
            file.write_text(file.read_text().replace("frozen: false", "frozen: true"))
    # What was imported can be had though the bucket went on, and no remote has it.
    assert ours.run("push").stdout == "Everything is up to date.\n" and not team.keys()
    ours.run("daemon", "stop", "-q")
    shutil.rmtree(ours.path / "cache/millpond")
    shutil.rmtree(ours.repo / "d")
    (ours.repo / "one").unlink()
    ours.run("pull", "-q", "d", "one", "partial")
    assert contents(ours.repo / "d") == FILES == contents(ours.repo / "partial")
    assert (ours.repo / "one").read_bytes() == b"first\n"


@pytest.mark.long
def test_updates_are_as_dvc_s(team: Team, s3: S3Server, bucket: str, pair: tuple[Home, Home]) -> None:
    ours, theirs = pair

    def both(*words: str) -> None:
        ours.run(*words)
        theirs.dvc(*words)

    for words in (("remote://s3/d",), ("remote://s3/f.txt", "one")):
        both("import-url", "-q", "--version-aware", *words)
    first = version_of(ours, "one")
    s3.client().put_object(Bucket=bucket, Key="f.txt", Body=b"second\n")
    s3.client().put_object(Bucket=bucket, Key="d/a", Body=b"changed\n")
    s3.client().delete_object(Bucket=bucket, Key="d/sp ace")
    both("update", "-q", "d", "one")
    equal(pair, "d", "one")
    assert contents(ours.repo / "d") == {key: data for key, data in FILES.items() if key != "sp ace"} | {
        "a": b"changed\n"
    }
    assert "didn't change" in ours.run("update", "d", "one").stdout
    both("update", "-q", "one", "--rev", first)
    equal(pair, "one")
    assert (ours.repo / "one").read_bytes() == b"first\n" and version_of(ours, "one") == first
    # Their pointers are read here, ours by DVC.
    shutil.rmtree(ours.repo / "d")
    ours.run("checkout", "-q")
    for name in ("d.dvc", "one.dvc"):
        shutil.copy(ours.repo / name, theirs.repo / name)
    shutil.rmtree(theirs.repo / ".dvc/cache", ignore_errors=True)
    shutil.rmtree(theirs.repo / "d")
    theirs.dvc("pull", "-q", "d", "one")
    assert contents(theirs.repo / "d") == contents(ours.repo / "d") and (theirs.repo / "one").read_bytes() == b"first\n"


@pytest.mark.long
def test_urls_that_name_a_version(team: Team, s3: S3Server, bucket: str, pair: tuple[Home, Home]) -> None:
    ours, theirs = pair
    for home in pair:
        home.extra["AWS_ENDPOINT_URL"] = s3.endpoint
    versions = [
        s3.client().put_object(Bucket=bucket, Key="f.txt", Body=f"{each}\n".encode())["VersionId"] for each in "12"
    ]
    url = f"s3://{bucket}/f.txt?versionId="
    settings = ("--fs-config", f"endpointurl={s3.endpoint}")
    ours.run("get-url", "-q", url + versions[0], "got", *settings)
    assert (ours.repo / "got").read_bytes() == b"1\n"
    assert ours.run("list-url", url + versions[0], "--size", *settings).stdout.split()[0] == "2"
    ours.run("import-url", "-q", url + versions[1], "last")
    theirs.dvc("import-url", "-q", url + versions[1], "last")
    equal(pair, "last")
    # DVC takes the latest one here, and cannot read its pointer then.
    ours.run("import-url", "-q", url + versions[0], "old")
    assert (ours.repo / "old").read_bytes() == b"1\n" and version_of(ours, "old") == versions[0]
    shutil.copy(ours.repo / "old.dvc", theirs.repo / "old.dvc")
    theirs.dvc("pull", "-q", "old")
    assert (theirs.repo / "old").read_bytes() == b"1\n"
    assert "didn't change" in ours.run("update", "old").stdout
    done = ours.run("update", "old", "--rev", versions[1], code=254)
    sentence(done)
    assert "names version" in done.stderr


@pytest.mark.long
def test_what_has_no_versions_is_refused(team: Team, s3: S3Server, bucket: str, pair: tuple[Home, Home]) -> None:
    ours, _ = pair
    client = s3.client()
    plain = s3.bucket(f"n-{random.randrange(1 << 60):x}")
    for key in ("f", "d/f"):
        client.put_object(Bucket=plain, Key=key, Body=b"1")
    ours.extra["AWS_ENDPOINT_URL"] = s3.endpoint
    for url, code, says in (
        (f"s3://{plain}/f", 251, "keeps no versions"),
        (f"s3://{plain}/d", 251, "keeps no versions"),
        (f"s3://{bucket}/none", None, "there is nothing at"),
        (f"s3://{bucket}/f.txt?versionId=nonesuch", None, "f.txt"),
        ("https://example.org/f", 254, "has no versions"),
    ):
        done = ours.run("import-url", "--version-aware", url, "x", code=code)
        sentence(done)
        assert done.returncode and says in done.stderr and not (ours.repo / "x.dvc").exists(), url
    ours.run("import-url", "-q", "--version-aware", "remote://s3/d")
    for words in (
        ("import-url", "--version-aware", "--to-remote", "remote://s3/d", "e"),
        ("update", "d", "--rev", "1"),
    ):
        sentence(ours.run(*words, code=254))
    # A version that somebody removed for good.
    ours.run("import-url", "-q", "--version-aware", "remote://s3/f.txt")
    client.delete_object(Bucket=bucket, Key="f.txt", VersionId=version_of(ours, "f.txt"))
    ours.run("daemon", "stop", "-q")
    shutil.rmtree(ours.path / "cache/millpond")
    (ours.repo / "f.txt").unlink()
    done = ours.run("fetch", "f.txt", code=8)
    sentence(done)
    assert "f.txt" in done.stderr and "millpond update" in done.stderr
