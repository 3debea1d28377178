"""The server from outside: greeting, answers, cancellation, bounds, and every kind of rubbish."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rpc.helpers import Raw, Running, memfd_of, open_fds, serving

from millpond.daemon.errors import BusyError, MillpondError
from millpond.daemon.rpc import connection as connection_module
from millpond.daemon.rpc import framing
from millpond.daemon.rpc import server as server_module
from millpond.daemon.rpc.client import Client


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "s.sock") as found:
        yield found


def kind_of(message: dict[str, Any]) -> str:
    return str(message["error"]["data"]["kind"])


def test_hello_says_who_speaks_what_and_who_asks(running: Running) -> None:
    with Raw(running.path, greet=False) as raw:
        raw.say({"id": "a", "method": "hello", "params": {"protocol": [1, 9], "client": "t", "later": {"field": 1}}})
        result = raw.hear_answer("a")["result"]
    assert result["protocol"] == 1
    assert result["you"]["uid"] == os.getuid()
    assert result["you"]["pid"] == os.getpid()
    assert result["trusted"] is True
    assert "test.echo" in result["capabilities"]
    assert result["boot_id"] == running.server.boot_id


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"protocol": [2, 3]}, "upgrade the daemon"),
        ({"protocol": [0, 0]}, "upgrade this program"),
        ({"protocol": [1, 1], "need": ["test.echo", "pipeline"]}, "pipeline"),
        ({"protocol": "1"}, "protocol range"),
        ({}, "protocol range"),
    ],
)
def test_hello_refuses_what_cannot_work_and_says_what_to_do(
    running: Running, params: dict[str, Any], says: str
) -> None:
    with Raw(running.path, greet=False) as raw:
        raw.say({"id": 1, "method": "hello", "params": params})
        answer = raw.hear_answer(1)
        assert kind_of(answer) == "protocol"
        assert says in f"{answer['error']['message']}; {answer['error']['data']['hint']}"


def test_nothing_is_served_before_hello(running: Running) -> None:
    with Raw(running.path, greet=False) as raw:
        raw.say({"id": 1, "method": "test.echo", "params": {}})
        assert kind_of(raw.hear_answer(1)) == "protocol"


RUBBISH = [
    b"\n",
    b"{\n",
    b"[]\n",
    b"\xff\xfe\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"[" * 100_000 + b"\n",
    b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":[1,2]}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":"text"}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":7}\n',
    b'{"jsonrpc":"2.0","id":[1],"method":"test.echo","params":{}}\n',
    b'{"jsonrpc":"2.0","id":{"a":1},"method":"test.echo"}\n',
    b'{"jsonrpc":"2.0","id":null,"method":"test.echo"}\n',
    b'{"jsonrpc":"2.0","id":true,"method":"test.echo"}\n',
    b'{"jsonrpc":"2.0","id":1,"method":["test.echo"]}\n',
    b'{"jsonrpc":"2.0","id":1}\n',
    b"{}\n",
    b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":[1]}}\n',
    b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":[1]}\n',
    b'{"jsonrpc":"2.0","method":"$/cancelRequest"}\n',
    b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":99}}\n',
    b'{"jsonrpc":"2.0","method":"$/unheard","params":{}}\n',
    b'{"jsonrpc":"2.0","id":1,"result":{}}\n',
    b'{"jsonrpc":"2.0","id":1,"error":"no"}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.echo","params":{"\\ud800":1}}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":[1,1],"need":7}}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":[1,1],"need":[[]]}}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.sizes","params":{},"fds":3}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.sizes","params":{},"fds":-1}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"test.sizes","params":{},"fds":1e9}\n',
]


@pytest.mark.parametrize("line", RUBBISH)
def test_rubbish_hurts_only_its_sender(running: Running, line: bytes) -> None:
    with Client.connect(running.path) as other, Raw(running.path) as raw:
        raw.sock.sendall(line)
        raw.sock.shutdown(socket.SHUT_WR)
        while raw.sock.recv(65536):
            pass
        assert other.call("test.echo", {"a": 1})[0] == {"a": 1}
    with Client.connect(running.path) as later:
        assert later.call("test.echo", {})[0] == {}


def test_a_frame_over_the_bound_ends_its_connection_with_a_reason(running: Running) -> None:
    with Raw(running.path) as raw:
        piece = b"x" * (1 << 20)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # it stops reading in the middle
            for _ in range(64):
                raw.sock.sendall(piece)
    with Client.connect(running.path) as other:
        assert other.call("test.echo", {})[0] == {}


def test_an_answer_over_the_bound_is_an_error_not_a_broken_connection(running: Running) -> None:
    with Client.connect(running.path) as client:
        texts = ["x"] * (framing.MAX_FDS + 1)
        with pytest.raises(MillpondError, match="over the bound"):
            client.call("test.memfd", {"texts": texts})
        assert client.call("test.echo", {"a": 1})[0] == {"a": 1}


def test_an_unknown_method_and_a_bug_are_typed_errors(running: Running) -> None:
    with Raw(running.path) as raw:
        raw.say({"id": 1, "method": "no.such"})
        raw.say({"id": 2, "method": "test.broken"})
        assert kind_of(raw.hear_answer(1)) == "protocol"
        answer = raw.hear_answer(2)
        assert kind_of(answer) == "internal"
        assert "Traceback" not in json.dumps(answer)


def test_requests_run_side_by_side_and_answers_come_as_they_are_ready(running: Running) -> None:
    with Client.connect(running.path) as client:
        slow = client.start("test.forever", {})
        assert client.call("test.echo", {"n": 1})[0] == {"n": 1}
        client.cancel(slow)
        with pytest.raises(MillpondError) as caught:
            client.wait(slow)
    assert caught.value.kind == "cancelled"


def test_hanging_up_cancels_what_is_under_way(running: Running) -> None:
    raw = Raw(running.path)
    raw.say({"id": 1, "method": "test.forever"})
    assert raw.hear()["method"] == "$/progress"
    assert len(running.server.calls) == 1
    raw.close()
    with Client.connect(running.path) as other:  # a round trip, so that the end of the first one was read
        other.call("test.echo", {})
        running.settle()
        assert running.server.calls == []


def test_the_same_id_twice_is_refused_and_the_first_goes_on(running: Running) -> None:
    with Raw(running.path) as raw:
        raw.say({"id": 1, "method": "test.forever"})
        assert raw.hear()["method"] == "$/progress"
        raw.say({"id": 1, "method": "test.echo"})
        assert kind_of(raw.hear_answer(1)) == "protocol"
        raw.say({"method": "$/cancelRequest", "params": {"id": 1}})
        assert kind_of(raw.hear_answer(1)) == "cancelled"


def test_requests_in_flight_are_bounded(running: Running) -> None:
    with Client.connect(running.path) as client:
        flying = [client.start("test.forever", {}) for _ in range(connection_module.MAX_IN_FLIGHT)]
        while len(running.server.calls) < len(flying):
            running.settle()
        with Client.connect(running.path) as second, pytest.raises(BusyError):
            # The bound is the caller's, whichever connection he uses.
            second.call("test.echo", {})
        client.cancel(flying[0])
        with pytest.raises(MillpondError):
            client.wait(flying[0])
        assert client.call("test.echo", {})[0] == {}


def test_a_client_that_never_reads_is_read_no_further(running: Running) -> None:
    with Raw(running.path) as raw:
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "test.echo", "params": {"x": "y" * 50_000}}).encode()
        raw.sock.settimeout(2)
        with pytest.raises(TimeoutError):  # back-pressure reaches the sender
            for _ in range(2000):
                raw.sock.sendall(line + b"\n")
        with Client.connect(running.path) as other:
            assert other.call("test.echo", {})[0] == {}


def test_progress_is_coalesced_and_its_last_value_comes_before_the_answer(running: Running) -> None:
    seen: list[dict[str, Any]] = []
    with Client.connect(running.path) as client:
        client.call("test.count", {"total": 5000}, on_notify=lambda method, params: seen.append(params))
    assert seen[-1]["files"] == [5000, 5000]
    assert len(seen) < 100


def test_descriptors_come_and_go_and_none_is_left_open(running: Running) -> None:
    with Client.connect(running.path) as client:
        running.settle()
        before = open_fds()
        sent = [memfd_of(b"x" * n) for n in range(5)]
        assert client.call("test.sizes", {}, fds=sent)[0] == {"sizes": [0, 1, 2, 3, 4]}
        _, got = client.call("test.memfd", {"texts": ["a", "bc"]})
        assert [os.read(fd, 9) for fd in got] == [b"a", b"bc"]
        # An unknown method, an unregistered notification, a bug: what came with them is closed.
        for method in ("no.such", "test.broken"):
            with pytest.raises(MillpondError):
                client.call(method, {}, fds=sent)
        for fd in [*sent, *got]:
            os.close(fd)
        running.settle()
        assert open_fds() == before


def test_answers_that_nobody_takes_leave_no_descriptor(running: Running) -> None:
    before = open_fds()
    with Client.connect(running.path) as client:
        client.start("test.memfd", {"texts": ["a", "b"]})
        client.call("test.echo", {})
    raw = Raw(running.path)
    raw.say({"id": 1, "method": "test.memfd", "params": {"texts": ["a"]}})
    raw.close()
    with Client.connect(running.path) as client:
        client.call("test.echo", {})
    running.settle()
    assert open_fds() == before


def test_a_client_that_does_not_greet_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "GREET_S", 0.2)
    with serving(tmp_path / "s.sock") as running, Raw(running.path) as polite, Raw(running.path, greet=False) as mute:
        with pytest.raises(EOFError):
            mute.hear()
        polite.say({"id": 1, "method": "test.echo", "params": {"a": 1}})
        assert polite.hear_answer(1)["result"] == {"a": 1}


def test_connections_of_one_caller_are_bounded(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(server_module.MAX_CONNECTIONS):
            stack.enter_context(Raw(running.path))
        with pytest.raises(BusyError, match="256 of your connections are open"):
            Client.connect(running.path)
    # The server hears of the ends when it comes to it.
    until = time.monotonic() + 10
    while True:
        try:
            with Client.connect(running.path) as client:
                assert client.call("test.echo", {})[0] == {}
            return
        except BusyError:
            assert time.monotonic() < until


@pytest.mark.root
def test_another_users_daemon_serves_nobody_else(tmp_path: Path) -> None:
    """Even with a socket that anybody can reach."""
    with tempfile.TemporaryDirectory(prefix="mp-") as folder, serving(Path(folder) / "s.sock") as running:
        os.chmod(folder, 0o755)
        os.chmod(running.path, 0o666)
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(9))"
        done = subprocess.run(
            ["/usr/bin/python3", "-c", code, running.path],
            user=41010,
            group=41010,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("b''\n", "")
        with Client.connect(running.path) as client:
            assert client.call("test.echo", {})[0] == {}
