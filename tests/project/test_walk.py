"""Listings: order, links, odd files, rules; against real DVC's manifest order."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.daemon.project.copying import below, remove_tree
from millpond.daemon.project.ignore import FolderRules, IgnoreRules
from millpond.daemon.project.walk import FIELDS, list_folder, stat_fields


def rules_of(root: Path, folder: str = "") -> FolderRules:
    rules = IgnoreRules(str(root)).at(folder)
    assert rules is not None
    return rules


def test_files_links_and_odd_ones(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub" / "deep").mkdir(parents=True)
    (data / "empty").mkdir()
    (data / "b").write_text("bb")
    (data / "sub" / "deep" / "x").write_text("x")
    (data / "sub.txt").write_text("t")
    (data / "link").symlink_to("b")
    (data / "folder-link").symlink_to("sub")
    (data / "self").symlink_to(".")
    (data / "nothing").symlink_to("nowhere")
    (data / "loop").symlink_to("loop")
    os.mkfifo(data / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(data / "sock"))
    found = list_folder(str(data), rules_of(tmp_path, "data"))
    assert found.paths == ["b", "link", "sub.txt", "sub/deep/x"]
    assert found.links == [1]
    assert found.skipped == ["folder-link", "self"]
    assert found.folders == ["empty", "sub", "sub/deep"]
    assert dict(found.odd) == {
        "nothing": "is a link to nothing",
        "loop": "cannot be read: Too many levels of symbolic links",
        "pipe": "is a named pipe",
        "sock": "is a socket",
    }
    assert found.total == 2 + 2 + 1 + 1
    # A link's numbers are those of the file that would be stored.
    assert tuple(found.stats[FIELDS : 2 * FIELDS]) == stat_fields(os.stat(data / "b"))


def test_rules_hold_at_every_level(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for path in ("a/keep", "a/no.tmp", "log/x", "a/log/x", ".git/f", "repo/.dvc/f", "repo/f"):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).touch()
    (tmp_path / ".dvcignore").write_text("*.tmp\nlog/\n")
    found = list_folder(str(data), rules_of(tmp_path, "data"))
    assert found.paths == ["a/keep"]
    assert found.odd == []


def test_rules_file_inside_data_is_odd(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".dvcignore").write_text("x\n")
    found = list_folder(str(tmp_path / "data"), rules_of(tmp_path))
    assert [path for path, _ in found.odd] == [".dvcignore"]
    assert found.paths == []


NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..", ".git", ".dvc", ".hg", ".dvcignore") and len(os.fsencode(name)) < 200
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(paths=st.lists(st.lists(NAME, min_size=1, max_size=3), max_size=12))
def test_order_is_that_of_paths(paths: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        made = set()
        for parts in paths:
            path = os.path.join(base, *parts)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb"):
                    made.add(tuple(parts))
            except OSError:
                continue
        found = list_folder(base, FolderRules(base, "", ()))
        assert found.paths == sorted("/".join(parts) for parts in made)
        assert len(found.stats) == FIELDS * len(made)


def test_any_bytes_in_names(tmp_path: Path) -> None:
    raw = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    with open(raw, "wb"):
        pass
    found = list_folder(str(tmp_path), rules_of(tmp_path))
    assert [os.fsencode(path) for path in found.paths] == [b"\xff\xfe"]


def test_very_deep_folders(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(1200):
        path = path / "d"
        path.mkdir()
    (path / "f").touch()
    found = list_folder(str(tmp_path), rules_of(tmp_path))
    assert found.paths == ["d/" * 1200 + "f"]
    assert below(str(tmp_path))[0] == [str(path / "f")]
    remove_tree(str(tmp_path / "d"))
    assert list(tmp_path.iterdir()) == []
