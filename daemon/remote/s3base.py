"""What the two ways to S3 have in common: where the bucket is, and how its failures are told."""

from __future__ import annotations

from millpond.daemon.errors import CredentialsError, RemoteConfigError, RemoteError
from millpond.daemon.remote.backend import Base, Entry
from millpond.daemon.remote.s3settings import S3Settings


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
            self._what(doing, key, reason), path=key, hint="renew the credentials, or ask for the permission"
        )

    def failed(self, doing: str, key: str, reason: str) -> RemoteError:
        hint = "see its url and endpointurl in `millpond config --list`, then try again"
        return RemoteError(self._what(doing, key, reason), path=key, hint=hint)

    def _what(self, doing: str, key: str, reason: str) -> str:
        return f"cannot {doing} '{key}' on remote '{self.name}' ({self.url}): {reason}"
