"""What the two ways to S3 have in common: where the bucket is, and how its failures are told."""

from __future__ import annotations

from collections.abc import Iterator

from millpond.daemon.errors import CredentialsError, RemoteConfigError, RemoteError
from millpond.daemon.remote.backend import FINAL, NO_ANSWER, SILENT, Base, Entry
from millpond.daemon.remote.s3multipart import code_of
from millpond.daemon.remote.s3settings import S3Settings

_HINT = "see its url and endpointurl in `millpond config --list`, then try again"


class S3Base(Base):
    """`prefix` is the key's beginning inside the bucket, without a slash at its end."""

    near = False
    singly = True

    def __init__(self, name: str, bucket: str, prefix: str, settings: S3Settings, many: int) -> None:
        self.name = name
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.many = many
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings

    def forget(self, key: str) -> None:
        """By boto3: obstore knows no old versions."""
        client = self._settings.client(self._settings.connect_timeout, 3)
        try:
            found = client.list_object_versions(Bucket=self._bucket, Prefix=self._prefix + key)
            for each in found.get("Versions", []) + found.get("DeleteMarkers", []):
                if each["Key"] == self._prefix + key:
                    client.delete_object(Bucket=self._bucket, Key=each["Key"], VersionId=each["VersionId"])
        except Exception as error:
            if (reason := reason_of(error)) == NO_ANSWER:
                raise self.failed("remove all versions of", key, reason) from error
            raise self.refused("remove all versions of", key, reason) from error
        finally:
            client.close()

    def list_latest(self, prefix: str) -> Iterator[Entry]:
        """As `list`, by boto3, with the version that each object has now; "null" in a bucket that keeps none."""
        client = self._settings.client(self._settings.connect_timeout, self._settings.retries)
        where = f"{self._prefix}{prefix}".rstrip("/")
        try:
            pages = client.get_paginator("list_object_versions")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{where}/" if where else ""):
                for each in page.get("Versions", ()):
                    if each["IsLatest"]:
                        key, version = each["Key"][len(self._prefix) :], each["VersionId"]
                        yield Entry(key, each["Size"], each["ETag"], version, each["LastModified"].timestamp())
        except Exception as error:
            code = code_of(error)
            if code == "NoSuchBucket":
                raise self.no_bucket() from error
            denied = code in ("AccessDenied", "403", "Forbidden")
            raise (self.refused if denied else self.failed)("list the versions of", prefix, reason_of(error)) from error
        finally:
            client.close()

    def keeps_versions(self) -> bool | None:
        """Whether the bucket keeps versions, by boto3; None where the caller may not ask."""
        client = self._settings.client(self._settings.connect_timeout, 3)
        try:
            return bool(client.get_bucket_versioning(Bucket=self._bucket).get("Status") == "Enabled")
        except Exception as error:
            if code_of(error) == "NoSuchBucket":
                raise self.no_bucket() from error
            return None  # what the bucket answers to a write will tell
        finally:
            client.close()

    def there(self, key: str, found: Entry | None) -> Entry:
        """What a head found. Raises ObjectMissingError."""
        if found is None:
            raise self.absent(key)
        return found

    def no_bucket(self) -> RemoteConfigError:
        return RemoteConfigError(
            f"remote '{self.name}': there is no bucket '{self._bucket}'",
            path=self.url,
            hint=f"make it, or change the url: millpond remote modify {self.name} url s3://...",
        )

    def refused(self, doing: str, key: str, reason: str) -> CredentialsError:
        return CredentialsError(
            self._what(doing, key, reason),
            path=key,
            hint=f"renew the credentials, or see what is allowed: millpond remote check {self.name}",
        )

    def failed(self, doing: str, key: str, reason: str) -> RemoteError:
        silent = SILENT if reason == NO_ANSWER else None
        return RemoteError(self._what(doing, key, reason), path=key, hint=_HINT, details=silent)

    def unreached(self, doing: str, key: str, reason: str) -> RemoteError:
        """No connection has ever been made: the url is wrong, or the network is away. Not tried again."""
        where = f"{self.url}, {self._settings.endpoint}" if self._settings.endpoint else self.url
        return RemoteError(
            f"remote '{self.name}' cannot be reached ({where}), to {doing} '{key}': {reason}",
            path=key,
            hint=self._certificate_hint() if "certificate" in reason else _HINT,
            details=FINAL,
        )

    def _certificate_hint(self) -> str:
        return f"name the authority's file: millpond remote modify {self.name} ssl_verify FILE"

    def _what(self, doing: str, key: str, reason: str) -> str:
        return f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): {reason}"


def reason_of(error: Exception) -> str:
    """Why boto3 failed, for a message."""
    from botocore.exceptions import ReadTimeoutError

    return code_of(error) or (NO_ANSWER if isinstance(error, ReadTimeoutError) else type(error).__name__)
