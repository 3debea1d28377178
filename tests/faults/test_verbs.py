"""Whatever fails in a verb, and at whichever of its operations it is killed: nothing stored is lost, each file is the old or
the new one, an error leaves nothing half done, and the verb can be run again to its end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.faults.cases import CASES, REMOTE, Case, Tree, build, differs, is_one_of_two, left, opened, tree
from tests.faults.injection import KILL, CountedFiles, Injector, in_child
from tests.project.verbhelp import Project

from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.repo import Repo

LONG = os.environ.get("MILLPOND_TESTS") == "long"
# Operations of a verb that are tried in the quick run, for each kind of failure.
SAMPLE = 2
KINDS = {"killed": KILL, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the prepared projects lie, each made once."""
    folder = tmp_path_factory.mktemp("made")
    yield folder
    _prepared.cache_clear()


@cache
def _prepared(folder: Path, name: str) -> tuple[Path, Tree, Tree, int]:
    """A case's project; its tree before and after the verb; how many operations that takes."""
    base = folder / name.replace(" ", "-")
    build(base, CASES[name])
    before = tree(base / "repo")
    place = _copy(base, folder / "whole")
    told = _tried(place, CASES[name])
    assert told["error"] is None, told
    after = _as_before(tree(place / "repo"), place, base)
    shutil.rmtree(place)
    return base, before, after, told["count"]


def _copy(base: Path, place: Path) -> Path:
    shutil.copytree(base, place, symlinks=True)
    for path in (place / "repo").rglob("*"):
        if path.is_symlink() and os.readlink(path).startswith(f"{base}/"):
            target = os.readlink(path).replace(str(base), str(place), 1)
            path.unlink()
            path.symlink_to(target)
    return place


def _run(base: Path, case: Case, injector: Injector) -> None:
    """The verb, with the injector counting from when the store is open until it is closed again."""
    with opened(base, CountedFiles(injector)) as project:
        injector.install()
        project.run(case.verb, **left(case, base / "repo"))


def _tried(base: Path, case: Case, number: int = 0, kind: int = KILL) -> dict[str, Any]:
    return in_child(lambda injector: _run(base, case, injector), number, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_nth_operation(made: Path, tmp_path: Path, name: str, kind: str) -> None:
    base, before, after, count = _prepared(made, name)
    assert before != after or name == "cache import"
    numbers = list(range(1, count + 1))
    if not LONG:
        numbers = sorted(random.Random(f"{name} {kind}").sample(numbers, min(SAMPLE, count)))
    for number in numbers:
        place = _copy(base, tmp_path / str(number))
        told = _tried(place, CASES[name], number, KINDS[kind])
        what = f"{name}: operation {number} of {count}, {told['failed']}: {told['error']}"
        now = tree(place / "repo")
        is_one_of_two(_as_before(now, place, base), before, after, what)
        assert not told["odd"], f"{what}: no sentence"
        if told["error"] is not None and not CASES[name].pieces:
            half = [differs(_as_before(now, place, base), each) for each in (before, after)]
            assert any(all(path.startswith(".dvc/cache/") for path in paths) for paths in half), f"{what}: {half}"
        assert told["error"] is not None or told["killed"] or _as_before(now, place, base) == after, what
        _nothing_is_lost(place, what)
        _finishes(place, base, CASES[name], after, what)
        shutil.rmtree(place)


def _as_before(now: Tree, place: Path, base: Path) -> Tree:
    """Links as they would be in the original."""
    old, new = os.fsencode(place), os.fsencode(base)
    return {
        path: (mode, data.replace(old, new) if data.startswith(old) else data) for path, (mode, data) in now.items()
    }


def _nothing_is_lost(place: Path, what: str) -> None:
    """The store is whole and DVC's cache too; what pointers of the workspace and of HEAD name is at hand in one of them, on the
    remote, or in the workspace."""
    with opened(place) as project:
        store = project.store._store
        assert store.fsck(deep=True).damaged == [], what
        if not (place / "repo/.dvc").exists():
            return
        repo = project.open()
        lying = {hashlib.md5(data).hexdigest() for _, data in tree(place / "repo").values()}
        for path in (place / "repo/.dvc/cache/files/md5").glob("??/*"):
            name = (path.parent.name + path.name).removesuffix(".dir")
            if not path.name.endswith(".tmp"):
                assert hashlib.md5(path.read_bytes()).hexdigest() == name, f"{what}: {path}"
        for output in repo.outputs():
            assert output.name is not None
            names = [output.name]
            if output.name.is_dir:
                raw = _content(project, repo, output.name)
                assert raw is not None, f"{what}: manifest of {output.path} is lost"
                names = [entry.name for entry in manifest.parse(raw, source=output.path)]
            for each in names:
                assert each.value in lying or _content(project, repo, each) is not None, (
                    f"{what}: {output.path}: {each}"
                )


def _content(project: Project, repo: Repo, name: ObjectName) -> bytes | None:
    if project.store.sizes([name])[0] is not None:
        return project.store.read(name)
    if (there := project.root / REMOTE / "files/md5" / name.value[:2] / name.value[2:]).exists():
        return there.read_bytes()
    return repo.cache.read(name) if repo.cache.size(name) is not None else None


def _finishes(place: Path, base: Path, case: Case, after: Tree, what: str) -> None:
    """The verb is run again and comes to its end; nothing temporary is left then."""
    if _as_before(tree(place / "repo"), place, base) != after or case.again:
        told = _tried(place, case)
        assert told["error"] is None, f"{what}, then: {told['error']}"
    now = _as_before(tree(place / "repo"), place, base)
    assert now == after, f"{what}: left {differs(now, after)}"
