"""`cache import`, `verify`, `migrate` as a person sees them: words, JSON, exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.helpers import Home


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="mp-cache-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.git("init", "-q", "-b", "main")
        home.dvc("init", "-q")
        for name in ("d/a", "d/b", "f"):
            (home.repo / name).parent.mkdir(exist_ok=True)
            (home.repo / name).write_text(name)
        home.dvc("add", "-q", "d", "f")
        home.git("add", "-A")
        home.git("commit", "-qm", "first")
        try:
            yield home
        finally:
            home.close()


def test_a_repository_moves_over(home: Home) -> None:
    cache = home.repo / ".dvc/cache"
    said = home.run("cache", "import", "-A").stdout
    assert said.startswith("Imported 4 objects, ") and str(cache) in said
    assert "4 objects were there already" in home.run("cache", "import").stdout
    shutil.rmtree(cache)
    assert home.run("cache", "verify", "--rev", "HEAD").stdout.startswith("Verified 4 objects, ")
    assert home.run("cache", "verify", "--everything").stdout.endswith("The store is clean.\n")
    shutil.rmtree(home.repo / "d")
    home.run("checkout")
    assert (home.repo / "d/b").read_text() == "d/b"
    found = json.loads(home.run("cache", "verify", "f", "--json").stdout)
    assert found == {"objects": 1, "bytes": 1, "damaged": [], "missing": []}


def test_damage_and_loss_have_their_exit_codes(home: Home) -> None:
    digest = hashlib.md5(b"f").hexdigest()
    bad = home.repo / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    bad.chmod(0o644)
    bad.write_text("g")
    for command in ("import", "verify"):
        ran = home.run("cache", command, code=6)
        assert f"'f' is damaged: its object md5:{digest} is not what its name says" in ran.stderr
    bad.unlink()
    for command in ("import", "verify"):
        ran = home.run("cache", command, code=None)
        assert ran.returncode not in (0, 6) and "1 object is nowhere: 'f'" in ran.stderr


def test_migrate_says_what_dvc_says(home: Home) -> None:
    name = hashlib.md5(b"old\n").hexdigest()
    place = home.repo / ".dvc/cache" / name[:2] / name[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("old\n")
    (home.repo / "old").write_text("old\n")
    (home.repo / "old.dvc").write_text(f"outs:\n- md5: {name}\n  size: 4\n  path: old\n")
    theirs = home.path / "theirs"
    shutil.copytree(home.repo, theirs, symlinks=True)
    for words in (["--dry", "--dvc-files"], ["--dry"], ["--dvc-files"], ["--dvc-files"], []):
        ours = home.run("cache", "migrate", *words)
        known = home.dvc("cache", "migrate", *words, cwd=theirs).stdout
        assert ours.stdout == known.partition("\nTo track the changes")[0], words
    assert (home.repo / "old.dvc").read_text() == (theirs / "old.dvc").read_text()
