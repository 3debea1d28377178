"""Which `@` parts a target from a revision."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.cli.target import parse_target, split_target


@pytest.mark.parametrize(
    ("text", "target", "rev"),
    [
        ("data", "data", None),
        ("data@v1", "data", "v1"),
        ("data/a b@HEAD~1", "data/a b", "HEAD~1"),
        ("data@feature/x", "data", "feature/x"),
        ("we@ird@v1", "we@ird", "v1"),
        ("data@HEAD@{1}", "data", "HEAD@{1}"),
        ("data@main@{yesterday}", "data", "main@{yesterday}"),
        ("data@@{1}", "data", "@{1}"),
        ("data@{1}", "data", "@{1}"),
        ("data@", "data", "@"),
        ("data@@", "data", "@"),
        ("data@~1", "data", "@~1"),
        ("data@@~1", "data", "@~1"),
        ("data@^", "data", "@^"),
        ("@v1", "", "v1"),
        ("@", "", "@"),
        ("@~2", "", "@~2"),
        ("@{1}", "", "@{1}"),
        ("", "", None),
    ],
)
def test_split(text: str, target: str, rev: str | None) -> None:
    assert split_target(text) == (target, rev)


_NAMES = st.text(st.characters(exclude_characters="@\0", codec="utf-8"), min_size=1)
_REVS = _NAMES.filter(lambda rev: rev[0] not in "~^{")


@given(_NAMES, _REVS)
def test_a_target_and_a_revision_come_apart_again(target: str, rev: str) -> None:
    assert split_target(f"{target}@{rev}") == (target, rev)


def test_a_name_that_is_there_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "we@ird").mkdir()
    (tmp_path / "gone@x.dvc").touch()
    assert parse_target("we@ird", None) == ("we@ird", None)
    assert parse_target("gone@x/", None) == ("gone@x/", None)
    assert parse_target("we@ird@v1", None) == ("we@ird", "v1")
    assert parse_target("other@x", "v2") == ("other@x", "v2")
    assert parse_target("@v1", None) == (None, "v1")
