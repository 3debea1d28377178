"""The filesystem for fsspec: its own tests for reading filesystems, and what fsspec's users do."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests
from tests.api.conftest import Made
from tests.cli.helpers import ROOT

import millpond
from millpond import MillpondFileSystem
from millpond.daemon.errors import RevisionError
from millpond.daemon.version import VERSION

ORACLE = """
import json, sys, dvc.api
fs = dvc.api.DVCFileSystem(sys.argv[1], rev=sys.argv[2] or None)
print(json.dumps([sorted(fs.find("")), sorted(fs.ls("data", detail=False)), sorted(fs.glob("**/*.csv")),
                  fs.info("data/a.csv").get("md5"), fs.isdir("data/sub"), fs.exists("data/nothing")]))
"""


@pytest.fixture(autouse=True)
def known() -> None:
    """As where the package is installed, by its entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = project["entry-points"]["fsspec.specs"]["millpond"]
    fsspec.register_implementation("millpond", place.replace(":", "."), clobber=True)


@pytest.fixture
def fs(made: Made) -> MillpondFileSystem:
    return MillpondFileSystem(made.repo, rev="v1")


@pytest.mark.parametrize("rev", ["v1", ""])
def test_it_lists_as_dvc_s_filesystem(made: Made, rev: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORACLE, made.repo, rev],
        env=made.home.env,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    found, listed, csv, md5, isdir, exists = json.loads(done.stdout)
    fs = MillpondFileSystem(made.repo, rev=rev or None)
    assert sorted(fs.find("")) == [path.lstrip("/") for path in found]
    assert sorted(fs.ls("data", detail=False)) == listed
    assert sorted(fs.glob("**/*.csv")) == [path.lstrip("/") for path in csv]
    assert (fs.isdir("data/sub"), fs.exists("data/nothing")) == (isdir, exists) == (True, False)
    if rev:
        assert fs.info("data/a.csv")["md5"] == md5
    assert {"data.dvc", ".dvcignore"} <= set(fs.ls("", detail=False, dvcfiles=True))


def test_what_is_told_of_a_path(fs: MillpondFileSystem, made: Made) -> None:
    assert fs.info("data") == {"name": "data", "type": "directory", "size": 0}
    told = fs.info("millpond://data/large.bin")
    assert told["size"] == len(made.first["data/large.bin"]) == fs.size("data/large.bin")
    assert (told["type"], told["isexec"]) == ("file", False)
    for path in ("data/large.bin", "data/a.csv", "readme.md", "link.md"):
        expected = made.first.get(path, b"first\n")
        assert fs.checksum(path) == hashlib.md5(expected).hexdigest()
    assert fs.du("data/sub") == sum(len(data) for path, data in made.first.items() if path.startswith("data/sub/"))
    assert fs.ls("data/a.csv") == [fs.info("data/a.csv")]
    assert {path: sorted(files) for path, _, files in fs.walk("data/sub")} == {
        "data/sub": ["b.csv"],
        "data/sub/deep": ["\xfc \xf1%.txt"],
    }
    for path in ("nothing", "data/nothing", "data/a.csv/x", "../x", "code/x/y"):
        assert not fs.exists(path)
        with pytest.raises(FileNotFoundError):
            fs.info(path)
        with pytest.raises(FileNotFoundError):
            fs.ls(path)
    with pytest.raises(IsADirectoryError):
        fs.open("data")


def test_ranges_and_many_files_at_once(fs: MillpondFileSystem, made: Made) -> None:
    large = made.first["data/large.bin"]
    assert fs.cat_file("data/large.bin", 17_000_000, 17_000_010) == large[17_000_000:17_000_010]
    assert fs.cat_file("data/large.bin", -10) == large[-10:]
    assert fs.head("data/large.bin", 7) == large[:7] and fs.tail("data/large.bin", 7) == large[-7:]
    paths = [path for path in made.first if path.startswith("data/many/")]
    assert fs.cat(paths) == {path: made.first[path] for path in paths}
    assert fs.cat("data/many", recursive=True) == {path: made.first[path] for path in paths}
    assert fs.cat("data/a.csv") == made.first["data/a.csv"]
    assert fs.cat_ranges(paths, 5, 10) == [made.first[path][5:10] for path in paths]
    [first, second] = fs.cat_ranges(["data/a.csv", "data/nothing"], [0, 0], [3, 3])
    assert first == b"x,y" and isinstance(second, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["data/nothing"], 0, 3, on_error="raise")
    assert fs.cat(["data/a.csv", "data/nothing"], on_error="omit") == {"data/a.csv": made.first["data/a.csv"]}


