"""`fsck` by the real program: a flipped byte is found, named, and mended from the repo's own cache."""

from __future__ import annotations

import json
import subprocess

from tests.mounts.conftest import DvcRepo

from millpond.daemon.store.records import HEADER, Record
from millpond.daemon.store.segments import mapped, scan_segment


def flip_a_large_chunk(repo: DvcRepo) -> None:
    """Damage the largest record of the store on disk."""
    [path] = (repo.home.path / "cache" / "millpond" / "segments").glob("*.seg")
    with mapped(path) as view:
        found = [item[0] for item in scan_segment(view, int(path.stem)) if isinstance(item[0], Record)]
    largest = max(found, key=lambda record: record.stored)
    with open(path, "r+b") as file:
        file.seek(largest.offset + HEADER.size + 10)
        byte = file.read(1)[0]
        file.seek(largest.offset + HEADER.size + 10)
        file.write(bytes([byte ^ 0x10]))


def test_damage_is_named_and_mended(repo: DvcRepo) -> None:
    repo.home.run("add", "data")
    assert "clean" in repo.home.run("fsck", "--deep").stdout
    flip_a_large_chunk(repo)
    done = repo.home.run("fsck", code=6)
    assert "sub/deep/two.bin" in done.stdout, done.stdout
    report = json.loads(repo.home.run("fsck", "--repair", "--json").stdout)
    assert (report["ok"], report["quarantined"]) == (True, 1)
    assert "clean" in repo.home.run("fsck", "--deep").stdout


def test_damage_that_nobody_can_mend_stays_an_error(repo: DvcRepo) -> None:
    repo.home.run("add", "data")
    flip_a_large_chunk(repo)
    subprocess.run(["rm", "-rf", str(repo.home.repo / ".dvc" / "cache"), str(repo.home.repo / "data")], check=True)
    repo.home.run("fsck", "--repair", code=6)
    done = repo.home.run("checkout", "data.dvc", code=6)
    assert "damaged" in done.stderr
    assert not (repo.home.repo / "data" / "sub" / "deep" / "two.bin").exists()
