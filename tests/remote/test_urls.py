"""Stages whose dependencies and outputs are urls, or lie elsewhere on this machine: beside real DVC, on real servers."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.pipeline.running import Pipe
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, opened
from tests.remote.servers import KEY, SECRET, S3Server, SSHServer, WebServer, free_port
from tests.remote.shared import Team

from millpond.daemon.errors import CancelledError, CredentialsError, RemoteError, StageFailedError, UsageError
from millpond.daemon.project.context import LocalContext

# What a command writes to S3 with: moto asks nobody who he is.
PUT = """
import sys, urllib.request
KIND = {"Content-Type": "application/octet-stream"}
for url in sys.argv[2:]:
    urllib.request.urlopen(urllib.request.Request(url, sys.argv[1].encode(), KIND, method="PUT")).read()
"""


class There:
    """Servers and folders that a pipeline needs, and the pipeline: `up` reads all kinds of places and writes outside, `down` reads what
    it wrote."""

    def __init__(self, base: Path, project: Project, s3: S3Server, web: WebServer) -> None:
        self.base, self.project, self.s3 = base, project, s3
        self.bucket = s3.bucket(f"u-{random.randrange(1 << 60):x}")
        for key, data in {"d/a": "a\n", "d/sub/b": "b\n", "one": "1\n", "empty/": "", "empty/f": "f"}.items():
            self.put(key, data)
        self.page = web.folder / self.bucket
        self.page.write_text("page\n")
        self.away = base / "away"
        (self.away / "dir").mkdir(parents=True)
        (self.away / "dir/x").write_text("x\n")
        (self.away / "script").write_text("s\n")
        (self.away / "script").chmod(0o755)
        (self.away / "remote").mkdir()
        (self.away / "remote/r").write_text("r\n")
        self.configure(project.root)
        target = f"{s3.endpoint}/{self.bucket}"
        self.text = f"""
