"""A team: people with caches, stores and clones of their own, and one remote between them."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.mounts.conftest import contents, fill
from tests.remote.servers import KEY, SECRET, S3Server
from tests.store.helpers import sample

# For what does not depend on the kind of remote: over S3 it is run with the long tests.
local_if_long = pytest.mark.parametrize("team", ["s3", pytest.param("local", marks=pytest.mark.long)], indirect=True)
s3_if_long = pytest.mark.parametrize("team", ["local", pytest.param("s3", marks=pytest.mark.long)], indirect=True)


@dataclass(slots=True)
class Team:
    """`url` of the remote; `server` where it is S3's; `keys_for_all` is a folder like ~/.ssh, where it asks for keys."""

    folder: Path
    url: str
    server: S3Server | None
    people: list[Home]
    keys_for_all: Path | None = None

    def person(self, name: str, source: Home | None = None) -> Home:
        """Somebody new, with an empty repository, or a clone of another's."""
        home = Home(self.folder / name)
        self.people.append(home)
        if self.keys_for_all is not None:
            shutil.copytree(self.keys_for_all, home.path / ".ssh")
        if source is None:
            home.git("init", "-q", "-b", "main")
            home.run("init", "-q")
            endpoint = "" if self.server is None else f"    endpointurl = {self.server.endpoint}\n"
            (home.repo / ".dvc/config").write_text(
                f"[core]\n    remote = team\n['remote \"team\"']\n    url = {self.url}\n{endpoint}"
            )
        else:
            shutil.rmtree(home.repo)
            home.git("clone", "-q", str(source.repo), str(home.repo), cwd=home.path)
        if self.server is not None:  # secrets are each person's own
            (home.repo / ".dvc/config.local").write_text(
                f"['remote \"team\"']\n    access_key_id = {KEY}\n    secret_access_key = {SECRET}\n"
            )
        return home

    def keys(self) -> dict[str, int]:
        """What the remote holds: key below its url, size."""
        if self.server is None:
            top = Path(self.url)
            found = {}
            for path in top.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # somebody removes, or renames, meanwhile
                    if path.is_file():
                        found[str(path.relative_to(top))] = path.stat().st_size
            return found
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return {
            each["Key"].removeprefix(f"{prefix}/"): each["Size"] for page in pages for each in page.get("Contents", ())
        }

    def put(self, key: str, data: bytes | None) -> None:
        """Change an object behind everybody's back; None removes it."""
        if self.server is None:
            path = Path(self.url) / key
            path.unlink(missing_ok=True)
            if data is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        client = self.server.client()
        if data is None:
            client.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
        else:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    def begin(self, name: str = "ann") -> Home:
        """Somebody with two versions of a folder and a file, committed; the workspace has the second one."""
        home = self.person(name)
        fill(home.repo / "data", 1)
        (home.repo / "one.csv").write_bytes(b"one\n")
        home.run("add", "-q", "data", "one.csv")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        home.git("tag", "v1")
        (home.repo / "data/a.txt").write_bytes(sample(5, 300_000))
        (home.repo / "one.csv").write_bytes(b"one, later\n")
        home.run("add", "-q", "data", "one.csv")
        home.git("add", "-A")
        home.git("commit", "-qm", "second")
        return home


def data_of(home: Home) -> dict[str, bytes]:
    """What a person's workspace holds of the data."""
    return contents(home.repo / "data") | {"one.csv": (home.repo / "one.csv").read_bytes()}


def key_of(value: str) -> str:
    return f"files/md5/{value[:2]}/{value[2:]}"
