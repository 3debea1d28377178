"""Which engine serves a mount: as asked for, else the fastest that runs here; told, and kept when a mount is restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from tests.mounts.conftest import DvcRepo, contents
from tests.mounts.test_mounts import eventually, mounts

from millpond.daemon.errors import MountError
from millpond.daemon.mounts import engines, filling
from millpond.daemon.mounts.engines import DIRECT, EROFS, PYFUSE3
from millpond.daemon.mounts.kernel import why_no_image
from millpond.daemon.mounts.place import mount_table


class Uname(NamedTuple):
    """What os.uname gives, as far as it is looked at."""

    release: str


def on_kernel(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: Uname(release))


@pytest.mark.parametrize(
    ("release", "engine"),
    [("4.19.0-27-amd64", PYFUSE3), ("5.3.18", PYFUSE3), ("5.4", DIRECT), ("6.18.44-fc", DIRECT), ("unheard", DIRECT)],
)
def test_auto_is_direct_but_on_old_kernels(release: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_kernel(release, monkeypatch)
    for name in (None, "auto"):
        choice = engines.choose(name)
        assert choice.engine == engine and release in choice.why
    for name in (DIRECT, PYFUSE3):
        assert engines.choose(name) == (name, "it was asked for")


def test_an_engine_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MountError, match="no engine 'fast'") as refused:
        engines.choose("fast")
    assert refused.value.hint == "use --engine auto, direct, erofs or pyfuse3"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MountError, match="not installed"):
        engines.choose(PYFUSE3)
    on_kernel("4.4", monkeypatch)
    assert engines.choose("auto") == (DIRECT, "pyfuse3 is not installed, and this is Linux 4.4")


def by_place(repo: DvcRepo) -> dict[str, dict[str, Any]]:
    return {os.path.basename(found["mountpoint"]): found for found in mounts(repo)}


@pytest.mark.fuse
def test_a_mount_has_the_engine_that_was_asked_for_and_keeps_it(repo: DvcRepo) -> None:
    wanted = {"a": (), "d": ("--engine", DIRECT), "p": ("--engine", PYFUSE3), "v": ("--versions", "--engine", PYFUSE3)}
    for name, options in wanted.items():
        target = [] if "--versions" in options else ["data@v1"]
        made = json.loads(repo.home.run("mount", *options, "--json", *target, str(repo.place(name))).stdout)
        assert made["engine"] == (options[-1] if options else DIRECT)
    found = by_place(repo)
    assert {name: each["engine"] for name, each in found.items()} == {
        "a": DIRECT,
        "d": DIRECT,
        "p": PYFUSE3,
        "v": PYFUSE3,
    }
    assert found["p"]["engine_why"] == "it was asked for" and "Linux" in found["a"]["engine_why"]
    for each in found.values():
        os.kill(each["pid"], signal.SIGKILL)
    eventually(lambda: all(each["state"] == "mounted" and each["engine"] for each in mounts(repo)))
    again = by_place(repo)
    assert {name: each["engine"] for name, each in again.items()} == {
        name: each["engine"] for name, each in found.items()
    }
    assert all(again[name]["pid"] != found[name]["pid"] for name in found)
    for name in ("a", "d", "p"):
        assert contents(repo.home.path / name) == repo.first
    assert contents(repo.home.path / "v" / "v1" / "data") == repo.first
    shown = repo.home.run("mounts", "-v").stdout
    assert "engine pyfuse3: it was asked for" in shown and "engine direct: it is the fastest" in shown


def test_doctor_says_which_engine_and_a_name_that_is_none_is_a_usage_error(repo: DvcRepo) -> None:
    checks = json.loads(repo.home.run("doctor", "--json", code=None).stdout)["checks"]
    told = {check["name"]: check for check in checks}
    assert told["engine"]["ok"] and told["engine"]["detail"].startswith("direct: it is the fastest")
    assert told["passthrough"]["ok"] and told["passthrough"]["detail"] == "large files, with mount --materialize"
    assert told["read-ahead"]["ok"] and told["read-ahead"]["detail"] == "set for each mount"
    why = filling.why_not(fill=True, system=False)
    assert told["page cache"]["ok"]
    assert told["page cache"]["detail"] == (
        f"off: {why}" if why else "on: small files are brought ahead of who reads many"
    )
    refused = repo.home.run("mount", "--engine", "fast", "data", str(repo.place("m")), code=254)
    assert "'fast' is not one of 'auto', 'direct', 'erofs', 'pyfuse3'" in refused.stderr


def test_doctor_says_why_nothing_is_brought_ahead(repo: DvcRepo) -> None:
    repo.home.run("daemon", "stop")
    told = repo.home.run("doctor", code=None, env={"MILLPOND_FILL": "0"}).stdout
    assert "off: MILLPOND_FILL is 0" in told
    mounted = os.path.ismount("/sys/fs/fuse/connections")
    assert ("in system mode only where" in filling.why_not(fill=True, system=True)) == (not mounted)


@pytest.mark.root
@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (["--pid", "--fork", "--mount-proc"], filling.IN_CONTAINER),
        (
            ["--user", "--map-root-user", "--mount", "sh", "-c", 'umount -q /sys/fs/fuse/connections; exec "$@"', "sh"],
            None,
        ),
    ],
)
def test_nothing_is_brought_ahead_where_nobody_could_end_a_mount(inside: list[str], why: str | None) -> None:
    program = "from millpond.daemon.mounts.filling import why_not; print(why_not(fill=True, system=False))"
    command = ["unshare", *inside, sys.executable, "-c", program]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.strip() == why if why else "fuse/connections is not mounted" in said


@pytest.mark.fuse
def test_several_processes_serve_a_mount_when_that_is_asked_for(repo: DvcRepo) -> None:
    place = repo.place("m")
    repo.home.run("mount", "--serving", "3", "data@v1", str(place))
    eventually(lambda: by_place(repo)["m"]["serving"] == 3)
    assert contents(repo.home.path / "m") == repo.first
    found = by_place(repo)["m"]
    assert found["serving"] == found["serving_most"] == 3 and not found["serving_why"] and not found["servers_ended"]
    shown = repo.home.run("mounts", "-v").stdout
    assert "served by 3 processes: 3 at most" in shown and "read-ahead 1024 KiB" in shown
    assert "passthrough off: only with --materialize" in shown
    os.kill(found["pid"], signal.SIGKILL)
    eventually(lambda: by_place(repo)["m"]["pid"] not in (None, found["pid"]) and by_place(repo)["m"]["serving"] == 3)
    refused = repo.home.run("mount", "--serving", "2", "--engine", PYFUSE3, "data@v1", str(repo.place("p")), code=None)
    assert refused.returncode and "serves a mount by one process" in refused.stderr
    assert "--serving" in repo.home.run("mount", "--serving", "0", "data", str(repo.place("z")), code=254).stderr


needs_image = pytest.mark.skipif(bool(why_no_image()), reason=why_no_image())


@pytest.mark.fuse
@needs_image
def test_an_image_is_mounted_restored_and_unmounted_as_any_other(repo: DvcRepo) -> None:
    """Its objects are only in DVC's cache here: the source is asked for them."""
    place = repo.place("m")
    made = json.loads(repo.home.run("mount", "--engine", EROFS, "--json", "data@v1", str(place)).stdout)
    assert made["engine"] == EROFS and contents(repo.home.path / "m") == repo.first
    found = by_place(repo)["m"]
    assert (found["engine"], found["engine_why"], found["state"]) == (EROFS, "it was asked for", "mounted")
    [entry] = [entry for entry in mount_table() if entry.mountpoint == str(repo.home.path / "m")]
    assert entry.fstype == "erofs" and entry.is_ours and entry.words[-1] == found["id"]
    assert "already a mountpoint" in repo.home.run("mount", "data", str(place), code=None).stderr
    os.kill(found["pid"], signal.SIGKILL)
    eventually(lambda: by_place(repo)["m"]["pid"] not in (None, found["pid"]) and by_place(repo)["m"]["engine"])
    assert by_place(repo)["m"]["engine"] == EROFS and contents(repo.home.path / "m") == repo.first
    with open(repo.home.path / "m" / "a.txt"):
        busy = repo.home.run("umount", str(place), code=None)
        assert busy.returncode and f"pid {os.getpid()}" in busy.stderr
    holder = by_place(repo)["m"]["pid"]
    repo.home.run("umount", str(place))
    assert not os.path.ismount(place) and not os.path.exists(f"/proc/{holder}")
    assert not [entry for entry in mount_table() if entry.mountpoint == str(repo.home.path / "m")]


