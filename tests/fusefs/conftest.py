"""One mount of a tree with everything in it, and a plain copy of that tree, for all tests that only read."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fusefs.helpers import (
    ENGINES,
    File,
    Mounted,
    Node,
    eventually,
    mount,
    open_store,
    put_tree,
    sample_tree,
    share,
    under_test,
    write_plain,
)

from millpond.daemon.mounts.engines import EROFS
from millpond.daemon.mounts.kernel import why_no_image, why_no_passthrough
from millpond.daemon.mounts.place import mount_table
from millpond.fusefs.engines.passthrough import LEAST_BYTES


@dataclass(frozen=True, slots=True)
class Pair:
    """A tree in memory, mounted, and written out."""

    tree: Mapping[bytes, Node]
    mounted: Mounted
    plain: Path
    engine: str

    @property
    def place(self) -> Path:
        return self.mounted.place


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine of this test's mounts: `direct`, unless the test (or its module) asks for others by
    `@pytest.mark.parametrize("engine", ENGINES, indirect=True)`."""
    name = str(getattr(request, "param", "direct"))
    if name == EROFS and (why := why_no_image()):
        pytest.skip(why)
    under_test.append(name)
    yield name
    under_test.pop()


# As `direct`, its large files handed to the kernel; and served by several processes.
HANDED_OVER = "direct, handed over"
SHARED = "direct, shared"
# The kernel reads an image that several processes make.
EROFS_SHARED = "erofs, shared"
MORE: dict[str, dict[str, Any]] = {
    HANDED_OVER: {"materialize": 1 << 30},
    SHARED: {"serving": 3},
    EROFS_SHARED: {"serving": 3},
}


@pytest.fixture(
    scope="session",
    params=(
        *ENGINES,
        *(pytest.param(each, marks=pytest.mark.long) for each in (HANDED_OVER, SHARED, EROFS_SHARED)),
    ),
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The sample tree. The store is closed: no daemon runs while these tests read."""
    if request.param == HANDED_OVER and (why := why_no_passthrough()):
        pytest.skip(why)
    if request.param in (EROFS, EROFS_SHARED) and (why := why_no_image()):
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="mp-fs-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        tree = sample_tree()
        write_plain(base / "plain", tree)
        store = open_store(base / "store")
        try:
            totals = put_tree(store, tree)
        finally:
            store.close()
        engine, more = request.param.split(",")[0], dict(MORE.get(request.param, {}))
        # An image has nothing that changes, such as xattrs.
        more |= {"allow_other": True} if engine == "erofs" else {"xattrs": True}
        with mount(base / "store", totals, base / "m", engine=engine, life_s=600, **more) as mounted:
            if request.param == HANDED_OVER:
                hand_over(mounted, tree)
            if request.param == SHARED:
                share(mounted)
            yield Pair(tree, mounted, base / "plain", engine)


def hand_over(mounted: Mounted, tree: Mapping[bytes, Node]) -> None:
    """Open every large file until the kernel has it."""
    large = [path for path, node in tree.items() if isinstance(node, File) and len(node.data) >= LEAST_BYTES]
    contents = {node.data for node in tree.values() if isinstance(node, File) and len(node.data) >= LEAST_BYTES}
    assert large

    def all_over() -> bool:
        for path in large:
            os.close(os.open(os.path.join(os.fsencode(mounted.place), path), os.O_RDONLY))
        return bool(mounted.stats()["passthrough_files"] >= len(contents))

    eventually(all_over, "the kernel has all large files", 60)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a short path, from which every mount is taken away at the end."""
    with tempfile.TemporaryDirectory(prefix="mp-fs-", ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder)
        finally:
            for entry in mount_table():
                if entry.mountpoint.startswith(folder):
                    subprocess.run(["umount", "-l", entry.mountpoint], check=False, timeout=20)
