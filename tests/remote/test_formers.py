"""A second version that comes from elsewhere: of its list of files only what is new in it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.mounts.conftest import contents
from tests.remote.shared import Team
from tests.remote.test_places import local

FILES, CHANGED = 2500, 10
# Of the list of so many files, packed; of a second version's changed files, with all that the store writes beside them.
WHOLE, FEW = 100_000, 40_000


def version(data: Path, number: int) -> None:
    data.mkdir(exist_ok=True)
    for each in range(FILES):
        if number == 0 or each % (FILES // CHANGED) == 0:
            (data / f"sample-{each:05}.bin").write_bytes(b"%d of %d" % (each, number))


def stored(home: Home) -> int:
    """Bytes of the store's segments."""
    home.run("daemon", "stop", "-q")
    return sum(path.stat().st_size for path in (home.path / "cache/millpond/segments").iterdir())


def publish(team: Team, number: int, ann: Home) -> None:
    version(ann.repo / "data", number)
    ann.run("add", "-q", "data")
    ann.git("add", "-A")
    ann.git("commit", "-qm", f"version {number}")
    ann.run("push", "-q")


@local
@pytest.mark.parametrize("verb", ["fetch", pytest.param("pull", marks=pytest.mark.long)])
def test_a_second_version_that_comes(team: Team, verb: str) -> None:
    ann = team.person("ann")
    publish(team, 0, ann)
    bob = team.person("bob", ann)
    bob.run(verb, "-q")
    first = stored(bob)
    assert first > WHOLE
    publish(team, 1, ann)
    bob.git("pull", "-q")
    bob.run(verb, "-q")
    assert stored(bob) - first < FEW
    bob.run("checkout", "-q")
    assert contents(bob.repo / "data") == contents(ann.repo / "data")


@pytest.mark.long
@local
def test_versions_that_come_together(team: Team) -> None:
    ann = team.person("ann")
    for number in range(3):
        publish(team, number, ann)
    bob = team.person("bob", ann)
    bob.run("fetch", "-q")
    first = stored(bob)
    bob.run("fetch", "-q", "-A")
    assert stored(bob) - first < 2 * FEW
    carol = team.person("carol", ann)
    carol.run("fetch", "-q", "-A")
    assert stored(carol) < first + 2 * FEW
    for home in (bob, carol):
        for number in range(3):
            home.git("checkout", "-q", f"HEAD~{2 - number}" if number == 0 else "main" if number == 2 else "main~1")
            home.run("checkout", "-q")
            assert (home.repo / "data/sample-00000.bin").read_bytes() == b"0 of %d" % number


@pytest.mark.long
@local
def test_an_import_that_is_updated(team: Team) -> None:
    ann = team.person("ann")
    publish(team, 0, ann)
    bob = team.person("bob")
    bob.run("import", "-q", str(ann.repo), "data")
    first = stored(bob)
    publish(team, 1, ann)
    bob.run("update", "-q", "data.dvc")
    second = stored(bob)
    assert first > WHOLE and second - first < FEW
    publish(team, 2, ann)
    bob.run("import", "-q", "--force", str(ann.repo), "data")
    assert stored(bob) - second < FEW
    assert contents(bob.repo / "data") == contents(ann.repo / "data")
