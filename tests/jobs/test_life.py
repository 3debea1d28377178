"""The daemon's life: started once, stopped in order, killed at any moment, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.helpers import children_named, context, gone, kill, running, site, until

from millpond.daemon.errors import (
    AccessError,
    BusyError,
    CancelledError,
    DaemonUnavailableError,
    MillpondError,
    ProtocolError,
    StoreFormatError,
)
from millpond.daemon.rpc.client import Client


def pid_of(client: Client) -> int:
    return int(client.call("daemon.status", {})[0]["pid"])


def test_many_commands_at_once_start_one_daemon(tmp_path: Path) -> None:
    place = site(tmp_path)
    pids: list[int] = []

    def start() -> None:
        with place.start() as client:
            pids.append(pid_of(client))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    place.end()
    assert len(pids) == 6 and len(set(pids)) == 1


def test_a_stopped_daemon_has_closed_its_store_when_its_connections_end(tmp_path: Path) -> None:
    place = site(tmp_path)
    for _ in range(3):
        with place.start() as client:
            pid = pid_of(client)
            client.call("daemon.stop", {})
            assert client.hung_up(20)
            assert not place.settings.socket.exists()
        with place.start() as client:  # at once, while the old process may still be going
            assert pid_of(client) != pid
            client.call("daemon.stop", {})


def test_a_command_that_meets_a_stopping_daemon_waits_and_starts_the_next(tmp_path: Path) -> None:
    place = site(tmp_path)
    params = {"project": "p", "mark": str(tmp_path / "mark"), "until": str(tmp_path / "go"), "context": context()}
    with place.start() as client:
        work = client.start("add", params)
        until((tmp_path / "mark").exists)
        client.call("daemon.stop", {})
        found: list[int] = []

        def later() -> None:
            with place.start() as other:
                found.append(pid_of(other))

        thread = threading.Thread(target=later)
        thread.start()
        with pytest.raises(DaemonUnavailableError, match="stopping"):
            client.call("root", {"context": context()})
        assert client.call("daemon.status", {})[0]["stopping"] is True
        (tmp_path / "go").touch()
        # What was under way when it was told to stop is finished and answered.
        assert client.wait(work)[0] == {}
        thread.join()
    place.end()
    assert len(found) == 1


def test_stopping_now_cancels_what_is_under_way(tmp_path: Path) -> None:
    place = site(tmp_path)
    params = {"project": "p", "mark": str(tmp_path / "mark"), "until": str(tmp_path / "go"), "context": context()}
    with place.start() as client:
        work = client.start("add", params)
        until((tmp_path / "mark").exists)
        client.call("daemon.stop", {"now": True})
        with pytest.raises(CancelledError):
            client.wait(work)
        assert client.hung_up(20)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    place = site(tmp_path)
    with place.start() as client:
        os.kill(pid_of(client), number)
        assert client.hung_up(20)
    assert place.log()[-1]["text"] in ("ended", f"signal {int(number)}: stopping")
    assert not place.settings.socket.exists()


def test_an_idle_daemon_ends_but_not_while_somebody_is_there(tmp_path: Path) -> None:
    place = site(tmp_path, MILLPOND_IDLE_EXIT="0.3")
    with place.start() as client:
        pid = pid_of(client)
        assert not client.hung_up(1.0)
        assert client.call("root", {"context": context()})[0] == {}
    until(lambda: gone(pid))
    assert not place.settings.socket.exists()
    with place.start() as client:
        assert pid_of(client) != pid
    place.end()


def test_a_second_daemon_of_the_same_store_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path / "one") as one:
        other = site(
            tmp_path / "two", MILLPOND_STORE=str(one.settings.store), MILLPOND_SOCKET=str(tmp_path / "other.sock")
        )
        with one.start() as client, pytest.raises(BusyError, match=str(pid_of(client))):
            other.start()
        with one.start() as client:
            assert client.call("root", {"context": context()})[0] == {}


def test_a_second_daemon_on_the_same_socket_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "one") as one:
        env = {**one.env, "MILLPOND_STORE": str(tmp_path / "store"), "MILLPOND_SOCKET": str(one.settings.socket)}
        done = subprocess.run(
            [sys.executable, "-m", "millpond.daemon.main"], env=env, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == BusyError.exit_code
        assert "another daemon listens" in done.stderr and "Traceback" not in done.stderr


def test_a_store_of_a_newer_format_is_refused_and_untouched(tmp_path: Path) -> None:
    place = site(tmp_path)
    with running(tmp_path):
        pass
    path = place.settings.store / "format.json"
    newer = {**json.loads(path.read_text()), "version": 99, "format": 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(StoreFormatError):
        place.start()
    assert json.loads(path.read_text()) == newer


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    place = site(tmp_path)
    place.env["PYTHONPATH"] = f"{tmp_path}:{place.env['PYTHONPATH']}"
    (tmp_path / "sitecustomize.py").write_text("import os; os.write(2, b'first line\\nno luck\\n'); os._exit(3)")
    with pytest.raises(DaemonUnavailableError, match=r"did not start: first line \| no luck; see `millpond"):
        place.start()


def test_a_file_in_the_sockets_place_is_named_and_kept(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    place = site(tmp_path, MILLPOND_SOCKET=str(precious))
    with pytest.raises(AccessError, match="precious"):
        place.start()
    assert precious.read_text() == "data"


@pytest.mark.parametrize("where", ["run/millpond", "home/.local"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, where: str) -> None:
    place = site(tmp_path)
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    with pytest.raises(AccessError, match=f"cannot make '.*{where}"):
        place.start()


def test_a_daemon_of_another_protocol_is_told_apart_from_none(tmp_path: Path) -> None:
    place = site(tmp_path)
    place.settings.socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(place.settings.socket))
        listener.listen()

        def answer() -> None:
            conn, _ = listener.accept()
            with conn:
                conn.recv(65536)
                error = ProtocolError("the daemon speaks protocol 7 to 9, this program 1 to 1").to_wire()
                conn.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="protocol 7 to 9"):
            place.start()
        thread.join()


def test_a_daemon_of_another_protocol_can_still_be_asked_and_ended(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        pid = pid_of(client)
    with Client.connect(place.settings.socket, greet=False) as stranger:
        with pytest.raises(ProtocolError, match="first request of a connection is hello"):
            stranger.call("root", {"context": context()})
        assert pid_of(stranger) == pid
        stranger.call("daemon.stop", {})
        assert stranger.hung_up(20)


def test_kill_minus_nine_and_the_next_command_goes_on(tmp_path: Path) -> None:
    place = site(tmp_path)
    for _ in range(3):
        with place.start() as client:
            assert client.call("root", {"context": context()})[0] == {}
            kill(pid_of(client))
            with pytest.raises(DaemonUnavailableError, match="ended before it answered"):
                client.call("root", {"context": context()})
    place.end()


def test_no_worker_of_a_killed_daemon_works_beside_one_of_the_next(tmp_path: Path) -> None:
    place = site(tmp_path)
    mark = tmp_path / "mark"
    params = {"project": "p", "mark": str(mark), "until": str(tmp_path / "go"), "context": context()}
    with place.start() as client:
        client.start("add", {**params, "cleanup_s": 1.0})
        until(lambda: mark.exists() and mark.read_text())
        old = int(mark.read_text())
        kill(pid_of(client))
    with place.start() as client:
        assert gone(old), "the new daemon gave out locks before the old one's workers had ended"
        (tmp_path / "go").touch()
        assert client.call("add", params)[0] == {}
    place.end()


def test_a_killed_daemon_leaves_no_process_behind(tmp_path: Path) -> None:
    place = site(tmp_path)
    with place.start() as client:
        daemon = pid_of(client)
        client.call("root", {"context": context()})
        [zygote] = children_named("millpond-zygote", daemon)
        kill(daemon)
    until(lambda: gone(zygote))


def test_kill_minus_nine_in_a_loop_of_requests(tmp_path: Path) -> None:
    """Whatever is under way is an error or an answer, never a hang; what was acknowledged is there."""
    place = site(tmp_path, MILLPOND_FSYNC="1")
    stored: list[str] = []
    errors: list[MillpondError] = []
    for round_number in range(4):
        done = threading.Event()

        def work(number: int, done: threading.Event) -> None:
            count = 0
            while not done.is_set():
                count += 1
                path = tmp_path / f"f{number}"
                path.write_text(f"{number} {count}")
                try:
                    with place.start() as client:
                        found, _ = client.call("status", {"paths": [str(path)], "context": context()})
                        stored.extend(found["names"])
                except MillpondError as error:
                    errors.append(error)

        thread = threading.Thread(target=work, args=(round_number, done))
        thread.start()
        seen = len(stored)
        until(lambda seen=seen: len(stored) > seen + 2)  # type: ignore[misc]
        with contextlib.suppress(MillpondError), Client.connect(place.settings.socket) as client:
            os.kill(pid_of(client), signal.SIGKILL)
        seen = len(stored)
        until(lambda seen=seen: len(stored) > seen)  # type: ignore[misc]
        done.set()
        thread.join()
    assert {type(error) for error in errors} <= {DaemonUnavailableError}
    with place.start() as client:
        report, _ = client.call("fsck", {"deep": True, "context": context()})
        stats, _ = client.call("store.stats", {})
    place.end()
    assert stats["objects"] >= len(set(stored))
    assert report["ok"] and report["objects"] >= len(set(stored)), report


def test_the_log_is_bounded_and_rotated(tmp_path: Path) -> None:
    place = site(tmp_path)
    code = (
        "import logging, sys; from pathlib import Path; from millpond.daemon import log\n"
        "log.MAX_BYTES = 10_000\n"
        "log.to_file(Path(sys.argv[1]))\n"
        "for n in range(2000): logging.getLogger('millpond.x').info('line %d', n)"
    )
    subprocess.run([sys.executable, "-c", code, place.settings.log], env=place.env, check=True, timeout=30)
    files = sorted(place.settings.log.parent.iterdir())
    assert [file.name for file in files] == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    assert place.log()[-1]["text"] == "line 1999"


def test_started_by_a_user_manager_it_says_when_it_is_ready(tmp_path: Path) -> None:
    """A stand-in for systemd-run, which has the contract of Type=notify: it returns after READY=1."""
    place = site(tmp_path)
    (tmp_path / "run" / "systemd").mkdir()
    (tmp_path / "run" / "systemd" / "private").touch()
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "systemd-run"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import os, socket, subprocess, sys\n"
        "args, command = sys.argv[1:sys.argv.index('--')], sys.argv[sys.argv.index('--') + 1:]\n"
        "assert {'--user', '--property=Type=notify', '--property=KillMode=process'} <= set(args)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        f"sock.bind({os.fspath(tmp_path / 'notify')!r})\n"
        "env = dict(a.removeprefix('--setenv=').split('=', 1) for a in args if a.startswith('--setenv='))\n"
        f"env['NOTIFY_SOCKET'] = {os.fspath(tmp_path / 'notify')!r}\n"
        f"env['BY_MANAGER'] = '1'\n"
        "null = subprocess.DEVNULL\n"
        "subprocess.Popen(command, env=env, start_new_session=True, stdin=null, stdout=null, stderr=null)\n"
        "assert sock.recv(100) == b'READY=1'\n"
    )
    tool.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{tool.parent}:{before}"
    try:
        with place.start() as client:
            environ = Path(f"/proc/{pid_of(client)}/environ").read_bytes()
    finally:
        os.environ["PATH"] = before
        place.end()
    assert b"BY_MANAGER=1" in environ


def test_status_tells_what_is_going_on(tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    params = {"project": "/the/project", "mark": str(mark), "until": str(go), "context": context()}
    with running(tmp_path) as place, place.start() as client:
        first = client.start("add", params)
        until(mark.exists)
        second = client.start("add", {**params, "mark": str(tmp_path / "second")})
        status = until(lambda: _waiting(client))
        go.touch()
        client.wait(first)
        client.wait(second)
    assert [request["method"] for request in status["requests"]] == ["add", "add"]
    [lock] = [each for each in status["locks"] if each["project"]]  # the other is the store's
    assert (lock["project"], lock["mode"], len(lock["held_by"]), len(lock["waiting"])) == (
        "/the/project",
        "write",
        1,
        1,
    )
    assert status["workers"] == 2 and status["pid"] > 0 and status["rss"] > 1 << 20


def _waiting(client: Client) -> dict[str, Any] | None:
    status, _ = client.call("daemon.status", {})
    return status if any(lock["waiting"] for lock in status["locks"]) else None
