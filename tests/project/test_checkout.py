"""`checkout`: against real DVC's reports and results, then safety, links, kinds that change, legacy caches."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, random_tree

from millpond.daemon.errors import ConflictError, ObjectMissingError, StoreDamagedError, TargetError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lists(result: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: result[name] for name in ("added", "modified", "deleted", "failed") if result[name]}


@pytest.fixture
def tracked(project: Project) -> Project:
    """A folder and a file, committed, and remembered as placed."""
    for name in ("a", "s/b", "s/c"):
        project.write(f"d/{name}", f"content of {name}")
    project.write("f", "one")
    project.write("run", "#!/bin/sh\n").chmod(0o755)
    project.add("d", "f", "run")
    project.commit("v1")
    project.settle()
    assert project.status() == {}
    return project


def test_brings_back_what_is_gone(tracked: Project) -> None:
    before = tracked.snapshot()
    shutil.rmtree(tracked.root / "d")
    (tracked.root / "f").unlink()
    (tracked.root / "run").unlink()
    result = tracked.checkout()
    assert lists(result) == {"added": ["d/", "f", "run"]}
    assert result["files"] == {"added": 5, "modified": 0, "deleted": 0}
    assert tracked.snapshot() == before
    assert os.access(tracked.root / "run", os.X_OK)
    again = tracked.checkout()
    assert lists(again) == {} and again["unchanged"] == 3
    assert tracked.status() == {}


def test_umask_decides_modes(tracked: Project) -> None:
    for name in ("f", "run"):
        (tracked.root / name).unlink()
    before = os.umask(0o027)
    try:
        tracked.checkout()
    finally:
        os.umask(before)
    assert (tracked.root / "f").stat().st_mode & 0o777 == 0o640
    assert (tracked.root / "run").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("seed", range(2))
def test_versions_back_and_forth(project: Project, seed: int) -> None:
    """Switch between Git revisions; every one has its own content; real DVC finds all clean."""
    rnd = random.Random(seed)
    versions: dict[str, dict[str, bytes]] = {}
    random_tree(project.root / "data", rnd, 30)
    for number in range(3):
        project.write("single", rnd.randbytes(50))
        project.add("data", "single")
        project.commit(f"v{number}")
        project.git("tag", f"v{number}")
        versions[f"v{number}"] = contents(project.root / "data") | {"": (project.root / "single").read_bytes()}
        for path in sorted((project.root / "data").rglob("*")):
            if path.is_file() and rnd.random() < 0.4:
                path.unlink() if rnd.random() < 0.5 else path.write_bytes(rnd.randbytes(20))
        random_tree(project.root / "data" / f"new{number}", rnd, 8)
    project.add("data")  # saved, so that it may go
    project.git("checkout", "-q", ".")
    for tag in ("v1", "v0", "v2", "v0"):
        project.git("checkout", "-q", tag)
        project.checkout()
        assert contents(project.root / "data") | {"": (project.root / "single").read_bytes()} == versions[tag]
        assert project.status() == {}
        project.export()
        assert project.dvc("status", "--json").strip() == "{}"


def test_parts_of_a_folder(tracked: Project) -> None:
    shutil.rmtree(tracked.root / "d")
    assert lists(tracked.checkout("d/s")) == {"added": ["d/"]}
    assert sorted(contents(tracked.root / "d")) == ["s/b", "s/c"]
    assert lists(tracked.checkout("d/a")) == {"modified": ["d/"]}
    assert tracked.status() == {}
    tracked.write("d/new", "stays, being outside of the part")
    (tracked.root / "d" / "s" / "b").unlink()
    assert lists(tracked.checkout("b", cwd=tracked.root / "d" / "s")) == {"modified": ["../"]}
    assert (tracked.root / "d" / "new").exists()
    with pytest.raises(TargetError, match="'d/nope' is not in 'd'"):
        tracked.checkout("d/nope")


def test_part_that_is_right_says_nothing_of_the_rest(tracked: Project) -> None:
    tracked.write("d/s/b", "edited")
    tracked.settle()
    assert lists(tracked.checkout("d/a")) == {}
    assert tracked.status() == {"d.dvc": [{"changed outs": {"d": "modified"}}]}
    (tracked.root / "d" / "a").unlink()
    tracked.checkout("d/a")
    assert tracked.status() == {"d.dvc": [{"changed outs": {"d": "modified"}}]}


def test_targets(tracked: Project) -> None:
    shutil.rmtree(tracked.root / "d")
    (tracked.root / "f").unlink()
    assert lists(tracked.checkout("f.dvc")) == {"added": ["f"]}
    assert lists(tracked.checkout(".", recursive=True)) == {"added": ["d/"]}
    with pytest.raises(TargetError, match="does not exist as an output or a stage name"):
        tracked.checkout("nothing")
    with pytest.raises(TargetError, match="'no.dvc' does not exist"):
        tracked.checkout("no.dvc")
    with pytest.raises(UsageError):
        tracked.checkout(mount=True)


def test_unsaved_changes_are_kept_without_force(tracked: Project) -> None:
    tracked.write("d/a", "edited")
    tracked.write("d/new", "new")
    tracked.write("f", "edited")
    before = tracked.snapshot()
    for targets in ([], ["d"], ["d/a"], ["f.dvc"]):
        with pytest.raises(ConflictError):
            tracked.checkout(*targets)
        assert tracked.snapshot() == before
    result = tracked.checkout(force=True)
    assert lists(result) == {"modified": ["d/", "f"]}
    assert not (tracked.root / "d" / "new").exists()
    assert tracked.read("f") == "one" and tracked.status() == {}


def test_saved_changes_may_go(tracked: Project) -> None:
    tracked.write("f", "two")
    tracked.write("d/new", "new")
    tracked.add("f", "d")
    tracked.git("checkout", "-q", ".")
    result = tracked.checkout()
    assert lists(result) == {"modified": ["d/", "f"]}
    assert result["files"] == {"added": 0, "modified": 1, "deleted": 1}
    assert tracked.read("f") == "one" and not (tracked.root / "d" / "new").exists()


def test_ignored_files_stay(tracked: Project) -> None:
    tracked.write(".dvcignore", "*.tmp\n")
    tracked.write("d/s/x.tmp", "mine")
    tracked.write("d/a", "edited")
    tracked.checkout(force=True)
    assert tracked.read("d/s/x.tmp") == "mine" and tracked.read("d/a") == "content of a"


def test_data_of_another_branch_goes_when_it_is_safe(tracked: Project) -> None:
    tracked.git("checkout", "-q", "-b", "other")
    tracked.write("only/x", "x")
    tracked.write("alone", "y")
    tracked.write("kept", "z")
    tracked.write("taken/t", "t")
    tracked.add("only", "alone", "kept", "taken")
    tracked.commit("other")
    tracked.settle()
    tracked.checkout()
    tracked.git("checkout", "-q", "-")
    tracked.write("kept", "edited since: it is nowhere else")
    tracked.write("only/.gitkeep", "")
    (tracked.root / "only" / ".gitkeep").unlink()
    result = tracked.checkout()
    assert lists(result) == {"deleted": ["alone", "only/", "taken/"]}
    assert not (tracked.root / "only").exists() and not (tracked.root / "alone").exists()
    assert tracked.read("kept").startswith("edited")
    assert tracked.read("f") == "one"
    assert lists(tracked.checkout()) == {}


def test_data_that_git_has_now_is_not_removed(tracked: Project) -> None:
    (tracked.root / "f.dvc").unlink()
    (tracked.root / ".gitignore").write_text("/d\n/run\n")
    tracked.git("add", "f")
    assert lists(tracked.checkout()) == {}
    assert tracked.read("f") == "one"


def test_missing_data_fails_but_the_rest_is_done(tracked: Project) -> None:
    tracked.write("z.dvc", "outs:\n- md5: 00000000000000000000000000000abc.dir\n  hash: md5\n  path: z\n")
    tracked.write("y.dvc", "outs:\n- md5: 0000000000000000000000000000abcd\n  hash: md5\n  path: y\n")
    (tracked.root / "f").unlink()
    result = tracked.checkout()
    assert lists(result) == {"added": ["f"], "failed": ["y", "z"]}
    assert not (tracked.root / "z").exists()
    result = tracked.checkout(allow_missing=True)
    assert lists(result) == {}


def test_kinds_that_changed(tracked: Project) -> None:
    """A file where the pointer has a folder, the reverse, and both inside a folder."""
    v1 = tracked.snapshot()
    shutil.rmtree(tracked.root / "d" / "s")
    tracked.write("d/s", "now a file")
    (tracked.root / "d" / "a").unlink()
    tracked.write("d/a/x/y", "now a folder")
    (tracked.root / "f").unlink()
    tracked.write("f/1", "folder")
    tracked.add("d", "f")
    tracked.commit("v2")
    v2 = tracked.snapshot()
    for tag, wanted in (("HEAD~1", v1), ("master", v2), ("HEAD~1", v1)):
        tracked.git("checkout", "-q", tag if tag != "master" else "-")
        tracked.checkout()
        assert tracked.snapshot() == wanted
        assert tracked.status() == {}


def test_folder_in_the_way_with_something_ignored_in_it(tracked: Project) -> None:
    tracked.write(".dvcignore", "*.tmp\n")
    (tracked.root / "f").unlink()
    tracked.write("f/precious.tmp", "ignored, so saved nowhere")
    before = tracked.snapshot()
    with pytest.raises(ConflictError, match=r"'f/precious.tmp'"):
        tracked.checkout()
    assert tracked.snapshot() == before
    tracked.checkout(force=True)
    assert tracked.read("f") == "one"


def test_links_in_the_way_are_never_followed(tracked: Project) -> None:
    outside = tracked.base / "outside"
    outside.mkdir()
    (outside / "b").write_text("not ours")
    shutil.rmtree(tracked.root / "d" / "s")
    (tracked.root / "d" / "s").symlink_to(outside)
    before = tracked.snapshot()
    with pytest.raises(ConflictError, match="'d/s'"):
        tracked.checkout()
    assert tracked.snapshot() == before
    tracked.checkout(force=True)
    assert (outside / "b").read_text() == "not ours" and sorted(os.listdir(outside)) == ["b"]
    assert tracked.read("d/s/b") == "content of s/b"


def test_links_out_of_the_project_are_never_written_through(tracked: Project) -> None:
    """What a hostile repository could hold: a link that Git checked out, and pointers behind it."""
    outside = tracked.base / "outside"
    outside.mkdir()
    (tracked.root / "evil").symlink_to(outside)
    name = tracked.read("f.dvc").split("md5: ")[1].split("\n")[0]
    for text in (
        f"outs:\n- md5: {name}\n  hash: md5\n  path: evil/x\n",
        f"wdir: evil\nouts:\n- md5: {name}\n  hash: md5\n  path: x\n",
    ):
        tracked.write("trap.dvc", text)
        with pytest.raises(TargetError, match="leads out of the project"):
            tracked.checkout(force=True)
    (tracked.root / "trap.dvc").unlink()
    shutil.rmtree(tracked.root / "d")
    (tracked.root / "d").symlink_to(outside)
    with pytest.raises(ConflictError, match="'d'"):
        tracked.checkout()
    assert list(outside.iterdir()) == []
    tracked.checkout(force=True)
    assert list(outside.iterdir()) == [] and tracked.read("d/a") == "content of a"


@pytest.mark.parametrize("path", [".git/hooks/pre-commit", "s/.git/config", ".dvc/config.local", "hooks/pre-commit"])
def test_nothing_is_written_where_git_would_run_it(tracked: Project, path: str) -> None:
    (tracked.root / "hooks").symlink_to(".git/hooks")
    name = tracked.read("f.dvc").split("md5: ")[1].split("\n")[0]
    tracked.write("trap.dvc", f"outs:\n- md5: {name}\n  hash: md5\n  isexec: true\n  path: {path}\n")
    with contextlib.suppress(TargetError):
        tracked.checkout(force=True)
    with pytest.raises(TargetError):
        tracked.checkout("trap.dvc", force=True)
    assert not (tracked.root / path).exists()


def test_no_folder_is_written_through_a_link_into_git(tracked: Project) -> None:
    shutil.rmtree(tracked.root / "d")
    (tracked.root / "d").symlink_to(".git/hooks")
    with pytest.raises(TargetError, match="Git's or DVC's own"):
        tracked.checkout(force=True)
    assert not (tracked.root / ".git/hooks/a").exists()


def test_link_in_a_files_place(tracked: Project) -> None:
    (tracked.base / "target").write_text("another's")
    (tracked.root / "f").unlink()
    (tracked.root / "f").symlink_to(tracked.base / "target")
    with pytest.raises(ConflictError):
        tracked.checkout()
    tracked.checkout(force=True)
    assert (tracked.base / "target").read_text() == "another's"
    assert tracked.read("f") == "one" and not (tracked.root / "f").is_symlink()
    (tracked.root / "f").unlink()
    (tracked.root / "f").symlink_to("nothing")
    tracked.checkout(force=True)
    assert tracked.read("f") == "one"


def test_odd_files_inside(tracked: Project) -> None:
    os.mkfifo(tracked.root / "d" / "pipe")
    with pytest.raises(ConflictError, match="'d/pipe'"):
        tracked.checkout("d")
    tracked.checkout("d", force=True)
    assert not os.path.lexists(tracked.root / "d" / "pipe") and tracked.status() == {}


def test_executable_bit(tracked: Project) -> None:
    (tracked.root / "run").chmod(0o640)
    assert lists(tracked.checkout()) == {"modified": ["run"]}
    assert (tracked.root / "run").stat().st_mode & 0o777 == 0o750
    assert tracked.status() == {}


def test_emptied_folders_go(tracked: Project) -> None:
    shutil.rmtree(tracked.root / "d" / "s")
    tracked.add("d")
    tracked.write("d/s/b", "content of s/b")
    tracked.write("d/s/deep/x", "content of a")
    tracked.checkout()
    assert not (tracked.root / "d" / "s").exists()


def test_from_dvcs_cache_in_place(project: Project) -> None:
    """A repository made by DVC, nothing in our store."""
    for name in ("d/a", "d/s/b", "f"):
        project.write(name, name)
    project.dvc("add", "d", "f")
    project.commit()
    assert project.status() == {}
    shutil.rmtree(project.root / "d")
    (project.root / "f").unlink()
    assert lists(project.checkout()) == {"added": ["d/", "f"]}
    assert project.read("d/s/b") == "d/s/b"
    assert project.dvc("status", "--json").strip() == "{}"
    assert os.access(project.root / "f", os.W_OK)
    project.write("f", "changed")
    project.add("f")
    assert project.status() == {}


def test_damaged_dvc_cache_is_noticed(project: Project) -> None:
    project.write("f", "content")
    project.dvc("add", "f")
    (project.root / "f").unlink()
    (cached,) = (path for path in (project.root / ".dvc/cache/files/md5").rglob("*") if path.is_file())
    cached.chmod(0o644)
    cached.write_text("c0ntent")
    with pytest.raises(StoreDamagedError):
        project.checkout()
    assert not (project.root / "f").exists()


def legacy_repo(project: Project) -> dict[str, bytes]:
    """Pointers and cache as DVC 2 left them: names by md5-dos2unix, no `hash:`."""
    import hashlib
    import json

    files = {"unix.txt": b"a\nb\n", "dos.txt": b"a\r\nc\r\n", "sub/bin": bytes(range(256))}
    rows = []
    for path, data in sorted(files.items()):
        text = data.replace(b"\r\n", b"\n") if path.endswith(".txt") else data
        value = hashlib.md5(text).hexdigest()
        rows.append({"md5": value, "relpath": path})
        project.write(f"old/{path}", data)
        project.write(f".dvc/cache/{value[:2]}/{value[2:]}", data)
    raw = json.dumps(rows, sort_keys=True).encode()
    value = hashlib.md5(raw).hexdigest() + ".dir"
    project.write(f".dvc/cache/{value[:2]}/{value[2:]}", raw)
    project.write("old.dvc", f"# made long ago\nouts:\n- md5: {value}\n  size: 266\n  nfiles: 3\n  path: old\n")
    one = hashlib.md5(b"x\ny\n").hexdigest()
    project.write("single", b"x\r\ny\r\n")
    project.write(f".dvc/cache/{one[:2]}/{one[2:]}", b"x\r\ny\r\n")
    project.write("single.dvc", f"outs:\n- md5: {one}\n  size: 6\n  path: single\n")
    project.write(".gitignore", "/old\n/single\n")
    return files


def test_legacy_names(project: Project) -> None:
    files = legacy_repo(project)
    assert project.status() == {}
    assert project.dvc("status", "--json").strip() == "{}", "the repository of this test is a right one"
    texts = project.read("old.dvc"), project.read("single.dvc")
    assert not any(added["changed"] for added in project.add("old", "single")["added"])
    assert (project.read("old.dvc"), project.read("single.dvc")) == texts
    shutil.rmtree(project.root / "old")
    (project.root / "single").unlink()
    assert lists(project.checkout()) == {"added": ["old/", "single"]}
    assert contents(project.root / "old") == files
    assert project.status() == {}


def test_changed_legacy_out_gets_its_new_form(project: Project) -> None:
    legacy_repo(project)
    project.write("old/new", "n")
    project.write("single", "changed\r\n")
    other = project.base / "twin"
    shutil.copytree(project.root, other)
    real_dvc().ok("add", "old", "single", cwd=other)
    project.add("old", "single")
    for pointer in ("old.dvc", "single.dvc"):
        assert project.read(pointer) == (other / pointer).read_text()
        assert "hash: md5" in project.read(pointer)
    assert project.status() == {}


def test_unchanged_legacy_out_whose_old_cache_is_gone_is_renamed(project: Project) -> None:
    """The text stays only as long as its names lead to the data."""
    legacy_repo(project)
    shutil.rmtree(project.root / ".dvc" / "cache")
    project.add("old", "single")
    assert "hash: md5" in project.read("old.dvc") and "hash: md5" in project.read("single.dvc")
    shutil.rmtree(project.root / "old")
    project.checkout()
    assert project.read("old/unix.txt") == "a\nb\n" and project.status() == {}


def test_object_that_vanishes_meanwhile(tracked: Project) -> None:
    """Planned, then gone: a clear error, and the file that was there is still there or complete."""
    (tracked.root / "f").unlink()
    inner = tracked.store

    class Forgetful:
        def fetch(self, names: object) -> object:
            raise ObjectMissingError("object md5:x is not in the store")

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    tracked.context.store = Forgetful()  # type: ignore[assignment]
    with pytest.raises(ObjectMissingError):
        tracked.checkout()
    assert not (tracked.root / "f").exists()
    assert not list(tracked.root.rglob(".millpond-*"))


def test_stat_cache_after_checkout_is_believed_and_right(tracked: Project) -> None:
    shutil.rmtree(tracked.root / "d")
    tracked.checkout()
    tracked.settle()
    tracked.status()
    tracked.steps.clear()
    assert tracked.status() == {}
    assert [step for step in tracked.steps if step[0] == "hashing" and step[1] != (0, 0)] == []
    tracked.write("d/a", "content of A")
    assert tracked.status() == {"d.dvc": [{"changed outs": {"d": "modified"}}]}
