"""`add` against real DVC: pointers, manifests and `.gitignore` byte for byte; then what only we promise."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.project.realdvc import real_dvc
from tests.project.verbhelp import Project, random_tree

from millpond.daemon.errors import UsageError
from millpond.daemon.names import ObjectName


def twin(project: Project) -> Path:
    """A copy of the project for real DVC, its store of objects being DVC's."""
    other = project.base / "twin"
    shutil.copytree(project.root, other, symlinks=True)
    return other


def small_files(root: Path) -> dict[str, str]:
    """Pointers and `.gitignore`s of a repository, lines sorted where DVC's order is that of a set."""
    found = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if inside.parts[0] in (".git", ".dvc") or not path.is_file():
            continue
        if path.suffix == ".dvc":
            found[str(inside)] = path.read_text()
        elif path.name == ".gitignore":
            found[str(inside)] = "".join(sorted(path.read_text().splitlines(keepends=True)))
    return found


def same_as_dvc(project: Project, *targets: str, **params: Any) -> dict[str, Any]:
    """Run our add, and DVC's in a copy; everything small must be equal, and DVC content with our result."""
    other = twin(project)
    options = [f"--{name.replace('_', '-')}" for name, value in params.items() if value is True]
    options += [word for name, value in params.items() if isinstance(value, str) for word in (f"--{name}", value)]
    real_dvc().ok("add", *options, *targets, cwd=other)
    result = project.add(*targets, **params)
    assert small_files(project.root) == small_files(other)
    for added in result["added"]:
        if added["md5"].endswith(".dir") and not params.get("no_commit"):
            value = added["md5"]
            cached = other / ".dvc" / "cache" / "files" / "md5" / value[:2] / value[2:]
            assert project.store.read(ObjectName("md5", value)) == cached.read_bytes()
    shutil.rmtree(other)
    return result


def clean_for_dvc(project: Project) -> None:
    project.export()
    assert project.dvc("status", "--json").strip() == "{}"
    found = json.loads(project.dvc("data", "status", "--json"))
    assert not {"uncommitted", "not_in_cache"} & found.keys(), found


def test_file_executable_and_folder(project: Project) -> None:
    project.write("f.bin", b"\0" * 100)
    project.write("run.sh", "#!/bin/sh\n").chmod(0o755)
    project.write("data/a.txt", "a")
    project.write("data/sub/b.txt", "bb")
    project.write("data/empty")
    (project.root / "data" / "void").mkdir()
    result = same_as_dvc(project, "data", "f.bin", "run.sh")
    assert [added["path"] for added in result["added"]] == ["data", "f.bin", "run.sh"]
    assert [added["nfiles"] for added in result["added"]] == [3, None, None]
    assert [added["size"] for added in result["added"]] == [3, 100, 10]
    assert result["totals"]["files"] == 5 and result["totals"]["bytes"] == 113
    assert set(result["git_add"]) == {"data.dvc", "f.bin.dvc", "run.sh.dvc", ".gitignore"}
    assert project.status() == {}
    clean_for_dvc(project)


@pytest.mark.parametrize("seed", range(1))
def test_random_trees(project: Project, seed: int) -> None:
    rnd = random.Random(seed)
    random_tree(project.root / "data", rnd, 40)
    random_tree(project.root / "deep" / "er", rnd, 10)
    same_as_dvc(project, "data", "deep/er")
    clean_for_dvc(project)
    for path in sorted((project.root / "data").rglob("*")):
        if path.is_file() and rnd.random() < 0.3:
            path.unlink() if rnd.random() < 0.5 else path.write_bytes(rnd.randbytes(30))
    same_as_dvc(project, "data", "deep/er")
    clean_for_dvc(project)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_random_trees_long(project: Project, seed: int) -> None:
    random_tree(project.root / "data", random.Random(seed), 150)
    same_as_dvc(project, "data")
    clean_for_dvc(project)


def test_names_that_git_patterns_would_misread(project: Project) -> None:
    names = ["a b", "#h", "!bang", "st*r", "q?", "br[a]", "back\\s", "ünï", "c:d", "x!y#z", "-dash", "{b}"]
    for name in names:
        project.write(f"w/{name}", name)
    same_as_dvc(project, *[f"w/{name}" for name in names])
    assert not [
        line
        for line in project.git("status", "--short", "-uall", "w").splitlines()
        if not line.endswith((".dvc", '.dvc"', ".gitignore"))
    ]


