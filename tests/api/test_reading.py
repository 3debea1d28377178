"""`millpond.open`, `read` and `get_url`, with dvc.api as the oracle."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import LARGE, Made
from tests.cli.helpers import Home
from tests.cli.test_imports import HEAVY, loaded

import millpond
from millpond.daemon.api import connections
from millpond.daemon.api.versions import Version
from millpond.daemon.errors import (
    NotARepoError,
    ObjectMissingError,
    RemoteConfigError,
    RemoteError,
    RevisionError,
    TargetError,
)

ORACLE = """
import hashlib, json, sys, dvc.api
def of(name, args):
    try:
        found = getattr(dvc.api, name)(**args)
        return hashlib.md5(found).hexdigest() if isinstance(found, bytes) else found
    except Exception as error:
        return type(error).__name__
print(json.dumps([of(name, args) for name, args in json.load(sys.stdin)]))
"""
# What dvc.api raises, and what is raised here.
KINDS = {
    "PathMissingError": FileNotFoundError,
    "IsADirectoryError": IsADirectoryError,
    "RevError": RevisionError,
    "OutputNotFoundError": TargetError,
    "RemoteNotFoundError": RemoteConfigError,
    "ValueError": ValueError,
}
ASKED: list[tuple[str, dict[str, str]]] = [
    ("read", {"path": "data/a.csv"}),
    ("read", {"path": "data/a.csv", "rev": "v1"}),
    ("read", {"path": "data/sub/b.csv", "rev": "v1", "mode": "rb"}),
    ("read", {"path": "data/empty", "rev": "v1", "mode": "rb"}),
    ("read", {"path": "model.pkl", "rev": "v1", "mode": "rb"}),
    ("read", {"path": "data/large.bin", "rev": "v1", "mode": "rb"}),
    ("read", {"path": "readme.md", "rev": "v1"}),
    ("read", {"path": "readme.md"}),
    ("read", {"path": "code/run.py", "rev": "v2"}),
    ("read", {"path": "data", "rev": "v1"}),
    ("read", {"path": "data"}),
    ("read", {"path": "code", "rev": "v1"}),
    ("read", {"path": "nothing"}),
    ("read", {"path": "nothing", "rev": "v1"}),
    ("read", {"path": "data/nothing", "rev": "v1"}),
    ("read", {"path": "readme.md", "rev": "nothing"}),
    ("read", {"path": "readme.md", "mode": "w"}),
    ("get_url", {"path": "data"}),
    ("get_url", {"path": "data/a.csv", "rev": "v1"}),
    ("get_url", {"path": "model.pkl"}),
    ("get_url", {"path": "readme.md"}),
    ("get_url", {"path": "nothing", "rev": "v1"}),
    ("get_url", {"path": "data", "remote": "nobody"}),
]


def test_it_answers_as_dvc_api(made: Made) -> None:
    asked = [(name, {"repo": made.repo, **args}) for name, args in ASKED]
    done = subprocess.run(
        [sys.executable, "-c", ORACLE],
        input=json.dumps(asked),
        cwd="/",
        env=made.home.env,
        capture_output=True,
        text=True,
        check=True,
    )
    for (name, args), told in zip(asked, json.loads(done.stdout), strict=True):
        if told in KINDS:
            with pytest.raises(KINDS[told]):
                getattr(millpond, name)(**args)
            continue
        found = getattr(millpond, name)(**args)
        if isinstance(found, bytes):
            found = hashlib.md5(found).hexdigest()
        assert found == told, (name, args)


def test_every_file_of_a_version_is_read(made: Made) -> None:
    for path, data in made.first.items():
        assert millpond.read(path, "rb", rev="v1", repo=made.repo) == data


def test_paths_begin_in_the_current_folder_when_nothing_else_is_named(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.home.repo / "code")
    assert millpond.read("run.py") == "print(1)\n"
    assert millpond.read("../readme.md") == "second\n"
    assert millpond.read(Path(made.repo, "readme.md")) == "second\n"
    with pytest.raises(FileNotFoundError):
        millpond.read("code/run.py")
    # A revision's begin at the root.
    assert millpond.read("code/run.py", rev="v1") == "print(1)\n"
    with pytest.raises(FileNotFoundError):
        millpond.read("run.py", rev="v1")
    with pytest.raises(FileNotFoundError, match="outside"):
        millpond.read("../../elsewhere", rev="v1")


def test_the_workspace_s_file_comes_first_then_its_pointer_s_object(made: Made) -> None:
    place = made.home.repo / "model.pkl"
    kept = place.read_bytes()
    place.write_bytes(b"changed, not added")
    assert millpond.read("model.pkl", "rb", repo=made.repo) == b"changed, not added"
    place.unlink()
    try:
        assert millpond.read("model.pkl", "rb", repo=made.repo) == kept == made.first["model.pkl"]
    finally:
        place.write_bytes(kept)


def test_a_link_of_a_commit_is_followed(made: Made) -> None:
    assert millpond.read("link.md", rev="v1", repo=made.repo) == "first\n"


def test_text_is_decoded_as_asked(made: Made) -> None:
    with millpond.open("data/a.csv", rev="v1", repo=made.repo) as file:
        assert file.readline() == "x,y\n"
        assert [line.strip() for line in file] == ["1,2", "3,4"]
    with millpond.open("data/a.csv", "r", rev="v1", repo=made.repo, encoding="utf-16-le", errors="replace") as file:
        assert "x,y" not in file.read()
    wrong: tuple[dict[str, Any], ...] = (
        {"mode": "rb", "encoding": "utf-8"},
        {"mode": "r+"},
        {"mode": "a"},
        {"mode": ""},
    )
    for arguments in wrong:
        with pytest.raises(ValueError):
            millpond.open("data/a.csv", repo=made.repo, **arguments)


def test_a_small_file_has_a_descriptor_and_a_large_one_is_read_in_parts(made: Made) -> None:
    with millpond.open("model.pkl", "rb", rev="v1", repo=made.repo) as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[:] == made.first["model.pkl"]
        assert file.seek(-10, os.SEEK_END) == 299_990
        assert file.read() == made.first["model.pkl"][-10:]
        assert file.seekable() and file.readable() and not file.writable()
        with pytest.raises(ValueError):
            file.seek(-1)
    with pytest.raises(ValueError):
        file.read()
    large = made.first["data/large.bin"]
    with millpond.open("data/large.bin", "rb", rev="v1", repo=made.repo) as file:
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        for start, size in ((0, 10), (LARGE - 5, 100), (9 << 20, 3 << 20), (9 << 20, 10), (1, 300_000)):
            file.seek(start)
            assert file.read(size) == large[start : start + size]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(1_000_003), b"")) == large


def test_open_files_are_pickled_where_they_are(made: Made) -> None:
    with millpond.open("data/a.csv", "rb", rev="v1", repo=made.repo) as file:
        assert file.readline() == b"x,y\n"
        with pickle.loads(pickle.dumps(file)) as other:
            assert other.read() == b"1,2\n3,4\n"
    with millpond.open("data/a.csv", rev="v1", repo=made.repo, newline="\n") as text:
        text.readline()
        with pickle.loads(pickle.dumps(text)) as again:
            assert again.read() == "1,2\n3,4\n"


def test_threads_read_side_by_side(made: Made) -> None:
    large = made.first["data/large.bin"]
    content = Version(made.repo, "v1").open("data/large.bin")

    def work(number: int) -> list[int]:
        wrong = []
        for step in range(12):
            start = (number * 7919 + step * 1_400_000) % LARGE
            data = bytes(content.read(start, 5000))
            if not data or data != large[start : start + len(data)]:
                wrong.append(start)
            if step % 4 == 0 and millpond.read("model.pkl", "rb", rev="v1", repo=made.repo) != made.first["model.pkl"]:
                wrong.append(-1)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert [wrong for found in pool.map(work, range(8)) for wrong in found] == []
    content.close()


def test_a_daemon_that_was_killed_is_started_again(made: Made) -> None:
    with millpond.open("data/large.bin", "rb", rev="v1", repo=made.repo) as file:
        assert file.read(100) == made.first["data/large.bin"][:100]
        before = json.loads(made.home.run("daemon", "status", "--json").stdout)["pid"]
        os.kill(before, signal.SIGKILL)
        file.seek(12 << 20)
        assert file.read(100) == made.first["data/large.bin"][12 << 20 :][:100]
    assert millpond.read("model.pkl", "rb", rev="v1", repo=made.repo) == made.first["model.pkl"]
    assert json.loads(made.home.run("daemon", "status", "--json").stdout)["pid"] != before


def test_what_is_not_here_comes_from_the_remote_as_it_is_read(far: Made) -> None:
    assert millpond.read("data/sub/b.csv", "rb", rev="v1", repo=far.repo) == b"x,y\n5,6\n"
    large = far.first["data/large.bin"]
    with millpond.open("data/large.bin", "rb", rev="v1", repo=far.repo) as file:
        assert file.read(1000) == large[:1000]
        [part] = [path for path in (far.home.path / "cache/millpond-user/partial").iterdir() if path.suffix != ".map"]
        assert part.stat().st_size == LARGE and part.stat().st_blocks * 512 < 6 << 20
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        file.seek(10 << 20)
        assert file.read(100_000) == large[10 << 20 :][:100_000]
        # Its process is killed: another one takes over.
        for source in _sources(far.home):
            os.kill(source, signal.SIGKILL)
        file.seek(15 << 20)
        assert file.read() == large[15 << 20 :]
    assert millpond.read("data/many/007.bin", "rb", rev="v1", repo=far.repo) == far.first["data/many/007.bin"]
    connections.close()
    assert [thread.name for thread in threading.enumerate() if "source" in thread.name] == []


def _sources(home: Home) -> list[int]:
    """Processes of this user's daemon that bring what is not in the store: the map of the large file is open there."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{entry}/comm").read_text().startswith("millpond-source"):
                opened = [os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")]
                found += [int(entry)] * any(path.startswith(str(home.path)) for path in opened)
    assert found
    return found


def test_data_that_is_nowhere_is_told_and_the_rest_is_read(far: Made) -> None:
    home, empty = far.home, far.home.path / "empty"
    empty.mkdir()
    home.run("remote", "modify", "team", "url", str(empty))
    for path in ("model.pkl", "data/a.csv"):
        with pytest.raises(ObjectMissingError):
            millpond.read(path, "rb", rev="v1", repo=far.repo)
    # The manifest and one file come back.
    manifest = home.git("show", "v1:data.dvc").partition("md5: ")[2].split()[0]
    for value in (manifest, hashlib.md5(far.first["data/sub/b.csv"]).hexdigest()):
        key = f"files/md5/{value[:2]}/{value[2:]}"
        (empty / key).parent.mkdir(parents=True)
        (empty / key).write_bytes((far.remote / key).read_bytes())
    assert millpond.read("data/sub/b.csv", "rb", rev="v1", repo=far.repo) == far.first["data/sub/b.csv"]
    with pytest.raises(ObjectMissingError):
        millpond.read("data/a.csv", "rb", rev="v1", repo=far.repo)


def test_where_there_is_no_repository(made: Made, tmp_path: Path) -> None:
    for repo in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotARepoError):
            millpond.read("x", repo=repo)


@pytest.mark.parametrize("repo", ["http://me:secret@127.0.0.1:1/repo", "git@127.0.0.1:repo", "nowhere"])
def test_a_repository_that_is_elsewhere_is_not_the_one_around(
    made: Made, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    monkeypatch.chdir(made.repo)
    for read in (millpond.read, millpond.get_url):
        with pytest.raises((RemoteError, NotARepoError, FileNotFoundError)) as raised:
            read("data/a.csv", repo=repo)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("code", ["import millpond", "import millpond; millpond.open, millpond.read, millpond.get_url"])
def test_importing_it_costs_little(code: str) -> None:
    found = loaded(code)
    heavy = {"threading"} if "open" in code else set()
    assert found & HEAVY <= heavy
    assert {name.partition(".")[0] for name in found} <= {"millpond", *sys.stdlib_module_names}
    if "open" not in code:
        assert {name for name in found if name.startswith("millpond")} == {"millpond"}
    assert not [name for name in found if name.startswith(("millpond.daemon.store", "millpond.cli", "millpond.fusefs"))]
