"""http remotes beside what the conformance suite asks: logins, redirects, TLS, servers that can less, what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests.remote.proxy import Proxy, broken, proxy, truncated
from tests.remote.servers import WebServer, free_port, until_it_listens, web_server
from tests.remote.webserver import HEADER, PASSWORD, TOKEN, USER

from millpond.daemon.errors import CredentialsError, MillpondError, RemoteConfigError, RemoteError
from millpond.daemon.names import ObjectName
from millpond.daemon.remote.backend import Backend
from millpond.daemon.remote.httpauth import Digest
from millpond.daemon.remote.remotes import Remote, connect
from millpond.daemon.remote.transfer import Transfer

Connect = Callable[..., Backend]
LOGIN = {"user": USER, "password": PASSWORD}
DATA = bytes(range(256)) * 40_000


@pytest.fixture
def connected() -> Iterator[Connect]:
    made: list[Backend] = []

    def make(url: str, environ: dict[str, str] | None = None, **values: str) -> Backend:
        made.append(connect(Remote("r", url, values), environ or {}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module", autouse=True)
def data(web: WebServer) -> None:
    (web.folder / "x y").mkdir(exist_ok=True)
    (web.folder / "x y/ü%41").write_bytes(DATA)


def fails(call: Callable[[], object], kind: type[MillpondError]) -> str:
    """What is told, on one line."""
    with pytest.raises(kind) as raised:
        call()
    assert "remote 'r'" in str(raised.value) and "\n" not in str(raised.value) and raised.value.hint
    return str(raised.value)


def test_logins(connected: Connect, web: WebServer, tmp_path: Path) -> None:
    logins = {
        "basic": {"auth": "basic", **LOGIN},
        "digest": {"auth": "digest", **LOGIN},
        "custom": {"auth": "custom", "custom_auth_header": HEADER, "password": TOKEN},
    }
    for kind, values in logins.items():
        backend = connected(web.url(kind, "x y"), **values)
        for start in (0, 10):
            assert bytes(backend.get("ü%41", start, 5).data) == DATA[start : start + 5], kind
        wrong = connected(web.url(kind, "x y"), **(values | {"password": "wrong"}))
        assert "401" in fails(lambda backend=wrong: backend.head("ü%41"), CredentialsError), kind  # type: ignore[misc]
    url = web.url("basic", "x y").replace("//", f"//{USER}:{PASSWORD.replace(' ', '%20').replace(':', '%3A')}@")
    backend = connected(url)
    assert backend.head("ü%41") is not None and "hers" not in backend.url
    (tmp_path / "notes").write_text(
        f'machine 127.0.0.1 login {USER} password "{PASSWORD.replace(chr(34), chr(92) + chr(34))}"\n'
    )
    assert connected(web.url("basic", "x y"), {"NETRC": str(tmp_path / "notes")}).head("ü%41") is not None
    with ThreadPoolExecutor(8) as pool:
        backend = connected(web.url("digest", "x y"), **logins["digest"])
        assert all(pool.map(lambda at: bytes(backend.get("ü%41", at, 9).data) == DATA[at : at + 9], range(64)))


def test_digests_are_those_of_the_rfc() -> None:
    """RFC 7616, 3.9.1, and RFC 2069's form without qop."""
    answers = {
        "MD5": "8ca523f5e9506fed4657c9700eebdbec",
        "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    }
    for algorithm, answer in answers.items():
        challenge = {
            **{"realm": "http-auth@example.org", "qop": "auth", "algorithm": algorithm},
            "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        }
        made = Digest("Mufasa", "Circle of Life")._answer(
            challenge, "GET", "/dir/index.html", "00000001", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
        )
        assert f'response="{answer}"' in made
    digest = Digest("Mufasa", "Circle of Life")
    assert not digest.challenged(["Basic realm=x", "Digest nonsense", 'Digest realm="r", nonce="n", algorithm=MD2'])
    assert (
        digest.challenged(['Digest realm="r", nonce="n"']) and "qop" not in digest.headers("GET", "/")["Authorization"]
    )
    assert digest.headers("GET", "/")["Authorization"] == digest.headers("GET", "/")["Authorization"]


def test_credentials_go_to_no_other_host(connected: Connect, web: WebServer) -> None:
    """The other one answers 418 to who shows him any."""
    backend = connected(web.url("moved", "x y"), auth="basic", **LOGIN)
    assert bytes(backend.get("ü%41", 5, 5).data) == DATA[5:10]
    assert "leads on more" in fails(lambda: connected(web.url("loop")).head("a"), RemoteError)


def test_servers_that_can_less(connected: Connect, web: WebServer, tmp_path: Path) -> None:
    for kind in ("nohead", "norange", "bare", "gzip"):
        backend = connected(web.url(kind, "x y"), {"TMPDIR": str(tmp_path)})
        entry = backend.head("ü%41")
        assert entry is not None and entry.size == len(DATA), kind
        with ThreadPoolExecutor(8) as pool:
            read = partial(backend.get, "ü%41", etag=backend.get("ü%41", 0, 5).entry.etag)
            got = pool.map(lambda at, read=read: read(at, 100_000), range(0, len(DATA), 100_000))
            assert b"".join(bytes(each.data) for each in got) == DATA, kind
        assert backend.head("none") is None and list(tmp_path.iterdir()) == []
        assert bytes(backend.get("ü%41").data) == DATA


def test_python_s_own_server(connected: Connect, tmp_path: Path) -> None:
    """It knows no ranges; a large object is fetched twice at most."""
    (tmp_path / "files/md5/ab").mkdir(parents=True)
    name = ObjectName("md5", "ab" + "0" * 30)
    (tmp_path / "files/md5/ab" / ("0" * 30)).write_bytes(DATA)
    port, log = free_port(), tmp_path / "log"
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(tmp_path), str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_it_listens(process, port, log)
        with Transfer(connected(f"http://127.0.0.1:{port}/")) as transfer:
            assert transfer.read(name) == DATA
            assert transfer.present([name]) == {name: len(DATA)}
    finally:
        process.kill()
        process.wait()


def test_a_certificate_that_nobody_knows(connected: Connect, tmp_path: Path) -> None:
    with web_server(tmp_path, tls=True) as server:
        (server.folder / "a").write_bytes(b"1")
        said = fails(lambda: connected(server.url()).head("a"), RemoteError)
        assert "self-signed" in said and "ssl_verify" in said
        assert connected(server.url(), ssl_verify=str(server.certificate)).head("a") is not None
        assert connected(server.url(), ssl_verify="false").head("a") is not None
        elsewhere = server.url().replace("localhost", "127.0.0.1")
        assert "certificate" in fails(
            lambda: connected(elsewhere, ssl_verify=str(server.certificate)).head("a"), RemoteError
        )


def test_answers_that_are_errors(connected: Connect, web: WebServer) -> None:
    assert "403" in fails(lambda: connected(web.url("denied")).head("a"), CredentialsError)
    with pytest.raises(RemoteError) as raised:
        connected(web.url("failing")).get("a")
    assert "500" in str(raised.value) and raised.value.details.get("again") is not False


@pytest.fixture
def between(web: WebServer) -> Iterator[Proxy]:
    with proxy(f"http://127.0.0.1:{web.port}") as made:
        yield made


@pytest.mark.parametrize("fault", [broken, truncated])
def test_what_breaks_on_the_way_is_no_object(connected: Connect, between: Proxy, fault: Callable[..., bytes]) -> None:
    backend = connected(f"{between.endpoint}/open/x y")
    assert bytes(backend.get("ü%41", 0, 5).data) == DATA[:5]
    between.fault = fault
    with pytest.raises(RemoteError) as raised:
        backend.get("ü%41")
    assert raised.value.details.get("again") is not False
    between.fault = None
    assert bytes(backend.get("ü%41").data) == DATA


def test_proxies_of_the_environment(connected: Connect, web: WebServer) -> None:
    environ = {"HTTP_PROXY": f"127.0.0.1:{web.port}", "no_proxy": "example.org"}
    assert connected("http://elsewhere.test/open/x y", environ).head("ü%41") is not None
    with pytest.raises(RemoteError):
        connected("http://elsewhere.test/open/x y", environ | {"no_proxy": "elsewhere.test"}).head("ü%41")


@pytest.mark.parametrize(
    ("values", "url", "told"),
    [
        ({"auth": "basic", "user": "u"}, "http://h/p", "needs password"),
        ({"auth": "custom", "password": "u"}, "http://h/p", "needs custom_auth_header"),
        ({"auth": "custom", "password": "a\nb", "custom_auth_header": "X"}, "http://h/p", "make no header"),
        ({"auth": "ntlm"}, "http://h/p", "ntlm"),
        ({"ask_password": "true"}, "http://h/p", "needs a terminal"),
        ({"ssl_verify": "/none/at/all"}, "https://h/p", "ssl_verify"),
        ({"read_timeout": "soon"}, "https://h/p", "read_timeout"),
        ({}, "https:///p", "names no host"),
        ({}, "https://h/p?token=1", "behind which no path"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(values: dict[str, str], url: str, told: str) -> None:
    with pytest.raises(RemoteConfigError) as raised:
        connect(Remote("r", url, values), {})
    assert told in str(raised.value) and "remote 'r'" in str(raised.value)


def test_nothing_is_written(connected: Connect, web: WebServer) -> None:
    backend = connected(web.url("open"), method="PUT")
    calls: list[Callable[[], object]] = [
        *(lambda: backend.put("a", b"1"), lambda: backend.put_many([("a", b"1")]), lambda: backend.delete("a")),
        lambda: backend.put_stream("a", [b"1"], 1),
    ]
    for call in calls:
        assert "read-only" in fails(call, RemoteConfigError)
    assert "cannot be listed" in fails(lambda: backend.list(""), RemoteConfigError)
