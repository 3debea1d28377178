"""Exit codes: DVC's where it has the verb, one rule for ours."""

from __future__ import annotations

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence


@pytest.mark.parametrize("words", [("-n", "a", "true"), ("-n", "b@d", "true"), ("-n", "c")])
def test_stages_that_cannot_be_added(home: Home, words: tuple[str, ...]) -> None:
    home.run("init", "-q", "--no-scm")
    home.run("stage", "add", "-q", "-n", "a", "true")
    before = (home.repo / "dvc.yaml").read_bytes()
    ours, theirs = home.run("stage", "add", *words, code=None), home.dvc("stage", "add", *words, code=None)
    sentence(ours)
    assert ours.returncode == theirs.returncode == 255
    assert (home.repo / "dvc.yaml").read_bytes() == before


def test_what_nobody_agreed_to(home: Home) -> None:
    home.run("init", "-q", "--no-scm")
    (home.repo / "d").write_text("d")
    home.run("add", "-q", "d")
    (home.repo / "d.dvc").unlink()
    for words in (("gc", "-w", "--grace", "0"), ("purge",), ("destroy",)):
        done = home.run(*words, code=1)
        assert done.stderr.splitlines()[-1].startswith("ERROR: ")
    assert (home.repo / "d").exists() and (home.repo / ".dvc").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MILLPOND_RATE", "abc", ("push",)),
        ("MILLPOND_EXPORT", "perhaps", ("add", "d")),
        ("MILLPOND_IDLE_EXIT", "x", ("status",)),
        ("MILLPOND_JOBS", "many", ("status",)),
    ],
)
def test_variables_that_mean_nothing(home: Home, name: str, value: str, words: tuple[str, ...]) -> None:
    home.run("init", "-q", "--no-scm")
    home.run("remote", "add", "-q", "-d", "r", str(home.path / "remote"))
    (home.repo / "d").write_text("d")
    if words == ("push",):
        home.run("add", "-q", "d")
    done = home.run(*words, code=254, env={name: value})
    sentence(done)
    assert name in done.stderr and value in done.stderr


def test_settings_that_are_nearly_known(home: Home) -> None:
    home.run("init", "-q", "--no-scm")
    home.run("remote", "add", "-q", "r", "s3://bucket/x")
    said = home.run("remote", "modify", "r", "access_key", "1", code=None)
    assert said.returncode == 255 and "did you mean 'access_key_id'?" in said.stderr


def test_imports_say_whose_log_and_which_place(home: Home) -> None:
    other = home.path / "other"
    home.git("init", "-q", "-b", "main", str(other), cwd=home.path)
    (other / "d").write_text("d")
    home.git("add", "-A", cwd=other)
    home.git("commit", "-qm", "d", cwd=other)
    home.run("init", "-q", "--no-scm")
    home.run("remote", "add", "-q", "-d", "team", str(home.path / "remote"))
    for words, told in (
        (("import", "../other", "d", "--rev", "nope"), "in '../other'; see `git -C "),
        (("import", "../other", "d", "-o", "../x"), "name a place in the project"),
        (("import-url", "remote://team/../raw"), "leads out of its remote by '..'"),
    ):
        done = home.run(*words, code=None)
        sentence(done)
        assert done.returncode in (254, 255) and told in done.stderr, done.stderr
    assert not (home.path / "x").exists()
    assert home.run("purge", "--dry-run", code=0).stdout.endswith("From the store: nothing; it has none of it.\n")
