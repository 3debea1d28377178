"""Remotes that take connections and say nothing: who waits is told, and they are given up; those that are slow are not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.remote.shared import Team
from tests.remote.test_places import NOWHERE, local, silent

from millpond.daemon.errors import RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.project.importing import opening
from millpond.daemon.remote import backend, flow, silence
from millpond.daemon.remote.remotes import Remote, connect
from millpond.daemon.remote.s3base import S3Base
from millpond.daemon.remote.s3settings import S3Settings
from millpond.daemon.remote.transfer import Transfer

NAME = ObjectName("md5", "ab" * 16)
VERBS = (("push",), ("fetch",), ("pull",), ("status", "-c"))


@contextlib.contextmanager
def trickling(size: int, each_s: float) -> Iterator[int]:
    """A port where a request is answered by a byte each `each_s`, `size` in all."""
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = sock.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        f"HTTP/1.1 206 x\r\nContent-Length: {size}\r\nContent-Range: bytes 0-{size - 1}/{size}\r\n\r\n".encode()
                    )
                    for _ in range(size):
                        time.sleep(each_s)
                        connection.sendall(b"x")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            sock.close()
            thread.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "TOLD_S", 0.2)
    monkeypatch.setattr(silence, "_AGAIN_S", 0.3)
    monkeypatch.setattr(silence, "FIRST_S", 0.5)
    monkeypatch.setattr(silence, "LATER_S", 0.5)
    monkeypatch.setattr(flow, "_TICK_S", 0.1)


def over_http(port: int, tell: silence.Tell) -> Transfer:
    remote = Remote("team", f"http://127.0.0.1:{port}/team", {"read_timeout": "1"})
    return Transfer(connect(remote, {}), tell=tell)


def test_who_waits_is_told_and_what_had_no_answer_is_asked_once(quick: None) -> None:
    told: list[tuple[str, float]] = []
    with silent() as (port, met), over_http(port, lambda who, since_s: told.append((who, since_s))) as transfer:
        began = time.monotonic()
        with pytest.raises(RemoteError, match="remote 'team' .* it does not answer"):
            list(transfer.download([NAME]))
        assert time.monotonic() - began < 2.5 and len(met) == 1
    assert len(told) >= 2 and {who for who, _ in told} == {"remote 'team' to answer"}
    assert told[0][1] >= 0.2 and told == sorted(told, key=lambda each: each[1])


@pytest.mark.long
def test_one_that_is_slow_is_not_given_up(quick: None) -> None:
    told: list[str] = []
    with trickling(12, 0.2) as port, over_http(port, lambda who, since_s: told.append(who)) as transfer:
        [part] = transfer.download([NAME])
        assert bytes(part.data) == b"x" * 12 and told


@pytest.mark.long
def test_one_that_was_lost_is_asked_again(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that end are no silence, however long it took."""
    monkeypatch.setattr(flow, "_PAUSE_S", 0.01)
    asked = 0
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def hang_up() -> None:
            nonlocal asked
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = sock.accept()
                    asked += 1
                    time.sleep(0.6)
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with over_http(sock.getsockname()[1], lambda who, since_s: None) as transfer, pytest.raises(RemoteError):
            list(transfer.download([NAME]))
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert asked == 4


def person(team: Team, port: int) -> Home:
    """Somebody with a version that is here, and one that is not; his remote answers nobody."""
    home = team.person("ann")
    (home.repo / "here").write_text("here")
    home.run("add", "-q", "here")
    (home.repo / "gone.dvc").write_text(f"outs:\n- md5: {'ab' * 16}\n  hash: md5\n  path: gone\n")
    section = NOWHERE.replace("127.0.0.1:9", f"127.0.0.1:{port}")
    (home.repo / ".dvc/config.local").write_text(f"['remote \"team\"']\n{section}")
    return home


LOGIN = {"access_key_id": "a", "secret_access_key": "b"}
# Urls, and settings, of each way to ask; {} is where nobody answers.
PLACES = {
    "http": ("http://127.0.0.1:{}/d/f", {}),
    "s3": ("s3://bucket/d/f", LOGIN),
    "s3-boto": ("s3://bucket/d/f", {**LOGIN, "acl": "private"}),
    "versions": ("s3://bucket/d/f?versionId=v", {**LOGIN, "version_aware": "true"}),
    "versions-boto": ("s3://bucket/d/f?versionId=v", {**LOGIN, "version_aware": "true", "acl": "private"}),
}
# Which tries again by itself, for 2.5 s.
BY_OBSTORE = ("s3", "versions")


