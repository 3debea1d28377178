"""`.dvc/config` and its levels: system, global, project, local; later ones win.

The text is the INI dialect that DVC writes: `[core]`, `['remote "name"']`, indented `key = value`, quotes around what
needs them, `#` comments. Unknown sections and keys are refused, as DVC does, because they are spelling mistakes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import InvalidFileError

LEVELS = ("system", "global", "project", "local")
_SECTION = re.compile(r"""\[\s*(?:'(?P<q>[^']*)'|"(?P<d>[^"]*)"|(?P<b>[^\]'"]*))\s*\]\s*(?:#.*)?\Z""")
_NAMED = re.compile(r'(remote|machine|db)\s+"([^"]*)"\Z')
_KEYS: dict[str, frozenset[str]] = {
    "core": frozenset(
        [
            "remote",
            "checksum_jobs",
            "interactive",
            "analytics",
            "hardlink_lock",
            "no_scm",
            "autostage",
            "check_update",
            "site_cache_dir",
            "experiments",
            "machine",
        ]
    ),
    "cache": frozenset(
        ["local", "s3", "gs", "hdfs", "webhdfs", "ssh", "azure", "dir", "type", "shared", "slow_link_warning", "verify"]
    ),
    "exp": frozenset(["auto_push", "git_remote", "code", "params", "plots", "metrics", "live", "models"]),
    "parsing": frozenset(["bool", "list"]),
    "hydra": frozenset(["enabled", "config_dir", "config_module", "config_name", "plugins_path"]),
    "plots": frozenset(["html_template", "auto_open", "out_dir"]),
    "studio": frozenset(["token", "url", "repo_url", "offline"]),
    "state": frozenset(["dir", "row_limit", "row_cleanup_quota"]),
    "index": frozenset(["dir"]),
    "db": frozenset(["url", "username", "password"]),
}
_FREE_SECTIONS = frozenset({"feature", "machine"})
_REMOTE_KEYS = frozenset(
    [
        "url",
        "checksum_jobs",
        "jobs",
        "worktree",
        "version_aware",
        "verify",
        "region",
        "profile",
        "credentialpath",
        "configpath",
        "endpointurl",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "listobjects",
        "use_ssl",
        "allow_anonymous_login",
        "ssl_verify",
        "sse",
        "sse_kms_key_id",
        "sse_customer_algorithm",
        "sse_customer_key",
        "acl",
        "grant_read",
        "grant_read_acp",
        "grant_write_acp",
        "grant_full_control",
        "cache_regions",
        "read_timeout",
        "connect_timeout",
        "projectname",
        "connection_string",
        "sas_token",
        "account_name",
        "account_key",
        "tenant_id",
        "client_id",
        "client_secret",
        "exclude_environment_credential",
        "exclude_visual_studio_code_credential",
        "exclude_shared_token_cache_credential",
        "exclude_managed_identity_credential",
        "timeout",
        "connection_timeout",
        "port",
        "user",
        "password",
        "ask_password",
        "passphrase",
        "ask_passphrase",
        "keyfile",
        "gss_auth",
        "allow_agent",
        "max_sessions",
        "auth",
        "custom_auth_header",
        "method",
        "token",
        "bearer_token_command",
        "cert_path",
        "key_path",
        "gdrive_client_id",
        "gdrive_client_secret",
        "gdrive_user_credentials_file",
        "gdrive_service_account_email",
        "gdrive_service_account_user_email",
        "gdrive_service_account_p12_file_path",
        "gdrive_service_account_json_file_path",
        "gdrive_use_service_account",
        "gdrive_trash_only",
        "gdrive_acknowledge_abuse",
        "profile",
        "oss_key_id",
        "oss_key_secret",
        "oss_endpoint",
        "hdfs_token",
        "kerberos",
        "kerberos_principal",
        "proxy_to",
        "use_https",
        "data_proxy_target",
        "no_traverse",
        "fetch_jobs",
    ]
)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


