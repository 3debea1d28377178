"""The listening socket: ours by the lock beside it, and nothing else is ever removed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.rpc.helpers import serving

from millpond.daemon.errors import BusyError, MillpondError
from millpond.daemon.rpc.client import Client


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(path):
        with pytest.raises(BusyError, match="another daemon"), serving(path):
            pass
        with Client.connect(path) as client:
            assert client.call("test.echo", {"a": 1})[0] == {"a": 1}
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with serving(path), Client.connect(path) as client:
        assert client.call("test.echo", {})[0] == {}


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    code = (
        "import sys, time; from pathlib import Path; from tests.rpc.helpers import serving\n"
        "with serving(Path(sys.argv[1])): print('up', flush=True); sys.stdin.read()"
    )
    env = {**os.environ, "PYTHONPATH": ".src:."}
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGKILL)
    assert path.exists()
    with serving(path), Client.connect(path) as client:
        assert client.call("test.echo", {})[0] == {}


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "precious"
    if what == "file":
        path.write_text("data")
    elif what == "folder":
        path.mkdir()
    else:
        (tmp_path / "target").write_text("data")
        path.symlink_to("target")
    with pytest.raises(MillpondError, match="precious"), serving(path):
        pass
    assert path.is_dir() if what == "folder" else path.read_text() == "data"


def test_a_socket_that_another_put_in_place_of_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(path), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(os.fspath(path))
    assert path.exists()


def test_the_socket_is_only_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
