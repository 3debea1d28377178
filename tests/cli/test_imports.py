"""The import budget: what a command may load before and while it runs. Names are tested, not times."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.cli.helpers import ROOT

# Third-party code, and parts of the standard library that are as slow to import.
_HEAVY = """
trio msgspec rich ruamel pygit2 lmdb blake3 zstandard xxhash pyfastcdc pyfuse3 boto3 botocore asyncssh psutil pathspec
asyncio subprocess logging tempfile shutil importlib.metadata importlib.resources difflib http email ssl urllib.request
shlex traceback concurrent multiprocessing sqlite3 configparser argparse unittest
"""
HEAVY = frozenset(_HEAVY.split())
# What `click` brings along by itself is its own affair.
PACKAGES = frozenset({"click", "millpond"})


def loaded(code: str) -> set[str]:
    """Modules in a fresh interpreter after `code`, beyond those that it starts with."""
    program = f"import sys; before = set(sys.modules)\n{code}\nimport json; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT / '.src')!r})\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["project", "mounts", "store", "daemon", "about", "jobs"])
def test_a_command_loads_little(module: str) -> None:
    found = loaded(f"import millpond.cli.program, millpond.cli.commands.{module}")
    assert f"millpond.cli.commands.{module}" in found
    click_alone = loaded("import click")
    assert (found - click_alone) & HEAVY == set()
    roots = {name.partition(".")[0] for name in found - click_alone}
    assert roots - set(sys.stdlib_module_names) <= PACKAGES


def test_a_command_loads_its_own_module_only() -> None:
    found = loaded("import millpond.cli.program, millpond.cli.commands.project")
    assert {name for name in found if name.startswith("millpond.cli.commands.")} == {"millpond.cli.commands.project"}
    assert {name for name in found if name.startswith("millpond.daemon")} == {
        "millpond.daemon",
        "millpond.daemon.errors",
        "millpond.daemon.rpc",
        "millpond.daemon.rpc.autostart",
        "millpond.daemon.rpc.client",
        "millpond.daemon.rpc.framing",
        "millpond.daemon.rpc.surroundings",
        "millpond.daemon.settings",
        "millpond.daemon.wirepath",
        "millpond.daemon.xdg",
    }


def test_the_daemon_s_parts_are_never_loaded() -> None:
    modules = [
        "main",
        "__main__",
        "program",
        "group",
        "complete",
        "exit_table",
        "failure",
        "logs",
        "progress",
        "render",
    ]
    found = loaded("\n".join(f"import millpond.cli.{name}" for name in modules if name != "__main__"))
    parts = ("store", "jobs", "project", "mounts", "main")
    assert not [name for name in found if name.startswith(tuple(f"millpond.daemon.{part}" for part in parts))]
    assert not [name for name in found if name.startswith("millpond.fusefs")]
