"""`config` and `cache dir` beside real DVC: the same files, byte for byte, the same answers, the same refusals."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from tests.project.realdvc import Ran, real_dvc
from tests.project.verbhelp import Project

from millpond.daemon import wirepath
from millpond.daemon.errors import InvalidFileError, MillpondError, NotARepoError, TargetError, UsageError
from millpond.daemon.project import config

OLD = """# ours
[core]   # main
    remote = Store
    autostage = true
[plots]
['remote "Store"']
    url = ../../far
    jobs = 4
[cache]
    type = reflink, copy
    dir = ./x/../../elsewhere
"""
CHANGES = [
    ("core.remote", "Other"),
    ("core.autostage", "false"),
    ("CORE.Check_Update", "True"),
    ("core.autostage", "maybe"),
    ("core.checksum_jobs", "0"),
    ("core.colour", "red"),
    ("colours.a", "b"),
    ("cache.dir", "sub/cache"),
    ("cache.dir", "/abs/cache"),
    ("cache.dir", "~/cache"),
    ("cache.type", "hardlink,symlink"),
    ("cache.type", "softlink"),
    ("remote.Store.url", "s3://bucket/a b"),
    ("remote.store.url", "../here"),
    ("remote.new.jobs", "2"),
    ("remote.new.url", "https://host/#x"),
    ("remote.new.password", "it's"),
    ("remote.new.user", 'q"t, x'),
    ("remote.new.user", "a'b\"c"),
    ("db.pg.url", "postgresql://u@h/d"),
    ("plots.html_template", " edge "),
    ("exp.code", "x # no comment"),
    ("parsing.bool", ""),
    ("feature.any", "thing"),
    ("studio.url", "a=b"),
]


class Twins:
    """Our project and a copy of it for DVC; every step is done in both and compared."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.other = project.base / "dvc" / "repo"
        for sub in ("", "deep"):
            (project.root / sub).mkdir(exist_ok=True)
        shutil.copytree(project.root, self.other)

    def write(self, text: str, name: str = "config") -> None:
        for root in (self.project.root, self.other):
            (root / ".dvc" / name).write_text(text)

    def files(self, root: Path) -> list[bytes | None]:
        paths = [root / ".dvc" / name for name in ("config", "config.local")]
        return [path.read_bytes() if path.exists() else None for path in paths]

    def dvc(self, *argv: str, cwd: str) -> Ran:
        return real_dvc().run(*argv, cwd=self.other / cwd)

    def change(self, name: str, value: str | None, *, level: str | None = None, cwd: str = ".") -> bool:
        """Set or unset in both; whether it was taken."""
        before = self.files(self.project.root)
        words = ["--unset", name] if value is None else [name, value]
        theirs = self.dvc("config", *([f"--{level}"] if level else []), *words, cwd=cwd)
        wire = None if value is None else wirepath.encode(value)
        try:
            self.project.run(
                "config", cwd=self.project.root / cwd, name=name, value=wire, unset=value is None, level=level
            )
        except MillpondError as error:
            assert theirs.code != 0, f"DVC takes {words}, we say {error}"
            assert self.files(self.project.root) == before
            return False
        assert theirs.code == 0, f"we take {words}, DVC says {theirs.err}"
        assert self.files(self.project.root) == self.files(self.other), words
        return True

    def same_answers(self) -> None:
        for level in (None, "project", "local"):
            flag = [f"--{level}"] if level else []
            rows = self.project.run("config", level=level)["rows"]
            ours = [f"{row['file']}\t{row['name']}={row['value']}" for row in rows]
            theirs = self.dvc("config", *flag, "--list", "--show-origin", cwd=".")
            if theirs.code:  # without a level's name DVC looks for a file of the level "repo"
                theirs = self.dvc("config", *flag, "--list", cwd=".")
                ours = [line.partition("\t")[2] for line in ours]
            ours = [wirepath.decode(line).replace(str(self.project.base), "BASE") for line in ours]
            assert ours == theirs.out.replace(str(self.project.base / "dvc"), "BASE").splitlines()


@pytest.fixture
def twins(project: Project) -> Twins:
    return Twins(project)


