"""`unprotect` and `destroy` on the command line: what is asked, what is said, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.cli.helpers import Home, Terminal


def test_destroy_asks_and_does_nothing_without_a_yes(home: Home, terminal: Callable[..., Terminal]) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    (home.repo / "f").write_text("x")
    home.run("add", "-q", "f", env={"MILLPOND_EXPORT": "always"})
    (home.repo / "g").write_text("y")
    home.dvc("add", "-q", "g")
    refused = home.run("destroy", code=1)
    assert "cannot destroy without a confirmation" in refused.stderr and "1 of these objects" in refused.stderr
    home.dvc("destroy", code=1)
    for answer, code in (("n", 1), ("y", 0)):
        program = terminal(home, "destroy")
        program.read_until("Are you sure you want to continue? [y/n]")
        assert "`.dvc` with its cache: 2 objects" in program.seen
        program.type(answer)
        assert program.finish() == code
        assert (home.repo / ".dvc").exists() == (code == 1)
    assert (home.repo / "f").read_text() == "x"
    assert home.run("root", code=253).stdout == ""


def test_a_mount_is_ended_first(home: Home) -> None:
    home.git("init", "-q")
    home.run("init", "-q")
    (home.repo / "d").mkdir()
    (home.repo / "d/f").write_text("x")
    home.run("add", "-q", "d")
    (home.path / "m").mkdir()
    home.run("mount", "d", str(home.path / "m"))
    refused = home.run("destroy", "-f", code=9)
    assert "umount" in refused.stderr and (home.repo / "d.dvc").exists()
    home.run("umount", "--all")
    found = json.loads(home.run("destroy", "-f", "--json").stdout)
    assert sorted(found["files"]) == [".dvcignore", "d.dvc"]


def test_unprotect_says_what_it_cannot(home: Home) -> None:
    home.run("init", "-q", "--no-scm")
    assert "'none': it does not exist" in home.run("unprotect", "none", code=255).stderr
    (home.repo / "f").write_text("x")
    (home.repo / "f").chmod(0o444)
    assert json.loads(home.run("unprotect", "f", "--json").stdout) == {"files": 1}
    assert home.run("unprotect", "f").stdout == ""


def stored(home: Home) -> int:
    """Objects in the store."""
    found: int = json.loads(home.run("cache", "info", "--json").stdout)["objects"]
    return found


def filled(home: Home) -> None:
    """Two versions of a folder that have a file in common, and a file of its own; `MILLPOND_EXPORT` is off."""
    home.extra["MILLPOND_EXPORT"] = "never"
    home.git("init", "-q", "-b", "main")
    home.run("init", "-q")
    (home.repo / "d").mkdir()
    (home.repo / "d/common").write_text("common")
    (home.repo / "d/a").write_text("first")
    (home.repo / "f").write_text("file")
    home.run("add", "-q", "d", "f")
    home.git("add", "-A")
    home.git("commit", "-qm", "first")
    (home.repo / "d/a").write_text("second")
    home.run("add", "-q", "d")
    home.git("commit", "-qam", "second")


def test_purge_takes_what_nothing_else_needs(home: Home) -> None:
    filled(home)
    assert stored(home) == 6  # two lists, common, first, second, file
    refused = home.run("purge", "d", "-y", code=1)
    assert "2 objects of 'd' would be lost" in refused.stderr and (home.repo / "d/a").exists()
    home.run("purge", "d/a", "-y", code=255)
    home.run("cache", "export", "d")
    dry = home.run("purge", "d", "--dry-run").stdout
    assert dry.startswith("From the workspace: 'd'\nFrom the store: 2 objects") and "DVC's cache has all" in dry
    assert "cannot purge without a confirmation" in home.run("purge", "d", code=1).stderr
    assert stored(home) == 6 and (home.repo / "d/a").exists()
    found = json.loads(home.run("purge", "d", "-y", "--json").stdout)
    assert found["removed"] == {"objects": 2, "bytes": found["removed"]["bytes"]} and found["lost"]["objects"] == 0
    assert not (home.repo / "d").exists() and stored(home) == 4
    assert home.dvc("status", "d").stdout == "d.dvc:\n\tchanged outs:\n\t\tdeleted:            d\n"
    home.run("checkout", "d")  # out of DVC's cache
    assert (home.repo / "d/a").read_text() == "second"
    home.git("checkout", "-q", "HEAD~1")
    home.run("checkout", "--force", "d")
    assert (home.repo / "d/a").read_text() == "first" and (home.repo / "d/common").read_text() == "common"
    home.run("fsck", "--deep")


def test_purge_refuses_a_bad_copy_and_a_change(home: Home) -> None:
    filled(home)
    (home.repo / "f").write_text("garbage, which is not what is purged")
    home.run("add", "-q", "f")
    (home.repo / "f").write_text("file")
    home.run("add", "-q", "f")
    home.run("cache", "export", "f")
    (copy,) = [path for path in (home.repo / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    copy.chmod(0o644)
    copy.write_text("bile")
    assert "1 object of 'f'" in home.run("purge", "f", "-y", code=1).stderr
    copy.write_text("file")
    (home.repo / "f").write_text("changed")
    assert "'f' would be lost" in home.run("purge", "f", "-y", code=1).stderr
    before = stored(home)
    found = json.loads(home.run("purge", "f", "-y", "-f", "--json").stdout)
    assert found["lost"]["objects"] == 0 and stored(home) == before - 1 and not (home.repo / "f").exists()


def test_purge_leaves_what_others_need(home: Home) -> None:
    filled(home)
    (home.repo / "same").write_text("file")
    home.run("add", "-q", "same")
    found = json.loads(home.run("purge", "f", "-y", "--json").stdout)
    assert found["removed"]["objects"] == found["lost"]["objects"] == 0 and not (home.repo / "f").exists()
    home.run("checkout", "f")
    home.run("pin", "d")
    assert "needed by others" in home.run("purge", "d", "--dry-run").stdout
    home.run("unpin", "d")
    other = home.path / "other"
    home.git("clone", "-q", str(home.repo), str(other))
    home.run("checkout", cwd=other)
    assert json.loads(home.run("purge", "-y", "--json").stdout)["removed"]["objects"] == 0
    home.run("checkout")
    home.run("forget-project", str(other))
    assert json.loads(home.run("purge", "-y", "-f", "--json").stdout)["lost"]["objects"] == 3
    assert home.run("checkout", code=8).stderr
