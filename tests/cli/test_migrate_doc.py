"""docs/migrate.md, run as it stands on a project made by real DVC; DVC is asked after every step that it should survive."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.project.realdvc import real_dvc

PAGE = Path(__file__).parents[2] / "docs/migrate.md"
# The layout of a public registry of data sets, with data of our own.
FILES = ["use-cases/cats-dogs", "get-started/data.xml", "images/owl_sticker.png", "workshop/satellite-data"]


def blocks() -> list[tuple[str, str]]:
    """(heading, commands) of each block of the page."""
    found, heading = [], ""
    for part in re.split(r"^(## .*|```sh\n(?:.*\n)*?```)$", PAGE.read_text(), flags=re.MULTILINE):
        if part.startswith("## "):
            heading = part[3:]
        elif part.startswith("```sh"):
            found.append((heading, part[6:-3]))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    home.git("init", "-q", "-b", "main")
    real_dvc().ok("init", "-q", cwd=home.repo)
    rnd = random.Random(1)
    for name in FILES:
        path = home.repo / name
        path.parent.mkdir(exist_ok=True)
        if "." in name:
            path.write_bytes(rnd.randbytes(300_000))
            continue
        for number in range(30):
            (path / f"class-{number % 3}").mkdir(parents=True, exist_ok=True)
            (path / f"class-{number % 3}/{number}.jpg").write_bytes(rnd.randbytes(rnd.randrange(20_000)))
    real_dvc().ok("add", "-q", *FILES, cwd=home.repo)
    home.git("add", "-A")
    home.git("commit", "-qm", "first")
    home.git("tag", "v1")
    (home.repo / "use-cases/cats-dogs/class-0/0.jpg").write_bytes(b"another")
    real_dvc().ok("add", "-q", "use-cases/cats-dogs", cwd=home.repo)
    home.git("commit", "-qam", "second")
    yield home
    home.close()


def contents(home: Home) -> dict[str, bytes]:
    return {
        str(path.relative_to(home.repo)): path.read_bytes()
        for name in FILES
        for path in ([home.repo / name] if "." in name else sorted((home.repo / name).rglob("*")))
        if path.is_file()
    }


@pytest.mark.long
def test_every_step_of_the_page(home: Home) -> None:
    first = contents(home)
    seen = []
    for heading, commands in blocks():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=home.repo,
            env=home.env,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, f"{heading}: {commands}\n{done.stdout}\n{done.stderr}"
        seen.append(heading)
        if heading != "Without DVC's cache":
            assert real_dvc().ok("status", cwd=home.repo) == "Data and pipelines are up to date.\n", (heading, commands)
            found = json.loads(real_dvc().ok("data", "status", "--json", cwd=home.repo))
            assert not found.keys() & {"not_in_cache", "uncommitted", "committed"}, (heading, found)
        assert home.git("status", "--porcelain") == "", heading
    assert seen.count("Work with both") == 4 and seen[-1] == "Leave again"
    now = contents(home)
    assert now.keys() - first.keys() == {"use-cases/cats-dogs/more.txt"}
    # What millpond has kept and given back is all there, in every version, for DVC alone.
    home.git("checkout", "-q", "v1")  # DVC's own hook checks the data out
    assert contents(home)["get-started/data.xml"] == first["get-started/data.xml"]
    assert len(contents(home)) == len(first)
    assert not (home.path / "cache/millpond").exists()
