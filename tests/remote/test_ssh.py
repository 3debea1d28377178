"""ssh remotes beside what the conformance suite asks: logging in, host keys, ~/.ssh/config, lost connections, servers that can less."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.remote.servers import SSHServer, ssh_server

from millpond.daemon.errors import CredentialsError, MillpondError, RemoteConfigError, RemoteError
from millpond.daemon.remote.backend import Backend
from millpond.daemon.remote.remotes import Remote, connect

Connect = Callable[..., Backend]


@pytest.fixture
def connected(ssh: SSHServer, tmp_path: Path) -> Iterator[Connect]:
    """Makes backends of a folder of the server, with other settings, url or home."""
    made: list[Backend] = []

    def make(url: str | None = None, home: Path | None = None, server: SSHServer = ssh, **values: str) -> Backend:
        settings = values if home is not None else server.values | values
        environ = {"HOME": str(home)} if home is not None else server.environ
        made.append(connect(Remote("r", url or server.url(tmp_path / "remote"), settings), environ))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def home(ssh: SSHServer, tmp_path: Path) -> Path:
    """A caller of his own, who has the server's key and can log in."""
    return Path(shutil.copytree(ssh.home, tmp_path / "home"))


def fails(backend: Backend, kind: type[MillpondError]) -> str:
    """What is told, on one line."""
    with pytest.raises(kind) as raised:
        backend.head("x")
    assert "remote 'r'" in str(raised.value) and "\n" not in str(raised.value) and raised.value.hint
    return str(raised.value)


def test_a_server_whose_key_is_not_known_is_not_talked_to(connected: Connect, home: Path, ssh: SSHServer) -> None:
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(ssh.folder / "host_key.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    known = home / ".ssh/known_hosts"
    own = known.read_text()
    known.unlink()
    said = fails(connected(home=home, keyfile=str(home / ".ssh/id_ed25519")), RemoteError)
    assert "not known here" in said and fingerprint in said and f"ssh -p {ssh.port} {ssh.user}@127.0.0.1" in said
    other = (home / ".ssh/id_ed25519.pub").read_text().split()[:2]
    known.write_text(f"{own.split()[0]} {' '.join(other)}\n")
    said = fails(connected(home=home, keyfile=str(home / ".ssh/id_ed25519")), RemoteError)
    assert "another one than known_hosts has" in said and fingerprint in said
    known.write_text(f"{own}@revoked {own}")
    assert "revoked" in fails(connected(home=home, keyfile=str(home / ".ssh/id_ed25519")), RemoteError)
    known.write_text(own)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert connected(home=home, keyfile=str(home / ".ssh/id_ed25519")).head("x") is None


def test_the_caller_s_own_settings_for_a_host_count(
    connected: Connect, home: Path, ssh: SSHServer, tmp_path: Path
) -> None:
    known = home / ".ssh/known_hosts"
    known.rename(home / "elsewhere")
    (home / ".ssh/id_ed25519").rename(home / "key")
    (home / ".ssh/config").write_text(
        f"Host NAS\n HostName 127.0.0.1\n Port {ssh.port}\n User {ssh.user}\n IdentityFile {home}/key\n"
        f" UserKnownHostsFile {home}/elsewhere\n"
    )
    (tmp_path / "remote").mkdir()
    backend = connected(f"ssh://NAS{tmp_path}/remote", home)
    backend.put("a", b"1")
    assert (tmp_path / "remote/a").read_bytes() == b"1" and backend.url == f"ssh://NAS{tmp_path}/remote"


def test_keys(connected: Connect, home: Path, ssh: SSHServer) -> None:
    key = str(home / ".ssh/id_ed25519")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "a phrase", "-f", key], check=True, capture_output=True)
    assert "passphrase" in fails(connected(home=home, keyfile=key), CredentialsError).lower()
    assert connected(home=home, keyfile=key, passphrase="a phrase").head("x") is None
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "other")], check=True)
    said = fails(connected(home=home, keyfile=str(home / "other"), allow_agent="false"), CredentialsError)
    assert f"does not let {ssh.user} in" in said
    assert "No such file" in fails(connected(home=home, keyfile=str(home / "none")), MillpondError)