@pytest.mark.long
def test_each_change_as_dvc(twins: Twins) -> None:
    taken = 0
    for name, value in CHANGES:
        twins.write(OLD)
        taken += twins.change(name, value)
    assert taken == 15


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_random_changes_as_dvc(twins: Twins, seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(12):
        name, value = rnd.choice(CHANGES)
        level = rnd.choice([None, "project", "local"])
        twins.change(name, rnd.choice([value, value, None]), level=level, cwd=rnd.choice([".", "deep"]))
        if rnd.random() < 0.2:
            twins.same_answers()
    twins.same_answers()
    config.load(str(twins.project.root / ".dvc"), twins.project.environ)


def test_one_option_shown_as_dvc(twins: Twins) -> None:
    twins.write(OLD)
    twins.write("[core]\n    remote = mine\n", "config.local")
    for name in ("core.remote", "cache.type", "cache.dir", "remote.Store.url", "remote.store.jobs", "core.analytics"):
        for level in (None, "project", "local"):
            theirs = twins.dvc("config", *([f"--{level}"] if level else []), name, cwd=".")
            try:
                rows = twins.project.run("config", name=name, level=level)["rows"]
            except TargetError:
                assert theirs.code != 0
                continue
            ours = "".join(wirepath.decode(row["value"]) + "\n" for row in rows)
            if theirs.code:  # DVC stumbles over a remote's name that another level lacks
                continue
            wanted = theirs.out.replace(str(twins.other), str(twins.project.root))
            wanted = wanted.replace(str(twins.project.base / "dvc"), str(twins.project.base))
            assert ours == wanted, (name, level)


def test_cache_dir_as_dvc(twins: Twins) -> None:
    def shown() -> str:
        ours = wirepath.decode(twins.project.run("cache.dir")["path"])
        theirs = real_dvc().ok("cache", "dir", cwd=twins.other).strip()
        assert theirs.replace(str(twins.other), str(twins.project.root)) == ours
        return ours

    assert shown() == str(twins.project.root / ".dvc/cache")
    for level, value in [(None, "store"), ("local", "../deep"), ("local", "/abs")]:
        flag = [f"--{level}"] if level else []
        real_dvc().ok("cache", "dir", *flag, value, cwd=twins.other / "deep")
        twins.project.run("cache.dir", cwd=twins.project.root / "deep", value=wirepath.encode(value), level=level)
        assert twins.files(twins.project.root) == twins.files(twins.other)
        shown()
        assert twins.project.open().config.cache_dir(str(twins.project.root / ".dvc")) == shown()
    twins.project.run("cache.dir", unset=True, level="local")
    real_dvc().ok("cache", "dir", "--local", "-u", cwd=twins.other)
    assert twins.files(twins.project.root) == twins.files(twins.other)
    assert shown() == str(twins.project.root / "deep/store")
    with pytest.raises(TargetError, match="option 'dir' doesn't exist in section 'cache'"):
        twins.project.run("cache.dir", unset=True, level="local")


def test_levels_of_user_and_machine_outside_of_a_repository(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for level in ("system", "global"):
        project.run("config", cwd=outside, name="core.analytics", value="false", level=level)
        assert (tmp_path / level / "config").read_text() == "[core]\n    analytics = false\n"
    rows = project.run("config", cwd=outside)["rows"]
    assert [row["file"] for row in rows] == [str(tmp_path / level / "config") for level in ("system", "global")]
    for inside in (None, "local", "project"):
        with pytest.raises(NotARepoError):
            project.run("config", cwd=outside, name="core.analytics", value="true", level=inside)
    with pytest.raises(NotARepoError):
        project.run("cache.dir", cwd=outside)


def test_what_is_wrong_can_be_unset(twins: Twins) -> None:
    twins.write("[core]\n    colour = red\n    remote = s\n['remote \"s\"']\n    url = /s\n")
    with pytest.raises(InvalidFileError):
        twins.project.open()
    assert not twins.change("core.remote", "t")
    assert twins.change("core.colour", None)
    twins.project.open()


def test_refusals_change_nothing(project: Project) -> None:
    file = project.write(".dvc/config", "[feature]\n    [[inner]]\n        a = b\n")
    for name, value, error in [
        ("nodot", "x", UsageError),
        ("a.b.c", "x", UsageError),
        ("core.remote", "x", InvalidFileError),
    ]:
        with pytest.raises(error):
            project.run("config", name=name, value=value)
    assert file.read_text() == "[feature]\n    [[inner]]\n        a = b\n"


def test_a_linked_file_stays_a_link(project: Project) -> None:
    real = project.base / "shared.config"
    real.write_text("")
    (project.root / ".dvc/config").unlink()
    (project.root / ".dvc/config").symlink_to(real)
    project.run("config", name="core.autostage", value="true")
    assert (project.root / ".dvc/config").is_symlink() and "autostage = true" in real.read_text()


def test_a_write_that_fails_leaves_the_old_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project.write(".dvc/config", "[core]\n    autostage = true\n")
    for name in ("fsync", "rename"):
        with monkeypatch.context() as patch:

            def fail(*args: object) -> None:
                raise OSError(28, "No space left on device", str(file))

            patch.setattr(os, name, fail)
            with pytest.raises(MillpondError, match="no room left"):
                project.run("config", name="core.remote", value="s")
        assert file.read_text() == "[core]\n    autostage = true\n"
        assert not list(file.parent.glob(".millpond-*"))


def test_text_beyond_ascii_is_written_where_dvc_cannot(project: Project) -> None:
    assert "codec can't encode" in real_dvc().run("config", "exp.code", "ünï", cwd=project.root).err
    project.run("config", name="exp.code", value=wirepath.encode("ünï"))
    assert project.dvc("config", "exp.code").strip() == "ünï"