def test_name_with_a_space_at_its_end_is_ignored(project: Project) -> None:
    project.write("trail ", "x")
    project.add("trail ")
    assert project.read(".gitignore") == "/trail\\ \n"
    assert "trail " not in [line[3:].strip('"') for line in project.git("status", "--short", "-uall").splitlines()]


def test_gitignore_is_kept_and_not_repeated(project: Project) -> None:
    project.write(".gitignore", "*.bin\n/old")
    project.write("x.bin", "1")
    project.write("new", "2")
    same_as_dvc(project, "x.bin", "new")
    assert project.read(".gitignore") == "*.bin\n/old\n/new\n"
    before = os.stat(project.root / ".gitignore").st_mtime_ns
    assert project.add("x.bin", "new")["git_add"] == ["x.bin.dvc", "new.dvc"]
    assert os.stat(project.root / ".gitignore").st_mtime_ns == before


def test_again_unchanged_touches_nothing(project: Project) -> None:
    project.write("data/a", "a")
    project.write("f", "f")
    project.add("data", "f")
    project.settle()
    before = {name: os.stat(project.root / name).st_mtime_ns for name in ("data.dvc", "f.dvc", ".gitignore")}
    result = project.add("data", "f")
    assert [added["changed"] for added in result["added"]] == [False, False]
    assert {name: os.stat(project.root / name).st_mtime_ns for name in before} == before


def test_comments_annotations_and_order_survive(project: Project) -> None:
    project.write("f", "1")
    project.add("f")
    text = project.read("f.dvc")
    decorated = (
        "# about f\n"
        + text.rstrip("\n")
        + "  # here\n  desc: what it is\n  labels:\n  - one\n  meta: {k: 1}\nmeta:\n  x: y\n"
    )
    decorated = decorated.replace("- md5:", "- path: f # first\n  md5:").replace("  path: f  # here\n", "")
    (project.root / "f.dvc").write_text(decorated)
    assert not project.add("f")["added"][0]["changed"]
    assert project.read("f.dvc") == decorated
    project.write("f", "22")
    result = same_as_dvc(project, "f")
    assert result["added"][0]["changed"]
    assert "# about f" in project.read("f.dvc") and "desc: what it is" in project.read("f.dvc")
    clean_for_dvc(project)


def test_becomes_executable(project: Project) -> None:
    project.write("f", "1")
    project.add("f")
    (project.root / "f").chmod(0o755)
    same_as_dvc(project, "f")
    assert "isexec: true" in project.read("f.dvc")
    (project.root / "f").chmod(0o644)
    same_as_dvc(project, "f")
    assert "isexec" not in project.read("f.dvc")


def test_folder_becomes_file_and_back(project: Project) -> None:
    project.write("d/a", "1")
    project.add("d")
    shutil.rmtree(project.root / "d")
    project.write("d", "now a file")
    same_as_dvc(project, "d")
    (project.root / "d").unlink()
    project.write("d/b", "2")
    same_as_dvc(project, "d")
    assert project.status() == {}


def test_empty_folder(project: Project) -> None:
    (project.root / "d" / "e").mkdir(parents=True)
    same_as_dvc(project, "d")
    assert project.status() == {}


def test_from_a_folder_below_and_by_absolute_path(project: Project) -> None:
    project.write("deep/y", "1")
    project.write("up", "2")
    project.write("there", "3")
    below = project.root / "deep"
    result = project.add("y", "../up", str(project.root / "there"), cwd=below)
    assert [added["path"] for added in result["added"]] == ["y", "../up", "../there"]
    assert set(result["git_add"]) == {"y.dvc", "../up.dvc", "../there.dvc", ".gitignore", "../.gitignore"}
    assert project.read("deep/.gitignore") == "/y\n"
    clean_for_dvc(project)


def test_repository_behind_a_link(project: Project) -> None:
    (project.base / "alias").symlink_to("repo")
    project.write("f", "1")
    project.write("sub/g", "2")
    project.add(str(project.base / "alias" / "f"))
    project.add("g", cwd=project.base / "alias" / "sub")
    assert (project.root / "f.dvc").exists() and (project.root / "sub" / "g.dvc").exists()


