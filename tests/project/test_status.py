"""`status` against real DVC's JSON, in repositories of DVC's and of ours."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, opened, random_tree

from millpond.daemon.errors import NotMountedError, TargetError
from millpond.daemon.mounts.place import MARKER


def same_as_dvc(project: Project, *targets: str, cwd: Path | None = None) -> dict[str, Any]:
    wanted = json.loads(project.dvc("status", "--json", *targets, cwd=cwd))
    found = project.status(*targets, cwd=cwd)
    assert found == wanted
    return found


@pytest.fixture
def made_by_dvc(project: Project) -> Project:
    for name in ("d/a", "d/s/b", "e/x"):
        project.write(name, f"content of {name}")
    project.write("f", "one")
    project.write("sub/g", "g")
    project.dvc("add", "d", "e", "f", "sub/g")
    project.commit()
    return project


def test_clean(made_by_dvc: Project) -> None:
    assert same_as_dvc(made_by_dvc) == {}


def test_every_state(made_by_dvc: Project) -> None:
    made_by_dvc.write("d/new", "n")
    (made_by_dvc.root / "e" / "x").unlink()
    (made_by_dvc.root / "f").unlink()
    made_by_dvc.write("z/no-name.dvc", "outs:\n- path: there\n")
    made_by_dvc.write("z/there", "x")
    made_by_dvc.write("z/no-name2.dvc", "outs:\n- path: gone\n")
    made_by_dvc.write("z/lost.dvc", "outs:\n- md5: d3b07384d113edec49eaa6238ad5ff00\n  hash: md5\n  path: lost\n")
    made_by_dvc.write("z/two.dvc", "wdir: ../w\nouts:\n- path: one\n- path: two\n")
    found = same_as_dvc(made_by_dvc)
    assert found["d.dvc"] == [{"changed outs": {"d": "modified"}}]
    assert found["e.dvc"] == [{"changed outs": {"e": "modified"}}]
    assert found["f.dvc"] == [{"changed outs": {"f": "deleted"}}]
    assert found["z/lost.dvc"] == [{"changed outs": {"z/lost": "not in cache"}}]
    assert found["z/two.dvc"] == [{"changed outs": {"w/one": "deleted", "w/two": "deleted"}}]


def test_one_object_of_a_folder_is_not_in_cache(made_by_dvc: Project) -> None:
    cached = [path for path in (made_by_dvc.root / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    (gone,) = [path for path in cached if path.read_bytes() == b"content of d/s/b"]
    gone.unlink()
    assert same_as_dvc(made_by_dvc) == {"d.dvc": [{"changed outs": {"d": "not in cache"}}]}


def test_kinds_that_changed(made_by_dvc: Project) -> None:
    shutil.rmtree(made_by_dvc.root / "d")
    made_by_dvc.write("d", "file now")
    (made_by_dvc.root / "f").unlink()
    made_by_dvc.write("f/x", "folder now")
    same_as_dvc(made_by_dvc)


def test_targets_and_folders(made_by_dvc: Project) -> None:
    made_by_dvc.write("d/a", "edited")
    made_by_dvc.write("f", "edited")
    made_by_dvc.write("sub/g", "edited")
    below = made_by_dvc.root / "sub"
    for targets in ([], ["d.dvc"], ["d/s"], ["f", "d/a"]):
        assert same_as_dvc(made_by_dvc, *targets) != {}
    for targets in ([], ["g", "../d"]):
        assert same_as_dvc(made_by_dvc, *targets, cwd=below) != {}
    assert made_by_dvc.status("sub", recursive=True) == {"sub/g.dvc": [{"changed outs": {"sub/g": "modified"}}]}
    for target in ("nothing", "no.dvc", "../outside", "dvc.yaml"):
        with pytest.raises(TargetError):
            made_by_dvc.status(target)


def test_odd_file_in_tracked_folder(made_by_dvc: Project) -> None:
    (made_by_dvc.root / "d" / "dangling").symlink_to("nothing")
    os.mkfifo(made_by_dvc.root / "e" / "pipe")
    found = made_by_dvc.status()
    assert {pointer for pointer in found} == {"d.dvc", "e.dvc"}


def test_ignored_files_do_not_count(made_by_dvc: Project) -> None:
    made_by_dvc.write(".dvcignore", "*.tmp\n")
    made_by_dvc.write("d/x.tmp", "x")
    assert same_as_dvc(made_by_dvc) == {}
    made_by_dvc.write(".dvcignore", "a\n")
    assert same_as_dvc(made_by_dvc) != {}


def test_folders_that_are_ignored_or_closed_are_not_searched(made_by_dvc: Project) -> None:
    made_by_dvc.write(".dvcignore", "/skip\n")
    made_by_dvc.write("skip/bad.dvc", "outs: [\n")
    made_by_dvc.write("other/.dvc/config", "")
    made_by_dvc.write("other/bad.dvc", "outs: [\n")
    made_by_dvc.write("d/data.dvc", "no pointer, but data: [\n")
    found = same_as_dvc(made_by_dvc)
    assert set(found) == {"d.dvc"}


def test_pipeline_outputs(project: Project) -> None:
    project.write(
        "dvc.yaml",
        "stages:\n  make:\n    cmd: mkdir -p o && echo 1 > o/x && echo 3 > m.json && echo 2 > free\n"
        "    outs: [o, free: {cache: false}]\n    metrics: [m.json: {cache: false}]\n"
        "  many:\n    foreach: [a, b]\n    do:\n      cmd: echo ${item} > out.${item}\n"
        "      outs: ['out.${item}': {cache: false}]\n",
    )
    project.dvc("repro")
    assert same_as_dvc(project) == {}
    project.write("o/x", "edited")
    project.write("out.b", "edited")
    (project.root / "m.json").unlink()
    found = same_as_dvc(project)
    assert set(found) == {"make", "many@b"}
    assert project.status("make") == {"make": found["make"]}
    assert set(project.status("many")) == {"many@b"} and set(project.status("dvc.yaml:make")) == {"make"}
    project.write("sub/dvc.yaml", "stages:\n  s:\n    cmd: echo 1 > so\n    outs: [so]\n")
    project.dvc("repro", "sub/dvc.yaml")
    project.write("sub/so", "edited")
    assert "sub/dvc.yaml:s" in same_as_dvc(project)


@pytest.mark.parametrize("seed", range(2))
def test_random_edits(project: Project, seed: int) -> None:
    """Data that we added and DVC can see (exported); then edits; both must say the same."""
    rnd = random.Random(seed)
    for name in ("one", "two", "three"):
        random_tree(project.root / name, rnd, 12)
    for name in ("x", "y", "z"):
        project.write(name, rnd.randbytes(9))
    project.add("one", "two", "three", "x", "y", "z")
    project.export()
    assert same_as_dvc(project) == {}
    for _ in range(4):
        path = rnd.choice(sorted(path for path in project.root.rglob("*") if _is_data(project.root, path)))
        if path.is_dir():
            shutil.rmtree(path)
        elif rnd.random() < 0.5:
            path.unlink()
        else:
            path.write_bytes(rnd.choice([b"", path.read_bytes(), rnd.randbytes(path.stat().st_size)]))
        same_as_dvc(project)


def _is_data(root: Path, path: Path) -> bool:
    parts = path.relative_to(root).parts
    return parts[0] in ("one", "two", "three", "x", "y", "z")


def test_names_on_the_wire_are_encoded(project: Project) -> None:
    project.write("ünï %/d", "x")
    project.add("ünï %/d")
    (project.root / "ünï %" / "d").unlink()
    name = "%C3%BCn%C3%AF %25/d"
    assert project.status() == {f"{name}.dvc": [{"changed outs": {name: "deleted"}}]}
    assert project.status("ünï %/d") != {}


def test_place_of_a_mount_that_is_gone(made_by_dvc: Project) -> None:
    shutil.rmtree(made_by_dvc.root / "d")
    made_by_dvc.write(f"d/{MARKER}", "x")
    with pytest.raises(NotMountedError):
        made_by_dvc.status()
    with pytest.raises(NotMountedError):
        made_by_dvc.checkout(force=True)


def test_works_without_the_right_to_write(made_by_dvc: Project) -> None:
    """In somebody else's repository: nothing of it is written."""
    folder = made_by_dvc.root / ".dvc" / "tmp"
    shutil.rmtree(folder)
    before = made_by_dvc.snapshot()
    assert made_by_dvc.status() == {}
    assert made_by_dvc.snapshot() == before and not folder.exists()