@dataclass(slots=True)
class Config:
    """Merged settings: `values[section][key]`, `remotes[name][key]`; `origin[section, key]` is the file that said it."""

    values: dict[str, dict[str, str]] = field(default_factory=dict)
    remotes: dict[str, dict[str, str]] = field(default_factory=dict)
    origin: dict[tuple[str, str], str] = field(default_factory=dict)

    def get(self, section: str, key: str) -> str | None:
        return self.values.get(section, {}).get(key)

    def flag(self, section: str, key: str, default: bool = False) -> bool:
        """A boolean setting. Raises InvalidFileError."""
        value = self.get(section, key)
        if value is None:
            return default
        if value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        path = self.origin[section, key]
        raise InvalidFileError(f"'{path}': {section}.{key} is '{value}', not true or false", path=path)

    def cache_dir(self, dvc_dir: str) -> str:
        """Where DVC's own cache is, absolute; a relative `cache.dir` belongs to the folder of the file that has it."""
        value = self.get("cache", "dir")
        if value is None:
            return os.path.join(dvc_dir, "cache")
        base = os.path.dirname(self.origin["cache", "dir"])
        return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


def level_paths(dvc_dir: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The file of each level."""
    home = environ.get("HOME") or os.path.expanduser("~")
    user = environ.get("DVC_GLOBAL_CONFIG_DIR") or os.path.join(
        environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "dvc"
    )
    system = environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc"
    return {
        "system": os.path.join(system, "config"),
        "global": os.path.join(user, "config"),
        "project": os.path.join(dvc_dir, "config"),
        "local": os.path.join(dvc_dir, "config.local"),
    }


def load(dvc_dir: str, environ: Mapping[str, str]) -> Config:
    """All levels merged. Raises InvalidFileError with file and line."""
    config = Config()
    for path in level_paths(dvc_dir, environ).values():
        try:
            with open(path, "rb") as file:
                text = file.read().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InvalidFileError(f"cannot read '{path}': {error.strerror}", path=path) from error
        merge(config, parse(text, path), path)
    return config


def parse(text: str, path: str) -> dict[str, dict[str, str]]:
    """Sections (`core`, `remote "name"`) of one file, lower-cased as DVC does. Raises InvalidFileError."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    known: frozenset[str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        header = _SECTION.match(stripped)
        if header is not None:
            name = (header["q"] or header["d"] or header["b"] or "").strip().lower()
            known = _known_keys(name, path, number)
            if name in sections:
                raise _invalid(path, number, f"section [{name}] is there twice")
            current = sections.setdefault(name, {})
            continue
        key, equals, value = stripped.partition("=")
        key = key.strip().strip("'\"").lower()
        if not equals or not key:
            raise _invalid(path, number, f"'{stripped}' is neither a section nor key = value")
        if current is None:
            raise _invalid(path, number, f"'{key}' stands before any section")
        if known is not None and key not in known:
            raise _invalid(path, number, f"unknown key '{key}'")
        current[key] = _value(value.strip(), path, number)
    return sections


def merge(config: Config, sections: Mapping[str, Mapping[str, str]], path: str) -> None:
    """Lay one file's sections over what is there."""
    for section, values in sections.items():
        named = _NAMED.match(section)
        if named is not None and named[1] == "remote":
            target = config.remotes.setdefault(named[2], {})
        else:
            target = config.values.setdefault(section, {})
        for key, value in values.items():
            target[key] = value
            config.origin[section, key] = path


def _known_keys(section: str, path: str, line: int) -> frozenset[str] | None:
    named = _NAMED.match(section)
    if named is not None:
        return _REMOTE_KEYS if named[1] == "remote" else _KEYS.get(named[1])
    if section in _FREE_SECTIONS:
        return None
    if section not in _KEYS:
        raise _invalid(path, line, f"unknown section [{section}]")
    return _KEYS[section]


def _value(text: str, path: str, line: int) -> str:
    if text[:1] in ("'", '"'):
        triple = text[:3] if text[:3] in ("'''", '"""') else text[:1]
        end = text.find(triple, len(triple))
        if end < 0:
            raise _invalid(path, line, "a quote is not closed")
        return text[len(triple) : end]
    return re.split(r"\s#|^#", text, maxsplit=1)[0].strip()


def _invalid(path: str, line: int, problem: str) -> InvalidFileError:
    details: dict[str, Any] = {"line": line, "column": 1}
    return InvalidFileError(f"'{path}' line {line}: {problem}", path=path, details=details)
