"""Real servers for tests of remotes: each a process of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY, SECRET = "AKIDmillpond", "a-secret-of-the-tests"


@dataclass(frozen=True, slots=True)
class S3Server:
    """moto's server: S3's protocol, objects in its memory."""

    endpoint: str

    def bucket(self, name: str) -> str:
        """Make a bucket; its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @property
    def environ(self) -> dict[str, str]:
        """For a client that is to find its credentials there."""
        return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class SSHServer:
    """OpenSSH's own, for the user of the tests; `home` is a caller's folder whose .ssh has a key that is let in."""

    port: int
    folder: Path
    home: Path
    user: str
    pid: int

    def url(self, path: Path) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    def hang_up(self) -> None:
        """End all connections, as a network does: each is a process, and for a normal user one below it."""
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                if pid != self.pid:
                    os.kill(pid, signal.SIGKILL)

    @property
    def values(self) -> dict[str, str]:
        """What a remote's section says, where ~/.ssh has no key."""
        return {"keyfile": str(self.home / ".ssh/id_ed25519"), "allow_agent": "false"}

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.home)}


@dataclass(frozen=True, slots=True)
class WebServer:
    """webserver.py: what lies in `folder`; `certificate` where it speaks TLS."""

    port: int
    folder: Path
    certificate: Path | None = None

    def url(self, kind: str = "open", path: str = "") -> str:
        scheme, host = ("https", "localhost") if self.certificate else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}/{kind}/{path}".rstrip("/")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[S3Server]:
    """Serve until the block ends."""
    port = free_port()
    program = os.path.join(os.path.dirname(sys.executable), "moto_server")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, program, "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output
        )
    try:
        until_it_listens(process, port, log)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def web_server(folder: Path, *, tls: bool = False) -> Iterator[WebServer]:
    """Serve `folder`/www until the block ends, with a certificate that nobody knows if wanted."""
    (folder / "www").mkdir(parents=True)
    port, certificate = free_port(), folder / "cert.pem" if tls else None
    command = [sys.executable, str(Path(__file__).with_name("webserver.py")), str(folder / "www"), str(port)]
    if certificate is not None:
        key = str(folder / "key.pem")
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*made, "-keyout", key, "-out", str(certificate)], check=True, capture_output=True)
        command += [str(certificate), key]
    with open(folder / "log", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_it_listens(process, port, folder / "log")
        yield WebServer(port, folder / "www", certificate)
    finally:
        process.kill()
        process.wait()


_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM {pam}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200
Subsystem sftp {sftp}
"""


@contextlib.contextmanager
def ssh_server(folder: Path, *, config: str = "", sftp: str = "internal-sftp") -> Iterator[SSHServer]:
    """OpenSSH on a port of its own until the block ends; `config` comes first in its settings, and so counts."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for key in (folder / "host_key", home / ".ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (folder / "authorized_keys").write_text((home / ".ssh/id_ed25519.pub").read_text())
    port = free_port()
    public = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    is_root = os.geteuid() == 0
    if is_root:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    text = config + _SSHD.format(port=port, folder=folder, sftp=sftp, pam="yes" if is_root else "no")
    (folder / "sshd_config").write_text(text)
    with open(folder / "log", "wb") as output:
        process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], stdout=output, stderr=output
        )
    try:
        until_it_listens(process, port, folder / "log")
        yield SSHServer(port, folder, home, getpass.getuser(), process.pid)
    finally:
        process.terminate()
        process.wait()


def until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)
