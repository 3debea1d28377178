"""Objects brought into DVC's cache: real DVC finds them, never sees a part of one, and whatever fails can be repeated."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.project.verbhelp import Project

from millpond.daemon.errors import MillpondError, UsageError
from millpond.daemon.project import export as module


def filled(project: Project) -> None:
    for name in ("d/a", "d/sub/b", "d/empty", "f"):
        project.write(name, "" if name.endswith("empty") else f"first {name}" * 5000)
    project.add("d", "f")
    project.commit()


def cached(project: Project) -> dict[str, bytes]:
    """DVC's cache: content by digest; every file must be what its name says."""
    found = {}
    for path in (project.root / ".dvc/cache/files/md5").glob("??/*"):
        data, name = path.read_bytes(), path.parent.name + path.name
        assert hashlib.md5(data).hexdigest() == name.removesuffix(".dir"), "a part of an object under its name"
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        found[name] = data
    return found


def wipe(project: Project) -> None:
    shutil.rmtree(project.root / ".dvc/cache", ignore_errors=True)


def test_real_dvc_finds_what_was_exported(project: Project) -> None:
    filled(project)
    assert cached(project) == {}
    result = project.run("export")
    assert (result["objects"], result["missing"]) == (5, [])
    assert len(cached(project)) == 5
    assert "up to date" in project.dvc("status")
    shutil.rmtree(project.root / "d")
    (project.root / "f").unlink()
    project.dvc("checkout")
    assert project.read("d/a") == "first d/a" * 5000
    assert project.run("export")["objects"] == 0, "nothing is done twice"


def test_targets_and_revisions_say_what(project: Project) -> None:
    filled(project)
    project.write("f", "second f")
    project.add("f")
    project.commit("second")
    assert project.run("export", "f.dvc")["objects"] == 1
    assert set(cached(project)) == {hashlib.md5(b"second f").hexdigest()}
    assert project.run("export", "f", revs=["HEAD~1"])["objects"] == 1
    assert project.run("export", all_commits=True)["objects"] == 4
    wipe(project)
    project.git("checkout", "-q", "-b", "old", "HEAD~1")
    assert project.run("export", all_branches=True)["objects"] == 6


def test_what_nobody_has_is_named(project: Project) -> None:
    filled(project)
    project.write("gone.dvc", f"outs:\n- md5: {'e' * 31}a\n  size: 1\n  hash: md5\n  path: gone\n")
    result = project.run("export")
    assert (result["objects"], result["missing"]) == (5, ["gone"])


def test_where_dvc_is_in_use_add_exports(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(project)
    project.write("by-dvc", "by dvc")
    project.dvc("add", "by-dvc")
    before = set(cached(project))
    project.write("d/new", "new")
    project.add("d")
    assert len(set(cached(project)) - before) == 5, "the manifest and all files of the folder"
    assert "up to date" in project.dvc("status", "d.dvc")
    for when, more in (("never", 0), ("always", 1)):
        project.environ["MILLPOND_EXPORT"] = when
        before = set(cached(project))
        project.write("other", when)
        warnings = project.add("other")["warnings"]
        assert len(set(cached(project)) - before) == more
        assert bool(more) is not any("cache%20export" in each or "cache export" in each for each in warnings)
    project.environ["MILLPOND_EXPORT"] = "perhaps"
    with pytest.raises(UsageError, match="MILLPOND_EXPORT=perhaps"):
        project.add("other")


def test_dvcs_hooks_alone_have_add_export(project: Project) -> None:
    project.write("f", "f")
    project.add("f")
    assert cached(project) == {}
    project.dvc("install")
    project.write("g", "g")
    assert project.add("g")["warnings"] == []
    assert len(cached(project)) == 1
    assert "up to date" in project.dvc("status", "g.dvc")


@pytest.mark.parametrize("name", ["write", "open", "link", "fchmod", "makedirs", "syncfs"])
def test_whatever_fails_leaves_whole_objects_and_can_be_repeated(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    filled(project)
    project.run("export")  # the store's reader keeps its segments open from here on
    target: Any = module if name == "syncfs" else os
    real = getattr(target, "sync_file_system" if name == "syncfs" else name)
    for nth in range(200):
        wipe(project)
        calls = 0

        def fails(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
            return real(*args, **kwargs)

        descriptors = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(target, "sync_file_system" if name == "syncfs" else name, fails)
            try:
                project.run("export")
            except (MillpondError, OSError):
                whole = cached(project)
                assert all(len(whole) >= 4 for each in whole if each.endswith(".dir")), "its files come first"
        assert len(os.listdir("/proc/self/fd")) == descriptors
        project.run("export")
        assert len(cached(project)) == 5
        assert not [path for path in Path(project.root / ".dvc/cache").rglob("*.tmp")]
        if calls <= nth:
            return
    raise AssertionError("it never ran to its end")
