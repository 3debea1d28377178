"""Where pyfuse3 is not installed: everything works by the direct engine, and who asks for the other is told."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import ROOT, Home
from tests.mounts.conftest import contents, fill

pytestmark = pytest.mark.fuse

# The import system finds it no more, as if it were not there.
_HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] == "pyfuse3" else find(name, path, target)

PathFinder.find_spec = find_others
"""


class Without(Home):
    """A home whose Python has no pyfuse3."""

    def command(self, *args: str | bytes) -> list[str | bytes]:
        return [str(self.path / "venv/bin/python"), "-m", "millpond.cli", *args]


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-mnt-", ignore_cleanup_errors=True) as folder:
        made = Without(Path(folder))
        venv.create(made.path / "venv", symlinks=True)
        packages = next((made.path / "venv/lib").glob("python*/site-packages"))
        (packages / "hide.py").write_text(_HIDE)
        here = [str(ROOT / ".src"), *(each for each in sys.path if each.endswith("site-packages"))]
        (packages / "here.pth").write_text("\n".join([*here, "import hide"]) + "\n")
        try:
            yield made
        finally:
            made.close()


@pytest.mark.long
def test_it_mounts_and_names_what_is_missing(home: Home) -> None:
    command = [str(home.path / "venv/bin/python"), "-c", "import pyfuse3"]
    hidden = subprocess.run(command, env=home.env, capture_output=True, text=True, timeout=30)
    assert "No module named 'pyfuse3'" in hidden.stderr
    home.git("init", "-q")
    home.run("init")
    wanted = fill(home.repo / "data", 1)
    home.run("add", "data")
    home.git("add", "-A")
    home.git("commit", "-qm", "one")
    place, versions = home.path / "m", home.path / "v"
    place.mkdir()
    versions.mkdir()
    assert json.loads(home.run("mount", "--json", "data", str(place)).stdout)["engine"] == "direct"
    home.run("mount", "--versions", str(versions))
    assert contents(place) == wanted == contents(versions / "HEAD" / "data")
    other = home.path / "p"
    other.mkdir()
    refused = home.run("mount", "--engine", "pyfuse3", "data", str(other), code=9)
    assert "the engine pyfuse3 is not installed" in refused.stderr and "pip install pyfuse3" in refused.stderr
    checks = {each["name"]: each for each in json.loads(home.run("doctor", "--json", code=None).stdout)["checks"]}
    assert checks["engine"]["ok"] and checks["engine"]["detail"].startswith("direct: it is the fastest")
    home.run("umount", "--all")
