"""What DVC's config says of an S3 remote, and boto3's session for it. The keys are those of DVC 3.67's s3 remotes."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.project.statcache import user_folder

if TYPE_CHECKING:
    import boto3

# What goes with each put and obstore has no setting for, with boto3's name.
_BOTO_ONLY = {
    "acl": "ACL",
    "grant_read": "GrantRead",
    "grant_read_acp": "GrantReadACP",
    "grant_write_acp": "GrantWriteACP",
    "grant_full_control": "GrantFullControl",
}


@dataclass(slots=True)
class S3Settings:
    """Settings of one remote; times in seconds. `verify` is False, or a file of certificates; `extra` is what goes with each
    put by boto3 (s3boto.py), with boto3's names; `notes` is the folder where uploads in parts are noted."""

    profile: str | None = None
    credential_path: str | None = None
    config_path: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None
    anonymous: bool = False
    verify: bool | str = True
    sse: str | None = None
    kms_key: str | None = None
    customer_key: str | None = field(default=None, repr=False)
    extra: dict[str, str] = field(default_factory=dict)
    old_listing: bool = False
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    deadline: float = 180.0
    retries: int = 6
    notes: str | None = None

    @classmethod
    def of(cls, name: str, values: Mapping[str, str], environ: Mapping[str, str]) -> S3Settings:
        """From the remote's section. Raises RemoteConfigError."""
        made = cls(
            profile=values.get("profile"),
            credential_path=_file(values.get("credentialpath")),
            config_path=_file(values.get("configpath")),
            access_key=values.get("access_key_id"),
            secret_key=values.get("secret_access_key"),
            token=values.get("session_token"),
            region=values.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
            endpoint=values.get("endpointurl") or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
            anonymous=_flag(values.get("allow_anonymous_login")),
            verify=_verify(values.get("ssl_verify")),
            sse=values.get("sse"),
            kms_key=values.get("sse_kms_key_id"),
            old_listing=_flag(values.get("listobjects")),
        )
        try:
            made.connect_timeout = float(values.get("connect_timeout") or made.connect_timeout)
            made.read_timeout = float(values.get("read_timeout") or made.read_timeout)
        except ValueError as error:
            raise RemoteConfigError(f"remote '{name}': a timeout is no number of seconds: {error}") from error
        if key := values.get("sse_customer_key"):
            made.customer_key = _customer_key(key)
        if _flag(values.get("use_ssl"), True) is False and made.endpoint and made.endpoint.startswith("https:"):
            made.endpoint = "http:" + made.endpoint[len("https:") :]
        if environ.get("HOME") or environ.get("XDG_CACHE_HOME"):
            made.notes = os.path.join(user_folder(environ), "uploads")
        made.extra = {name: values[key] for key, name in _BOTO_ONLY.items() if key in values}
        return made

    @property
    def needs_boto(self) -> bool:
        """Whether there is a setting that obstore has not."""
        return bool(self.extra) or self.old_listing

    def session(self) -> boto3.Session:
        """boto3's, with the caller's files and profile. Raises botocore's errors."""
        import boto3
        import botocore.session

        core = botocore.session.Session(profile=self.profile)
        if self.credential_path:
            core.set_config_variable("credentials_file", self.credential_path)
        if self.config_path:
            core.set_config_variable("config_file", self.config_path)
        return boto3.Session(
            botocore_session=core,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            aws_session_token=self.token,
            region_name=self.region,
        )

    def resolve(self) -> None:
        """Take region and endpoint from the profile where the config does not say."""
        if self.region and self.endpoint:
            return
        session = self.session()
        self.region = self.region or session.region_name
        core = session._session  # the profile's endpoint has no public name
        scoped = core.get_scoped_config()
        self.endpoint = self.endpoint or scoped.get("endpoint_url")


def _file(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)


def _flag(value: str | None, default: bool = False) -> bool:
    return default if value is None else value.strip().lower() in ("true", "1", "yes", "on")


def _verify(value: str | None) -> bool | str:
    if value is None or value.strip().lower() == "true":
        return True
    return False if value.strip().lower() == "false" else value


def _customer_key(value: str) -> str:
    """Base64 of 32 bytes, as it stands or from the 32 bytes themselves."""
    raw = value.encode()
    return value if len(raw) != 32 else base64.b64encode(raw).decode()


def key_md5(value: str) -> str:
    """The header that goes with a customer's key."""
    return base64.b64encode(hashlib.md5(base64.b64decode(value), usedforsecurity=False).digest()).decode()
