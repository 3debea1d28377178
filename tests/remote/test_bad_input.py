"""What a wrong url, wrong settings and a remote in the wrong place come to: one line that names the remote and the next step."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.project.verbhelp import Project, opened
from tests.remote import proxy as proxies
from tests.remote.servers import KEY, SECRET, S3Server, SSHServer, WebServer, web_server
from tests.remote.shared import key_of

from millpond.daemon.errors import (
    CredentialsError,
    MillpondError,
    RemoteConfigError,
    RemoteError,
)
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.remotes import Remote, connect

LOGIN = {"access_key_id": KEY, "secret_access_key": SECRET}
SIZE = 300_000


@dataclass(slots=True)
class Scene:
    """A project with a tracked folder, and servers around it."""

    project: Project
    s3: S3Server
    ssh: SSHServer
    web: WebServer
    tls: WebServer
    small: Path

    def configure(self, url: str, **values: str) -> None:
        lines = [f"{key} = {value}\n" for key, value in {"url": url, **values}.items()]
        (self.project.root / ".dvc/config").write_text(f"['remote \"team\"']\n    {'    '.join(lines)}")

    def endpoint(self, endpoint: str | None = None, bucket: str | None = None, **values: str) -> None:
        """An S3 remote; the server's own endpoint, and a bucket that is there."""
        bucket = bucket or self.s3.bucket(f"i-{random.randrange(1 << 60):x}")
        values = {"endpointurl": endpoint or self.s3.endpoint, **LOGIN, **values}
        self.configure(f"s3://{bucket}/x", **values)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, ssh: SSHServer, web: WebServer) -> Iterator[Scene]:
    base = tmp_path_factory.mktemp("bad")
    small = base / "small"
    small.mkdir()
    is_root = os.geteuid() == 0
    with opened(base) as project, web_server(base / "tls", tls=True) as tls:
        shutil.copytree(ssh.home, base / "home")
        project.environ["HOME"] = str(base / "home")
        project.write("data/one", os.urandom(SIZE))
        project.add("data")
        if is_root:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(small)], check=True)
        try:
            yield Scene(project, s3, ssh, web, tls, small)
        finally:
            if is_root:
                subprocess.run(["umount", str(small)], check=True)


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port where a server listens and takes no connection any more: what is sent there is lost, as to a host that is away."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(server.getsockname())
            yield server.getsockname()[1]


