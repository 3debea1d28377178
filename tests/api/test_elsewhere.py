"""Repositories that are elsewhere, by their urls: read from a clone and from the remotes of their own configs, as dvc.api does."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.api.conftest import Made
from tests.api.consumers import DataSet, epoch
from tests.cli.helpers import Home
from tests.project.elsewhere import git_server
from tests.remote.servers import KEY, SECRET, S3Server, s3_server
from tests.store.helpers import sample

import millpond
from millpond import MillpondFileSystem
from millpond.daemon.api import versions
from millpond.daemon.errors import MillpondError, RemoteConfigError, RevisionError

_DVC = """
import json, sys, dvc.api
url, rev, remote, config = json.loads(sys.argv[1])
settings = {"remote": remote, "remote_config": config} if remote else {}
print(json.dumps([dvc.api.read(path, repo=url, rev=rev, **settings) for path in sys.argv[2:]]))
"""


@pytest.fixture
def url(made: Made, far: Made) -> Iterator[str]:
    """The repository's, for somebody who has nothing of it."""
    with git_server(made.home.path) as server:
        yield f"{server}/repo"


def by_dvc(home: Home, asked: list[object], *paths: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", _DVC, json.dumps(asked), *paths],
        env=home.env, cwd=home.path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not found.returncode, found.stderr
    return list(json.loads(found.stdout))


@pytest.mark.long
def test_what_dvc_api_reads(made: Made, url: str, far: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["data/a.csv", "data/sub/b.csv", "readme.md", "code/run.py"]
    for rev in (None, "v1"):
        assert [millpond.read(path, repo=url, rev=rev) for path in paths] == by_dvc(
            far.home, [url, rev, None, None], *paths
        )
    with millpond.open("data/large.bin", "rb", repo=url, rev="v1") as file:
        file.seek(9_000_000)
        assert file.read(1000) == made.first["data/large.bin"][9_000_000:9_001_000]
        again = pickle.loads(pickle.dumps(file))
        assert again.read(10) == made.first["data/large.bin"][9_001_000:9_001_010]
    # What a branch means is asked again, and what was opened stays.
    fs = MillpondFileSystem(repo=url)
    assert fs.cat("readme.md") == b"second\n"
    (made.home.repo / "readme.md").write_text("third\n")
    made.commit("v3")
    try:
        monkeypatch.setattr(versions, "_FRESH_FAR_S", 0.0)
        assert millpond.read("readme.md", repo=url) == "third\n" and fs.cat("readme.md") == b"second\n"
    finally:
        made.home.git("reset", "-q", "--hard", "v2")
        made.home.git("tag", "-d", "v3")
    assert millpond.get_url("data/a.csv", repo=url, rev="v1").startswith(str(made.remote))
    for wrong in ("none", "config", "data/none"):  # a clone has a file `config`, its commit has not
        with pytest.raises(FileNotFoundError):
            millpond.read(wrong, repo=url)
    with pytest.raises(RevisionError):
        millpond.read("readme.md", repo=url, rev="nonesuch")
    with pytest.raises(MillpondError):
        millpond.read("readme.md", repo=f"{url}-not-there")
    with pytest.raises(RemoteConfigError, match="nonesuch"):
        millpond.read("data/a.csv", repo=url, remote="nonesuch")


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_an_epoch_by_workers(made: Made, url: str, far: Made, how: str) -> None:
    fs = MillpondFileSystem(url, rev="v1")
    paths = sorted(path for path in made.first if path.startswith(("data/many", "data/sub")))
    large = made.first["data/large.bin"]
    with fs.open("data/large.bin") as handle:
        assert handle.read(500) == large[:500]
        found, told = epoch(DataSet(fs, paths, handle), how, 3)
        assert handle.read(500) == large[500:1000]
    assert found == {number: made.first[path] for number, path in enumerate(paths)}
    assert len({pid for pid, _, _ in told} | {os.getpid()}) == 4


@pytest.mark.long
def test_a_remote_that_the_caller_describes_and_its_secrets(
    made: Made, url: str, far: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its settings go over the repository's own, as in dvc.api; what is secret among them is on no disk and in no log."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as s3:
        bucket = s3.bucket(f"a-{random.randrange(1 << 60):x}")
        upload(s3, bucket, made)
        shutil.move(made.remote, made.home.path / "away")
        try:
            config = {
                "url": f"s3://{bucket}",
                "endpointurl": s3.endpoint,
                "access_key_id": KEY,
                "secret_access_key": SECRET,
            }
            with pytest.raises(MillpondError):
                millpond.read("data/sub/b.csv", repo=url, rev="v1")
            for remote in ("team", "other"):
                paths = ["data/sub/b.csv", "data/a.csv"]
                found = [millpond.read(path, repo=url, rev="v1", remote=remote, remote_config=config) for path in paths]
                assert found == [made.first[path].decode() for path in paths]
                if remote == "other":  # DVC refuses S3's settings over those of a folder
                    assert found == by_dvc(far.home, [url, "v1", remote, config], *paths)
            fs = MillpondFileSystem(url, "v1", "other", config)
            assert fs.cat("data/large.bin") == sample(7, len(made.first["data/large.bin"]))
            assert pickle.loads(pickle.dumps(fs)).cat("data/many/003.bin") == made.first["data/many/003.bin"]
            assert SECRET not in json.dumps(fs.to_dict(include_password=False)) and SECRET not in fs.fsid
            time.sleep(0.2)
            for path in far.home.path.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    assert SECRET.encode() not in path.read_bytes(), path
        finally:
            shutil.move(made.home.path / "away", made.remote)


def upload(s3: S3Server, bucket: str, made: Made) -> None:
    for path in made.remote.rglob("*"):
        if path.is_file():
            s3.client().put_object(Bucket=bucket, Key=str(path.relative_to(made.remote)), Body=path.read_bytes())
