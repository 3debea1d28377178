"""What DVC's config says of an S3 remote, and boto3's session for it. The keys are those of DVC 3.67's s3 remotes."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.daemon.project.statcache import user_folder
from millpond.daemon.remote import silence
from millpond.daemon.remote.backend import FIRST_CONNECT_S
from millpond.daemon.remote.values import Values

if TYPE_CHECKING:
    import boto3
    import botocore.session

# What goes with each put and obstore has no setting for, with boto3's name.
_BOTO_ONLY = {
    "acl": "ACL",
    "grant_read": "GrantRead",
    "grant_read_acp": "GrantReadACP",
    "grant_write_acp": "GrantWriteACP",
    "grant_full_control": "GrantFullControl",
}
# Where botocore's context of a request has for how long nothing came of its tries.
_SILENT = "millpond_silent_s"


@dataclass(slots=True)
class S3Settings:
    """Settings of one remote; times in seconds. `plain`: key, secret and token where no file can say otherwise, so that boto3, which takes
    longer to import than most requests, need not be asked; `is_bare`: no profile is named, and no file holds any. `verify` is False, or a file of certificates; `extra` is what goes with each
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
    plain: tuple[str, str, str | None] | None = field(default=None, repr=False)
    is_bare: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    old_listing: bool = False
    connect_timeout: float = 10.0
    first_timeout: float = FIRST_CONNECT_S
    read_timeout: float = 20.0
    # All of a request, however slowly it comes; and its tries: one that begins later is not made.
    deadline: float = 180.0
    retry_s: float = 45.0
    retries: int = 6
    notes: str | None = None

    @classmethod
    def of(cls, values: Values, environ: Mapping[str, str]) -> S3Settings:
        """From the remote's section. Raises RemoteConfigError."""
        made = cls(
            profile=values.text("profile"),
            credential_path=values.file("credentialpath"),
            config_path=values.file("configpath"),
            access_key=values.text("access_key_id"),
            secret_key=values.text("secret_access_key"),
            token=values.text("session_token"),
            region=values.text("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
            endpoint=values.text("endpointurl")
            or environ.get("AWS_ENDPOINT_URL_S3")
            or environ.get("AWS_ENDPOINT_URL"),
            anonymous=values.flag("allow_anonymous_login"),
            verify=values.verify(),
            sse=values.text("sse"),
            kms_key=values.text("sse_kms_key_id"),
            old_listing=values.flag("listobjects"),
        )
        made.connect_timeout = values.seconds("connect_timeout") or made.connect_timeout
        made.first_timeout = values.seconds("connect_timeout") or made.first_timeout
        made.read_timeout = values.seconds("read_timeout") or made.read_timeout
        if key := values.text("sse_customer_key"):
            made.customer_key = _customer_key(key)
        if not values.flag("use_ssl", True) and made.endpoint and made.endpoint.startswith("https:"):
            made.endpoint = "http:" + made.endpoint[len("https:") :]
        if environ.get("HOME") or environ.get("XDG_CACHE_HOME"):
            made.notes = os.path.join(user_folder(environ), "uploads")
        made.plain = _plain(made, environ)
        made.is_bare = not _profile(made, environ) and not any(map(os.path.exists, _files(made, environ)))
        made.extra = {name: text for key, name in _BOTO_ONLY.items() if (text := values.text(key)) is not None}
        return made

    @property
    def needs_boto(self) -> bool:
        """Whether there is a setting that obstore has not."""
        return bool(self.extra) or self.old_listing

    def core(self) -> botocore.session.Session:
        """botocore's session, with the caller's files and profile: enough for credentials. Raises botocore's errors."""
        import botocore.session

        core = botocore.session.Session(profile=self.profile)
        if self.credential_path:
            core.set_config_variable("credentials_file", self.credential_path)
        if self.config_path:
            core.set_config_variable("config_file", self.config_path)
        if self.region:
            core.set_config_variable("region", self.region)
        if self.access_key or self.secret_key or self.token:
            core.set_credentials(self.access_key, self.secret_key, self.token)
        return core

    def session(self) -> boto3.Session:
        """boto3's. Raises botocore's errors."""
        import boto3

        return boto3.Session(
            botocore_session=self.core(),
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            aws_session_token=self.token,
            region_name=self.region,
        )

    def client(self, connect_timeout: float, tries: int, connections: int = 1, *, has_answered: bool = False) -> Any:
        """boto3's for S3, to be closed. A request that nothing came of for too long (silence.py) is not tried again; `has_answered`: the
        service did once. Raises botocore's errors."""
        from botocore import UNSIGNED
        from botocore.config import Config

        more: dict[str, Any] = {"signature_version": UNSIGNED} if self.anonymous else {}
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=self.read_timeout,
            retries={"total_max_attempts": tries, "mode": "standard"},
            max_pool_connections=connections,
            s3={"addressing_style": "path" if self.endpoint else "auto"},
            **more,
        )
        made = self.session().client("s3", endpoint_url=self.endpoint, verify=self.verify, config=config)
        patience = _Patience(self.read_timeout, silence.LATER_S if has_answered else silence.FIRST_S)
        made.meta.events.register_first("needs-retry.s3", patience.end)
        return made

    def resolve(self) -> None:
        """Take region and endpoint from the profile where the config does not say."""
        if (self.region and self.endpoint) or self.is_bare:
            return
        core = self.core()
        self.region = self.region or core.get_config_variable("region")
        scoped = core.get_scoped_config()
        self.endpoint = self.endpoint or scoped.get("endpoint_url")


