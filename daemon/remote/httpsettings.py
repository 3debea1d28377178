"""What DVC's config says of an http remote, and urllib3's pool for it. The keys are those of DVC 3.67."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import proxy_bypass

import urllib3

from millpond.daemon.errors import RemoteConfigError
from millpond.daemon.remote.backend import FIRST_CONNECT_S
from millpond.daemon.remote.httpauth import Auth, Digest, Header
from millpond.daemon.remote.values import Values

# Connections that are kept, which is as many as requests are under way.
_KEPT = 64
# What may stand in a path as it is; a percent sign begins what is quoted already.
_PATH = "/%:@!$&'()*+,;=~"
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(slots=True)
class HttpSettings:
    """Settings of one remote; times in seconds. `url` ends without a slash and holds no secrets; `verify` is False, or a file of
    certificates."""

    url: str
    auth: Auth | None = field(default=None, repr=False)
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    connect_s: float = 10.0
    first_s: float = FIRST_CONNECT_S
    read_s: float = 20.0
    scratch: str = "/var/tmp"

    @classmethod
    def of(cls, url: str, values: Values, environ: Mapping[str, str]) -> HttpSettings:
        """From the remote's url and section. Raises RemoteConfigError."""
        parts, port = values.place(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        made = cls(
            url=f"{parts.scheme}://{host}{f':{port}' if port else ''}{quote(parts.path.rstrip('/'), safe=_PATH)}",
            auth=_auth(values),
            verify=values.verify(),
            proxy=_proxy(parts.scheme, f"{parts.hostname}{f':{port}' if port else ''}", environ),
            scratch=environ.get("TMPDIR") or "/var/tmp",
        )
        if made.auth is None and parts.username is not None:
            made.auth = Header.basic(unquote(parts.username), unquote(parts.password or ""))
        elif made.auth is None:
            made.auth = _noted(parts.hostname or "", environ)
        made.connect_s = values.seconds("connect_timeout") or made.connect_s
        made.first_s = values.seconds("connect_timeout") or made.first_s
        made.read_s = values.seconds("read_timeout") or made.read_s
        return made

    def pool(self) -> urllib3.PoolManager:
        """Connections, kept; any number of threads may ask. Raises OSError for certificates that are none."""
        options: dict[str, Any] = {"maxsize": _KEPT, "retries": False, "cert_reqs": "CERT_REQUIRED"}
        if self.verify is False:
            options |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the config says that it is meant
        elif isinstance(self.verify, str):
            options["ca_certs"] = self.verify
        if self.proxy is None:
            return urllib3.PoolManager(4, **options)
        parts = urlsplit(self.proxy)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return urllib3.ProxyManager(self.proxy, 4, proxy_headers=headers, **options)


def _auth(values: Values) -> Auth | None:
    kind = (values.text("auth") or "").lower()
    if values.flag("ask_password") and "password" not in values:
        raise values.wrong(
            "ask_password needs a terminal, which the daemon's workers have not",
            "use password with `remote modify --local`, or ~/.netrc",
        )
    if not kind:
        return None
    other = "custom_auth_header" if kind == "custom" else "user"
    name, password = values.text(other), values.text("password")
    if kind not in ("basic", "digest", "custom"):
        raise values.wrong(f"auth = {kind} is not one of basic, digest, custom", values.modify("auth"))
    if name is None or password is None:
        lacking = other if name is None else "password"
        raise values.wrong(
            f"auth = {kind} needs {lacking}", f"millpond remote modify --local {values.name} {lacking} ..."
        )
    if kind == "custom":
        if not _HEADER.fullmatch(name) or any(character in password for character in "\r\n\0"):
            raise values.wrong("custom_auth_header and password make no header", values.modify(other))
        return Header(name, password)
    return Digest(name, password) if kind == "digest" else Header.basic(name, password)


def _noted(host: str, environ: Mapping[str, str]) -> Auth | None:
    """What the caller's ~/.netrc says of a host."""
    path = environ.get("NETRC") or os.path.join(environ.get("HOME", ""), ".netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except OSError:
        return None
    except netrc.NetrcParseError as error:
        raise RemoteConfigError(f"'{path}' cannot be read: {error.msg}", path=path, hint="mend or remove it") from error
    return Header.basic(found[0] or "", found[2] or "") if found is not None else None


def _proxy(scheme: str, host: str, environ: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for a host."""
    names = {key.lower(): value for key, value in sorted(environ.items()) if key.lower().endswith("_proxy") and value}
    if proxy_bypass(host, {"no": names.get("no_proxy", "")}):
        return None
    found = names.get(f"{scheme}_proxy")
    return found if found is None or "://" in found else f"http://{found}"
