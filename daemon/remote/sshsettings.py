"""What DVC's config says of an ssh remote, and what OpenSSH's own files say of its host. The keys are those of DVC 3.67."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult

from millpond.daemon.remote.backend import FIRST_CONNECT_S
from millpond.daemon.remote.values import Values

if TYPE_CHECKING:
    import asyncssh

# What a server lets one connection have at once is ten sessions, unless its admin says otherwise.
_SESSIONS = 8
_LOGIN_S, _ANSWER_S = 30.0, 60.0
# The fastest first, as DVC: compression and slow ciphers cost more than the network.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
# What would be asked for, and what to do instead.
_SECRETS = {
    "password": "use a key (keyfile, ssh-agent), or password with `remote modify --local`",
    "passphrase": "let ssh-agent ask for it (ssh-add), or use passphrase with `remote modify --local`",
}
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


@dataclass(slots=True)
class SSHSettings:
    """Settings of one remote; times in seconds. `user`, `port` are None where ~/.ssh/config decides; `folder` is the path on the
    server, absolute."""

    host: str
    folder: str
    user: str | None = None
    port: int | None = None
    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    keyfile: str | None = None
    gss: bool = False
    use_agent: bool = True
    home: str = ""
    sessions: int = _SESSIONS
    connect_s: float = FIRST_CONNECT_S
    login_s: float = _LOGIN_S
    answer_s: float = _ANSWER_S

    @classmethod
    def of(cls, url: str, values: Values, environ: Mapping[str, str]) -> SSHSettings:
        """From the remote's url and section, which counts where both say something. Raises RemoteConfigError."""
        parts, port = values.place(url)
        for secret, way in _SECRETS.items():
            # The worker that talks to the server has no terminal, and a mount that reads later has nobody to ask.
            if values.flag(f"ask_{secret}") and secret not in values:
                raise values.wrong(f"ask_{secret} needs a terminal, which the daemon's workers have not", way)
        made = cls(
            host=_host(parts),
            folder=parts.path.rstrip("/") or "/",
            user=values.text("user") or parts.username,
            port=values.number("port", 1, 65535) or port,
            password=values.text("password") or parts.password,
            passphrase=values.text("passphrase"),
            keyfile=values.file("keyfile"),
            gss=values.flag("gss_auth"),
            use_agent=values.flag("allow_agent", True),
            home=environ.get("HOME") or os.path.expanduser("~"),
            sessions=values.number("max_sessions", 1, 1000) or _SESSIONS,
        )
        if (timeout := values.number("timeout", 1, 86_400)) is not None:
            made.connect_s = made.login_s = made.answer_s = float(timeout)
        if made.gss and importlib.util.find_spec("gssapi") is None:
            raise values.wrong("gss_auth needs the Python package gssapi, which is not here", "pip install gssapi")
        return made

    @property
    def url(self) -> str:
        """Without secrets."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}{port}{self.folder}"

    def options(self) -> asyncssh.SSHClientConnectionOptions:
        """asyncssh's, ~/.ssh/config read. Raises asyncssh's errors and OSError for keys and files that cannot be read."""
        import asyncssh

        config = os.path.join(self.home, ".ssh/config")
        more: dict[str, Any] = {}
        if self.user is not None:
            more["username"] = self.user
        if self.port is not None:
            more["port"] = self.port
        if self.keyfile is not None:
            more["client_keys"] = [self.keyfile]
        if ways := self._ways():
            more["preferred_auth"] = ways
        if not self.use_agent:  # else IdentityAgent of ~/.ssh/config counts, or what the environment says
            more["agent_path"] = None
        return asyncssh.SSHClientConnectionOptions(
            config=[config] if os.path.isfile(config) else None,
            host=self.host,
            password=self.password,
            passphrase=self.passphrase,
            gss_auth=self.gss,
            gss_kex=self.gss,
            agent_forwarding=False,
            encryption_algs=_CIPHERS,
            compression_algs=None,
            connect_timeout=self.login_s,
            login_timeout=self.login_s,
            keepalive_interval=15,
            **more,
        )

    def known_hosts(self, options: asyncssh.SSHClientConnectionOptions) -> asyncssh.SSHKnownHosts:
        """The host keys that the caller or the machine's admin trusts. Raises OSError, ValueError."""
        import asyncssh

        own = [os.path.join(self.home, ".ssh", file) for file in ("known_hosts", "known_hosts2")]
        files: list[str] = [
            *cast("list[str]", options.config.get("UserKnownHostsFile", own)),
            *cast("list[str]", options.config.get("GlobalKnownHostsFile", _SYSTEM_KNOWN_HOSTS)),
        ]
        found = [os.path.join(self.home, file[2:]) if file.startswith("~/") else file for file in files]
        return asyncssh.read_known_hosts([file for file in found if os.path.isfile(file)])

    def _ways(self) -> list[str]:
        """How to log in, only where the config says something of it: a server counts each key that is tried."""
        ways = []
        if self.keyfile is not None or self.passphrase is not None:
            ways.append("publickey")
        if self.password is not None:
            ways += ["keyboard-interactive", "password"]
        return ["gssapi-with-mic", *ways] if ways and self.gss else ways


def _host(parts: SplitResult) -> str:
    """As it is spelled: names in ~/.ssh/config are not the resolver's alone."""
    where = parts.netloc.rpartition("@")[2]
    return where[1:].partition("]")[0] if where.startswith("[") else where.partition(":")[0]
