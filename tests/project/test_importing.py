"""import, import-url, update: real DVC as oracle on the same sources, pointers compared byte by byte."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.project.elsewhere import Elsewhere, Pair, commit, git, opened_again, run, write
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    ConflictError,
    MillpondError,
    NotARepoError,
    ObjectMissingError,
    OverlapError,
    RemoteError,
    RevisionError,
    StoreDamagedError,
    TargetError,
    UsageError,
)
from millpond.daemon.project import yamlio
from millpond.daemon.project.importing import pointer
from millpond.daemon.project.importing.pointer import Found

REPO_IMPORTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dvc", "data", {"rev": "v1", "out": "older"}),
    ("dvc", "data/sub", {"out": "sub"}),
    ("dvc", ".", {"out": "all"}),
    ("dvc", "inner", {}),
    ("dvc", "data", {"no_exec": True, "out": "not-run"}),
    ("dvc", "data", {"no_download": True, "out": "not-here"}),
    ("git", "d", {}),
)


MORE_REPO_IMPORTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dvc", "data", {}),
    ("dvc", "data/one", {}),
    ("dvc", "mix", {}),
    ("dvc", "mix/git", {"out": "gitfile"}),
    ("dvc", "plain", {"rev": "v1"}),
    ("dvc", "ruled", {"out": "ruled-in"}),
    ("dvc", "ruled/out", {"out": "out"}),
    ("dvc", "inner/deep/five", {}),
    ("git", "a", {}),
)


@pytest.mark.parametrize("cases", [REPO_IMPORTS, pytest.param(MORE_REPO_IMPORTS, marks=pytest.mark.long)])
def test_imports_from_repositories_are_as_dvc_s(
    pair: Pair, elsewhere: Elsewhere, cases: tuple[tuple[str, str, dict[str, Any]], ...]
) -> None:
    for repo, path, params in cases:
        url = f"../elsewhere/{repo}"
        run(pair.ours, "import", url, path, **params)
        words = [f"--{key.replace('_', '-')}" if value is True else f"--{key}={value}" for key, value in params.items()]
        pair.dvc("import", "-q", *words, url, path)
    pair.same()


def test_imports_from_urls_are_as_dvc_s(pair: Pair, elsewhere: Elsewhere) -> None:
    pair.ours.write("inside", "i\n")
    (pair.theirs / "inside").write_text("i\n")
    cases: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
        ("../elsewhere/files/f.txt", None, {}),
        ("../elsewhere/files/d", None, {}),
        (str(elsewhere.files / "d"), "whole-path", {}),
        ("inside", "of-here", {}),
        ("../elsewhere/files/d", "not-here", {"no_download": True}),
        ("../elsewhere/files/f.txt", "not-run", {"no_exec": True}),
        ("remote://there/d/sub", "by-remote", {}),
    )
    for root in (pair.ours.root, pair.theirs):
        with open(root / ".dvc/config", "a") as config:
            config.write(f"['remote \"there\"']\n    url = {elsewhere.files}\n")
    for url, out, params in cases:
        run(pair.ours, "import-url", url, out=out, **params)
        words = [f"--{key.replace('_', '-')}" for key in params]
        pair.dvc("import-url", "-q", *words, url, *([out] if out else []))
    pair.same()


def test_updates_are_as_dvc_s(pair: Pair, elsewhere: Elsewhere) -> None:
    data, url = "../elsewhere/dvc", "../elsewhere/files"
    repos: tuple[tuple[str, dict[str, Any]], ...] = (("data", {}), ("data", {"rev": "v1", "out": "old"}), ("plain", {}))
    for path, params in repos:
        run(pair.ours, "import", data, path, **params)
        pair.dvc("import", "-q", data, path, *(f"--{key}={value}" for key, value in params.items()))
    urls: tuple[tuple[str, dict[str, Any]], ...] = (("d", {}), ("f.txt", {}), ("f.txt", {"out": "x", "no_exec": True}))
    for name, params in urls:
        run(pair.ours, "import-url", f"{url}/{name}", **params)
        words = ["--no-exec"] if "no_exec" in params else []
        pair.dvc("import-url", "-q", *words, f"{url}/{name}", *([str(params["out"])] if "out" in params else []))
    write({"data/one": "4\n"}, elsewhere.dvc)
    real_dvc().ok("add", "-q", "data", cwd=elsewhere.dvc)
    commit(elsewhere.dvc, "v3")
    write({"d/a": "changed\n", "d/new": "n\n"}, elsewhere.files)
    pointers = sorted(path.name for path in pair.ours.root.glob("?*.dvc"))
    done = pair.ours.run("update", *pointers)["imports"]
    told = pair.dvc("update", *pointers)
    pair.same()
    for row in done:
        assert (f"'{row['pointer']}' didn't change, skipping\n" in told) == (not row["changed"]), row
    assert [row["pointer"] for row in done if not row["changed"]] == ["f.txt.dvc", "old.dvc"]
    assert not any(row["changed"] for row in pair.ours.run("update", *pointers)["imports"])
    pair.ours.run("update", "old.dvc", rev="v3")
    pair.dvc("update", "-q", "old.dvc", "--rev", "v3")
    pair.same()
    assert pair.ours.run("update", ".", recursive=True)["imports"]


def test_status_of_imports_is_dvc_s(pair: Pair, elsewhere: Elsewhere) -> None:
    data, url = "../elsewhere/dvc", "../elsewhere/files"
    run(pair.ours, "import", data, "data")
    run(pair.ours, "import", data, "plain", rev="v1")
    run(pair.ours, "import", data, "mix", no_exec=True)
    for name in ("d", "f.txt"):
        run(pair.ours, "import-url", f"{url}/{name}")
    run(pair.ours, "import-url", f"{url}/d", out="frozen")
    # Files outside of the project that are there, one of which is looked at, and one that a stage needs.
    for name in ("kept", "followed"):
        (elsewhere.files / name).write_text(f"{name}\n")
        run(pair.ours, "import-url", str(elsewhere.files / name))
    pair.ours.write("dvc.yaml", f"stages: {{s: {{cmd: x, deps: ['{elsewhere.files}/kept']}}}}\n")
    pair.ours.run("freeze", "d.dvc", "f.txt.dvc", "followed.dvc", frozen=False)
    for name in ("kept", "followed"):
        (elsewhere.files / name).write_text("changed\n")
    text = pair.ours.read("plain.dvc")
    pair.ours.write("plain.dvc", text.replace("rev: v1", "rev: v2"))
    git(elsewhere.dvc, "commit", "-q", "--allow-empty", "-m", "later")
    write({"d/a": "changed\n"}, elsewhere.files)
    (elsewhere.files / "f.txt").unlink()
    pair.ours.export()
    for options in ((), ("--no-updates",)):
        expected = json.loads(pair.ours.dvc("status", "--json", *options))
        assert pair.ours.status(updates=not options) == expected
    assert "changed deps" in str(expected) and "changed checksum" in str(expected)


def test_a_stage_s_md5_is_dvc_s(pair: Pair, elsewhere: Elsewhere) -> None:
    """What people write into a pointer stays, and counts for its MD5 as with DVC."""
    run(pair.ours, "import-url", "../elsewhere/files/d")
    text = pair.ours.read("d.dvc").replace("  path: d\n", "  path: d\n  desc: what it is  # said\n  push: false\n")
    pair.ours.write("d.dvc", f"# mine\n{text}meta:\n  a: 1\n")
    (pair.theirs / "d.dvc").write_text(pair.ours.read("d.dvc"))
    shutil.copytree(pair.ours.root / "d", pair.theirs / "d")
    assert pair.ours.status()["d.dvc"] == ["changed checksum"]
    write({"d/a": "changed\n"}, elsewhere.files)
    pair.ours.run("update", "d.dvc")
    pair.dvc("update", "-q", "d.dvc")
    assert pair.ours.read("d.dvc") == (pair.theirs / "d.dvc").read_text()
    assert "# said" in pair.ours.read("d.dvc") and pair.ours.status() == {}
    pair.ours.write("d/a", "mine\n")
    pair.ours.run("commit", "d.dvc", force=True)
    pair.ours.run("move", source="d", target="e")
    assert pair.ours.status() == {} and "# said" in pair.ours.read("e.dvc")


def test_imports_come_back_from_where_they_are_from(pair: Pair, elsewhere: Elsewhere) -> None:
    ours = pair.ours
    for path, params in (("data", {"rev": "v1"}), ("mix", {}), ("data", {"no_download": True, "out": "partial"})):
        run(ours, "import", "../elsewhere/dvc", path, **dict(params))
    run(ours, "import-url", "../elsewhere/files/d")
    run(ours, "import-url", "../elsewhere/files/d/sub", out="partial-url", no_download=True)
    before = {path.name: path.read_bytes() for path in ours.root.glob("?*.dvc")}
    with opened_again(ours) as fresh:
        for name in ("data", "mix", "d"):
            shutil.rmtree(fresh.root / name)
        assert fresh.run("fetch")["objects"] == 11
        found = fresh.run("pull")["checkout"]
        assert found["added"] == ["d/", "data/", "mix/", "partial-url/", "partial/"]
        assert fresh.read("data/one") == "1\n" and fresh.read("partial/three") == "3\n" and fresh.read("d/a") == "a\n"
        assert fresh.read("partial-url/b") == "b\n"
        assert {path.name: path.read_bytes() for path in fresh.root.glob("?*.dvc")} == before
        # A remote of this project gets what is from urls, and nothing of other repositories.
        remote = fresh.base / "remote"
        with open(fresh.root / ".dvc/config", "a") as config:
            config.write(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {remote}\n")
        fresh.run("push")
        names = {entry.name for entry in remote.rglob("*") if entry.is_file()}
        assert len(names) == 4 and fresh.run("status.cloud")["status"] == {}
    write({"d/a": "changed\n"}, elsewhere.files)
    with opened_again(ours) as fresh:
        shutil.rmtree(fresh.root / "d")
        assert fresh.run("pull", "d.dvc")["checkout"]["added"] == ["d/"], "the remote has what the url has no more"
        assert fresh.read("d/a") == "a\n"


def test_what_a_source_has_no_more_is_named(pair: Pair, elsewhere: Elsewhere) -> None:
    ours = pair.ours
    run(ours, "import-url", "../elsewhere/files/d")
    run(ours, "import-url", "../elsewhere/files/f.txt")
    run(ours, "import", "../elsewhere/dvc", "plain")
    write({"d/a": "changed\n"}, elsewhere.files)
    (elsewhere.files / "f.txt").unlink()
    with opened_again(ours) as fresh:
        for target, words in (("d.dvc", "has something else there now"), ("f.txt.dvc", "there is nothing at")):
            with pytest.raises(ObjectMissingError, match=words) as raised:
                fresh.run("fetch", target)
            assert "(md5:" in str(raised.value) and f"millpond update {target}" in str(raised.value)
        with pytest.raises(ObjectMissingError):
            fresh.run("fetch")
        shutil.rmtree(fresh.root / "d")
        (fresh.root / "plain").unlink()
        found = fresh.run("pull", allow_missing=True)
        assert found["checkout"]["added"] == ["plain"] and len(found["missing"]) == 2


def test_to_remote_brings_nothing_here(pair: Pair, elsewhere: Elsewhere) -> None:
    ours = pair.ours
    (elsewhere.files / "d/large").write_bytes(os.urandom(9 << 20))
    for root, name in ((ours.root, "ours"), (pair.theirs, "theirs")):
        with open(root / ".dvc/config", "a") as config:
            config.write(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {ours.base / name}\n")
    d, f = "../elsewhere/files/d", "../elsewhere/files/f.txt"
    run(ours, "import-url", d, to_remote=True)
    ours.add(f, to_remote=True)
    ours.add(d, to_remote=True, out=wirepath.encode("other"))
    pair.dvc("import-url", "-q", "--to-remote", d)
    pair.dvc("add", "-q", "--to-remote", f)
    pair.dvc("add", "-q", "--to-remote", d, "-o", "other")
    for pointer_name in ("d.dvc", "f.txt.dvc", "other.dvc"):
        assert ours.read(pointer_name) == (pair.theirs / pointer_name).read_text()
    assert not (ours.root / "d").exists() and not (ours.root / "other").exists()
    assert objects(ours.base / "ours") == objects(ours.base / "theirs")
    assert ours.status() == {
        f"{name}.dvc": [{"changed outs": {name: "not in cache"}}] for name in ("d", "f.txt", "other")
    }
    assert ours.run("pull")["checkout"]["added"] == ["d/", "f.txt", "other/"]
    assert ours.read("d/a") == "a\n"
    write({"d/a": "changed\n"}, elsewhere.files)
    assert ours.run("update", "d.dvc", to_remote=True)["imports"][0]["changed"]
    assert ours.run("pull")["checkout"]["modified"] == ["d/"] and ours.read("d/a") == "changed\n"
    for params in ({"no_commit": True}, {"glob": True}):
        with pytest.raises(UsageError):
            ours.add(f, to_remote=True, **params)
    with pytest.raises(UsageError, match="without --to-remote"):
        ours.add("f.txt", remote="r")


def objects(remote: Path) -> dict[str, bytes]:
    """What a remote holds, DVC's own leavings aside."""
    found = (path for path in remote.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(remote)): path.read_bytes() for path in found}


