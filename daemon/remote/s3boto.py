"""S3 by boto3 alone, for what obstore has not: canned ACLs and grants, servers that list by version 1 only, and uploads in parts that
are gone on with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from millpond.daemon.errors import RemoteError
from millpond.daemon.remote.backend import PART_BYTES, Counted, Data, Entry, Got
from millpond.daemon.remote.s3base import S3Base
from millpond.daemon.remote.s3multipart import Uploads, code_of
from millpond.daemon.remote.s3settings import S3Settings, key_md5

_MANY = 16
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_DENIED = frozenset(
    {"401", "403", "AccessDenied", "Forbidden", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)


class BotoBackend(S3Base):
    """See Backend."""

    def __init__(self, name: str, bucket: str, prefix: str, settings: S3Settings) -> None:
        from botocore import UNSIGNED
        from botocore.config import Config

        super().__init__(name, bucket, prefix, settings, _MANY)
        more: dict[str, Any] = {"signature_version": UNSIGNED} if settings.anonymous else {}
        config = Config(
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"max_attempts": settings.retries, "mode": "standard"},
            max_pool_connections=2 * _MANY,
            s3={"addressing_style": "path" if settings.endpoint else "auto"},
            **more,
        )
        self._client: Any = settings.session().client(
            "s3", endpoint_url=settings.endpoint, verify=settings.verify, config=config
        )
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
            self._client,
            bucket,
            folder=settings.notes,
            where=settings.endpoint or "",
            reading=self._reading,
            writing=self._writing,
        )

    def head(self, key: str) -> Entry | None:
        try:
            return _entry(key, self._client.head_object(**self._at(key), **self._reading))
        except Exception as error:
            if code_of(error) in _ABSENT:
                return None
            self._fail(error, "look at", key)

    def get(self, key: str, start: int = 0, size: int | None = None, *, etag: str | None = None) -> Got:
        options = dict(self._reading)
        if etag is not None:
            options["IfMatch"] = etag
        if size == 0:
            return Got(b"", self.there(key, self.head(key)))
        if start or size is not None:
            options["Range"] = f"bytes={start}-{'' if size is None else start + size - 1}"
        try:
            answer = self._client.get_object(**self._at(key), **options)
            data = answer["Body"].read()
        except Exception as error:
            self._get_failed(error, key)
            entry = self.head(key)
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

    def put_stream(self, key: str, pieces: Iterable[Data], size: int) -> None:
        counted = Counted(pieces, size, key)
        if size <= PART_BYTES:
            self.put(key, b"".join(bytes(piece) for piece in counted))
            return
        try:
            self._uploads.put(self._prefix + key, counted, size)
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

    def close(self) -> None:
        self._client.close()

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
        reason = code or type(error).__name__
        if code in _DENIED or isinstance(error, NoCredentialsError):
            raise self.refused(doing, key, reason) from error
        raise self.failed(doing, key, reason) from error


def _entry(key: str, answer: Any) -> Entry:
    return Entry(
        key, answer["ContentLength"], answer.get("ETag"), answer.get("VersionId"), answer["LastModified"].timestamp()
    )
