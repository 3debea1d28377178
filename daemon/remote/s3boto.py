"""S3 by boto3 alone, for what obstore has not: canned ACLs and grants, servers that list by version 1 only, and uploads in parts that
are gone on with."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from millpond.daemon.errors import RemoteError
from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import PART_BYTES, Counted, Entry, Got, Sent, why
from millpond.daemon.remote.s3base import S3Base, reason_of
from millpond.daemon.remote.s3multipart import Uploads, code_of
from millpond.daemon.remote.s3settings import S3Settings, key_md5

_MANY = 16
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchVersion"})
_DENIED = frozenset(
    {"401", "403", "AccessDenied", "Forbidden", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)


class BotoBackend(S3Base):
    """See Backend."""

    def __init__(self, name: str, bucket: str, prefix: str, settings: S3Settings) -> None:
        super().__init__(name, bucket, prefix, settings, _MANY)
        self._lock = threading.Lock()
        # Until the first answer little is tried again, and not for long.
        self._first = settings.client(settings.first_timeout / 2, 2, 2 * _MANY)
        self._first.meta.events.register("after-call.s3", self._answered)
        self._full: Any = None
        self._reading: dict[str, Any] = {}
        if settings.customer_key:
            self._reading = {
                "SSECustomerAlgorithm": "AES256",
                "SSECustomerKey": settings.customer_key,
                "SSECustomerKeyMD5": key_md5(settings.customer_key),
            }
        self._writing: dict[str, Any] = {**self._reading, **settings.extra}
        if settings.sse:
            self._writing["ServerSideEncryption"] = settings.sse
        if settings.kms_key:
            self._writing["SSEKMSKeyId"] = settings.kms_key
        self._uploads = Uploads(
            lambda: self._client,
            bucket,
            folder=settings.notes,
            where=settings.endpoint or "",
            reading=self._reading,
            writing=self._writing,
        )

    @property
    def _client(self) -> Any:
        return self._full or self._first

    def _answered(self, **_: object) -> None:
        """The remote is there: what breaks from now on is tried again."""
        with self._lock:
            if self._full is None:
                settings = self._settings
                self._full = settings.client(
                    settings.connect_timeout, settings.retries + 1, 2 * _MANY, has_answered=True
                )

    def head(self, key: str) -> Entry | None:
        return self._head(key, {})

    def head_version(self, key: str, version: str) -> Entry | None:
        """As `head`, of one version of the object."""
        return self._head(key, {"VersionId": version})

    def _head(self, key: str, more: dict[str, str]) -> Entry | None:
        try:
            return _entry(key, self._client.head_object(**self._at(key), **self._reading, **more))
        except Exception as error:
            if code_of(error) in _ABSENT:
                return None
            self._fail(error, "look at", key)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        return self._get(key, start, size, {} if etag is None else {"IfMatch": etag}, {})

    def get_version(self, key: str, version: str, start: int = 0, size: int | None = None) -> Got:
        """As `get`, of one version of the object."""
        return self._get(key, start, size, {}, {"VersionId": version})

    def _get(self, key: str, start: int, size: int | None, only: dict[str, str], which: dict[str, str]) -> Got:
        options = {**self._reading, **only, **which}
        if size == 0:
            return Got(b"", self.there(key, self._head(key, which)))
        if start or size is not None:
            options["Range"] = f"bytes={start}-{'' if size is None else start + size - 1}"
        try:
            answer = self._client.get_object(**self._at(key), **options)
            data = answer["Body"].read()
        except Exception as error:
            self._get_failed(error, key)
            entry = self._head(key, which)
            if entry is None or start < entry.size:
                self._fail(error, "read", key)
            return Got(b"", entry)
        if len(data) != answer["ContentLength"]:
            raise RemoteError(
                f"remote '{self.name}' gave {len(data)} bytes of '{key}' where it promised more", path=key
            )
        entry = _entry(key, answer)
        total = answer.get("ContentRange", "").rpartition("/")[2]
        return Got(
            data, entry if not total.isdigit() else Entry(key, int(total), entry.etag, entry.version, entry.modified)
        )

    def put(self, key: str, data: Data, *, create: bool = False) -> bool:
        try:
            more = {"IfNoneMatch": "*"} if create else {}
            self._client.put_object(**self._at(key), Body=bytes(data), **self._writing, **more)
            return True
        except Exception as error:
            if create and code_of(error) in ("412", "PreconditionFailed"):
                return False
            self._fail(error, "write", key)

    def put_stream(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> None:
        counted = Counted(pieces, size, key)
        if size <= PART_BYTES:
            self.put(key, b"".join(bytes(piece) for piece in counted))
            return
        try:
            self._uploads.put(self._prefix + key, counted, size, sent)
        except Exception as error:
            if counted.error is not None:
                raise counted.error from error
            self._fail(error, "write", key)

    def put_version(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> Entry:
        """As `put_stream`; what was made, with its version."""
        counted = Counted(pieces, size, key)
        try:
            if size > PART_BYTES:
                made = self._uploads.put(self._prefix + key, counted, size, sent)
            else:
                data = b"".join(bytes(piece) for piece in counted)
                made = self._client.put_object(**self._at(key), Body=data, **self._writing)
            return Entry(key, size, made.get("ETag"), made.get("VersionId"))
        except Exception as error:
            if counted.error is not None:
                raise counted.error from error
            self._fail(error, "write", key)

    def put_many(self, items: Sequence[tuple[str, Data]]) -> None:
        with ThreadPoolExecutor(self.many, thread_name_prefix="s3-put") as pool:
            for future in [pool.submit(self.put, key, data) for key, data in items]:
                future.result()

    def list(self, prefix: str) -> Iterator[Entry]:
        name = "list_objects" if self._settings.old_listing else "list_objects_v2"
        where = f"{self._prefix}{prefix}".rstrip("/")
        try:
            pages = self._client.get_paginator(name).paginate(Bucket=self._bucket, Prefix=f"{where}/" if where else "")
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"][len(self._prefix) :]
                    yield Entry(key, found["Size"], found["ETag"], None, found["LastModified"].timestamp())
        except Exception as error:
            self._fail(error, "list", prefix)

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(**self._at(key))
        except Exception as error:
            self._fail(error, "remove", key)

    def delete_many(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        try:
            answer = self._client.delete_objects(Bucket=self._bucket, Delete=wanted)
        except Exception as error:
            self._fail(error, "remove", keys[0])
        for failed in answer.get("Errors", ()):
            key, code = str(failed.get("Key", ""))[len(self._prefix) :], str(failed.get("Code"))
            raise (self.refused if code in _DENIED else self.failed)("remove", key, code)

    def close(self) -> None:
        for client in (self._first, self._full):
            if client is not None:
                client.close()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _get_failed(self, error: Exception, key: str) -> None:
        """Raise, unless it was a range behind the object's end."""
        code = code_of(error)
        if code in _ABSENT:
            raise self.absent(key) from None
        if code in ("412", "PreconditionFailed"):
            raise self.changed(key) from error
        if code not in ("416", "InvalidRange"):
            self._fail(error, "read", key)

    def _fail(self, error: Exception, doing: str, key: str) -> NoReturn:
        from botocore.exceptions import NoCredentialsError

        code = code_of(error)
        if code == "NoSuchBucket":
            raise self.no_bucket() from error
        if self._full is None and isinstance(error, _unconnected()):
            raise self.unreached(doing, key, why(error)) from error
        reason = reason_of(error)
        if code in _DENIED or isinstance(error, NoCredentialsError):
            raise self.refused(doing, key, reason) from error
        raise self.failed(doing, key, reason) from error


def _entry(key: str, answer: Any) -> Entry:
    return Entry(
        key, answer["ContentLength"], answer.get("ETag"), answer.get("VersionId"), answer["LastModified"].timestamp()
    )


def _unconnected() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError, SSLError

    return EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError
