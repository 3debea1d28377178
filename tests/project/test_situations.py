"""Every verb in a repository that is not an ordinary one: it works, or says in one line why not, and leaves all as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.project.verbhelp import Project

from millpond.daemon.errors import InvalidFileError, MillpondError, NotARepoError, RevisionError
from millpond.daemon.project.verbs import VERBS

# What each verb is run with, in an order in which all of them can be run in one project. Left out: those that need a daemon
# (see cli/test_situations.py), and those that see no repository or the whole store; `merge-driver` has its own module.
PARAMS: dict[str, dict[str, Any]] = {
    "checkout": {},
    "status": {},
    "root": {},
    "diff": {},
    "data.status": {},
    "commit": {},
    "add": {"targets": ["f"]},
    "export": {},
    "push": {"remote": "r"},
    "fetch": {"remote": "r"},
    "pull": {"remote": "r"},
    "status.cloud": {"remote": "r"},
    "warm": {"remote": "r"},
    "remote.check": {"name": "r"},
    "cache.import": {},
    "cache.verify": {},
    "cache.migrate": {},
    "list": {},
    "du": {},
    "check-ignore": {"targets": ["f"]},
    "stage.list": {"all": True, "fail": True},
    "dag": {},
    "repro": {"all_pipelines": True},
    "why": {"targets": ["f.dvc"]},
    "lineage": {"target": "f"},
    "runs": {},
    "update": {"targets": ["."], "recursive": True},
    "import": {"url": ".", "source": "f", "out": "i", "no_exec": True},
    "import-url": {"url": "f", "out": "u", "no_exec": True},
    "freeze": {"targets": ["f.dvc"], "frozen": True},
    "install": {},
    "unprotect": {"targets": ["f"]},
    "move": {"source": "d", "target": "g"},
    "remove": {"targets": ["f.dvc"]},
}
LEFT_OUT = (
    {
        "stage.add",
        "init",
        "config",
        "remote",
        "remote.login",
        "cache.dir",
        "cache.evict",
        "cache.make-room",
        "cache.info",
        "doctor",
        "fsck",
        "gc",
        "unpin",
        "forget-project",
        "get",
        "get-url",
        "list-url",
    }
    | {*("merge-driver", "destroy", "mount", "umount", "remount", "tree", "look", "url", "pin", "purge")}
    | {
        *("job.run", "job.cancel", "job.remove", "job.settle"),
        *("metrics.show", "metrics.diff", "params.diff", "plots", "plots.templates", "plots.modify"),
    }
)


def test_the_table_is_of_all_verbs() -> None:
    assert set(VERBS) == set(PARAMS) | LEFT_OUT


def run(project: Project, verb: str, cwd: Path | None = None, **more: Any) -> dict[str, Any]:
    params = PARAMS[verb] | more
    targets = params.pop("targets", [])
    return project.run(verb, *targets, cwd=cwd, **params)


def with_data(project: Project) -> None:
    with_remote(project)
    project.write("f", "1")
    project.write("d/a", "2")
    project.add("f", "d")


def git_in(folder: Path, *argv: str) -> None:
    """Git in a folder other than the project's."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *argv], cwd=folder, check=True, capture_output=True)


def refused(project: Project, verb: str, errors: tuple[type[MillpondError], ...], cwd: Path, **more: Any) -> str:
    """The verb's one line; nothing in the project was changed."""
    before = project.snapshot()
    with pytest.raises(errors) as caught:
        run(project, verb, cwd, **more)
    said = str(caught.value)
    assert type(caught.value) in errors and "\n" not in said
    assert project.snapshot() == before
    return said


def with_remote(project: Project, cwd: Path | None = None) -> None:
    config = (cwd or project.root) / ".dvc/config"
    config.write_text(f"['remote \"r\"']\n    url = {project.base / 'remote'}\n")


def run_all(project: Project, cwd: Path | None = None) -> None:
    with_remote(project, cwd)
    for verb in PARAMS:
        run(project, verb, cwd)


def test_before_the_first_commit(project: Project) -> None:
    with_data(project)
    for verb in ("list", "du"):
        assert "no commits yet" in refused(project, verb, (RevisionError,), project.root, rev="HEAD")
    assert run(project, "diff") == {"diff": {}}
    run_all(project)