def test_nothing_can_be_written(fs: MillpondFileSystem, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    attempts: list[Any] = [
        lambda: fs.open("data/new", "wb"),
        lambda: fs.open("data/a.csv", "ab"),
        lambda: fs.pipe("data/new", b"x"),
        lambda: fs.put(str(tmp_path / "x"), "data/x"),
        lambda: fs.touch("data/new"),
        lambda: fs.mkdir("new"),
        lambda: fs.makedirs("new/er"),
        lambda: fs.rmdir("data"),
        lambda: fs.rm("data", recursive=True),
        lambda: fs.cp("data/a.csv", "data/b.csv"),
        lambda: fs.mv("data/a.csv", "data/b.csv"),
        lambda: fs.write_text("data/new", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as refused:
            attempt()
        assert refused.value.errno == errno.EROFS


def test_urls_name_repository_and_revision(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open("millpond://data/a.csv", "rt", repo=made.repo, rev="v1") as file:
        assert file.read() == made.first["data/a.csv"].decode()
    with fsspec.open(f"millpond://data/a.csv?rev=v1&repo={made.repo}", "rb") as file:
        assert file.read() == made.first["data/a.csv"]
    monkeypatch.chdir(made.home.repo / "code")
    with fsspec.open("millpond://data/a.csv?rev=v1", "rb", compression=None) as file:
        assert file.read() == made.first["data/a.csv"]
    with fsspec.open("millpond://data/a.csv") as file:
        assert file.read() == b"x,y\n9,9\n"
    with fsspec.open("simplecache::millpond://data/a.csv?rev=v1") as file:
        assert file.read() == made.first["data/a.csv"]
    [many, _] = fsspec.open_files("millpond://data/**/*.csv?rev=v1")
    assert many.path == "data/a.csv"
    with pytest.raises(ValueError, match="remote"):
        fsspec.open("millpond://data/a.csv?rev=v1&remote=x")
    with pytest.raises(ValueError, match="names rve: only rev and repo"):
        fsspec.open("millpond://data/a.csv?rve=v1")
    assert millpond.__version__ == VERSION
    with pytest.raises(RevisionError):
        MillpondFileSystem(made.repo, rev="nothing").ls("")


def test_a_revision_is_pinned_and_pickled_with_its_commit(made: Made) -> None:
    home = made.home
    home.git("branch", "moving", "v1")
    fs = MillpondFileSystem(made.repo, rev="moving")
    assert fs.cat_file("readme.md") == b"first\n"
    home.git("branch", "-f", "moving", "v2")
    assert fs.cat_file("readme.md") == pickle.loads(pickle.dumps(fs)).cat_file("readme.md") == b"first\n"
    assert MillpondFileSystem(made.repo, rev="moving").cat_file("readme.md") == b"second\n"
    file = pickle.loads(pickle.dumps(fsspec.core.OpenFile(fs, "data/a.csv", "rb")))
    with file as opened:
        assert opened.read() == made.first["data/a.csv"]
    assert fs.fsid != MillpondFileSystem(made.repo, rev="v1").fsid
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()).cat_file("data/a.csv") == made.first["data/a.csv"]


def test_the_workspace_is_seen_as_it_is(made: Made) -> None:
    fs = MillpondFileSystem(made.repo)
    new = made.home.repo / "new.txt"
    new.write_text("new")
    try:
        assert fs.cat_file("new.txt") == b"new"
    finally:
        new.unlink()
    assert not fs.exists("new.txt")


def test_what_is_listed_of_a_remote_version_has_its_sizes(far: Made) -> None:
    fs = MillpondFileSystem(far.repo, rev="v1")
    found = fs.find("data", detail=True)
    assert {path: info["size"] for path, info in found.items()} == {
        path: len(data) for path, data in far.first.items() if path.startswith("data/")
    }
    paths = [path for path in far.first if path.startswith("data/many/")]
    assert fs.cat(paths) == {path: far.first[path] for path in paths}


class TestFsspecS(AbstractFixtures, AbstractGetTests):  # type: ignore[misc]  # fsspec has no types
    """fsspec's tests of `get`. Their files are made in the repository and committed; the version of that commit is read."""

    # It makes its own files, by this filesystem.
    test_get_directory_recursive = None

    @pytest.fixture(scope="class")
    @classmethod
    def scenarios(cls, _made: Made) -> dict[str, str]:
        """Where each one's folder is."""
        home, local = _made.home, LocalFileSystem(auto_mkdir=True)
        found = {}
        for name, tracked in (
            ("_bulk_operations_scenario_0", True),
            ("_glob_edge_cases_files", False),
            ("_dir_and_file_with_same_name_prefix", True),
            ("_10_files_with_hashed_names", False),
        ):
            place = home.repo / "scenarios" / name
            getattr(cls(), name)(local, lambda *parts: "/".join(parts), str(place))
            if tracked:
                home.run("add", "-q", str(place / "source"))
            found[name] = f"scenarios/{name}/source"
        home.git("checkout", "-qb", "scenarios")
        _made.commit("get")
        home.git("checkout", "-q", "main")
        return found

    @pytest.fixture
    def fs(self, made: Made, scenarios: dict[str, str]) -> MillpondFileSystem:
        return MillpondFileSystem(made.repo, rev="get")

    @pytest.fixture
    def fs_path(self) -> str:
        return ""

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, scenarios: dict[str, str]) -> str:
        return scenarios["_bulk_operations_scenario_0"]

    @pytest.fixture
    def fs_glob_edge_cases_files(self, scenarios: dict[str, str]) -> str:
        return scenarios["_glob_edge_cases_files"]

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, scenarios: dict[str, str]) -> str:
        return scenarios["_dir_and_file_with_same_name_prefix"]

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, scenarios: dict[str, str]) -> str:
        return scenarios["_10_files_with_hashed_names"]


def test_numpy_reads_arrays(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    fs = MillpondFileSystem(made.repo, rev="v1")
    with fs.open("model.pkl") as file:
        file.seek(16)
        assert numpy.fromfile(file, dtype="u1", count=100).tobytes() == made.first["model.pkl"][16:116]
    with fs.open("data/a.csv", "r") as file:
        assert numpy.loadtxt(file, delimiter=",", skiprows=1).tolist() == [[1, 2], [3, 4]]
    assert isinstance(fs.open("data/a.csv"), io.BufferedReader)
