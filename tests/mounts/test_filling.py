"""The page cache filled ahead, with a daemon: what is shown of it, and who ends what nobody can end any more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.fusefs import filling
from tests.fusefs.filling import LARGE_FILES, gone, hold_up, large, list_all, wake
from tests.fusefs.helpers import File, Node, eventually
from tests.mounts.test_kills import children

from millpond.daemon.mounts import connections
from millpond.daemon.mounts.place import mounted_at

pytestmark = [pytest.mark.fuse, filling.possible]
# For what is told of one filler at a moment of its own.
ONE = {"MILLPOND_FILL": "1"}


def add_tree(home: Home, tree: Mapping[bytes, Node]) -> None:
    """A project that has these files as `data`."""
    for path, node in tree.items():
        full = home.repo / "data" / os.fsdecode(path)
        full.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(node, File)
        full.write_bytes(node.data)
    home.run("init", "-q", "--no-scm")
    home.run("add", "-q", "data")


@pytest.fixture
def place(home: Home) -> Iterator[Path]:
    """Where a mount of filling.tree() is to be; the project has it as `data`."""
    add_tree(home, filling.tree())
    found = home.path / "m"
    found.mkdir()
    yield found
    there = mounted_at(os.fspath(found))
    if there is not None:
        connections.abort(os.fspath(found), there.source.rpartition(":")[2])
    home.run("umount", "--all", "--lazy", code=None)
    home.run("daemon", "stop", code=None)


def stats(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / ".millpond/stats").read_text())
    return found


def shown(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.run("mounts", "--json").stdout)["mounts"][0]
    return found


def below(pid: int) -> list[int]:
    """All processes that a process has started, and theirs."""
    return [each for child in children(pid) for each in (child, *below(child))]


def test_mounts_say_what_was_brought_or_why_nothing_is(home: Home, place: Path) -> None:
    home.run("mount", "-q", "data", str(place))
    wake(place)
    eventually(lambda: bool(shown(home)["filled_files"]), "something was brought")
    assert "brought ahead: " in home.run("mounts", "-v").stdout
    os.kill(stats(place)["fillers"][0], signal.SIGKILL)
    eventually(
        lambda: "; 1 process that did so was killed and replaced" in home.run("mounts", "-v").stdout, "it says so"
    )
    home.run("umount", str(place))
    home.run("daemon", "stop")
    home.run("mount", "-q", "data", str(place), env={"MILLPOND_FILL": "0"})
    for path in list_all(place):
        path.read_bytes()
    assert not shown(home)["filled_files"]
    assert "small files are not brought ahead: MILLPOND_FILL is 0" in home.run("mounts", "-v").stdout


@pytest.mark.root
@pytest.mark.parametrize(
    "killed",
    [pytest.param("holder", marks=pytest.mark.long), pytest.param("holder and filler", marks=pytest.mark.long), "all"],
)
def test_what_was_killed_while_a_reader_and_the_filler_wait_is_made_again(home: Home, place: Path, killed: str) -> None:
    home.run("daemon", "stop")
    home.run("mount", "-q", "data", str(place), env=ONE)
    daemon = int(json.loads(home.run("daemon", "status", "--json").stdout)["pid"])
    holder = int(shown(home)["pid"])
    filler, reader = hold_up(place, holder, lambda: stats(place))
    # As the end of a cgroup or a login does it: all that there is, at once. The daemon first, which would see its holder end; then the filler, which would, too.
    everything = [daemon, filler, *below(daemon), holder]
    victims = {"holder": [holder], "holder and filler": [filler, holder], "all": everything}[killed]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if killed == "all":
        eventually(lambda: gone(daemon) and gone(holder), "daemon and holder are gone")
        assert reader.poll() is None
    # Any command does: with the daemon gone, it starts another.
    home.run("mounts")
    answer = reader.communicate(timeout=20)[0].strip()
    # The READ failed, but the filler, whose turn was next, may have had the bytes.
    assert answer.startswith("errno") or answer == "right"
    eventually(lambda: gone(filler), "the filler ends")
    eventually(lambda: shown(home)["state"] == "mounted", "it is mounted again")
    assert int(shown(home)["pid"]) != holder
    for number in (2, filling.HELD, LARGE_FILES - 1):
        assert (place / f"b/{number:03}").read_bytes() == large(number)
    assert stats(place)["fillers"] and filler not in stats(place)["fillers"] and not stats(place)["filling_why"]
    home.run("umount", str(place))


@pytest.mark.root
def test_umount_of_what_nobody_can_end(home: Home, place: Path) -> None:
    """The daemon is not there to see it; the first command is umount."""
    home.run("daemon", "stop")
    home.run("mount", "-q", "data", str(place), env=ONE)
    daemon = int(json.loads(home.run("daemon", "status", "--json").stdout)["pid"])
    holder = int(shown(home)["pid"])
    filler, reader = hold_up(place, holder, lambda: stats(place))
    for pid in (daemon, filler, holder):
        os.kill(pid, signal.SIGKILL)
    home.run("umount", str(place))
    assert reader.communicate(timeout=20)[0].startswith(("errno", "right"))
    eventually(lambda: gone(filler), "the filler ends")
    assert list(place.iterdir()) == []
