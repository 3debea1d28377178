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
