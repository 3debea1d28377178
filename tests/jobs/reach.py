"""A Python that any user can run this checkout with.

The interpreter of a virtual environment may lie in somebody's home, the checkout too; processes of other uids could then
not even start. Debian's own interpreter of the same version takes its place, and copies that of the files.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio

REPO = Path(__file__).resolve().parents[2]
NOBODY = 41099


@dataclass(frozen=True, slots=True)
class Reach:
    """An interpreter, and the PYTHONPATH with which it finds millpond, its dependencies, and the tests; the folder of copies
    that was made for that, if any."""

    python: str
    path: str
    copies: Path | None


@functools.cache
def for_everyone() -> Reach:
    """Raises RuntimeError when no interpreter of this version can be run by others."""
    packages = Path(trio.__file__).parent.parent
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pythons = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
    copies = None
    for folders in ([REPO / ".src", REPO, packages], None):
        if folders is None:
            copies = _copied(packages)
            folders = [copies / "src", copies, copies / "packages"]
        path = os.pathsep.join(map(str, folders))
        for python in pythons:
            if _works(python, path):
                return Reach(python, path, copies)
    raise RuntimeError(f"no {version} can be run by other users here; tried {', '.join(pythons)}")


def clean() -> None:
    """Remove the copies, if any were made."""
    copies = for_everyone().copies if for_everyone.cache_info().currsize else None
    if copies is not None:
        shutil.rmtree(copies, ignore_errors=True)


def _works(python: str, path: str) -> bool:
    code = "import millpond.daemon.core, millpond.daemon.jobs.worker, tests.jobs.verbtable"
    try:
        return not subprocess.run(
            [python, "-P", "-c", code],
            env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            capture_output=True,
        ).returncode
    except OSError:
        return False


def _copied(packages: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mp-reach-"))
    folder.chmod(0o755)
    shutil.copytree(REPO / ".src", folder / "src")
    shutil.copytree(REPO / "tests", folder / "tests")
    shutil.copytree(packages, folder / "packages", ignore=shutil.ignore_patterns("__pycache__"))
    return folder
