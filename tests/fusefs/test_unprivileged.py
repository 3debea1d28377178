"""Mounts of a plain user, by fusermount3: what he may not have is gone without, and said; everything else holds as it does for root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs.helpers import ROOT, File, eventually, mixed, mount, open_store, put_tree, share
from tests.jobs.reach import for_everyone

from millpond.daemon.mounts import connections, kernel
from millpond.daemon.mounts.filling import OFF
from millpond.daemon.mounts.place import mounted_at

pytestmark = pytest.mark.fuse
DATA = mixed(3 << 20, 7)
# fusermount3 asks for the user's name.
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.mark.skipif(not os.geteuid(), reason="it is run as a plain user by the tests below")
def test_it_goes_without_what_it_may_not_and_says_so(base: Path) -> None:
    store = open_store(base / "store")
    totals = put_tree(store, {b"folder/file": File(DATA)})
    store.close()
    with mount(base / "store", totals, base / "m", materialize=1 << 30, serving=2) as mounted:
        entry = mounted_at(os.fspath(mounted.place))
        assert entry is not None and entry.fstype == "fuse.millpond"
        for _ in range(4):
            assert (mounted.place / "folder/file").read_bytes() == DATA
        eventually(lambda: len(mounted.stats()["servers"]) == 1, "a server is there")
        share(mounted)
        stats = mounted.stats()
        assert stats["passthrough"] == "only root may hand files to the kernel" == kernel.why_no_passthrough()
        assert stats["read_ahead_kb"] == 128 and "may not be set here" in stats["read_ahead_why"]
        assert kernel.why_no_read_ahead() == "only root may set it, and where /sys can be written"
        assert not stats["errors"] and not stats["serving_why"] and not stats["passthrough_files"]
        assert stats["fillers"] == [] and stats["filling_why"] == OFF
        assert not mounted.umount().returncode and mounted.ended() == 0
    with mount(base / "store", totals, base / "m", fill=True) as mounted:
        stats = mounted.stats()
        if os.path.ismount(connections.CONTROL):
            assert stats["fillers"] and not stats["filling_why"]
        else:
            assert stats["fillers"] == [] and stats["filling_why"].startswith("only root could end the mount")
    (base / "closed").mkdir(mode=0o555)
    with pytest.raises(AssertionError, match='"kind": "mount"') as refused:
        mount(base / "store", totals, base / "closed").__enter__()
    assert "no write access" in str(refused.value) and "Exception" not in str(refused.value)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the plain user's."""
    with tempfile.TemporaryDirectory(prefix="mp-nobody-", ignore_cleanup_errors=True) as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


# For `sh -c`: a command as a plain user, in a mount namespace where the kernel's control files of FUSE are.
WITH_FUSECTL = (
    "mount -t fusectl none /sys/fs/fuse/connections && "
    f'exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"'
)


def run_as_nobody(home: Path, *args: str, seconds: float = 100, fusectl: bool = False) -> str:
    """Run tests as a plain user; what pytest says in its last line. All must pass. With `fusectl` he can end his own mounts."""
    program = shutil.which("fusermount3")
    if program is None or not os.stat(program).st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is not there for plain users")
    reach = for_everyone()
    done = subprocess.run(
        [
            *(("unshare", "--mount", "sh", "-c", WITH_FUSECTL, "sh") if fusectl else ()),
            *(reach.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="),
            *("--import-mode=importlib", "--tb=short", "-rf", *args),
        ],
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(home),
            "TMPDIR": os.fspath(home),
            "PYTHONPATH": reach.path,
            "HYPOTHESIS_STORAGE_DIRECTORY": os.fspath(home / "hypothesis"),
            "LANG": "C.UTF-8",
        },
        user=None if fusectl else NOBODY,
        group=None if fusectl else NOBODY,
        extra_groups=None if fusectl else [],
        cwd=ROOT if reach.copies is None else reach.copies,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.root
def test_a_plain_users_mount(home: Path) -> None:
    module = "tests/fusefs/test_unprivileged.py::test_it_goes_without_what_it_may_not_and_says_so"
    assert re.match(r"1 passed", run_as_nobody(home, module))


@pytest.mark.root
@pytest.mark.long
def test_a_plain_user_who_can_end_his_mounts_has_them_filled_ahead_whoever_is_killed(home: Path) -> None:
    kills, module = "tests/fusefs/test_filling_kills.py", "tests/fusefs/test_unprivileged.py"
    own = f"{module}::test_it_goes_without_what_it_may_not_and_says_so"
    brought = "tests/fusefs/test_filling.py::test_what_is_brought_is_what_was_stored"
    last = run_as_nobody(
        home, "-m", "not root", "-k", "not any_moment and not stored[3]", kills, own, brought, fusectl=True
    )
    assert re.match(r"10 passed", last), last


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_that_holds_for_root_holds_for_a_plain_user(home: Path) -> None:
    last = run_as_nobody(home, "-m", "not root", "tests/fusefs", "-k", "not a_million", seconds=1700)
    found = re.match(r"(\d+) passed", last)
    assert found is not None and int(found[1]) > 300, last