@pytest.mark.fuse
@needs_image
def test_several_images_are_mounted_at_once_for_their_owner_or_for_all(repo: DvcRepo) -> None:
    repo.home.run("mount", "--engine", EROFS, "data@v1", str(repo.place("m")))
    repo.home.run("mount", "--engine", EROFS, "--allow-other", "data", str(repo.place("o")))
    assert contents(repo.home.path / "o") == repo.second
    assert os.stat(repo.home.path / "m").st_mode & 0o777 == 0o500
    assert os.stat(repo.home.path / "o").st_mode & 0o777 == 0o555
    repo.home.run("umount", "--all")
    assert not mounts(repo)


@pytest.mark.fuse
@needs_image
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--versions"], "branches and tags move"),
        (["--xattrs"], "--xattrs tells what changes"),
        (["--materialize", "1GB"], "--materialize hands files over one by one"),
    ],
)
def test_what_an_image_cannot_have_is_refused(repo: DvcRepo, options: list[str], why: str) -> None:
    target = [] if options == ["--versions"] else ["data"]
    place = repo.place("m")
    refused = repo.home.run("mount", "--engine", EROFS, *options, *target, str(place), code=None)
    assert refused.returncode and why in refused.stderr and "use --engine direct" in refused.stderr
    assert not mounts(repo) and not os.path.ismount(place)


def test_an_image_wants_root_and_a_kernel_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.daemon.mounts.kernel.is_privileged", lambda: False)
    assert "only root" in engines.why_no_image()
    monkeypatch.setattr("millpond.daemon.mounts.kernel.is_privileged", lambda: True)
    monkeypatch.setattr("millpond.daemon.mounts.kernel.is_machines", lambda namespace: True)
    on_kernel("6.11.2", monkeypatch)
    assert engines.why_no_image() == "Linux 6.11.2 is older than 6.12"
    on_kernel("6.12", monkeypatch)
    assert engines.why_no_image() == ""
    assert "system mode" in engines.why_no_image(system=True)
    with pytest.raises(MountError, match="cannot serve this: because"):
        engines.choose(EROFS, "because")
    assert engines.choose(EROFS).engine == EROFS and engines.choose(None).engine == DIRECT