def test_glob(project: Project) -> None:
    for name in ("m/1.csv", "m/2.csv", "m/x.txt", "m/deep/3.csv"):
        project.write(name, name)
    result = same_as_dvc(project, "m/*.csv", glob=True)
    assert [added["path"] for added in result["added"]] == ["m/1.csv", "m/2.csv"]
    result = project.add("m/**/*.csv", glob=True)
    assert [added["path"] for added in result["added"]] == ["m/1.csv", "m/2.csv", "m/deep/3.csv"]


def test_no_commit_stores_nothing(project: Project) -> None:
    project.write("n/1", "one")
    same_as_dvc(project, "n", no_commit=True)
    assert project.status() == {"n.dvc": [{"changed outs": {"n": "not in cache"}}]}
    project.add("n")
    assert project.status() == {}


def test_out_copies_into_the_project(project: Project) -> None:
    source = project.base / "elsewhere"
    source.mkdir()
    (source / "s").write_text("s")
    (source / "x").write_text("x")
    (source / "x").chmod(0o755)
    project.add(str(source), out="from")
    assert sorted(path.name for path in (project.root / "from").iterdir()) == ["s", "x"]
    (project.root / "into").mkdir()
    project.add(str(source / "s"), out="into")
    project.add(str(source / "x"), out="y")
    assert project.read("into/s") == "s" and os.access(project.root / "y", os.X_OK)
    assert project.status() == {}
    clean_for_dvc(project)


def test_out_over_what_is_there_needs_force(project: Project) -> None:
    project.write("a", "new")
    project.write("b", "old")
    same_as_dvc(project, "a", out="b", force=True)
    assert project.read("b") == "new"
    assert project.status() == {}


def test_options_that_do_not_fit(project: Project) -> None:
    for params in ({"out": "x"}, {"out": "x", "glob": True}):
        with pytest.raises(UsageError):
            project.add("a", "b", **params)
    with pytest.raises(UsageError):
        project.run("add")


def test_links_as_dvc(project: Project) -> None:
    project.write("real", "content")
    (project.root / "real").chmod(0o640)
    (project.root / "link").symlink_to("real")
    project.write("d/a", "a")
    project.write("ext/b", "b")
    (project.root / "d" / "lb").symlink_to("../ext/b")
    (project.root / "d" / "ldir").symlink_to("../ext")
    result = same_as_dvc(project, "link", "d")
    assert result["warnings"] == ["'d/ldir' is a link to a folder and was left out"]
    for path in ("link", "d/lb"):
        assert not (project.root / path).is_symlink(), "DVC puts the content in a link's place"
    assert (project.root / "d" / "ldir").is_symlink()
    assert project.read("link") == "content" and project.read("real") == "content"
    assert (project.root / "link").stat().st_mode & 0o777 == 0o640
    project.settle()
    assert project.status() == {}
    clean_for_dvc(project)


def test_links_stay_without_relink(project: Project) -> None:
    project.write("real", "content")
    (project.root / "link").symlink_to("real")
    project.add("link", no_relink=True)
    assert (project.root / "link").is_symlink()
    assert project.status() == {}


def test_names_that_yaml_would_misread(project: Project) -> None:
    names = ["1", "01", "1e5", "0x1f", "0o17", "1_000", "1.5", "2020-01-01", "12:30", "null", "true", "No", "~", ".inf"]
    names += [
        "y",
        "1.txt",
        "007.csv",
        "-",
        "a: b",
        "a #b",
        "[x]",
        "{x}",
        "@x",
        "`x",
        "%x",
        "*x",
        "&x",
        "!x",
        "|",
        ">",
        "?",
    ]
    names += ["'", '"', "a'b", "x,y", "=", "<<", "1e5.x", "123e456", "0xyz", "2024-01-01T10"]
    for name in names:
        project.write(f"w/{name}", name)
    same_as_dvc(project, *[f"w/{name}" for name in names])
    assert project.status() == {}
    for name in names:
        project.write(f"w/{name}", f"{name} changed")
    same_as_dvc(project, *[f"w/{name}" for name in names])
    assert project.status() == {}


def test_several_outs_of_one_pointer(project: Project) -> None:
    project.write("w1", "foo\n")
    project.write("w2", "bar\n")
    project.write(
        "two.dvc",
        "outs:\n- md5: d3b07384d113edec49eaa6238ad5ff00\n  size: 4\n  hash: md5\n  path: w1\n"
        "- md5: d3b07384d113edec49eaa6238ad5ff00\n  size: 4\n  hash: md5\n  path: w2\n",
    )
    same_as_dvc(project, "w1", "w2")
    assert project.read("two.dvc").count("md5: ") == 2
    assert project.status() == {}