def test_at_a_detached_head_and_in_a_work_tree(project: Project) -> None:
    with_data(project)
    project.commit()
    project.git("checkout", "-q", "--detach")
    project.git("worktree", "add", "-q", "--detach", "../tree")
    tree = project.base / "tree"
    before = project.snapshot()
    run_all(project, tree)
    assert (tree / "g/a").read_text() == "2" and (tree / "f").exists()
    assert project.snapshot() == before, "the other work tree is another project"
    run_all(project)


def test_in_a_shallow_clone(project: Project) -> None:
    with_data(project)
    project.commit()
    project.git("commit", "-q", "--allow-empty", "-m", "second")
    clone = project.base / "shallow"
    git_in(project.base, "clone", "-q", "--depth=1", project.root.as_uri(), str(clone))
    gone: dict[str, dict[str, Any]] = {"diff": {"a_rev": "HEAD~1"}, "list": {"rev": "HEAD~1"}, "du": {"rev": "HEAD~1"}}
    for verb, params in (gone | {"export": {"revs": ["HEAD~1"]}}).items():
        assert "git fetch --unshallow" in refused(project, verb, (RevisionError,), clone, **params)
    run_all(project, clone)


def test_in_a_submodule_and_around_it(project: Project) -> None:
    with_data(project)
    project.commit()
    outer = project.base / "outer"
    outer.mkdir()
    git_in(outer, "init", "-q")
    project.run("init", cwd=outer)
    git_in(outer, "submodule", "add", "-q", str(project.root), "sub")
    git_in(outer, "commit", "-qm", "c")
    (outer / "f").write_text("3")
    (outer / "d").mkdir()
    (outer / "d/a").write_text("4")
    project.run("add", "f", "d", cwd=outer)
    # The repository inside is another one's.
    assert project.run("status", cwd=outer)["status"] == {}
    run_all(project, outer)
    assert not (outer / "sub/f").exists()
    run_all(project, outer / "sub")
    assert (outer / "sub/g/a").read_text() == "2" and (outer / "g/a").read_text() == "4"


def test_in_a_bare_repository(project: Project) -> None:
    with_data(project)
    project.commit()
    bare = project.base / "bare.git"
    git_in(project.base, "clone", "-q", "--bare", str(project.root), str(bare))
    before = sorted(bare.rglob("*"))
    for verb in PARAMS:
        said = refused(project, verb, (NotARepoError,), bare)
        assert "repository" in said
    assert sorted(bare.rglob("*")) == before


def test_an_object_of_dvc_s_cache_is_not_what_its_name_says(project: Project) -> None:
    """The only copy of a file is damaged: what would use it says so, nothing takes it for data, nothing removes it."""
    with_data(project)
    project.write("h", "good")
    project.dvc("add", "-q", "h")
    project.commit()
    name = project.open().outputs()[-1].name
    assert name is not None
    found = Path(project.open().cache.path_of(name) or "")
    (project.root / "h").unlink()
    for text in ("evil", "good"):
        found.chmod(0o644)
        found.write_text(text)
        found.chmod(0o444)
        if text == "evil":
            refusals = {verb for verb in PARAMS if _fails(project, verb)}
            assert "checkout" in refusals and not refusals & {"status", "diff", "list", "data.status", "add", "remove"}
            assert not (project.root / "h").exists()
            assert found.read_text() == "evil", "it is for a person to look at"
    project.run("checkout")
    assert project.read("h") == "good"


def _fails(project: Project, verb: str) -> bool:
    try:
        found = run(project, verb)
    except MillpondError as error:
        assert "\n" not in str(error) and "h" in str(error)
        return True
    return bool(found.get("failed"))


# They look at no pointer, or do without it, so a broken one does not hold them up.
WITHOUT_POINTERS = {"root", "check-ignore", "install", "unprotect", "remote.check"}


@pytest.mark.parametrize(
    "broken", ["<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> theirs\n", "outs: [\n", "outs: 3\n", "\udcff"]
)
def test_a_pointer_that_cannot_be_read(project: Project, broken: str) -> None:
    with_data(project)
    project.commit()
    project.run("export")
    text = broken.replace("{0}", project.read("f.dvc")).encode("utf-8", "surrogateescape")
    project.write("f.dvc", text)
    for verb in PARAMS:
        if verb not in WITHOUT_POINTERS:
            said = refused(project, verb, (InvalidFileError,), project.root)
            assert "f.dvc' line " in said and ("conflict markers" in said or "<<<" not in broken), said
    for verb in WITHOUT_POINTERS:
        run(project, verb)
    assert (project.root / "f.dvc").read_bytes() == text
