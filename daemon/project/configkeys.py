"""The sections and keys that DVC's config may have, and what their values may be. What DVC refuses is refused here."""

from __future__ import annotations

from collections.abc import Mapping

# Kinds of values; NAME is lower-cased, FREE is for what is only passed on.
FREE, TEXT, NAME, FLAG, COUNT, PERCENT, SHARED, LINKS, BOOL_STYLE, LIST_STYLE = range(10)

_CHOICES = {
    FLAG: frozenset({"true", "false"}),
    SHARED: frozenset({"group"}),
    BOOL_STYLE: frozenset({"store_true", "boolean_optional"}),
    LIST_STYLE: frozenset({"nargs", "append"}),
}
_LINKS = frozenset({"reflink", "hardlink", "symlink", "copy"})

SECTIONS: Mapping[str, Mapping[str, int]] = {
    "core": {
        "remote": NAME,
        "checksum_jobs": COUNT,
        "interactive": FLAG,
        "analytics": FLAG,
        "hardlink_lock": FLAG,
        "no_scm": FLAG,
        "autostage": FLAG,
        "check_update": FLAG,
        "site_cache_dir": TEXT,
        "experiments": FLAG,
        "machine": NAME,
    },
    "cache": {
        **dict.fromkeys(("local", "s3", "gs", "hdfs", "webhdfs", "ssh", "azure", "dir"), TEXT),
        **dict.fromkeys(("slow_link_warning", "verify", "protected"), FLAG),
        "type": LINKS,
        "shared": SHARED,
    },
    "exp": {
        "auto_push": FLAG,
        **dict.fromkeys(("git_remote", "code", "data", "params", "plots", "metrics", "live", "models"), TEXT),
    },
    "parsing": {"bool": BOOL_STYLE, "list": LIST_STYLE},
    "hydra": {
        "enabled": FLAG,
        **dict.fromkeys(("config_dir", "config_module", "config_name", "plugins_path"), TEXT),
    },
    "plots": {"html_template": TEXT, "auto_open": FLAG, "out_dir": TEXT},
    "studio": {"token": TEXT, "url": TEXT, "repo_url": TEXT, "offline": FLAG},
    "state": {"dir": TEXT, "row_limit": COUNT, "row_cleanup_quota": PERCENT},
    "index": {"dir": TEXT},
}
DATABASE: Mapping[str, int] = dict.fromkeys(("url", "username", "password"), TEXT)

_REMOTE_TEXT = """
url region profile credentialpath configpath endpointurl access_key_id secret_access_key session_token ssl_verify sse
sse_kms_key_id sse_customer_algorithm sse_customer_key acl grant_read grant_read_acp grant_write_acp grant_full_control
read_timeout connect_timeout projectname connection_string sas_token account_name account_key tenant_id client_id
client_secret exclude_environment_credential exclude_visual_studio_code_credential exclude_shared_token_cache_credential
exclude_managed_identity_credential timeout connection_timeout port user password passphrase keyfile max_sessions auth
custom_auth_header method token bearer_token_command cert_path key_path gdrive_client_id gdrive_client_secret
gdrive_user_credentials_file gdrive_service_account_user_email gdrive_service_account_json_file_path
gdrive_use_service_account gdrive_trash_only gdrive_acknowledge_abuse oss_key_id oss_key_secret oss_endpoint kerberos
kerberos_principal kerb_ticket replication proxy_to use_https data_proxy_target ask_password ask_passphrase gss_auth
allow_agent use_ssl allow_anonymous_login listobjects cache_regions
"""
# One table for all kinds of remotes: which key goes with which url is asked when a remote is used.
REMOTE: Mapping[str, int] = {
    **dict.fromkeys(_REMOTE_TEXT.split(), TEXT),
    **dict.fromkeys(
        ("worktree", "version_aware", "verify", "no_traverse", "slow_link_warning", "protected"),
        FLAG,
    ),
    "checksum_jobs": COUNT,
    "jobs": COUNT,
    "type": LINKS,
    "shared": SHARED,
}


def problem(kind: int, values: list[str], listed: bool) -> str | None:
    """What is wrong with a key's value (one item, or several where it is written as a list), or None."""
    if kind == LINKS:
        items = values if listed else values[0].split(",")
        odd = [item for item in items if (item if listed else item.strip()) not in _LINKS]
        return f"'{odd[0]}' is no type of link" if odd else None
    if kind in (FREE, NAME):
        return None
    if listed:
        return "it has several values (put quotes around a value with a comma)"
    [value] = values
    choices = _CHOICES.get(kind)
    if choices is not None and value.lower() not in choices:
        return f"'{value}' is not {' or '.join(sorted(choices))}"
    if kind in (COUNT, PERCENT):
        number = int(value) if value.lstrip("+").isdecimal() else -1
        if kind == COUNT and number < 1:
            return f"'{value}' is not a number from 1"
        if kind == PERCENT and not 0 <= number <= 100:
            return f"'{value}' is not a number from 0 to 100"
    return None
