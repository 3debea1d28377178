"""Several large files at once: read, cut and hashed beside each other, small ones between them."""

from __future__ import annotations

import hashlib
import json
import os

from tests.cli.helpers import Home


def test_large_files_that_are_added_together(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    # By then the kernels are made, so that less is worth it.
    for name, large, count in (("first", 33 << 20, 3), ("second", 2 << 20, 5)):
        folder = home.repo / name
        folder.mkdir()
        noise = os.urandom(large + count)
        for number in range(count):
            (folder / f"{number}.bin").write_bytes(noise[number : number + large + number % 3])
            (folder / f"{number}.json").write_text(f'{{"shard": {number}}}')
        home.run("add", "-q", name)
        said = json.loads(home.run("list", "--json", "--show-hash", ".", name).stdout)
        found = {entry["path"]: entry["md5"] for entry in said}
        assert found == {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        saved = {path.name: path.read_bytes() for path in folder.iterdir()}
        for path in folder.iterdir():
            path.unlink()
        home.run("checkout", "-q", "--force", name)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == saved
    home.run("fsck", "--deep")
