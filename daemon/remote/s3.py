"""S3: boto3 finds out who the caller is and where the bucket lies, obstore moves the bytes.

boto3's own transfers cost about 1.2 ms of processor a request, obstore's a tenth; but only boto3 knows profiles, SSO, assumed
roles, container and instance credentials, and DVC's users have all of them. What obstore has no setting for is done by s3boto.py.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import obstore
from obstore import exceptions
from obstore.store import S3Store

from millpond.daemon.errors import CredentialsError, RemoteError
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import NO_ANSWER, PART_BYTES, Counted, Entry, Got, Sent
from millpond.daemon.remote.s3base import S3Base
from millpond.daemon.remote.s3boto import BotoBackend
from millpond.daemon.remote.s3settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

# Credentials are asked for again after so long; boto3 renews them itself before they end.
_TTL = timedelta(minutes=5)
_MANY = 32
_LIST_PAGE = 1000
_FIRST_TRIES = 3
_DENIED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
# In the debugging form of Rust's errors: what the system, the resolver or TLS said.
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')
# No connection was made; why its certificate was not taken.
_CONNECTING = re.compile(r"legacy::Error\(\s*Connect\b")
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_CERTIFICATES = {
    "UnknownIssuer": "nobody known here has signed it",
    "CaUsedAsEndEntity": "it is an authority's own: the server needs one of its own, with CA:FALSE",
    "NotValidForName": "it is another host's",
    "NotValidForNameContext": "it is another host's",
    "Expired": "it has expired",
    "ExpiredContext": "it has expired",
}
# Nothing came for as long as `read_timeout` says, or not all of it in the whole time that a request has.
_TIMED_OUT = re.compile(r"kind: Timeout\b|TimedOut\b")
_STATUS = re.compile(r"status: (\d{3})")


class S3Backend(S3Base):
    """See Backend."""

    def __init__(self, name: str, bucket: str, prefix: str, settings: S3Settings) -> None:
        super().__init__(name, bucket, prefix, settings, _MANY)
        self._credentials = None if settings.anonymous else _Credentials(self, settings)
        # Until the first answer little is tried again, and not for long.
        self._first = self._make(settings.first_timeout, _FIRST_TRIES, settings.first_timeout)
        self._full: S3Store | None = None
        self._pool: ThreadPoolExecutor | None = None
        # For objects of several parts: obstore cannot go on with an upload that was cut.
        self._large: BotoBackend | None = None
        self._lock = threading.Lock()

    @property
    def _store(self) -> S3Store:
        return self._full or self._first

    def _make(self, connect_timeout: float, retries: int, deadline: float) -> S3Store:
        settings = self._settings
        return S3Store(
            self._bucket,
            config=_config(settings),
            client_options=_client(settings, connect_timeout),
            retry_config=_retries(retries, deadline),
            credential_provider=self._credentials,
        )

    def _answered(self) -> None:
        """The remote is there: what breaks from now on is tried again."""
        if self._full is not None:
            return
        with self._lock:
            if self._full is None:
                settings = self._settings
                self._full = self._make(settings.connect_timeout, settings.retries, settings.retry_s)

    def head(self, key: str) -> Entry | None:
        try:
            return self._entry(key, obstore.head(self._store, self._prefix + key))
        except FileNotFoundError as error:
            self._check_bucket(error)
            return None
        except Exception as error:
            self._fail(error, "look at", key)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        return self._get(key, start, size, {} if etag is None else {"if_match": etag}, lambda: self.head(key))

    def head_version(self, key: str, version: str) -> Entry | None:
        """As `head`, of one version of the object."""
        try:
            options: Any = {"version": version, "head": True}
            return self._entry(key, obstore.get(self._store, self._prefix + key, options=options).meta)
        except FileNotFoundError as error:
            self._check_bucket(error)
            return None
        except Exception as error:
            self._fail(error, f"look at version {version} of", key)

    def get_version(self, key: str, version: str, start: int = 0, size: int | None = None) -> Got:
        """As `get`, of one version of the object."""
        return self._get(key, start, size, {"version": version}, lambda: self.head_version(key, version))

    def _get(
        self, key: str, start: int, size: int | None, options: dict[str, Any], head: Callable[[], Entry | None]
    ) -> Got:
        if size == 0:
            return Got(b"", self.there(key, head()))
        if size is not None:
            options["range"] = (start, start + size)
        elif start:
            options["range"] = {"offset": start}
        try:
            result = obstore.get(self._store, self._prefix + key, options=options or None)  # type: ignore[arg-type]
            begin, end = result.range
            data = result.bytes()
            if len(data) != end - begin:
                raise RemoteError(
                    f"remote '{self.name}' gave {len(data)} bytes of '{key}' where it promised {end - begin}"
                )
            return Got(memoryview(data), self._entry(key, result.meta))
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise self.absent(key) from None
        except exceptions.PreconditionError as error:
            self._answered()
            raise self.changed(key) from error
        except RemoteError:
            raise
        except Exception as error:
            if _status(str(error)) == "416":  # an empty object has no range, and nothing lies behind an object's end
                entry = self.there(key, head())
                if start >= entry.size:
                    return Got(b"", entry)
            self._fail(error, "read", key)

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        try:
            self._put(key, data, "create" if create else "overwrite")
            return True
        except exceptions.AlreadyExistsError:
            self._answered()
            return False
        except Exception as error:
            self._fail(error, "write", key)

    def _put(self, key: str, data: Data, mode: Literal["create", "overwrite"]) -> Entry:
        made = obstore.put(self._store, self._prefix + key, data, mode=mode, use_multipart=False)
        self._answered()
        return Entry(key, len(data), made["e_tag"], made["version"])

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        counted = Counted(pieces, size, key)
        if size <= PART_BYTES:
            self.put(key, b"".join(bytes(piece) for piece in counted))
            return
        self._by_boto().put_stream(key, counted, size, sent)

    def put_version(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> Entry:
        """As `put_stream`; what was made, with its version."""
        counted = Counted(pieces, size, key)
        if size > PART_BYTES:
            return self._by_boto().put_version(key, counted, size, sent)
        try:
            return self._put(key, b"".join(bytes(piece) for piece in counted), "overwrite")
        except Exception as error:
            if counted.error is not None:
                raise
            self._fail(error, "write", key)

    def _by_boto(self) -> BotoBackend:
        with self._lock:
            if self._large is None:
                self._large = BotoBackend(self.name, self._bucket, self._prefix.rstrip("/"), self._settings)
            return self._large

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.many, thread_name_prefix="s3-put")
        for future in [self._pool.submit(self.put, key, data) for key, data in items]:
            future.result()

    def list(self, prefix: str) -> Iterator[Entry]:
        where = f"{self._prefix}{prefix}".rstrip("/") or None
        try:
            for page in obstore.list(self._store, where, chunk_size=_LIST_PAGE):
                self._answered()
                for meta in page:
                    yield self._entry(meta["path"][len(self._prefix) :], meta)
        except FileNotFoundError as error:
            self._check_bucket(error)
        except Exception as error:
            self._fail(error, "list", prefix)

    def sizes(self, prefix: str, wanted: Callable[[str], bool] | None = None) -> builtins.list[tuple[str, int]]:
        """As `list`, without the parts of an entry that cost more than these two."""
        where, cut = f"{self._prefix}{prefix}".rstrip("/") or None, len(self._prefix)
        found: builtins.list[tuple[str, int]] = []
        try:
            for page in obstore.list(self._store, where, chunk_size=_LIST_PAGE):
                self._answered()
                rows = ((meta["path"][cut:], meta["size"]) for meta in page)
                found += rows if wanted is None else (row for row in rows if wanted(row[0]))
        except FileNotFoundError as error:
            self._check_bucket(error)
        except Exception as error:
            self._fail(error, "list", prefix)
        return found

    def prepare(self) -> None:
        if self._credentials is not None:
            with contextlib.suppress(Exception):  # the first request says what is wrong
                self._credentials()

    def delete(self, key: str) -> None:
        try:
            obstore.delete(self._store, self._prefix + key)
            self._answered()
        except FileNotFoundError as error:
            self._check_bucket(error)
        except Exception as error:
            self._fail(error, "remove", key)

    def delete_many(self, keys: Sequence[str]) -> None:
        try:
            obstore.delete(self._store, [self._prefix + key for key in keys])
        except Exception as error:
            self._fail(error, "remove", keys[0])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._large is not None:
            self._large.close()

    def _entry(self, key: str, meta: Any) -> Entry:
        self._answered()
        return Entry(key, meta["size"], meta.get("e_tag"), meta.get("version"), meta["last_modified"].timestamp())

    def _check_bucket(self, error: Exception) -> None:
        self._answered()
        if "NoSuchBucket" in str(error):
            raise self.no_bucket() from error

    def _fail(self, error: Exception, doing: str, key: str) -> NoReturn:
        """Raise what the caller can act on; the service's own text, which may hold signed urls, is not passed on whole."""
        if self._credentials is not None and self._credentials.error is not None:
            raise self._credentials.error from error
        text = str(error)
        if _CONNECTING.search(text):
            if self._full is None:
                raise self.unreached(doing, key, _reason(text)) from error
            raise self.failed(doing, key, _reason(text)) from error
        reason = _reason(text)
        if reason == NO_ANSWER:  # that a connection was taken is no answer
            raise self.failed(doing, key, reason) from error
        self._answered()
        if "NoSuchBucket" in text:
            raise self.no_bucket() from error
        if isinstance(error, _DENIED) or _status(text) == "403" or "AccessDenied" in text:
            expired = "ExpiredToken" in text or "TokenRefreshRequired" in text
            reason = "its credentials have expired" if expired else _code(text) or "access is denied"
            raise self.refused(doing, key, reason) from error
        raise self.failed(doing, key, reason) from error


