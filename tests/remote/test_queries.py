"""What a url may hold beside a place: a signature, a password. Both reach the server, and nobody else."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.project.realdvc import real_dvc
from tests.remote.servers import WebServer
from tests.remote.shared import Team
from tests.remote.webserver import PASSWORD, SIGNATURE, USER


@pytest.fixture
def ann(team: Team) -> Home:
    return team.person("ann")


pytestmark = pytest.mark.parametrize("team", ["local"], indirect=True)


def test_signed_urls_are_read_and_their_signature_is_in_no_message(team: Team, ann: Home, web: WebServer) -> None:
    bob = team.person("bob")
    (web.folder / "signed.csv").write_bytes(b"1\n2\n")
    url = f"{web.url('open')}/signed.csv?sig={quote(SIGNATURE, safe='')}&x=1"
    ann.run("import-url", "-q", url)
    real_dvc().ok("import-url", "-q", url, cwd=bob.repo)
    assert (ann.repo / "signed.csv.dvc").read_bytes() == (bob.repo / "signed.csv.dvc").read_bytes()
    assert (ann.repo / "signed.csv").read_bytes() == b"1\n2\n" and "up to date" in ann.run("status").stdout
    assert "didn't change" in ann.run("update", "signed.csv.dvc").stdout
    # Only a GET is signed; any other question is refused.
    strict = url.replace("/open/", "/signed/")
    ann.run("get-url", strict, "got.csv")
    assert (ann.repo / "got.csv").read_bytes() == b"1\n2\n"
    wrong = strict.replace("%3D", "")
    done = ann.run("get-url", wrong, "other.csv", code=10)
    sentence(done)
    assert (
        "403" in done.stderr and SIGNATURE[:3] not in done.stderr and quote(SIGNATURE[:3], safe="") not in done.stderr
    )
    gone = ann.run("get-url", url.replace("signed.csv", "none.csv"), code=None)
    sentence(gone)
    assert "none.csv?..." in gone.stderr and "sig" not in gone.stderr
    # What the url had is brought back from it.
    shutil.rmtree(ann.path / "cache/millpond", ignore_errors=True)
    (web.folder / "signed.csv").write_bytes(b"3\n")
    assert "M" in ann.run("update", "signed.csv.dvc").stdout or (ann.repo / "signed.csv").read_bytes() == b"3\n"


def test_a_repository_s_password_is_in_no_command_line_and_kept_nowhere(team: Team, ann: Home, web: WebServer) -> None:
    """The same for what Git runs; the user's own helper, which would store it, is not asked."""
    other = team.person("other")
    (other.repo / "data.txt").write_text("text\n")
    other.git("add", "-A")
    other.git("commit", "-qm", "one")
    bare = web.folder / "repo.git"
    other.git("clone", "-q", "--bare", str(other.repo), str(bare))
    other.git("update-server-info", cwd=bare)
    said, kept, tools = ann.path / "said", ann.path / "kept", ann.path / "tools"
    tools.mkdir()
    real = shutil.which("git")
    (tools / "git").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {said}\nexec {real} "$@"\n')
    (tools / "git").chmod((tools / "git").stat().st_mode | stat.S_IXUSR)
    ann.extra |= {"PATH": f"{tools}:{ann.env['PATH']}", "GIT_TRACE": str(ann.path / "trace")}
    ann.git("config", "--global", "credential.helper", f"!tee -a {kept} #")
    login = f"{USER}:{quote(PASSWORD, safe='')}@"
    url = web.url("basic", "repo.git").replace("://", f"://{login}")
    ann.run("get", url, "data.txt")
    assert (ann.repo / "data.txt").read_text() == "text\n"
    # A second time by the clone that is there; then one that is wrong.
    ann.run("get", url, "data.txt", "-f")
    refused = ann.run("get", url.replace(USER, "eve"), "data.txt", "-f", code=None)
    sentence(refused)
    assert refused.returncode and PASSWORD not in refused.stderr and quote(PASSWORD, safe="") not in refused.stderr
    told = said.read_text() + (ann.path / "trace").read_text()
    assert "repo.git" in told and "fetch" in told and not kept.exists()
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in told
        for folder in ("cache", "state"):
            for path in (ann.path / folder).rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_manifest_of_thousands_of_nested_folders(team: Team, ann: Home) -> None:
    """As deep as Linux has paths it is brought; what is deeper is refused by one sentence, and nothing of it is made."""
    from tests.remote.shared import key_of

    from millpond.daemon.project import manifest

    digest = "9dd4e461268c8034f5c8564e155c67a6"  # of "x"
    team.put(key_of(digest), b"x")
    for depth in (1500, 3000):
        text = manifest.serialise([("/".join("a" * depth), digest)])
        name = manifest.manifest_name(text).value
        team.put(key_of(name), text)
        pointer = ann.repo / "deep.dvc"
        pointer.write_text(f"outs:\n- md5: {name}\n  size: 1\n  nfiles: 1\n  hash: md5\n  path: deep\n")
        if depth == 1500:
            ann.run("pull")
            assert Path(f"{ann.repo}/deep/{'/'.join('a' * depth)}").read_text() == "x"
            ann.run("remove", "--outs", "deep.dvc")
            continue
        for words in (["pull"], ["checkout"]):
            done = ann.run(*words, code=None)
            sentence(done)
            assert done.returncode and "no path may have more than 4095" in done.stderr and "deep/a/a/" in done.stderr
        assert not (ann.repo / "deep").exists()