def settings_of(kind: str, port: int) -> tuple[str, dict[str, str]]:
    url, values = PLACES[kind]
    return url.format(port), values if kind == "http" else {**values, "endpointurl": f"http://127.0.0.1:{port}"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in BY_OBSTORE else []) for kind in PLACES]
)
def test_a_url_where_nobody_answers_is_asked_once(kind: str, quick: None, tmp_path: Path) -> None:
    told: list[str] = []
    with silent() as (port, met):
        url, values = settings_of(kind, port)
        values = {**values, "read_timeout": "0.6"}
        began = time.monotonic()
        with (
            pytest.raises(RemoteError, match="it does not answer") as failed,
            opening.opened(url, None, values, {}, folder=str(tmp_path), tell=lambda who, since_s: told.append(who)),
        ):
            pass
        assert time.monotonic() - began < 4
        assert 1 <= len(met) <= (5 if kind in BY_OBSTORE else 1)
    where = "http://127.0.0.1" if kind == "http" else "s3://bucket"
    assert set(told) == {f"remote '{where}' to answer"} and failed.value.details == backend.SILENT


@pytest.mark.long
def test_listing_versions_is_given_up_as_soon(quick: None) -> None:
    with silent() as (port, met):
        _, values = settings_of("s3", port)
        made = connect(Remote("team", "s3://bucket/d", {**values, "read_timeout": "0.6"}), {})
        assert isinstance(made, S3Base)
        with pytest.raises(RemoteError, match="cannot list the versions .* it does not answer"):
            list(made.list_latest("x"))
        with pytest.raises(RemoteError, match="cannot remove all versions .* it does not answer"):
            made.forget("x")
        assert made.keeps_versions() is None and len(met) == 3
        made.close()


def test_a_silent_request_ends_whatever_botocore_makes_of_answers() -> None:
    """Those before 1.43 take any answer to whether to try again for yes: they would never have ended."""
    from botocore.exceptions import ReadTimeoutError

    made = S3Settings(access_key="a", secret_key="b", region="us-east-1").client(1.0, 5)
    error = ReadTimeoutError(endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ReadTimeoutError) as failed:
        made.meta.events.emit(
            "needs-retry.s3.HeadObject",
            response=None,
            endpoint=None,
            operation=None,
            attempts=1,
            caught_exception=error,
            request_dict={"context": {}},
        )
    assert failed.value is error
    made.close()


@pytest.mark.long
def test_one_that_did_answer_is_tried_again_a_few_times_by_boto(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a large upload are not tried again by anybody else."""
    monkeypatch.setattr(silence, "LATER_S", 1.5)
    asked: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer_the_first() -> None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
                while True:
                    connection = kept.enter_context(sock.accept()[0])
                    asked.append(time.monotonic())
                    if len(asked) == 1:
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                        connection.close()

        thread = threading.Thread(target=answer_the_first)
        thread.start()
        _, values = settings_of("s3-boto", sock.getsockname()[1])
        made = connect(Remote("team", "s3://bucket/d", {**values, "read_timeout": "0.6"}), {})
        assert made.head("x") is None
        with pytest.raises(RemoteError, match="it does not answer"):
            made.head("x")
        made.close()
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(asked) == 4


@local
def test_a_verb_says_at_once_for_which_remote_it_waits(team: Team) -> None:
    with silent() as (port, met):
        home = person(team, port)
        began = time.monotonic()
        with subprocess.Popen(
            home.command("push"), cwd=home.repo, env=home.env, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "waiting for remote 'team' to answer (push)\n"
            assert 2.5 < time.monotonic() - began < 10 and met
            process.send_signal(signal.SIGINT)
            process.wait(20)
            assert process.returncode == 130


@pytest.mark.long
@local
@pytest.mark.parametrize(
    ("verb", "kind"), [("import-url", "s3"), ("update", "s3-boto"), ("list-url", "s3-boto"), ("get-url", "http")]
)
def test_a_url_where_nobody_answers_is_given_up(team: Team, verb: str, kind: str) -> None:
    home = team.person("ann")
    with silent() as (port, _):
        url, values = settings_of(kind, port)
        config = "".join(f"    {key} = {value}\n" for key, value in values.items())
        place, _, path = url.partition("/d/")
        (home.repo / ".dvc/config.local").write_text(f"['remote \"team\"']\n    url = {place}\n{config}")
        told = f"remote://team/d/{path}"
        args = {"update": ["f.dvc"], "import-url": [told], "get-url": [told, "g"], "list-url": [told]}[verb]
        if verb == "update":
            home.run("import-url", "--no-exec", told, "f")
        before = sorted(os.listdir(home.repo))
        began = time.monotonic()
        said = home.run(verb, *args, code=9).stderr.splitlines()
        assert 15 < time.monotonic() - began < 40
        assert said[0] == f"waiting for remote 'team' to answer ({verb})" and "it does not answer" in said[-1]
        assert sorted(os.listdir(home.repo)) == before


@pytest.mark.long
@local
@pytest.mark.parametrize("verb", VERBS)
def test_one_that_never_answers_is_given_up(team: Team, verb: tuple[str, ...]) -> None:
    with silent() as (port, met):
        home = person(team, port)
        began = time.monotonic()
        said = home.run(*verb, code=9)
        assert 15 < time.monotonic() - began < 40 and met
        lines = said.stderr.splitlines()
        assert lines[0] == f"waiting for remote 'team' to answer ({'fetch' if verb[0] == 'pull' else ' '.join(verb)})"
        assert "remote 'team'" in lines[-1] and "it does not answer; see its url" in lines[-1]