class _Credentials:
    """What obstore calls for credentials; boto3 renews them. `error` is why there are none."""

    def __init__(self, backend: S3Backend, settings: S3Settings) -> None:
        self._name = backend.name
        self._settings = settings
        self._found: Any = None
        self._lock = threading.Lock()
        self.error: CredentialsError | None = None

    def __call__(self) -> Any:
        with self._lock:
            try:
                if (plain := self._settings.plain) is not None:
                    key, secret, token = plain
                    return _credential(key, secret, token)
                if self._found is None:
                    self._found = self._settings.core().get_credentials()
                if self._found is None:
                    raise ValueError("none are configured")
                frozen = self._found.get_frozen_credentials()
            except Exception as error:
                self.error = CredentialsError(
                    f"there are no credentials for remote '{self._name}': {error}",
                    hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or log in (aws sso login)",
                )
                raise
            # Not before they are found: another request that failed for want of them may be reading why just now.
            self.error = None
        return _credential(frozen.access_key, frozen.secret_key, frozen.token)


def _credential(key: str, secret: str, token: str | None) -> dict[str, Any]:
    """As obstore takes it."""
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": token,
        "expires_at": datetime.now(UTC) + _TTL,
    }


def _retries(retries: int, deadline: float) -> RetryConfig:
    return {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=deadline),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
    }