Case = tuple[Callable[[Scene], None], type[MillpondError], str]
CONFIG: dict[str, Case] = {
    "no such kind": (lambda s: s.configure("nope://x/y"), RemoteConfigError, "'nope' is no kind of remote"),
    "a kind of DVC's alone": (lambda s: s.configure("gs://b/y"), RemoteConfigError, "DVC has and millpond has not"),
    "no bucket named": (lambda s: s.configure("s3:///y", **LOGIN), RemoteConfigError, "names no bucket"),
    "no bucket's name": (lambda s: s.configure("s3://bu cket/y", **LOGIN), RemoteConfigError, "no name of a bucket"),
    "no endpoint": (lambda s: s.endpoint("http://[::1", "b"), RemoteConfigError, "its endpoint is no url"),
    "no scheme in an endpoint": (lambda s: s.endpoint("host:9", "b"), RemoteConfigError, "its endpoint is no url"),
    "no url": (lambda s: s.configure(f"https://me:{SECRET}@[::1/y"), RemoteConfigError, "is none: Invalid IPv6 URL"),
    "a password": (lambda s: s.configure(f"webdav://me:{SECRET}@h/y"), RemoteConfigError, "DVC has and millpond has"),
    "the cache": (lambda s: s.configure("cache"), RemoteConfigError, "is this project's own cache"),
    "in the cache": (lambda s: s.configure("cache/files"), RemoteConfigError, "lies in this project's own cache"),
    "the repository": (lambda s: s.configure(".."), RemoteConfigError, "is the repository itself"),
    "in .dvc": (lambda s: s.configure("tmp/remote"), RemoteConfigError, "lies in the folder .dvc"),
    "in .git": (lambda s: s.configure("../.git/x"), RemoteConfigError, "lies in Git's own folder"),
    "in tracked data": (lambda s: s.configure("../data/x"), RemoteConfigError, "lies in the tracked 'data'"),
    "a disk that is away": (lambda s: s.configure("/mnt/none/at/all"), RemoteError, "there is no folder"),
    "a server's disk that is away": (
        lambda s: s.configure(s.ssh.url(Path("/mnt/none/at/all"))),
        RemoteError,
        "there is no folder '/mnt/none/at/all' on the server",
    ),
    "no certificates": (
        lambda s: s.endpoint(s.tls.url(), "b", ssl_verify="/none/ca.pem"),
        RemoteConfigError,
        "cannot read ssl_verify's file",
    ),
    "no profile": (lambda s: s.endpoint(bucket="b", profile="nobody"), RemoteConfigError, "nobody"),
}
NETWORK: dict[str, Case] = {
    "no such bucket": (lambda s: s.endpoint(bucket="not-there"), RemoteConfigError, "there is no bucket 'not-there'"),
    "no S3 there": (lambda s: s.endpoint("http://127.0.0.1:9", "b"), RemoteError, "Connection refused"),
    "no S3 there, by boto3": (
        lambda s: s.endpoint("http://127.0.0.1:9", "b", acl="private"),
        RemoteError,
        "Connection refused",
    ),
    "no such host": (lambda s: s.endpoint("http://none.invalid", "b"), RemoteError, "cannot be reached"),
    "no ssh there": (lambda s: s.configure("ssh://127.0.0.1:9/x"), RemoteError, "Connection refused"),
    "no ssh host": (lambda s: s.configure("ssh://none.invalid/x"), RemoteError, "there is no such host"),
    "no ssh but http": (lambda s: s.configure(f"ssh://127.0.0.1:{s.web.port}/x"), RemoteError, "cannot be reached"),
    "no web server": (lambda s: s.configure("http://127.0.0.1:9/x"), RemoteConfigError, "is read-only"),
    "only read": (lambda s: s.configure(s.web.url()), RemoteConfigError, "is read-only"),
    "S3 with a strange certificate": (
        lambda s: s.endpoint(s.tls.url(), "b"),
        RemoteError,
        "its certificate is not accepted",
    ),
    "the same by boto3": (
        lambda s: s.endpoint(s.tls.url(), "b", acl="private"),
        RemoteError,
        "its certificate is not accepted",
    ),
    "https with a strange certificate": (lambda s: s.configure(s.tls.url()), RemoteConfigError, "is read-only"),
    "nobody known to ssh": (
        lambda s: s.configure(f"ssh://nobody@127.0.0.1:{s.ssh.port}/x"),
        CredentialsError,
        "does not let nobody in",
    ),
}


def said(scene: Scene, kind: type[MillpondError], verb: str = "push") -> str:
    """What a verb that fails says, on one line, with the remote's name and what to do."""
    with pytest.raises(kind) as raised:
        scene.project.run(verb, remote="team")
    line = str(raised.value)
    assert "remote 'team'" in line and "\n" not in line and raised.value.hint, line
    assert SECRET not in line and "Traceback" not in line
    return line


@pytest.mark.parametrize("name", [*CONFIG, *NETWORK])
def test_one_line_with_the_remote_and_the_next_step(scene: Scene, name: str) -> None:
    configure, kind, told = {**CONFIG, **NETWORK}[name]
    configure(scene)
    assert told in said(scene, kind)


def test_a_web_server_that_is_away_or_strange_is_told_to_who_reads(scene: Scene) -> None:
    for url, told in (
        ("http://127.0.0.1:9/x", "Connection refused"),
        (scene.tls.url(), "its certificate is not accepted"),
    ):
        scene.configure(url)
        assert told in said(scene, RemoteError, "status.cloud")


