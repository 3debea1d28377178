"""Verbs that need the daemon, in a repository without commits, a shallow clone and a bare one.

See project/test_situations.py for the others."""

from __future__ import annotations

import pytest
from tests.cli.helpers import Home

VERBS = (["pin", "f"], ["purge", "-y", "-f", "f"], ["gc", "-w", "-f"], ["destroy", "-f"], ["mount", "d", "MOUNTPOINT"])


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: str(verb[0]))
def test_in_a_repository_that_is_not_ordinary(home: Home, verb: list[str]) -> None:
    words = [word.replace("MOUNTPOINT", str(home.path / "m")) for word in verb]
    (home.path / "m").mkdir()
    home.git("init", "-q")
    home.run("init", "-q")
    (home.repo / "d").mkdir()
    (home.repo / "d/a").write_text("2")
    (home.repo / "f").write_text("1")
    home.run("add", "-q", "f", "d")
    if verb[0] in ("pin", "mount"):
        said = home.run(verb[0], f"{verb[1]}@HEAD", *words[2:], code=255).stderr
        assert said.count("\n") == 1 and "no commits yet" in said
    home.git("add", "-A")
    home.git("commit", "-qm", "c")
    home.git("commit", "-q", "--allow-empty", "-m", "c2")
    bare, shallow = home.path / "bare.git", home.path / "shallow"
    home.git("clone", "-q", "--bare", str(home.repo), str(bare))
    home.git("clone", "-q", "--depth=1", home.repo.as_uri(), str(shallow))
    if verb[0] in ("pin", "mount"):
        said = home.run(verb[0], f"{verb[1]}@HEAD~1", *words[2:], code=255, cwd=shallow).stderr
        assert said.count("\n") == 1 and "git fetch --unshallow" in said
    before = sorted(bare.rglob("*"))
    said = home.run(*words, code=253, cwd=bare).stderr
    assert said.count("\n") == 1 and "repository" in said
    assert sorted(bare.rglob("*")) == before
    home.run("checkout", "-q", cwd=shallow)
    home.run(*words, cwd=shallow)
    assert (home.repo / "f").read_text() == "1"