@dataclass(frozen=True, slots=True)
class _Patience:
    """With a service that takes requests and says nothing, in seconds: `each` is how long one is waited for."""

    each: float
    most: float

    def end(self, *, caught_exception: Exception | None, request_dict: dict[str, Any], **_: object) -> None:
        """botocore's question whether to try again, which is left to others but when it is enough: then the request ends here, by what it
        failed with. An answer would not do: some botocores take each for "yes"."""
        from botocore.exceptions import ReadTimeoutError

        context = request_dict["context"]
        context[_SILENT] = (
            context.get(_SILENT, 0.0) + self.each if isinstance(caught_exception, ReadTimeoutError) else 0.0
        )
        if caught_exception is not None and context[_SILENT] >= self.most:
            raise caught_exception


def _profile(made: S3Settings, environ: Mapping[str, str]) -> str | None:
    """The profile that somebody chose."""
    return made.profile or environ.get("AWS_DEFAULT_PROFILE") or environ.get("AWS_PROFILE")


def _files(made: S3Settings, environ: Mapping[str, str]) -> list[str]:
    """Where profiles may be."""
    config = made.config_path or environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    credentials = made.credential_path or environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return [os.path.expanduser(os.path.expandvars(path)) for path in (config, credentials)]


def _plain(made: S3Settings, environ: Mapping[str, str]) -> tuple[str, str, str | None] | None:
    """Credentials that are written out, in the remote's section or in the environment, and come first with boto3 as well."""
    if made.access_key and made.secret_key:
        return made.access_key, made.secret_key, made.token
    if (
        _profile(made, environ)
        or made.access_key
        or made.secret_key
        or made.token
        or environ.get("AWS_CREDENTIAL_EXPIRATION")
    ):
        return None
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    token = environ.get("AWS_SECURITY_TOKEN", environ.get("AWS_SESSION_TOKEN"))
    return (key, secret, token or None) if key and secret else None


def _customer_key(value: str) -> str:
    """Base64 of 32 bytes, as it stands or from the 32 bytes themselves."""
    raw = value.encode()
    return value if len(raw) != 32 else base64.b64encode(raw).decode()


def key_md5(value: str) -> str:
    """The header that goes with a customer's key."""
    return base64.b64encode(hashlib.md5(base64.b64decode(value), usedforsecurity=False).digest()).decode()