def test_a_file_that_changes_on_its_way_to_a_remote_gets_no_name_there(project: Project, elsewhere: Elsewhere) -> None:
    """A large file is read twice: what the second reading finds is not stored under the digest of the first."""
    large = elsewhere.files / "large"
    large.write_bytes(bytes(9 << 20))
    with open(project.root / ".dvc/config", "a") as config:
        config.write(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {project.base / 'remote'}\n")

    def change(phase: str, *_: object) -> None:
        if phase == "hashing":
            with open(large, "r+b") as file:
                file.write(b"x")
            os.utime(large, ns=(1, 1))

    project.context.on_progress = change
    with pytest.raises(MillpondError, match="changed while"):
        project.add(str(large), to_remote=True)
    assert not [path for path in (project.base / "remote").rglob("*") if path.is_file()]
    assert not (project.root / "large.dvc").exists()


def test_refusals_change_nothing(project: Project, elsewhere: Elsewhere) -> None:
    data, files = "../elsewhere/dvc", "../elsewhere/files"
    project.write("mine", "m\n")
    project.write("tracked/x", "x\n")
    project.add("tracked")
    run(project, "import-url", f"{files}/f.txt", out="there")
    project.write("there", "edited, saved nowhere\n")
    before = project.snapshot()
    cases: list[tuple[type[MillpondError], str, tuple[Any, ...], dict[str, Any]]] = [
        (TargetError, "already exists", ("import-url", f"{files}/f.txt"), {"out": "mine"}),
        (TargetError, "nothing at", ("import-url", f"{files}/none"), {}),
        (TargetError, "no folder", ("import-url", f"{files}/d"), {"out": "no/such/d"}),
        (OverlapError, "tracked", ("import-url", f"{files}/d"), {"out": "tracked/d"}),
        (TargetError, "outside", ("import-url", f"{files}/d"), {"out": "../d"}),
        (UsageError, "import of itself", ("import-url", "there"), {"out": "there", "force": True}),
        (UsageError, "which is for Git", ("import-url", "s3://b/k"), {"fs_config": {"secret_access_key": "s"}}),
        (UsageError, "without --to-remote", ("import-url", "mine"), {"out": "o", "remote": "r"}),
        (UsageError, "combined", ("import-url", "mine"), {"out": "o", "to_remote": True, "no_exec": True}),
        (UsageError, "together", ("import-url", "mine"), {"out": "o", "no_download": True, "no_exec": True}),
        (TargetError, "not in", ("import", data, "none"), {}),
        (TargetError, "not in", ("import", data, "data/none"), {}),
        (RevisionError, "unknown", ("import", data, "data"), {"rev": "none"}),
        (NotARepoError, "no repository", ("import", "../none", "data"), {}),
        (NotARepoError, "neither", ("import", files, "f.txt"), {}),
        (TargetError, "already exists", ("import", data, "plain"), {"out": "mine"}),
        (TargetError, "no config file", ("import", data, "data"), {"config": "none"}),
        (RemoteError, "Git cannot get", ("import", "http://127.0.0.1:9/x", "x"), {"out": "o"}),
    ]
    for kind, words, args, params in cases:
        with pytest.raises(kind, match=words) as raised:
            run(project, *args, **params)
        assert "\n" not in str(raised.value) and project.snapshot() == before, args
    with pytest.raises(UsageError, match="no import"):
        project.run("update", "tracked.dvc")
    write({"f.txt": "newer\n"}, elsewhere.files)
    with pytest.raises(ConflictError, match="saved nowhere"):
        project.run("update", "there.dvc")
    assert project.snapshot() == before
    run(project, "import-url", f"{files}/f.txt", out="there", force=True, no_exec=True)
    assert project.read("there") == "edited, saved nowhere\n", "nothing is done but to the .dvc file"
    run(project, "import-url", f"{files}/f.txt", out="there", force=True)
    assert project.read("there") == "newer\n"


def test_data_that_is_damaged_or_gone_in_the_other_repository(project: Project, elsewhere: Elsewhere) -> None:
    cache = elsewhere.dvc / ".dvc/cache"
    cache.rename(elsewhere.top / "cache")
    data = "../elsewhere/dvc"
    with pytest.raises(ObjectMissingError, match="'data' .md5:.*no remote is configured"):
        run(project, "import", data, "data")
    shutil.copytree(elsewhere.top / "cache", elsewhere.top / "remote")
    settings_of = {"remote_config": {"url": str(elsewhere.top / "remote")}}
    named = {path.read_bytes(): path for path in (elsewhere.top / "remote/files").rglob("*") if path.is_file()}
    file = named[b"11\n"]
    file.chmod(0o644)
    file.write_bytes(b"12\n")
    with pytest.raises(StoreDamagedError, match="not what its name says"):
        run(project, "import", data, "data", **settings_of)
    file.write_bytes(b"")
    with pytest.raises(StoreDamagedError):
        run(project, "get", data, "data/one", **settings_of)
    file.unlink()
    with pytest.raises(ObjectMissingError, match="'one' .md5:|'data/one' .md5:|is neither here nor on remote"):
        run(project, "import", data, "data", **settings_of)
    assert not (project.root / "data").exists() and not (project.root / "data.dvc").exists()
    file.write_bytes(b"11\n")
    run(project, "import", data, "data", **settings_of)
    assert project.read("data/one") == "11\n"
    repo = yamlio.load(project.read("data.dvc"), "data.dvc")["deps"][0]["repo"]
    assert repo["remote"] == {"url": str(elsewhere.top / "remote")}


def test_an_old_repository_s_text_keeps_its_bytes(project: Project, tmp_path: Path) -> None:
    """Objects of DVC 2, named without their CRs: what comes has them, under a name of DVC 3."""
    old = tmp_path / "old"
    old.mkdir()
    git(old, "init", "-q")
    real_dvc().ok("init", "-q", cwd=old)
    text, value = b"a\r\nb\r\n", "dd8c6a395b5dd36c56d23275028f526c"
    write({"t.dvc": f"outs:\n- md5: {value}\n  size: {len(text)}\n  path: t\n"}, old)
    place = old / ".dvc/cache" / value[:2] / value[2:]
    place.parent.mkdir(parents=True)
    place.write_bytes(text)
    commit(old)
    run(project, "import", str(old), "t")
    assert (project.root / "t").read_bytes() == text
    assert "hash: md5\n" in project.read("t.dvc") and value not in project.read("t.dvc")


@given(st.dictionaries(st.sampled_from(["desc", "meta", "x", "md5", "size"]), st.text(max_size=5), max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_pointer_s_text_says_what_it_was_made_of(extra: dict[str, str]) -> None:
    """Whatever else is in an old pointer: its dependency and output are the new ones, and writing it again changes nothing."""
    dep = {"etag": "e", "size": 1, "hash": "md5", "path": "s3://b/k"}
    old = yamlio.dump({**extra, "deps": [{"path": "s3://b/k"}], "outs": [{"path": "k", "desc": "d"}]})
    text = pointer.text(dep, "k", Found(), whole=True, old=old, path="k.dvc")
    document = yamlio.load(text, "k.dvc")
    assert document["deps"] == [dep] and document["outs"] == [{"path": "k", "desc": "d", "hash": "md5"}]
    assert document["md5"] == pointer.stage_md5(document)
    assert pointer.text(dep, "k", Found(), whole=True, old=text, path="k.dvc") == text
