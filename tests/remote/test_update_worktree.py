"""`update` of outputs on a `worktree` remote, beside real DVC: what others put there becomes the output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.project.realdvc import real_dvc
from tests.remote.servers import S3Server
from tests.remote.shared import data_of
from tests.remote.test_push_versions import begin, pair, person, team_at, told, versions

from millpond.daemon.project import yamlio


def meaning(home: Home, name: str) -> Any:
    """What a pointer says, but for the ids of versions. Of a folder's file that it updated DVC writes them as older DVC did, without the
    remote's name."""

    def plain(entry: dict[str, Any]) -> dict[str, Any]:
        found = {key: value for key, value in entry.items() if key not in ("etag", "version_id")}
        if "version_id" in entry:
            found["cloud"] = {"team": {"etag": entry["etag"], "version_id": ""}}
        for said in found.get("cloud", {}).values():
            said["version_id"] = "X"
        return found | ({"files": list(map(plain, entry["files"]))} if "files" in entry else {})

    return list(map(plain, yamlio.load((home.repo / name).read_text(), name)["outs"]))


@pytest.mark.long
def test_what_others_put_there_becomes_the_output_as_with_dvc(s3: S3Server) -> None:
    with pair(s3, "worktree") as (team, ours, theirs):
        bucket, _, top = team.url.removeprefix("s3://").partition("/")
        client = s3.client()
        for name in ("ours", "theirs"):
            for key, data in {
                "data/a.txt": b"2\n",
                "data/sub/new": b"new\n",
                "one.csv": b"two\n",
                "p": b"other\n",
            }.items():
                client.put_object(Bucket=bucket, Key=f"{top}/{name}/{key}", Body=data)
            client.delete_object(Bucket=bucket, Key=f"{top}/{name}/data/empty")
            # The same content again is a version that nobody needs.
            client.put_object(Bucket=bucket, Key=f"{top}/{name}/data/copy", Body=b"same\n")
        before = told(ours)
        done = json.loads(ours.run("update", "data.dvc", "one.csv.dvc", "--json").stdout)
        assert [row["changed"] for row in done["imports"]] == [True, True]
        real_dvc().ok("update", "data.dvc", "one.csv.dvc", cwd=theirs.repo)
        assert all(meaning(ours, name) == meaning(theirs, name) for name in ("data.dvc", "one.csv.dvc"))
        assert data_of(ours) == data_of(theirs) and (ours.repo / "data/sub/new").read_bytes() == b"new\n"
        assert not (ours.repo / "data/empty").exists()
        # What is as it was keeps its version, and the new ones are the latest.
        there = versions(s3, f"{team.url}/ours")
        assert told(ours)["data/copy"] == before["data/copy"] != there["data/copy"][0][0]
        assert all(told(ours)[key] == there[key][0][0] for key in ("data/a.txt", "data/sub/new", "one.csv"))
        assert json.loads(ours.run("status", "data", "one.csv", "--json").stdout) == {}
        assert ours.run("push", "data", "one.csv").stdout == "Everything is up to date.\n"
        # Somebody who has nothing of it gets it by real DVC.
        team.url = f"{team.url}/ours"
        ours.git("add", "-A")
        ours.git("commit", "-qm", "updated")
        bob = team.person("bob", ours)
        bob.dvc("pull", "-q", "data", "one.csv")
        assert data_of(bob) == data_of(ours)
        # A second time there is nothing to do.
        texts = {file: file.read_bytes() for file in ours.repo.glob("?*.dvc")}
        done = json.loads(ours.run("update", "data.dvc", "one.csv.dvc", "--json").stdout)
        assert [row["changed"] for row in done["imports"]] == [False, False]
        assert {file: file.read_bytes() for file in ours.repo.glob("?*.dvc")} == texts


def test_what_cannot_be_updated_is_left_alone(s3: S3Server) -> None:
    with team_at(s3, "worktree") as team:
        ann = person(team, "ann", "worktree", team.url)
        begin(ann)
        ann.run("add", "-q", "data", "one.csv")
        # It was never pushed.
        done = ann.run("update", "one.csv.dvc", code=254)
        sentence(done)
        assert "is no import" in done.stderr
        ann.run("push", "-q", "data", "one.csv")
        before = {file: file.read_bytes() for file in ann.repo.glob("?*.dvc")}
        for words, said in (
            (("--rev", "x"), "--rev"),
            (("--no-download",), "--no-download"),
            (("--to-remote",), "--to-remote"),
        ):
            done = ann.run("update", "data.dvc", *words, code=254)
            sentence(done)
            assert said in done.stderr
        bucket, _, top = team.url.removeprefix("s3://").partition("/")
        s3.client().delete_object(Bucket=bucket, Key=f"{top}/one.csv")
        assert "has nothing at its path" in ann.run("update", "one.csv.dvc").stderr
        # What was changed here and is saved nowhere is not lost.
        s3.client().put_object(Bucket=bucket, Key=f"{top}/data/a.txt", Body=b"theirs\n")
        (ann.repo / "data/a.txt").write_bytes(b"mine\n")
        done = ann.run("update", "data.dvc", code=None)
        sentence(done)
        assert done.returncode and (ann.repo / "data/a.txt").read_bytes() == b"mine\n"
        assert {file: file.read_bytes() for file in ann.repo.glob("?*.dvc")} == before


@pytest.mark.long
def test_an_output_of_a_stage_is_updated_in_its_lock(s3: S3Server) -> None:
    with pair(s3, "worktree") as (team, ours, theirs):
        bucket, _, top = team.url.removeprefix("s3://").partition("/")
        for name in ("ours", "theirs"):
            s3.client().put_object(Bucket=bucket, Key=f"{top}/{name}/o/x", Body=b"by hand\n")
        ours.run("update", "o")
        real_dvc().ok("update", "m", cwd=theirs.repo)
        for home in (ours, theirs):
            assert (home.repo / "o/x").read_bytes() == b"by hand\n"

        def outs(home: Home) -> Any:
            lock = yamlio.load((home.repo / "dvc.lock").read_text(), "dvc.lock")
            return [
                (out["path"], [file["md5"] for file in out.get("files", ())]) for out in lock["stages"]["m"]["outs"]
            ]

        assert outs(ours) == outs(theirs)