def test_an_agent_is_asked_unless_the_config_forbids_it(
    connected: Connect, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    agent = dict(line.split(";")[0].split("=", 1) for line in started.splitlines()[:2])
    try:
        (home / ".ssh/id_ed25519").rename(home / "key")
        for key, value in agent.items():
            monkeypatch.setenv(key, value)
        subprocess.run(["ssh-add", "-q", str(home / "key")], check=True, capture_output=True)
        assert connected(home=home).head("x") is None
        fails(connected(home=home, allow_agent="false"), CredentialsError)
    finally:
        os.kill(int(agent["SSH_AGENT_PID"]), 15)


@pytest.mark.parametrize(
    ("values", "url", "told"),
    [
        ({"ask_password": "true"}, "ssh://h/p", "ask_password needs a terminal"),
        ({"ask_passphrase": "true"}, "ssh://h/p", "ssh-add"),
        ({"gss_auth": "true"}, "ssh://h/p", "gssapi"),
        ({"max_sessions": "many"}, "ssh://h/p", "max_sessions = many"),
        ({}, "ssh:///p", "names no host"),
        ({}, "ssh://h:99999/p", "port"),
        ({}, "ssh://h/data#1", "behind which no path"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(values: dict[str, str], url: str, told: str) -> None:
    with pytest.raises(RemoteConfigError) as raised:
        connect(Remote("r", url, values), {})
    assert told in str(raised.value) and "remote 'r'" in str(raised.value)


def test_secrets_of_a_url_are_not_shown() -> None:
    backend = connect(Remote("r", "ssh://me:secret@h:22/p", {}), {})
    assert connect(Remote("r", "ssh://[::1]:22/p", {}), {}).url == "ssh://[::1]:22/p"
    assert backend.url == "ssh://me@h:22/p" and "secret" not in repr(vars(backend))


def test_a_lost_connection_fails_what_is_under_way_and_is_made_again(
    connected: Connect, ssh: SSHServer, tmp_path: Path
) -> None:
    backend = connected()
    backend.put("big", bytes(64 << 20))
    failed: list[Exception] = []

    def read() -> None:
        try:
            while True:
                backend.get("big")
        except RemoteError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    ssh.hang_up()
    thread.join(20)
    assert "was lost" in str(failed[0]) and failed[0].details.get("again") is not False  # type: ignore[attr-defined]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: backend.head("big") is not None, range(8)))

    def pieces() -> Iterator[bytes]:
        yield bytes(4 << 20)
        ssh.hang_up()
        yield bytes(32 << 20)

    with pytest.raises(RemoteError):
        backend.put_stream("other", pieces(), 36 << 20)
    assert backend.head("other") is None and [entry.key for entry in backend.list("")] == ["big"]


def test_a_server_s_own_bound_of_sessions_is_kept(connected: Connect, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd", config="MaxSessions 2\n") as server:
        backend = connected(server=server)
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda number: backend.put(f"{number:02x}/x", b"1"), range(64)))
        backend.close()
        backend = connected(server=server, max_sessions="1")
        backend.put_many([(f"{number:02x}/y", b"2") for number in range(64)])
        assert len(list(backend.list(""))) == 128


def test_a_server_that_neither_syncs_nor_renames_over(connected: Connect, tmp_path: Path) -> None:
    """As far as SFTP itself goes: no extensions."""
    sftp = "/usr/lib/openssh/sftp-server -P posix-rename,fsync,hardlink,statvfs,limits"
    with ssh_server(tmp_path / "sshd", sftp=sftp) as server:
        backend = connected(server=server)
        assert backend.put("a/b", b"1" * 100_000) and backend.put("a/b", b"2" * 100_000)
        assert bytes(backend.get("a/b").data) == b"2" * 100_000
        assert not backend.put("a/b", b"3", create=True) and backend.put("a/c", b"3", create=True)
        backend.put_stream("big", [bytes(3 << 20)], 3 << 20)
        assert {entry.key: entry.size for entry in backend.list("")} == {"a/b": 100_000, "a/c": 1, "big": 3 << 20}


def test_a_server_that_lets_in_but_speaks_no_sftp(connected: Connect, tmp_path: Path) -> None:
    """As one whose start-up files print something."""
    with ssh_server(tmp_path / "sshd", sftp="/bin/echo This account is not available") as server:
        assert "opens no SFTP session" in fails(connected(server=server), RemoteError)


def test_closing_ends_what_is_under_way(connected: Connect) -> None:
    backend = connected()
    backend.put("big", bytes(64 << 20))
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(lambda: [backend.get("big") for _ in range(1000)]) for _ in range(4)]
        time.sleep(0.2)
        backend.close()
        for each in reading:
            with pytest.raises(RemoteError):
                each.result(20)
    with pytest.raises(RemoteError, match="not used any more"):
        backend.head("big")


def test_modes_are_the_server_s_umask_s_as_dvc_s(connected: Connect, tmp_path: Path) -> None:
    backend = connected()
    backend.put_many([("files/md5/ab/cd", b"1")])
    backend.put("files/md5/ab/ef", b"2")
    modes = {stat.S_IMODE((tmp_path / "remote/files/md5/ab" / file).stat().st_mode) for file in ("cd", "ef")}
    assert modes == {0o644}
