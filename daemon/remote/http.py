"""A remote that is a web server's folder, to read from: nothing is written, and nothing can be listed.

Servers differ in what they tell. One that refuses HEAD is asked for an object's first byte; one that gives no ranges is read once,
into a nameless file, and the ranges are taken from there. Credentials go to the url's own server and to no other.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import NoReturn
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse, exceptions

from millpond.daemon.errors import CredentialsError, MillpondError, RemoteConfigError, RemoteError, from_wire
from millpond.daemon.remote.backend import FINAL, Base, Data, Entry, Got, why, write_all
from millpond.daemon.remote.httpsettings import HttpSettings

_ABSENT = (404, 410)
_DENIED = (401, 403, 407)
_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 5
# How servers refuse a HEAD that they do not want.
_NO_HEAD = (400, 403, 405, 501)
_PIECE_BYTES = 1 << 20
# What is left of an answer that nobody needs is read up to here, so that the connection can be kept.
_DRAIN_BYTES = 64 << 10
# Objects of servers that give no ranges, kept as files; and the room that a disk must have left beside one.
_SPOOLED, _SPOOLED_S = 4, 60.0
_ROOM_BYTES = 256 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
# No connection was made.
_UNREACHED = (exceptions.NewConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyError, exceptions.SSLError)


class HttpBackend(Base):
    """See Backend. `etag` is the server's, or what it says of time and size: then only as good as its clock; None where it says
    nothing. `clock_s` is how far the server's clock is ahead of ours, as it last told."""

    near = False
    many = 1
    lists = False

    def __init__(self, name: str, settings: HttpSettings) -> None:
        self.name = name
        self.url = settings.url
        self.clock_s: float | None = None
        self._settings = settings
        self._pool = settings.pool()
        self._worked = False
        self._lock = threading.Lock()
        self._spools: OrderedDict[str, _Spool] = OrderedDict()
        self._sweeper: threading.Timer | None = None

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
        return entry or self._spool(key, None, fresh=True).entry

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        if size == 0:
            entry = self.head(key)
            if entry is None:
                raise self.absent(key)
            return Got(b"", entry)
        if (spool := self._going_on(key, start, etag)) is not None:
            if etag is not None and ((entry := self.head(key)) is None or entry.etag != etag):
                raise self.changed(key)
            return self._spooled(key, spool, start, size)
        ranged = start > 0 or size is not None
        headers = {"Range": f"bytes={start}-{'' if size is None else start + size - 1}"} if ranged else {}
        if etag is not None and etag.startswith('"'):
            headers["If-Match"] = etag
        with self._asking("read", key, "GET", headers) as answer:
            entry = self._found(key, answer, etag)
            if answer.status == 416 and entry is not None and start >= entry.size:
                return Got(b"", entry)
            if answer.status not in (200, 206):
                self._fail("read", key, answer)
            if entry is not None and (answer.status == 206 or not start):
                wanted = max(0, min(entry.size - start, entry.size if size is None else size))
                if answer.status == 206 and _begin(answer) != start:
                    raise RemoteError(
                        f"remote '{self.name}' gave another range of '{key}' than was asked for", path=key
                    )
                return Got(self._take(key, answer, wanted), entry)
        told = None if entry is None else entry.etag
        spool = self._spool(key, told, fresh=told is None and not start)
        if etag is not None and spool.entry.etag not in (None, etag):
            raise self.changed(key)
        return self._spooled(key, spool, start, size)

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        self._refuse()

    def put_stream(self, key: str, pieces: Iterable[Data], size: int) -> None:
        self._refuse()

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        self._refuse()

    def delete(self, key: str) -> None:
        self._refuse()

    def list(self, prefix: str) -> Iterator[Entry]:
        raise RemoteConfigError(
            f"remote '{self.name}' ({self.url}) cannot be listed: http has no way to ask for it",
            path=self.url,
            hint="use a remote of another kind for this",
        )

    def close(self) -> None:
        self._pool.clear()
        with self._lock:
            self._spools.clear()
            if self._sweeper is not None:
                self._sweeper.cancel()

    # -- one request ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, doing: str, key: str, method: str, headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
        """Ask, and read what is needed of the answer in the block."""
        answer: BaseHTTPResponse | None = None
        try:
            answer = self._ask(method, f"{self.url}/{quote(key)}", headers)
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

    # -- servers that give no ranges, or no sizes -----------------------------------------------------------------

    def _going_on(self, key: str, start: int, etag: str | None) -> _Spool | None:
        """The file that a reader of an object has the further parts from. Where the server tells no versions apart, whoever begins
        at the beginning has it asked anew."""
        with self._lock:
            spool = self._spools.get(key)
        return spool if spool is not None and spool.entry.size >= 0 and spool.entry.etag == etag and start else None

    def _spooled(self, key: str, spool: _Spool, start: int, size: int | None) -> Got:
        length = max(0, min(spool.entry.size - start, spool.entry.size if size is None else size))
        data = os.pread(spool.fd, length, start)
        spool.used = time.monotonic()
        if len(data) < length:
            raise RemoteError(f"'{key}' of remote '{self.name}' cannot be read from {self._settings.scratch}", path=key)
        return Got(data, spool.entry)

    def _spool(self, key: str, told: str | None, *, fresh: bool) -> _Spool:
        """The whole object in a file without a name; who asks for one at the same time waits for it. `told` is the ETag that the
        object has now."""
        with self._lock:
            spool = self._spools.get(key)
            if spool is None or fresh or (spool.entry.size >= 0 and spool.entry.etag != told):
                spool = self._spools[key] = _Spool()
                self._sweep_later()
            self._spools.move_to_end(key)
            while len(self._spools) > _SPOOLED:  # closed when its last reader is done
                self._spools.popitem(last=False)
        with spool.lock:
            if spool.error is not None:  # one error for each who waited
                raise from_wire(spool.error.to_wire())
            if spool.entry.size < 0:
                try:
                    self._fill(key, spool)
                except MillpondError as error:
                    spool.error = error
                    self._forget(key)
                    raise
        return spool

    def _forget(self, key: str) -> None:
        with self._lock:
            self._spools.pop(key, None)

    def _fill(self, key: str, spool: _Spool) -> None:
        folder = self._settings.scratch
        with self._asking("read", key, "GET", {}) as answer:
            told = self._found(key, answer, None)
            if answer.status != 200:
                self._fail("read", key, answer)
            room = os.statvfs(folder)
            most = room.f_bavail * room.f_frsize - _ROOM_BYTES
            spool.fd, path = tempfile.mkstemp(prefix="millpond-", dir=folder)
            os.unlink(path)
            done = 0
            while piece := answer.read(_PIECE_BYTES):
                done += len(piece)
                if done > most:
                    raise RemoteError(
                        f"remote '{self.name}' gives '{key}' only as a whole, and there is no room for it in '{folder}'",
                        path=folder,
                        hint="set TMPDIR to a folder with more room",
                        details=FINAL,
                    )
                write_all(spool.fd, piece)
            etag, modified = (told.etag, told.modified) if told else (_etag(answer, done), 0.0)
            spool.entry = Entry(key, done, etag, None, modified)

    def _sweep_later(self) -> None:
        """A mount keeps its backend for days: what nobody reads on gives its room back."""
        if self._sweeper is None:
            self._sweeper = threading.Timer(_SPOOLED_S, self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        with self._lock:
            self._sweeper = None
            for key, spool in list(self._spools.items()):
                if spool.entry.size >= 0 and time.monotonic() - spool.used > _SPOOLED_S:
                    del self._spools[key]
            if self._spools:
                self._sweep_later()

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
        if unreached:
            reason = f"it cannot be reached: {reason}"
        raise RemoteError(
            f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): {reason}",
            path=key,
            hint=hint,
            details=FINAL if final else None,
        ) from error


class _Spool:
    """A whole object in a nameless file; its size is below 0 until it is there. Closed by its last user."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entry = Entry("", -1)
        self.fd = -1
        self.error: MillpondError | None = None
        self.used = time.monotonic()

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _entry(key: str, answer: BaseHTTPResponse) -> Entry | None:
    """What an answer tells of its object; None where its size is not told, or is that of a compressed form."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    told = found[3] if found is not None and answer.status in (206, 416) else answer.headers.get("Content-Length", "")
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