@pytest.mark.parametrize(
    "kind", ["s3", "http", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("s3-boto", "ssh"))]
)
def test_a_host_that_does_not_answer_is_not_waited_for_again(kind: str) -> None:
    with nobody() as port:
        values = LOGIN | ({"acl": "private"} if kind == "s3-boto" else {})
        remotes = {
            "ssh": Remote("team", f"ssh://127.0.0.1:{port}/x", {}),
            "http": Remote("team", f"http://127.0.0.1:{port}/x", {}),
        }
        s3 = Remote("team", "s3://bucket/x", values | {"endpointurl": f"http://127.0.0.1:{port}"})
        backend = connect(remotes.get(kind, s3), {})
        with pytest.raises(RemoteError, match="cannot be reached") as raised:
            backend.head("x")
        assert raised.value.details.get("again") is False and "remote 'team'" in str(raised.value)
        backend.close()


@pytest.fixture
def strict(scene: Scene) -> Iterator[tuple[str, str]]:
    """Credentials for everything but to list, on a server that looks at them."""
    import boto3

    def reset(count: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{scene.s3.endpoint}/moto-api/reset-auth", data=count.encode(), headers=plain)
        urllib.request.urlopen(request, timeout=10).close()

    client = boto3.client(
        "iam",
        endpoint_url=scene.s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    name = f"u{random.randrange(1 << 60):x}"
    client.create_user(UserName=name)
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    client.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
    made = client.create_access_key(UserName=name)["AccessKey"]
    client.close()
    scene.endpoint(access_key_id=made["AccessKeyId"], secret_access_key=made["SecretAccessKey"])
    reset("0")
    try:
        yield made["AccessKeyId"], made["SecretAccessKey"]
    finally:
        reset("Infinity")


def test_a_wrong_key(scene: Scene, strict: tuple[str, str]) -> None:
    config = (scene.project.root / ".dvc/config").read_text()
    (scene.project.root / ".dvc/config").write_text(config.replace(strict[0], "AKIDnobody"))
    assert "remote check team" in said(scene, CredentialsError)
    (scene.project.root / ".dvc/config").write_text(config.replace(strict[1], "wrong"))
    assert "remote check team" in said(scene, CredentialsError)
    checks = {each["name"]: each for each in scene.project.run("remote.check", name="team")["checks"]}
    assert "SignatureDoesNotMatch" in checks["list"]["detail"] and checks["write"]["state"] == "failed"


def test_no_permission_to_list(scene: Scene, strict: tuple[str, str]) -> None:
    found = scene.project.run("remote.check", name="team")
    states = {each["name"]: each["state"] for each in found["checks"]}
    assert [name for name, state in states.items() if state == "failed"] == ["list"]
    detail = next(each["detail"] for each in found["checks"] if each["name"] == "list")
    assert (
        "remote 'team'" in detail
        and "s3:ListBucket" in detail
        and found["error"]["data"]["kind"] == "needs-credentials"
    )
    assert scene.project.run("push", remote="team")["objects"] == 2, "nothing else asks for a listing"


def test_an_expired_token(scene: Scene) -> None:
    with proxies.proxy(scene.s3.endpoint) as far:
        scene.endpoint(far.endpoint)
        far.fault = proxies.denied
        checks = scene.project.run("remote.check", name="team")["checks"]
        assert any("its credentials have expired" in each["detail"] for each in checks)
        assert "renew the credentials" in said(scene, CredentialsError)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_a_full_remote(scene: Scene, kind: str) -> None:
    """Nothing half-written is left there."""
    scene.configure(str(scene.small / "remote") if kind == "local" else scene.ssh.url(scene.small / "remote"))
    line = said(scene, RemoteError)
    assert "o space" in line and "make room there" in line
    assert [path for path in scene.small.rglob("*") if path.is_file()] == []
    shutil.rmtree(scene.small / "remote")


def test_wrong_bytes(scene: Scene, tmp_path: Path) -> None:
    """Over ssh; what is told of them is in test_sharing.py."""
    wrong = ObjectName("md5", "ab" * 16)
    place = tmp_path / "remote" / key_of(wrong.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(SIZE))
    scene.configure(scene.ssh.url(tmp_path / "remote"))
    pointer = scene.project.write(
        "copy.dvc", f"outs:\n- md5: {wrong.value}\n  size: {SIZE}\n  hash: md5\n  path: copy\n"
    )
    found = scene.project.run("fetch", "copy.dvc", remote="team")
    pointer.unlink()
    assert [row[0] for row in found["damaged"]] == [str(wrong)] and found["remotes"] == ["team"]
