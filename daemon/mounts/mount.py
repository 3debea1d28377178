"""A mount as the daemon has it in memory, and what of its maker's environment may lie in its record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import trio

from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.mounts.records import MountRecord

# What a mount's record keeps of the caller's environment: where things are, also files with credentials; never a secret itself.
_KEPT = frozenset(
    ("HOME", "PATH", "USER", "LOGNAME", "LANG", "TMPDIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    + ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE")
    + ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    + ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME")
)
_KEPT_PREFIXES = ("XDG_", "GIT_", "DVC_", "LC_", "MILLPOND_")
# Of those with such a prefix: DVC_STUDIO_TOKEN, a header in GIT_CONFIG_VALUE_0.
_SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|GIT_CONFIG_(KEY|VALUE|COUNT|PARAMETERS)")


@dataclass(slots=True)
class Mount:
    """A mount as the daemon knows it. `state` is mounted, dead or restoring; `child` the holder, when it lives."""

    record: MountRecord
    state: str = "dead"
    error: str | None = None
    child: Child | None = None
    restored: list[float] = field(default_factory=list)
    ending: bool = False
    ended: trio.Event = field(default_factory=trio.Event)
    mending: trio.Lock = field(default_factory=trio.Lock)
    # Why remotes refuse its source: they want other credentials; and the object that was asked for.
    refused: str = ""
    wanted: str = ""
    # What readers met that was not as it should be, as far as the daemon has heard.
    wrong: int = 0


def kept_context(context: dict[str, Any]) -> dict[str, Any]:
    """What may lie in a record: no credentials."""
    env = context.get("env") or {}
    kept = {
        key: value
        for key, value in env.items()
        if key in _KEPT or (key.startswith(_KEPT_PREFIXES) and not _SECRET.search(key.upper()))
    }
    return {"env": kept, "umask": context.get("umask", 0o022)}
