"""`cache import`, `cache verify`, `cache migrate`: beside caches that real DVC made, and ones that are damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.project.verbhelp import Project

from millpond.daemon.errors import ObjectMissingError
from millpond.daemon.project.manifest import manifest_name, serialise


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def by_dvc(project: Project) -> None:
    """Two commits of tracked data, made by DVC."""
    for name in ("d/a", "d/sub/b", "d/sub/same", "f"):
        project.write(name, f"first {name}\n")
    project.dvc("add", "-q", "d", "f")
    project.commit("first")
    project.write("d/a", "second\n")
    project.dvc("add", "-q", "d")
    project.commit("second")


def cached(project: Project, data: bytes) -> Path:
    return project.root / ".dvc/cache/files/md5" / md5(data)[:2] / md5(data)[2:]


def test_what_pointers_name_is_brought_in_and_a_second_time_nothing_is_read(project: Project) -> None:
    by_dvc(project)
    found = project.run("cache.import")
    assert (found["objects"], found["there"], found["missing"], found["damaged"]) == (5, 0, [], [])
    again = project.run("cache.import")
    assert (again["objects"], again["bytes"], again["there"]) == (0, 0, 5)
    more = project.run("cache.import", all_commits=True)
    assert (more["objects"], more["there"]) == (2, 5), "the first d/a and the first manifest"
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / "d")
    project.git("checkout", "-q", "HEAD~1")
    project.checkout()
    assert project.read("d/a") == "first d/a\n" and project.status() == {}


def test_all_of_a_cache_is_brought_in_whatever_names_it(project: Project) -> None:
    by_dvc(project)
    for pointer in ("d.dvc", "f.dvc"):
        (project.root / pointer).unlink()
    assert project.run("cache.import")["objects"] == 0
    assert project.run("cache.import", everything=True)["objects"] == 7


def test_a_target_and_a_revision_alone(project: Project) -> None:
    by_dvc(project)
    assert project.run("cache.import", "f")["objects"] == 1
    assert project.run("cache.import", "d", revs=["HEAD~1"])["objects"] == 4


def test_what_is_damaged_or_gone_is_named_and_never_stored_as_what_it_is_not(project: Project) -> None:
    by_dvc(project)
    bad = cached(project, b"first f\n")
    bad.chmod(0o644)
    bad.write_bytes(b"first g\n")
    cached(project, b"first d/sub/b\n").unlink()
    found = project.run("cache.import")
    assert found["damaged"] == [[f"md5:{md5(b'first f' + bytes([10]))}", "f"]]
    assert [path for _, path in found["missing"]] == ["d/sub/b"]
    assert found["objects"] == 3
    (project.root / "f").unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    project.checkout("f.dvc")
    assert not (project.root / "f").exists()


def test_a_damaged_manifest_does_not_stop_the_rest(project: Project) -> None:
    by_dvc(project)
    name = project.read("d.dvc").split("md5: ")[1].split()[0]
    bad = project.root / ".dvc/cache/files/md5" / name[:2] / name[2:]
    bad.chmod(0o644)
    bad.write_bytes(b"[]")
    found = project.run("cache.import")
    assert [path for _, path in found["damaged"]] == ["d"] and found["objects"] == 1
    assert [path for _, path in project.run("cache.verify")["damaged"]] == ["d"]


def test_verify_reads_the_store_and_the_cache(project: Project) -> None:
    by_dvc(project)
    project.run("cache.import", "d")
    found = project.run("cache.verify")
    assert (found["objects"], found["damaged"], found["missing"]) == (5, [], [])
    assert found["bytes"] == sum(
        len(data) for data in (b"second\n", b"first d/sub/b\n", b"first d/sub/same\n", b"first f\n")
    ) + len(project.store.read(next(out.name for out in project.open().outputs() if out.path == "d" and out.name)))
    bad = cached(project, b"first f\n")
    bad.chmod(0o644)
    bad.write_bytes(b"first g\n")
    assert project.run("cache.verify")["damaged"] == [[f"md5:{md5(b'first f' + bytes([10]))}", "f"]]
    assert project.run("cache.verify", "d")["damaged"] == []
    bad.unlink()
    assert [path for _, path in project.run("cache.verify")["missing"]] == ["f"]


def test_a_damaged_chunk_is_named_by_all_files_that_it_hurts(project: Project) -> None:
    data = os.urandom(5000)
    for name in ("d/one", "d/two", "alone"):
        project.write(name, data)
    project.write("d/sound", "sound")
    project.add("d", "alone")
    for segment in (project.base / "store/segments").glob("*.seg"):
        raw = bytearray(segment.read_bytes())
        at = raw.find(data[:64])
        if at >= 0:
            raw[at] ^= 1
            segment.write_bytes(raw)
    found = project.run("cache.verify")
    assert sorted(path for _, path in found["damaged"]) == ["alone", "d/one", "d/two"]
    assert found["objects"] == 4 - 1 and found["missing"] == []


def legacy(project: Project, crlf: bytes = b"one\r\ntwo\r\n") -> dict[str, Any]:
    """A project as DVC 2 left it: a folder and a file, one with CRLF."""
    unix = crlf.replace(b"\r\n", b"\n")
    contents = {"d/a": crlf, "d/b": b"plain\n", "f": b"binary\0\r\n"}
    names = {"d/a": md5(unix), "d/b": md5(b"plain\n"), "f": md5(b"binary\0\r\n")}
    text = serialise([("a", names["d/a"]), ("b", names["d/b"])])
    names["d"], contents["d"] = manifest_name(text).value, text
    for path, name in names.items():
        place = project.write(f".dvc/cache/{name[:2]}/{name[2:]}", contents[path])
        place.chmod(0o444)
        if path != "d":
            project.write(path, contents[path])
    project.write("d.dvc", f"# kept\nouts:\n- md5: {names['d']}\n  size: {len(crlf) + 6}\n  nfiles: 2\n  path: d\n")
    project.write("f.dvc", f"outs:\n- md5: {names['f']}\n  size: 9\n  path: f\n")
    return names


def test_what_only_dvc_2_can_name_stays_with_its_cache(project: Project) -> None:
    legacy(project)
    found = project.run("cache.import")
    assert [path for _, path in found["kept"]] == ["d/a"]
    assert found["damaged"] == found["missing"] == []
    assert project.run("cache.verify")["damaged"] == []


def test_migrating_gives_the_names_that_dvc_gives(project: Project) -> None:
    legacy(project)
    theirs = project.base / "theirs"
    shutil.copytree(project.root, theirs, symlinks=True)
    assert project.run("cache.migrate", dry=True)["objects"] == 4
    assert not (project.root / ".dvc/cache/files").exists()
    assert project.run("cache.migrate")["migrated"] == 4
    project.dvc("cache", "migrate", cwd=theirs)

    def objects(root: Path) -> dict[str, bytes]:
        top = root / ".dvc/cache/files/md5"
        return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}

    assert objects(project.root) == objects(theirs)
    assert project.run("cache.migrate")["migrated"] == 0
    found = project.run("cache.migrate", dvc_files=True)
    project.dvc("cache", "migrate", "--dvc-files", cwd=theirs)
    assert found["pointers"] == ["d.dvc", "f.dvc"]
    for pointer in found["pointers"]:
        assert project.read(pointer) == (theirs / pointer).read_text()
    assert project.run("cache.migrate", dvc_files=True)["pointers"] == []
    assert project.status() == {} and "up to date" in project.dvc("status")
    assert project.run("cache.import")["kept"] == []


def test_a_pointer_whose_object_is_nowhere_stops_the_rewriting_of_all(project: Project) -> None:
    names = legacy(project)
    (project.root / ".dvc/cache" / names["f"][:2] / names["f"][2:]).unlink()
    before = {pointer: project.read(pointer) for pointer in ("d.dvc", "f.dvc")}
    with pytest.raises(ObjectMissingError, match="'f.dvc' cannot be migrated"):
        project.run("cache.migrate", dvc_files=True)
    assert {pointer: project.read(pointer) for pointer in before} == before
