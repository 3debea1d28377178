"""Credentials that are found without boto3 are those that it would find."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import botocore.session
import pytest

from millpond.daemon.remote.s3settings import S3Settings
from millpond.daemon.remote.values import Values

KEYS = {"access_key_id": "section", "secret_access_key": "section's"}
WHERE: list[tuple[dict[str, str], dict[str, str]]] = [
    *product(
        [{}, KEYS, KEYS | {"session_token": "section's own"}, {"profile": "one"}, KEYS | {"profile": "one"}],
        [
            {},
            {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "env's"},
            {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "env's", "AWS_SESSION_TOKEN": "t"},
            {
                "AWS_ACCESS_KEY_ID": "env",
                "AWS_SECRET_ACCESS_KEY": "env's",
                "AWS_SESSION_TOKEN": "t",
                "AWS_SECURITY_TOKEN": "older",
            },
            {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "env's", "AWS_PROFILE": "one"},
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "one"},
        ],
    )
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a default profile and another one."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "SECURITY_TOKEN", "PROFILE", "DEFAULT_PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = default\naws_secret_access_key = default's\n"
        "[one]\naws_access_key_id = one\naws_secret_access_key = one's\n"
    )
    return tmp_path


@pytest.mark.parametrize(("section", "environ"), WHERE)
def test_they_are_boto3_s(
    home: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, str], environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    core = botocore.session.Session(profile=section.get("profile"))
    if "access_key_id" in section:
        core.set_credentials(section["access_key_id"], section["secret_access_key"], section.get("session_token"))
    expected = core.get_credentials().get_frozen_credentials()
    settings = S3Settings.of(Values("r", section), environ | {"HOME": str(home)})
    found = settings.core().get_credentials().get_frozen_credentials()
    assert found == expected
    if settings.plain is not None:
        assert settings.plain == (expected.access_key, expected.secret_key, expected.token)
    is_plain = "access_key_id" in section or (
        bool(environ.get("AWS_ACCESS_KEY_ID")) and "AWS_PROFILE" not in environ and "profile" not in section
    )
    assert (settings.plain is not None) == is_plain


def test_a_source_that_connects_ahead_needs_no_boto3(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom millpond.daemon.remote.remotes import Remote, connect\n"
        "values = {'region': 'r'}\n"
        "env = {'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b'}\n"
        "connect(Remote('r', 's3://bucket/x', values), env).prepare()\n"
        "print('botocore.session' in sys.modules)"
    )
    for names, answer in ((), "False\n"), ((".aws", ".aws/config"), "True\n"):  # a profile may name an endpoint
        for name in names:
            (tmp_path / name).touch() if name.endswith("config") else (tmp_path / name).mkdir()
        env = os.environ | {"HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == answer
