"""A remote that is a web server's folder, to read from: nothing is written, and nothing can be listed.

Servers differ in what they tell. One that refuses HEAD is asked for an object's first byte; one that gives no ranges is read once,
into a nameless file, and the ranges are taken from there. Credentials go to the url's own server and to no other.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import NoReturn
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse, exceptions

from millpond.daemon.errors import CredentialsError, MillpondError, RemoteConfigError, RemoteError
from millpond.daemon.remote.backend import FINAL, NO_ANSWER, SILENT, Entry, Got, ReadOnly, why
from millpond.daemon.remote.httpsettings import HttpSettings
from millpond.daemon.remote.httpspool import Spool, Spools

_ABSENT = (404, 410)
_DENIED = (401, 403, 407)
_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 5
# How servers refuse a HEAD that they do not want.
_NO_HEAD = (400, 403, 405, 501)
_PIECE_BYTES = 1 << 20
# What is left of an answer that nobody needs is read up to here, so that the connection can be kept.
_DRAIN_BYTES = 64 << 10
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
# No connection was made.
_UNREACHED = (exceptions.NewConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyError, exceptions.SSLError)


class HttpBackend(ReadOnly):
    """See Backend. `etag` is the server's, or what it says of time and size: then only as good as its clock; None where it says
    nothing."""

    near = False
    many = 1

    def __init__(self, name: str, settings: HttpSettings, query: str = "") -> None:
        """`query` goes with each request; it may be a signature, so it is in no message."""
        self.name = name
        self._query = f"?{query}" if query else ""
        self.url = settings.url
        self._settings = settings
        self._pool = settings.pool()
        self._worked = False
        self._spools = Spools(settings.scratch, self._fetch)

    def head(self, key: str) -> Entry | None:
        with self._asking("look at", key, "HEAD", {}) as answer:
            if answer.status in _ABSENT:
                return None
            if answer.status == 200 and (entry := _entry(key, answer)) is not None:
                return entry
            if answer.status != 200 and answer.status not in _NO_HEAD:
                self._fail("look at", key, answer)
        with self._asking("look at", key, "GET", {"Range": "bytes=0-0"}) as answer:
            if answer.status in _ABSENT:
                return None
            if answer.status not in (200, 206, 416):
                self._fail("look at", key, answer)
            entry = _entry(key, answer)
        return entry or self._spools.get(key, None, fresh=True).entry

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        if size == 0:
            entry = self.head(key)
            if entry is None:
                raise self.absent(key)
            return Got(b"", entry)
        if (spool := self._spools.going_on(key, start, etag)) is not None:
            if etag is not None and ((entry := self.head(key)) is None or entry.etag != etag):
                raise self.changed(key)
            return spool.read(start, size)
        ranged = start > 0 or size is not None
        headers = {"Range": f"bytes={start}-{'' if size is None else start + size - 1}"} if ranged else {}
        if etag is not None and etag.startswith('"'):
            headers["If-Match"] = etag
        with self._asking("read", key, "GET", headers) as answer:
            entry = self._found(key, answer, etag)
            behind = answer.status == 416
            if answer.status not in (200, 206, 416):
                self._fail("read", key, answer)
            if entry is not None and (answer.status == 206 or (answer.status == 200 and not start)):
                if answer.status == 206 and _begin(answer) != start:
                    raise RemoteError(
                        f"remote '{self.name}' gave another range of '{key}' than was asked for", path=key
                    )
                wanted = max(0, min(entry.size - start, entry.size if size is None else size))
                return Got(self._take(key, answer, wanted), entry)
        if behind:
            entry = entry or self.head(key)
            if entry is None or start < entry.size:
                raise RemoteError(f"remote '{self.name}' refuses a range of '{key}' that it has", path=key)
            return Got(b"", entry)
        told = None if entry is None else entry.etag
        spool = self._spools.get(key, told, fresh=told is None and not start)
        if etag is not None and spool.entry.etag not in (None, etag):
            raise self.changed(key)
        return spool.read(start, size)

    def list(self, prefix: str) -> Iterator[Entry]:
        raise RemoteConfigError(
            f"remote '{self.name}' ({self.url}) cannot be listed: http has no way to ask for it",
            path=self.url,
            hint="use a remote of another kind for this",
        )

    def close(self) -> None:
        self._pool.clear()
        self._spools.close()

    # -- one request ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, doing: str, key: str, method: str, headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
        """Ask, and read what is needed of the answer in the block."""
        answer: BaseHTTPResponse | None = None
        try:
            answer = self._ask(method, f"{self.url}/{quote(key)}{self._query}", headers)
            yield answer
            left = answer.length_remaining
            if method == "HEAD" or (left is not None and left <= _DRAIN_BYTES):
                answer.drain_conn()
        except MillpondError:
            raise
        except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            self._broken(error, doing, key)
        finally:
            if answer is not None:  # one that was not read to its end ends its connection
                if answer.length_remaining or answer.length_remaining is None:
                    answer.close()
                answer.release_conn()

    def _ask(self, method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Follow redirects, and a server's question who asks."""
        auth, asked_again = self._settings.auth, False
        for _ in range(_HOPS + 1):
            own = auth if _origin(url) == _origin(self.url) else None
            parts = urlsplit(url)
            login = own.headers(method, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")) if own else {}
            answer = self._pool.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "millpond", **headers, **login},
                timeout=urllib3.Timeout(
                    connect=self._settings.connect_s if self._worked else self._settings.first_s,
                    read=self._settings.read_s,
                ),
                preload_content=False,
                redirect=False,
            )
            self._worked = True
            self._note_clock(answer)
            if answer.status == 401 and own is not None and not asked_again:
                asked_again = own.challenged(answer.headers.getlist("WWW-Authenticate"))
                if asked_again:
                    answer.drain_conn()
                    continue
            where = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not where:
                return answer
            answer.drain_conn()
            url = urljoin(url, where)
            if urlsplit(url).scheme not in ("http", "https"):
                raise ValueError("it leads to an address that is not http")
        raise ValueError(f"it leads on more than {_HOPS} times")

    def _note_clock(self, answer: BaseHTTPResponse) -> None:
        told = _time(answer.headers.get("Date"))
        if told is not None:
            self.clock_s = told - time.time()

    def _take(self, key: str, answer: BaseHTTPResponse, size: int) -> bytes:
        """The first `size` bytes of an answer."""
        data = bytearray()
        while len(data) < size and (piece := answer.read(min(_PIECE_BYTES, size - len(data)))):
            data += piece
        if len(data) < size:
            raise RemoteError(
                f"remote '{self.name}' gave {len(data)} bytes of '{key}' where it promised {size}", path=key
            )
        return bytes(data)

    def _found(self, key: str, answer: BaseHTTPResponse, etag: str | None) -> Entry | None:
        """What the object of an answer is, None where it does not say how large. Raises for one that is not there, or not the same."""
        if answer.status in _ABSENT:
            raise self.absent(key)
        if answer.status == 412:
            raise self.changed(key)
        entry = _entry(key, answer)
        if etag is not None and answer.status in (200, 206) and entry is not None and entry.etag not in (None, etag):
            raise self.changed(key)
        return entry

    def _fetch(self, key: str, spool: Spool) -> Entry:
        """All of an object, for those who want parts of it."""
        with self._asking("read", key, "GET", {}) as answer:
            told = self._found(key, answer, None)
            if answer.status != 200:
                self._fail("read", key, answer)
            done = 0
            while piece := answer.read(_PIECE_BYTES):
                spool.write(piece)
                done += len(piece)
            return Entry(key, done, _etag(answer, done), None, told.modified if told else 0.0)

    # -- failures -------------------------------------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise RemoteConfigError(
            f"remote '{self.name}' ({self.url}) is read-only: nothing is written over http",
            path=self.url,
            hint="push to another remote (-r NAME)",
        )

    def _fail(self, doing: str, key: str, answer: BaseHTTPResponse) -> NoReturn:
        message = f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): HTTP status {answer.status}"
        if answer.status in _DENIED:
            hint = "see auth, user and password; some servers answer so for what is not there"
            raise CredentialsError(message, path=key, hint=hint)
        again = answer.status >= 500 or answer.status in (408, 425, 429)
        raise RemoteError(message, path=key, hint="see its url, then try again", details=None if again else FINAL)

    def _broken(self, error: Exception, doing: str, key: str) -> NoReturn:
        """No answer, or not all of it."""
        reason = str(error) if isinstance(error, ValueError) else why(error)
        certificate = "certificate" in reason
        hint = "see its url and the network, then try again"
        if certificate:
            hint = f"name the authority's file: millpond remote modify {self.name} ssl_verify FILE"
        unreached = isinstance(error, _UNREACHED)
        final = certificate or isinstance(error, ValueError) or (unreached and not self._worked)
        message = f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): {reason}"
        if unreached:
            message = f"remote '{self.name}' cannot be reached ({self.url}), to {doing} '{key}': {reason}"
        raise RemoteError(
            message,
            path=key,
            hint=hint,
            details=FINAL if final else SILENT if reason == NO_ANSWER else None,
        ) from error


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _entry(key: str, answer: BaseHTTPResponse) -> Entry | None:
    """What an answer tells of its object; None where its size is not told, or is that of a compressed form."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status in (206, 416):  # the length is that of a part, or of an error's text
        told = found[3] if found is not None else ""
    else:
        told = answer.headers.get("Content-Length", "")
    if not told.isdigit():
        return None
    return Entry(key, int(told), _etag(answer, int(told)), None, _time(answer.headers.get("Last-Modified")) or 0.0)


def _etag(answer: BaseHTTPResponse, size: int) -> str | None:
    own, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    return own or (f"{modified}/{size}" if modified else None)


def _begin(answer: BaseHTTPResponse) -> int | None:
    """Where the bytes of a partial answer begin."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(found[1]) if found is not None and found[1] else None


def _time(told: str | None) -> float | None:
    try:
        return parsedate_to_datetime(told).timestamp() if told else None
    except ValueError:
        return None
