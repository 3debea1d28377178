"""`fsck` by the real program: a flipped byte is found, named, and mended from the repo's own cache."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
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


@pytest.mark.parametrize(
    "where", ["remote", *(pytest.param(each, marks=pytest.mark.long) for each in ("workspace", "cache"))]
)
def test_manifests_that_have_parts_of_a_damaged_chunk_are_mended(repo: DvcRepo, where: str) -> None:
    """One chunk hurts both versions; each is taken from where it still is, and read by who has it in his pointer."""
    home, many = repo.home, repo.home.repo / "many"
    many.mkdir()
    for number in range(2000):
        (many / f"{number:05}").write_text("the same")
    home.run("remote", "add", "-d", "away", str(home.path / "away"))
    versions = []
    for text in ("first", "second"):
        (many / "01000").write_text(text)
        home.run("add", "many")
        lines = (home.repo / "many.dvc").read_text().splitlines()
        versions.append(next(line.split()[-1] for line in lines if "md5: " in line))
        if where == "remote":
            home.run("push", "many")
    shutil.rmtree(home.repo / ".dvc" / "cache", ignore_errors=True)
    if where == "cache":
        home.dvc("add", "-q", "many")
    flip_a_large_chunk(repo)
    hurt = json.loads(home.run("fsck", "--json", code=6).stdout)["hurt"]
    assert sorted(hurt) == sorted(f"md5:{value}" for value in versions)
    if where != "workspace":
        shutil.rmtree(many)
    is_all = where == "remote"
    home.run("fsck", "--repair", code=0 if is_all else 6)
    after = json.loads(home.run("fsck", "--deep", "--json", code=0 if is_all else 6).stdout)
    assert after["hurt"] == ([] if is_all else [f"md5:{versions[0]}"])
    shutil.rmtree(many, ignore_errors=True)
    home.run("checkout", "many.dvc")
    assert len(list(many.iterdir())) == 2000
    assert (many / "01000").read_text() == "second"