def _config(settings: S3Settings) -> S3Config:
    config: dict[str, Any] = {
        "region": settings.region or "us-east-1",
        "virtual_hosted_style_request": False,
        "skip_signature": settings.anonymous,
        "conditional_put": "etag",
    }
    if settings.endpoint:
        config["endpoint"] = settings.endpoint
    if settings.sse:
        config["server_side_encryption"] = settings.sse
    if settings.kms_key:
        config["sse_kms_key_id"] = settings.kms_key
    if settings.customer_key:
        config["sse_customer_key_base64"] = settings.customer_key
    return config  # type: ignore[return-value]


def _client(settings: S3Settings, connect_timeout: float) -> ClientConfig:
    options: dict[str, Any] = {
        "allow_http": bool(settings.endpoint and settings.endpoint.startswith("http:")),
        "connect_timeout": timedelta(seconds=connect_timeout),
        "timeout": timedelta(seconds=settings.deadline),
        "read_timeout": timedelta(seconds=settings.read_timeout),
        "pool_max_idle_per_host": "128",
        "user_agent": "millpond",
    }
    if settings.verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(settings.verify, str):
        with open(settings.verify, "rb") as file:
            options["root_certificate"] = file.read()
    return options  # type: ignore[return-value]


def _code(text: str) -> str | None:
    """The service's code in its answer, as `InvalidAccessKeyId`."""
    begin = text.find("<Code>")
    return text[begin + 6 : text.find("</Code>", begin)] if begin >= 0 else None


def _status(text: str) -> str | None:
    found = _STATUS.search(text)
    return found[1] if found else None


def _reason(text: str) -> str:
    """Why a request failed, from what obstore tells; its text is long, and may hold signed urls."""
    code = _code(text)
    if code is not None:
        return code
    if refused := _CERTIFICATE.search(text):
        return f"its certificate is not accepted ({_CERTIFICATES.get(refused[1], refused[1])})"
    if found := _CAUSE.findall(text):
        return str(found[-1])[:200]
    if status := _status(text):
        return f"HTTP status {status}"
    return NO_ANSWER if _TIMED_OUT.search(text) else "the request failed"
