"""dvc.lock: what is written is what DVC's own YAML writer writes; one entry is exchanged, the rest stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline.lock import Lock, rendered, rendered_alone
from millpond.daemon.project import yamlio

_TEXTS = st.one_of(
    st.sampled_from(
        ["echo a", "a: b", "x #y", "yes", "true", "null", "1", "1e5", "0b101", "2020-01-01", "it's", '"q"', "", " a", "a ",
         "a\nb\n", "é", "[x]", "- x", "${v}", "k:", "d3b07384d113edec49eaa6238ad5ff00", "0b000000000000000000000000000011",
         "12345678901234567890123456789012", "1234567890123456789012345678e012.dir", "x" * 90, "word " * 30, "a\tb", "*", "&a", "%x"]
    ),
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=12),
)  # fmt: skip
_VALUES = st.recursive(
    st.one_of(_TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=8,
)
_ENTRIES = st.fixed_dictionaries(
    {"cmd": st.one_of(_TEXTS, st.lists(_TEXTS, min_size=1, max_size=3))},
    optional={
        "deps": st.lists(st.fixed_dictionaries({"path": _TEXTS, "hash": st.just("md5"), "size": st.integers(0, 99)}), min_size=1, max_size=2),
        "params": st.dictionaries(st.sampled_from(["params.yaml", "b c.json"]), st.dictionaries(_TEXTS, _VALUES, max_size=3), min_size=1),
        "outs": st.lists(st.fixed_dictionaries({"path": _TEXTS, "isexec": st.just(True)}), min_size=1, max_size=2),
    },
)  # fmt: skip
_NAMES = st.one_of(st.sampled_from(["a", "grid@x-0.1", "on", "1", "a b", "x: y", "'q'"]), _TEXTS.filter(bool))


@given(_NAMES, _ENTRIES)
def test_an_entry_is_what_dvc_s_writer_writes(name: str, entry: dict[str, Any]) -> None:
    whole = yamlio.dump({"stages": {name: entry}})
    assert "stages:\n" + rendered(name, entry) == whole
    assert rendered_alone(entry) == yamlio.dump(entry)


@given(st.lists(st.tuples(_NAMES, _ENTRIES), min_size=1, max_size=5))
def test_entries_that_come_one_by_one_make_the_file_that_dvc_makes(items: list[tuple[str, dict[str, Any]]]) -> None:
    lock = Lock.parse("", "dvc.lock")
    document: dict[str, Any] = {"schema": "2.0", "stages": {}}
    for name, entry in items:
        lock = lock.with_entry(name, entry)
        document["stages"][name] = entry
    found = YAML(typ="safe", pure=True).load(lock.text)
    assert found == YAML(typ="safe", pure=True).load(yamlio.dump(document))
    assert list(found["stages"]) == list(document["stages"])
    assert Lock.parse(lock.text, "dvc.lock").entries == found["stages"]


LOCK = """# ours
schema: '2.0'
stages:
  # about a
  a:
    cmd: x
    deps:
    - path: p  # why
      md5: d3b07384d113edec49eaa6238ad5ff00
  b:
    cmd: y
"""


def test_comments_and_what_others_wrote_stay() -> None:
    lock = Lock.parse(LOCK, "dvc.lock").with_entry("b", {"cmd": "z"})
    assert lock.text == LOCK.replace("cmd: y", "cmd: z")
    assert lock.with_entry("c", {"cmd": "w"}).text == LOCK.replace("cmd: y", "cmd: z") + "  c:\n    cmd: w\n"
    assert lock.with_entry("c", {"cmd": "w"}, before=["b"]).text.endswith("  c:\n    cmd: w\n  b:\n    cmd: z\n")
    more = LOCK + "datasets: []\n"
    assert Lock.parse(more, "dvc.lock").with_entry("c", {"cmd": "w"}).text == LOCK + "  c:\n    cmd: w\ndatasets: []\n"
    flow = "schema: '2.0'\nstages: {a: {cmd: x}}\n"
    text = Lock.parse(flow, "dvc.lock").with_entry("b", {"cmd": "y"}).text
    assert Lock.parse(text, "dvc.lock").entries == {"a": {"cmd": "x"}, "b": {"cmd": "y"}}
    old = "a:\n  cmd: x\n"
    assert Lock.parse(old, "dvc.lock").with_entry("b", {"cmd": "y"}).text == (
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\n  b:\n    cmd: y\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: '3.0'\n", "expected '2.0'"),
        ("schema: '2.0'\nstages: [1]\n", "not a mapping"),
        ("schema: '2.0'\nstages:\n  a:\n    deps: []\n", "has no command"),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - md5: x\n", "has no path"),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: p\n      md5: x\n", "is not an MD5"),
        ("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n", "conflict markers"),
        ("- 1\n", "not a lock file"),
        ("a: {cmd: x, outs: 5}\n", "'outs' is not a list"),
        ("a: 7\n", "has no command"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidFileError, match=words) as caught:
        Lock.parse(text, "dvc.lock")
    assert caught.value.details["line"] >= 1