def test_unchanged_files_are_not_read_again(project: Project) -> None:
    random_tree(project.root / "d", random.Random(1), 50)
    project.write("f", "f")
    project.add("d", "f")
    project.settle()
    project.status()
    project.steps.clear()
    for path in (project.root / "d").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    assert project.status() == {}
    assert any(step[1][1] > 0 for step in project.steps if step[1]), "a changed ctime must be looked into"
    project.settle()
    project.status()
    project.steps.clear()
    assert project.status() == {}
    assert not any(step[1][1] for step in project.steps if step[1])


def test_edit_right_after_add_is_seen(project: Project) -> None:
    """Within one tick of the clock, with the same size: racy, so it must be read."""
    for turn in range(20):
        project.write("f", f"{turn % 10}a")
        project.add("f")
        project.write("f", f"{turn % 10}b")
        assert project.status() == {"f.dvc": [{"changed outs": {"f": "modified"}}]}


@pytest.mark.long
def test_ten_thousand_unchanged_files_are_quick(tmp_path: Path) -> None:
    with opened(tmp_path) as project:
        for number in range(10_000):
            project.write(f"d/{number // 100:03}/{number:05}", str(number))
        project.add("d")
        project.settle()
        project.status()
        times = []
        for _ in range(5):
            begin = time.process_time()
            assert project.status() == {}
            times.append(time.process_time() - begin)
        assert min(times) < 0.12


def test_dvc_and_we_after_each_other(made_by_dvc: Project) -> None:
    made_by_dvc.write("f", "three")
    made_by_dvc.add("f")
    made_by_dvc.write("d/a", "two")
    made_by_dvc.dvc("add", "d")
    assert made_by_dvc.status() == {}
    theirs = json.loads(real_dvc().ok("status", "--json", cwd=made_by_dvc.root))
    assert theirs == {}, "DVC's cache is in use: what we store is brought there"
    made_by_dvc.environ["MILLPOND_EXPORT"] = "never"
    made_by_dvc.write("f", "four")
    made_by_dvc.add("f")
    theirs = json.loads(real_dvc().ok("status", "--json", cwd=made_by_dvc.root))
    assert theirs == {"f.dvc": [{"changed outs": {"f": "not in cache"}}]}, "DVC sees its own cache only"
