"""DVC's formats against real DVC, on real projects and on made-up ones."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import config, dvcfile, manifest
from millpond.daemon.project.hashing import looks_like_text
from millpond.daemon.project.ignore import IgnoreRules
from millpond.daemon.project.outputs import WorkTree, collect

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
PROJECTS = sorted(path for path in CORPUS.glob("*+*") if path.is_dir())
PLAIN = "outs:\n- md5: 97fd889dce110646a772ad64268891b8.dir\n  size: 6\n  nfiles: 3\n  hash: md5\n  path: data\n"


def ask_dvc(request: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("oracle_formats.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        timeout=110,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def made_projects(folder: Path) -> list[Path]:
    """Projects of our own making, so that there is something to compare on every machine."""
    texts = {
        "plain": {"data.dvc": PLAIN},
        "legacy": {"sub/old.csv.dvc": "outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  path: old.csv\n"},
        "wdir": {"x.dvc": "wdir: deep\nouts:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  hash: md5\n  path: y\n"},
        "several": {"a.dvc": PLAIN, "b/b.dvc": PLAIN.replace("path: data", "path: 'it: is # odd'")},
        "lock": {
            "dvc.yaml": "stages:\n  s:\n    cmd: x\n    outs:\n    - o\n",
            "dvc.lock": "schema: '2.0'\nstages:\n  s:\n    cmd: x\n    outs:\n    - path: o\n      hash: md5\n"
            "      md5: f6661be5d76f14229a4ce8fe7c8f52c0.dir\n      size: 2\n      nfiles: 1\n",
        },
    }
    for name, files in texts.items():
        for path, text in files.items():
            where = folder / name / path
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_text(text)
    return [folder / name for name in texts]


def copied_corpus(folder: Path) -> list[Path]:
    found = []
    for project in PROJECTS:
        target = folder / project.name
        shutil.copytree(project, target, ignore=shutil.ignore_patterns("oracle.*", "_SOURCE.json"))
        found.append(target)
    return found


def test_outputs_of_real_and_made_projects_are_dvcs(tmp_path: Path) -> None:
    roots = made_projects(tmp_path) + copied_corpus(tmp_path)
    for root in roots:
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        (root / ".dvc").mkdir(exist_ok=True)
        (root / ".dvc" / "config").touch()
    oracle = ask_dvc({"roots": [str(root) for root in roots]})["outputs"]
    compared = 0
    for root in roots:
        wanted = oracle[str(root)]
        if wanted is None:
            continue  # files of one project may come from different commits
        named = {(path, algo, value) for path, algo, value, _ in wanted if value is not None}
        found = {
            (output.path, output.name.algo, output.name.value)
            for output in collect(WorkTree(str(root), IgnoreRules(str(root))))
            if output.name is not None
        }
        # An out that is in dvc.lock and no more in dvc.yaml is still data that can be had.
        assert named <= found, f"{root.name}: {sorted(named - found)}"
        pointers = {path for path, *_ in found - named}
        locked = {output.path for output in collect(WorkTree(str(root), IgnoreRules(str(root)))) if output.stage}
        assert pointers <= locked, f"{root.name}: {sorted(pointers - locked)}"
        compared += len(named)
    assert compared >= 5


def test_pointers_come_back_as_they_were() -> None:
    texts = [
        PLAIN,
        "# ours\n" + PLAIN,
        PLAIN.replace("  path: data\n", "  desc: 'a: b'\n  path: data # why\nmeta:\n  k: [1, 2]\n"),
    ]
    texts += [path.read_text() for path in CORPUS.rglob("*.dvc") if path.is_file()]
    for text in texts:
        pointer = dvcfile.parse(text, "x.dvc")
        assert dvcfile.updated_text(pointer, pointer.outs) == text
        assert all(out.path for out in pointer.outs)


def test_a_change_keeps_comments_and_annotations() -> None:
    text = "# ours\nouts:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  size: 0\n  path: x # here\n  desc: what it is\nmeta: {a: 1}\n"
    pointer = dvcfile.parse(text, "x.dvc")
    [out] = pointer.outs
    assert out.legacy
    changed = dvcfile.Out("x", ObjectName("md5", "a" * 32), 7, extra=out.extra)
    after = dvcfile.updated_text(pointer, [changed])
    assert "# ours" in after and "# here" in after and "desc: what it is" in after and "meta: {a: 1}" in after
    [read] = dvcfile.parse(after, "x.dvc").outs
    assert (read.name, read.size) == (changed.name, 7)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("outs:\n- md5: zz\n  path: x\n", 2, "not an MD5"),
        ("outs:\n- path: x\n  colour: red\n", 3, "colour"),
        ("outs:\n  - path: x\n bad: [\n", 3, "line 3"),
        ("cmd: make\nouts:\n- path: x\n", 1, "0.x"),
        ("<<<<<<< ours\nouts: []\n=======\nouts: []\n>>>>>>> theirs\n", 1, "conflict"),
        ("outs:\n- path: x\n  path: y\n", 3, "path"),
        ("- a\n", 1, "mapping"),
        ("", 1, "empty"),
    ],
)
def test_what_is_no_pointer_is_refused_with_its_place(text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidFileError) as refused:
        dvcfile.parse(text, "bad.dvc")
    assert refused.value.details["line"] == line and words in refused.value.message
    assert "bad.dvc" in refused.value.message and "\n" not in refused.value.message


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(min_size=16, max_size=16), max_size=8
)


@given(trees)
def test_manifests_are_their_own_inverse(tree: dict[str, bytes]) -> None:
    rows = sorted((path, digest.hex()) for path, digest in tree.items())
    paths = set(tree)
    text = manifest.serialise(rows)
    assert json.loads(text) == [{"md5": md5, "relpath": path} for path, md5 in rows]
    if any("/".join(path.split("/")[:end]) in paths for path in paths for end in range(1, path.count("/") + 1)):
        with pytest.raises(InvalidFileError):
            manifest.parse(text, source="m")
    else:
        assert [(entry.relpath, entry.name.value) for entry in manifest.parse(text, source="m")] == rows


def test_the_known_manifest() -> None:
    rows = [
        ("a.txt", "764efa883dda1e11db47671c4a3bbd9e"),
        ("empty", "d41d8cd98f00b204e9800998ecf8427e"),
        ("sub/b.txt", "f6255bb01c648fe967714d52a89e8e9c"),
    ]
    assert manifest.manifest_name(manifest.serialise(rows)).value == "97fd889dce110646a772ad64268891b8.dir"


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", ".", "", "a/", "x\0y"])
def test_hostile_manifests_are_refused(path: str) -> None:
    with pytest.raises(InvalidFileError):
        manifest.parse(json.dumps([{"md5": "a" * 32, "relpath": path}]).encode(), source="m")


def test_configs_are_read_or_refused_as_by_dvc(tmp_path: Path) -> None:
    texts = [
        "",
        "[core]\n    remote = Store\n['remote \"Store\"']\n    url = s3://b/p\n",
        "[cache]\n    dir = ../elsewhere\n    type = reflink,copy\n",
        "[core]\n    colour = red\n",
        "[colours]\n    a = b\n",
        "[feature]\n    anything = true\n",
        "[core]\n    autostage = true\n    analytics = false # no\n",
    ]
    texts += [path.read_text() for path in sorted((CORPUS / "_configs").glob("*.config"))]
    oracle = ask_dvc({"configs": texts, "folder": str(tmp_path)})["configs"]
    for text, wanted in zip(texts, oracle, strict=True):
        try:
            sections = config.parse(text, "config")
        except InvalidFileError as error:
            assert wanted is None, f"DVC takes this, we say {error}:\n{text}"
            continue
        if wanted is None:
            continue  # a value that DVC checks and that means nothing here
        found = config.Config()
        config.merge(found, sections, "config")
        assert sorted(found.remotes) == wanted["remotes"]
        if "remote" in wanted["core"]:
            assert (found.get("core", "remote") or "").lower() == wanted["core"]["remote"]


def test_text_is_told_from_binary_as_by_dvc() -> None:
    rng = random.Random(3)
    samples = [b"", b"abc\r\n", b"\0", b"\x7f" * 10, bytes(range(1, 32)), "käse".encode() * 50]
    for _ in range(300):
        odd = rng.randrange(0, 60)
        body = bytes(rng.choice(b"abc \r\n\t\x80\xff") for _ in range(100 - odd)) + bytes(
            rng.choice(b"\x01\x02\x7f\x1b\x08") for _ in range(odd)
        )
        samples.append(body)
    wanted = ask_dvc({"samples": [base64.b64encode(sample).decode() for sample in samples]})["texts"]
    assert [looks_like_text(sample) for sample in samples] == wanted