def test_import_keeps_its_source(project: Project) -> None:
    (project.base / "src").write_text("s")
    project.dvc("import-url", str(project.base / "src"), "imp")
    project.write("imp", "changed by hand")
    before = project.read("imp.dvc")
    other = twin(project)
    # DVC's add leaves the pointer's own MD5 as it was, which its status then complains of; its commit does not.
    real_dvc().ok("add", "imp", cwd=other)
    real_dvc().ok("commit", "-f", "imp.dvc", cwd=other)
    project.add("imp")
    after = project.read("imp.dvc")
    assert after == (other / "imp.dvc").read_text()
    assert "deps:" in after and "frozen: true" in after and after != before
    assert project.status() == {}


def test_part_of_a_tracked_folder(project: Project) -> None:
    for name in ("a", "s/b", "s/c", "t/d"):
        project.write(f"d/{name}", name)
    project.add("d")
    project.write("d/s/b", "changed")
    project.write("d/s/new", "n")
    project.write("d/a", "changed too, but not added")
    project.add("d/s")
    rows = project.store.read(ObjectName("md5", project.read("d.dvc").split("md5: ")[1].split("\n")[0])).decode()
    assert '"relpath": "s/new"' in rows and rows.count("relpath") == 5
    assert project.status() == {"d.dvc": [{"changed outs": {"d": "modified"}}]}
    project.write("d/a", "a")
    assert project.status() == {}
    shutil.rmtree(project.root / "d" / "t")
    project.add("d/t")
    assert project.status() == {}
    (project.root / "d" / "s" / "c").unlink()
    project.add("d/s/c")
    assert project.status() == {}
    other = twin(project)
    real_dvc().ok("add", "d", cwd=other)
    assert (other / "d.dvc").read_text() == project.read("d.dvc"), "size and nfiles are those of the whole"


def test_autostage(project: Project) -> None:
    project.dvc("config", "core.autostage", "true")
    project.write("sub/f", "1")
    assert project.add("f", cwd=project.root / "sub")["autostaged"]
    staged = project.git("diff", "--cached", "--name-only").split()
    assert set(staged) >= {"sub/f.dvc", "sub/.gitignore"}


def test_without_git(tmp_path: Path) -> None:
    from tests.project.verbhelp import opened

    with opened(tmp_path, git=False) as project:
        project.write("f", "1")
        result = project.add("f")
        assert result["git_add"] == [] and not (project.root / ".gitignore").exists()
        assert (project.root / "f.dvc").exists()
        assert project.status() == {}


def test_bytes_that_are_no_text_in_names(project: Project) -> None:
    name = os.path.join(os.fsencode(project.root), b"d", b"\xff\xfe")
    os.mkdir(os.path.dirname(name))
    with open(name, "wb") as file:
        file.write(b"x")
    project.add("d")
    assert project.status() == {}
    os.unlink(name)
    assert project.checkout()["modified"] == ["d/"]
    assert os.path.exists(name)


def test_same_content_is_stored_once(project: Project) -> None:
    data = random.Random(1).randbytes(200_000)
    for number in range(5):
        project.write(f"d/{number}", data)
    result = project.add("d")
    assert result["totals"]["bytes"] == 1_000_000
    assert result["totals"]["new_bytes"] < 300_000


def test_progress_is_told(project: Project) -> None:
    for number in range(20):
        project.write(f"d/{number}", str(number))
    project.add("d")
    phases = [phase for phase, _, _ in project.steps]
    assert "adding" in phases and "committing" in phases
    assert project.steps[phases.index("committing") - 1][1] == (20, 20)


def test_the_next_manifest_of_a_large_folder_takes_little_room(project: Project) -> None:
    for number in range(1000):
        project.write(f"data/sub/{number:04}.txt", f"{number}")
    project.add("data")
    before = project.store.new_bytes
    segments = project.base / "store" / "segments"
    size = sum(path.stat().st_size for path in segments.iterdir())
    project.write("data/sub/0500.txt", "changed")
    (added,) = project.add("data")["added"]
    assert project.store.new_bytes > before
    assert sum(path.stat().st_size for path in segments.iterdir()) - size < 2000
    assert len(project.store.read(ObjectName("md5", added["md5"]))) > 64 << 10