stages:
  up:
    cmd:
    - echo up >> ../ran; cat src > o; cat src > ../away/made; mkdir -p ../away/tree && cat src > ../away/tree/t
    - {Path(shutil.which("python3") or "python3")} put.py "$(cat src)" {target}/m {target}/made/x {target}/made/y/z
    deps: [src, {project.root}/put.py, ../away/dir, {self.away}/script, remote://s3/d, remote://s3/one, remote://s3/empty,
      remote://local/r, {web.url()}/{self.bucket}, {web.url("norange")}/{self.bucket}]
    outs:
    - o
    - {self.away}/made: {{cache: false}}
    - ../away/tree: {{cache: false}}
    - remote://s3/m: {{cache: false}}
    - remote://s3/made: {{cache: false}}
  down:
    cmd: echo down >> ../ran; cat src > end
    deps: [remote://s3/made/y, remote://s3/m, {self.away}/made, ../away/tree/t]
    outs: [end]
"""
        self.pipe = Pipe(project, {"dvc.yaml": self.text, "put.py": PUT, "src": "one\n"})
        project.commit()

    def put(self, key: str, data: str | None) -> None:
        if data is None:
            self.s3.client().delete_object(Bucket=self.bucket, Key=key)
        else:
            self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=data.encode())

    def keys(self, prefix: str = "") -> list[str]:
        listed = self.s3.client().list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [each["Key"] for each in listed.get("Contents", [])]

    def configure(self, root: Path) -> None:
        with open(root / ".dvc/config", "a") as config:
            config.write(f"['remote \"s3\"']\n    url = s3://{self.bucket}\n    endpointurl = {self.s3.endpoint}\n")
            config.write(f"['remote \"local\"']\n    url = {self.away}/remote\n")
        with open(root / ".dvc/config.local", "a") as config:
            config.write(f"['remote \"s3\"']\n    access_key_id = {KEY}\n    secret_access_key = {SECRET}\n")

    def theirs(self, *argv: str) -> str:
        self.project.export()
        return real_dvc().ok(*argv, cwd=self.project.root)

    def again(self) -> None:
        """As before the first repro."""
        for path in ("dvc.lock", "o", "end", ".gitignore"):
            (self.project.root / path).unlink(missing_ok=True)
        shutil.rmtree(self.project.root / ".dvc/cache", ignore_errors=True)


@pytest.fixture
def there(tmp_path: Path, s3: S3Server, web: WebServer) -> Iterator[There]:
    with opened(tmp_path) as project:
        yield There(tmp_path, project, s3, web)


def test_what_is_recorded_is_what_dvc_records(there: There) -> None:
    pipe, project = there.pipe, there.project
    assert pipe.outcomes() == {"up": "ran", "down": "ran"}
    ours = pipe.lock()
    assert project.status() == {} and pipe.ran() == ["up", "down"]
    there.again()
    there.theirs("repro", "-q")
    assert pipe.lock() == ours and pipe.ran() == ["up", "down"]
    assert set(pipe.outcomes().values()) == {"unchanged"}

    there.put("m", None)
    assert set(pipe.outcomes(allow_missing=True).values()) == {"unchanged"}
    _change(there)
    assert project.status() == _changed(there)
    reasons = {row["path"]: row for row in project.run("why", "up")["stages"][0]["reasons"]}
    assert reasons["remote://s3/d"]["old"].endswith(".dir") and reasons["remote://s3/m"]["state"] == "deleted"
    with pytest.raises(StageFailedError, match="script' does not exist"):
        pipe.repro()
    assert there.keys("made/") == ["made/more", "made/x", "made/y/z"] and pipe.lock() == ours  # nothing was begun

    (there.away / "script").write_text("s\n")
    assert pipe.outcomes() == {"up": "ran", "down": "unchanged"}  # it made the same again
    assert there.keys("made/") == ["made/x", "made/y/z"]  # outputs are removed before their stage runs


def _change(there: There) -> None:
    there.put("d/sub/b", "other\n")
    there.put("made/more", "beside what was made\n")
    there.page.write_text("another page\n")
    (there.away / "tree/t").write_text("changed\n")
    (there.away / "script").unlink()
    (there.away / "remote/r").write_text("changed\n")


def _changed(there: There) -> dict[str, Any]:
    """The status then."""
    page = [
        url for dep in there.text.split() if (url := dep.strip(",[]")).startswith("http") and url.endswith(there.bucket)
    ]
    up = {
        **dict.fromkeys(["remote://s3/d", "remote://local/r", *page], "modified"),
        str(there.away / "script"): "deleted",
    }
    made = {"remote://s3/m": "deleted", "remote://s3/made": "modified", str(there.away / "tree"): "modified"}
    down = {"remote://s3/m": "deleted", str(there.away / "tree/t"): "modified"}
    return {"up": [{"changed deps": up}, {"changed outs": made}], "down": [{"changed deps": down}]}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_changed_is_what_dvc_says(there: There) -> None:
    pipe, project = there.pipe, there.project
    there.theirs("repro", "-q")
    there.put("m", None)
    assert there.theirs("repro", "--allow-missing").count("didn't change, skipping") == 2
    assert set(pipe.outcomes(allow_missing=True).values()) == {"unchanged"}
    _change(there)
    assert project.status() == _status(there) == _changed(there)
    (there.away / "script").write_text("s\n")
    pipe.repro()
    assert there.theirs("status") == "Data and pipelines are up to date.\n"


def _status(there: There) -> Any:
    import json

    return json.loads(there.theirs("status", "--json"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_graph_is_drawn_as_by_dvc(there: There) -> None:
    for words in (("dag", "--dot"), ("dag", "--dot", "--outs")):
        ours = there.project.run("dag", format="dot", outs="--outs" in words)["text"]
        assert sorted(ours.split()) == sorted(there.theirs(*words).split())


def test_the_graph_knows_urls_by_where_they_lead(there: There) -> None:
    project = there.project
    assert list(map(tuple, project.run("dag")["edges"])) == [("up", "down")]
    clash = f"  third: {{cmd: x, outs: [s3://{there.bucket}/made/y: {{cache: false}}]}}\n"
    project.write("dvc.yaml", there.text + clash)
    with pytest.raises(Exception, match=r"lies in output 'remote://s3/made'"):
        project.run("dag")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_commit_and_lineage(there: There) -> None:
    pipe, project = there.pipe, there.project
    pipe.repro()
    there.put("one", "another\n")
    assert [row["pointer"] for row in project.run("commit")["unconfirmed"]] == ["up"]
    project.run("commit", force=True)
    assert project.status() == {} and there.theirs("status") == "Data and pipelines are up to date.\n"
    steps = {row["id"]: row for row in project.run("lineage", target="end")["steps"]}
    deps = {dep["path"]: dep for dep in steps["down"]["deps"]}
    assert deps["remote://s3/m"]["from"] == [{"id": "up", "state": "same"}] and deps["remote://s3/m"]["etag"]
    assert deps["remote://s3/made/y"]["from"][0]["state"] == "unknown"
    sources = {dep["path"]: dep["source"] for dep in steps["up"]["deps"]}
    assert sources["remote://s3/d"] == "elsewhere" and sources["src"] == "git"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_versions_of_a_bucket_are_recorded_as_dvc_does(there: There) -> None:
    project = there.project
    there.s3.client().put_bucket_versioning(Bucket=there.bucket, VersioningConfiguration={"Status": "Enabled"})
    there.put("one", "1\n")
    with open(project.root / ".dvc/config", "a") as config:
        config.write(f"['remote \"kept\"']\n    url = s3://{there.bucket}\n    endpointurl = {there.s3.endpoint}\n")
        config.write("    version_aware = true\n")
    with open(project.root / ".dvc/config.local", "a") as config:
        config.write(f"['remote \"kept\"']\n    access_key_id = {KEY}\n    secret_access_key = {SECRET}\n")
    project.write("dvc.yaml", "stages: {s: {cmd: cat src > o, deps: [remote://s3/one, remote://kept/one], outs: [o]}}")
    there.pipe.repro()
    ours = there.pipe.lock()
    there.again()
    there.theirs("repro", "-q")
    assert there.pipe.lock() == ours and ours.count("version_id") == 2
    there.put("one", "1\n")  # another version of the same
    assert project.status() == _status(there) == {"s": [{"changed deps": {"remote://kept/one": "update available"}}]}


@pytest.mark.parametrize(
    ("dep", "kind", "words"),
    [
        ("http://127.0.0.1:{port}/x", RemoteError, "cannot be reached"),
        ("{web}/denied/x", CredentialsError, "HTTP status 403"),
        ("remote://none/x", Exception, "there is no remote 'none'"),
    ],
)
def test_what_cannot_be_seen_is_one_error_that_names_stage_and_url(
    there: There, web: WebServer, dep: str, kind: type[Exception], words: str
) -> None:
    dep = dep.format(port=free_port(), web=web.url("").rstrip("/"))
    project = there.project
    good = "  good: {cmd: echo good >> ../ran; cat src > g, deps: [src], outs: [g]}\n"
    project.write("dvc.yaml", f"stages:\n{good}  bad: {{cmd: echo bad >> ../ran, deps: ['{dep}'], outs: [b]}}\n")
    project.write("b", "of an earlier run")
    with pytest.raises(kind) as caught:
        project.status()
    assert f"stage 'bad' needs '{dep}'" in str(caught.value) and words in str(caught.value)
    with pytest.raises(StageFailedError) as failed:
        there.pipe.repro(on_error="keep-going")
    assert failed.value.details["failed"] == ["bad"] and words in str(failed.value)
    assert there.pipe.ran() == ["good"] and "bad" not in there.pipe.lock() and project.read("b") == "of an earlier run"
    project.run("freeze", "bad", frozen=True)
    assert project.status("bad") == {"bad": [{"changed outs": {"b": "modified"}}]}  # a frozen one looks at nothing


def test_outputs_that_are_more_than_outputs_stay(there: There) -> None:
    project, pipe = there.project, there.pipe
    before = there.keys()
    for out, words in (
        ("remote://s3", "holds the remote 's3'"),
        ("remote://s3/", "holds the remote 's3'"),
        ("remote://local", "holds the remote 'local'"),
        ("../away", "holds the remote 'local'"),
        ("..", "holds the project"),
        (str(there.base), "holds the project"),
    ):
        project.write(
            "dvc.yaml", f"stages: {{s: {{cmd: echo s >> ../ran, deps: [src], outs: ['{out}': {{cache: false}}]}}}}"
        )
        with pytest.raises(Exception, match=words):
            pipe.repro(force=True)
    assert (
        (there.away / "remote/r").exists()
        and there.keys() == before
        and pipe.ran() == []
        and project.read("src") == "one\n"
    )
    project.write("dvc.yaml", "stages: {s: {cmd: 'true', deps: [src], outs: [s3://b/x]}}")
    with pytest.raises(StageFailedError, match="cache: false"):
        pipe.repro()
    project.write("dvc.yaml", "{}")
    with pytest.raises(UsageError, match="--outs-no-cache"):
        project.run("stage.add", name="s", cmd="true", outs=["remote://s3/x"])
    keep = "stages: {s: {cmd: echo s >> ../ran, deps: [src], outs: [remote://s3/d: {cache: false, persist: true}]}}"
    project.write("dvc.yaml", keep)
    assert pipe.outcomes() == {"s": "ran"} and there.keys("d/") == ["d/a", "d/sub/b"]


def test_kinds_that_only_dvc_follows_are_told_and_left_to_it(there: There) -> None:
    project = there.project
    project.write("dvc.yaml", "stages: {s: {cmd: x, deps: [gs://b/k, src], outs: ['hdfs://h/o': {cache: false}]}}")
    told = project.run("status")
    assert told["unseen"] == ["gs://b/k", "hdfs://h/o"]
    assert told["status"] == {"s": [{"changed deps": {"src": "modified"}}]}
    with pytest.raises(StageFailedError, match="'gs://b/k' is of a kind that only DVC follows"):
        there.pipe.repro()


def test_who_has_had_enough_does_not_wait_for_a_server(there: There) -> None:
    project = there.project

    def enough(phase: str, *_: Any) -> None:
        told.append(phase)
        if told.count("looking at urls") > 2:
            raise CancelledError("enough")

    told: list[str] = []
    project.context = LocalContext(project.store, os.getuid(), enough)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dep = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        project.write("dvc.yaml", f"stages: {{s: {{cmd: 'true', deps: ['{dep}'], outs: [o]}}}}")
        with pytest.raises(CancelledError):
            project.status()


@pytest.mark.long
def test_what_lies_beside_an_output_stays(there: There) -> None:
    project, pipe = there.project, there.pipe
    made = ["made", "made/x", "made/y/z", "made/e"]
    beside = ["made.txt", "made2/k", "made-", "ma", "m.bak"]
    outs = "[remote://s3/made/: {cache: false}, remote://s3/m: {cache: false}]"
    project.write("dvc.yaml", f"stages: {{s: {{cmd: echo s >> ../ran, deps: [src], outs: {outs}}}}}")
    config = project.root / ".dvc/config"
    for setting in ("", "    listobjects = true\n"):  # by obstore, and by boto3
        config.write_text(config.read_text().replace("    endpointurl", f"{setting}    endpointurl", 1))
        for key in (*made, *beside, "m"):
            there.put(key, "" if key.endswith("e") else key)
        with pytest.raises(StageFailedError, match="'remote://s3/made/' was not made"):
            pipe.repro()
        left = set(there.keys("m"))
        assert left == {*beside, "made"} and pipe.ran() == ["s"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_stage_add_writes_urls_as_dvc(there: There) -> None:
    project = there.project
    deps = ["s3://b/k", "remote://s3/one", str(project.root / "src"), "../away/dir"]
    project.write("dvc.yaml", "")
    project.run("stage.add", name="s", cmd="true", deps=deps, outs_no_cache=["s3://b/out", str(project.root / "o")])
    ours = project.read("dvc.yaml")
    project.write("dvc.yaml", "")
    options = [word for dep in deps for word in ("-d", dep)]
    there.theirs("stage", "add", "-q", "-n", "s", *options, "-O", "s3://b/out", "-O", str(project.root / "o"), "true")
    assert project.read("dvc.yaml") == ours


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_is_on_an_ssh_server(there: There, ssh: SSHServer) -> None:
    project = there.project
    with open(project.root / ".dvc/config", "a") as config:
        config.write(f"['remote \"far\"']\n    url = {ssh.url(there.away)}\n")
        config.write("".join(f"    {key} = {value}\n" for key, value in ssh.values.items()))
    project.environ |= {"HOME": str(ssh.home)}
    project.write(
        "dvc.yaml", "stages: {s: {cmd: cat src > o, deps: [remote://far/dir, remote://far/script], outs: [o]}}"
    )
    there.pipe.repro()
    ours = there.pipe.lock()
    assert project.status() == {}
    there.again()
    there.theirs("repro", "-q")
    assert there.pipe.lock() == ours


@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_the_program_runs_them_as_jobs(team: Team, s3: S3Server) -> None:
    ann: Home = team.person("ann")
    ann.extra |= s3.environ | {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_ENDPOINT_URL_S3": s3.endpoint}
    bucket = s3.bucket(f"u-{random.randrange(1 << 60):x}")
    s3.client().put_object(Bucket=bucket, Key="k", Body=b"1")
    (ann.repo / "dvc.yaml").write_text(f"stages: {{s: {{cmd: echo 1 > o, deps: [s3://{bucket}/k], outs: [o]}}}}")
    assert "Running stage 's'" in ann.run("repro").stdout
    assert (
        ann.run("status").stdout == "Data and pipelines are up to date.\n"
        and ann.run("repro", "--check").returncode == 0
    )
    s3.client().put_object(Bucket=bucket, Key="k", Body=b"2")
    told = ann.run("repro", "--dry", "--why").stdout
    assert f"s3://{bucket}/k is modified" in told
    ann.run("repro", "--check", code=1)


@pytest.mark.long
@pytest.mark.parametrize("team", ["local"], indirect=True)
def test_remotes_and_garbage_know_nothing_of_what_is_outside(team: Team, s3: S3Server) -> None:
    ann: Home = team.person("ann")
    ann.extra |= s3.environ | {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_ENDPOINT_URL_S3": s3.endpoint}
    bucket = s3.bucket(f"u-{random.randrange(1 << 60):x}")
    (ann.repo / "put.py").write_text(PUT)
    put = f"{sys.executable} put.py x {s3.endpoint}/{bucket}/d/k"
    (ann.repo / "dvc.yaml").write_text(
        f"stages: {{s: {{cmd: '{put}; echo 1 > o', deps: [put.py], outs: [o, s3://{bucket}/d: {{cache: false}}]}},"
        f" t: {{cmd: cat o > t, deps: [s3://{bucket}/d, o], outs: [t]}}}}"
    )
    ann.run("repro", "-q")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "made")
    ann.run("push", "-q")

    def objects() -> set[str]:
        return set(filter(lambda key: key.startswith("files/"), team.keys()))

    before = objects()
    assert len(before) == 1  # o and t are the same
    ann.run("gc", "-c", "-w", "-f", "--grace", "0")
    assert objects() == before and "are in sync" in ann.run("status", "-c").stdout
    bob = team.person("bob", ann)
    bob.extra |= ann.extra
    bob.run("pull", "-q")
    assert bob.run("repro").stdout.count("didn't change, skipping") == 2
    bob.dvc("pull", "-q")
    assert bob.dvc("status").stdout == "Data and pipelines are up to date.\n"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_import_that_is_not_frozen_follows_its_source(there: There, web: WebServer) -> None:
    project = there.project
    there.theirs("import-url", "-q", f"{web.url()}/{there.bucket}", "page")
    there.theirs("unfreeze", "page.dvc")
    project.write("dvc.yaml", "stages: {s: {cmd: cat page > o, deps: [page], outs: [o]}}")
    theirs = there.base / "theirs"
    shutil.copytree(project.root, theirs, symlinks=True)
    there.page.write_text("another page\n")
    assert there.pipe.outcomes() == {"page.dvc": "ran", "s": "ran"}
    assert "Importing '" in there.pipe.said and project.read("o") == "another page\n"
    real_dvc().ok("repro", "-q", cwd=theirs)
    assert (theirs / "page.dvc").read_bytes() == (project.root / "page.dvc").read_bytes()
    assert set(there.pipe.outcomes().values()) == {"unchanged"} and project.status() == {}
    there.page.write_text("a third page\n")
    project.write("page", "changed here, and saved nowhere\n")
    with pytest.raises(StageFailedError, match=r"page"):
        there.pipe.repro()
    assert project.read("page") == "changed here, and saved nowhere\n"
