"""How a mount comes to be: by mount(2), by fusermount3, given from outside; and one line when none of them goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fusefs.helpers import ENGINES, ROOT, File, mount, open_store, put_tree

from millpond.daemon.mounts.detach import detach
from millpond.daemon.mounts.place import mount_table, mounted_at
from millpond.daemon.store.folders import Totals
from millpond.fusefs.engines import EngineSettings, mount_options, mounting

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# Mounts at its argument and prints the error of it.
_TRY = """
import sys
from millpond.daemon.errors import MountError
from millpond.fusefs.engines import EngineSettings, mounting
try:
    mounting.mount(EngineSettings(sys.argv[1], sys.argv[1], "millpond"))
    print("mounted")
except MountError as error:
    print(f"{error} | {error.hint}")
"""


def settings(place: Path, *, allow_other: bool = False) -> EngineSettings:
    return EngineSettings(os.fspath(place), os.fspath(place), "millpond", allow_other)


def by_program(place: EngineSettings) -> int:
    return mounting._by_program(place.place, mount_options(place))


def options(place: Path) -> set[str]:
    """Those of the mount and of its file system."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[4] == os.fspath(place):
            return {*head.split()[5].split(","), *tail.split()[2].split(",")}
    raise AssertionError(f"nothing is mounted at {place}")


@pytest.fixture
def stored(base: Path) -> tuple[Path, Totals]:
    store = open_store(base / "store")
    totals = put_tree(store, {b"folder/file": File(b"content")})
    store.close()
    return base / "store", totals


@pytest.mark.parametrize("make", [mounting.mount, by_program])
@pytest.mark.parametrize("allow_other", [False, True])
def test_the_mount_is_as_it_should_be_whoever_makes_it(
    base: Path, make: Callable[[EngineSettings], int], allow_other: bool
) -> None:
    (base / "m x\n").mkdir()
    fd = make(settings(base / "m x\n", allow_other=allow_other))
    try:
        entry = mounted_at(os.fspath(base / "m x\n"))
        assert entry is not None and (entry.fstype, entry.source) == ("fuse.millpond", "millpond")
    finally:
        os.close(fd)
        detach(os.fspath(base / "m x\n"))
    (base / "m").mkdir()
    fd = make(settings(base / "m", allow_other=allow_other))
    try:
        found = options(base / "m")
        assert {"ro", "nosuid", "nodev", "noatime", "default_permissions", "user_id=0", "group_id=0"} <= found
        assert ("allow_other" in found) == allow_other
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
        detach(os.fspath(base / "m"))
    assert mounted_at(os.fspath(base / "m")) is None


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_device_that_was_given_is_served(base: Path, stored: tuple[Path, Totals], engine: str) -> None:
    """But not by an image, which root alone can mount: in system mode holders are not root's. That is said, and nothing hangs."""
    (base / "m").mkdir()
    device = mounting.mount(settings(base / "m"))
    try:
        if engine == "erofs":
            with (
                pytest.raises(AssertionError, match="in system mode processes that are not root"),
                mount(*stored, base / "m", device=device),
            ):
                pass
            return
        with mount(*stored, base / "m", device=device) as mounted:
            os.close(device)
            device = -1
            assert (mounted.place / "folder/file").read_bytes() == b"content"
            assert sum(entry.mountpoint == os.fspath(base / "m") for entry in mount_table()) == 1
            assert mounted.umount().returncode == 0
            assert mounted.ended() == 0
    finally:
        if device >= 0:
            os.close(device)


def attempt(place: Path, *command: str, path: str | None = None) -> str:
    """What the attempt to mount says, below `command`, which is named by its full path."""
    env = {**os.environ, "PYTHONPATH": os.fspath(ROOT / ".src"), **({} if path is None else {"PATH": path})}
    done = subprocess.run(
        [*command, sys.executable, "-c", _TRY, os.fspath(place)], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_who_is_privileged_needs_no_fusermount3(base: Path) -> None:
    (base / "m").mkdir()
    assert attempt(base / "m", path="/nonexistent") == "mounted"


def test_root_of_a_user_namespace_mounts_by_itself(base: Path) -> None:
    """As in a rootless container."""
    (base / "m").mkdir()
    assert attempt(base / "m", "/usr/bin/unshare", "-Urm", path="/nonexistent") == "mounted"
    assert mounted_at(os.fspath(base / "m")) is None


UNPRIVILEGED = ("/usr/bin/setpriv", "--bounding-set=-sys_admin")


def test_what_is_missing_is_said_in_one_line(base: Path) -> None:
    (base / "m").mkdir()
    said = attempt(base / "m", *UNPRIVILEGED, path="/nonexistent")
    assert "fusermount3 is not installed" in said and "apt-get install fuse3" in said
    said = attempt(base / "m", *UNPRIVILEGED)
    assert "fusermount3: mount failed" in said and "Operation not permitted" in said
    empty_dev = ("/usr/bin/unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    said = attempt(base / "m", *empty_dev)
    assert "/dev/fuse: No such file or directory" in said and "modprobe fuse" in said
    (base / "file").write_bytes(b"")
    said = attempt(base / "file")
    assert "Not a directory" in said
    assert mounted_at(os.fspath(base / "m")) is None
    assert "\n" not in said
