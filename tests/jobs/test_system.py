"""System mode as root: who runs as whom, and what the spawner refuses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.helpers import System, children_named, context, gone, system, until
from tests.jobs.reach import for_everyone

from millpond.daemon.rpc import framing

pytestmark = pytest.mark.root

ALICE, BOB = 41010, 41011


@pytest.fixture(scope="module")
def machine() -> Iterator[System]:
    with system(MILLPOND_VERBS="tests.jobs.verbtable:VERBS", ROOT_SECRET="hunter2") as found:
        yield found


def ask(machine: System, uid: int, *requests: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Requests on one connection, as `uid`."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": for_everyone().path}
    done = subprocess.run(
        [for_everyone().python, "-P", "-m", "tests.jobs.as_caller", machine.socket],
        input="".join(json.dumps(request) + "\n" for request in requests),
        user=uid,
        group=uid,
        extra_groups=[],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def uids(pid: int) -> set[int]:
    """Real, effective, saved and file-system uid of a process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")]
    return {int(field) for field in line.split()[1:]}


def test_each_part_runs_as_its_own_user(machine: System) -> None:
    [alice] = ask(machine, ALICE, ("init", {"context": context("/", env={"A": "1"})}))
    [bob] = ask(machine, BOB, ("init", {"context": context("/")}))
    assert (alice["result"]["uid"], bob["result"]["uid"]) == (ALICE, BOB)
    assert b"hunter2".hex() not in alice["result"]["environ"]
    [spawner] = children_named("millpond-spawn", machine.process.pid)
    assert uids(machine.process.pid) == {machine.daemon_uid}
    assert uids(spawner) == {0}
    assert {uid for pid in children_named("millpond-zygote", spawner) for uid in uids(pid)} == {ALICE, BOB}
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status and "CapPrm:\t0000000000000000" in status
    assert f"Groups:\t{machine.store_gid}" in status


def test_the_store_is_closed_to_callers(machine: System) -> None:
    store = machine.folder / "store"
    assert store.stat().st_uid == machine.daemon_uid
    assert store.stat().st_mode & 0o007 == 0
    done = subprocess.run(["ls", store], user=ALICE, group=ALICE, extra_groups=[], capture_output=True)
    assert done.returncode != 0


def test_root_is_not_served_by_workers(machine: System) -> None:
    [answer] = ask(machine, 0, ("init", {"context": context("/")}))
    assert answer["error"]["data"]["kind"] == "permission"


def test_callers_see_their_own_requests_only_and_cannot_stop_the_daemon(machine: System, tmp_path: Path) -> None:
    status, stop = ask(machine, ALICE, ("daemon.status", {}), ("daemon.stop", {}))
    assert status["result"]["locks"] == [] and status["result"]["mode"] == "system"
    assert stop["error"]["data"]["kind"] == "permission"
    assert machine.process.poll() is None


def test_a_killed_daemon_takes_its_spawner_and_zygotes_along() -> None:
    with system(MILLPOND_VERBS="tests.jobs.verbtable:VERBS") as machine:
        ask(machine, ALICE, ("root", {"context": context("/")}))
        [spawner] = children_named("millpond-spawn", machine.process.pid)
        [zygote] = children_named("millpond-zygote", spawner)
        machine.process.kill()
        machine.process.wait()
        until(lambda: gone(spawner) and gone(zygote))


@dataclass
class Spawned:
    """A spawner alone, and our end of its socket."""

    sock: socket.socket
    pid: int

    def ask(self, *fds: int, **request: Any) -> tuple[dict[str, Any], list[int]]:
        return self.say(json.dumps(request).encode(), *fds)

    def say(self, data: bytes, *fds: int) -> tuple[dict[str, Any], list[int]]:
        self.sock.sendmsg([data], framing.ancillary(fds))
        answer, control, _, _ = self.sock.recvmsg(65536, framing.ANCILLARY_BYTES)
        return json.loads(answer), framing.received_fds(control)


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawned]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [for_everyone().python, "-P", "-m", "millpond.daemon.jobs.spawner", str(theirs.fileno())]
    env = {**os.environ, "PYTHONPATH": for_everyone().path}
    with (
        ours,
        subprocess.Popen(
            [*command, "41001", "41002", "41003", "tests.jobs.verbtable"], pass_fds=[theirs.fileno()], env=env
        ) as process,
    ):
        theirs.close()
        ours.settimeout(20)
        yield Spawned(ours, process.pid)
        ours.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "zygote", "uid": 0, "role": "caller"},
        {"op": "zygote", "uid": 999, "role": "caller"},
        {"op": "zygote", "uid": -1, "role": "caller"},
        {"op": "zygote", "uid": True, "role": "caller"},
        {"op": "zygote", "uid": "41010", "role": "caller"},
        {"op": "zygote", "uid": 2**40, "role": "caller"},
        {"op": "zygote", "uid": 41001, "role": "caller"},
        {"op": "zygote", "uid": 41002, "role": "caller"},
        {"op": "zygote", "uid": 41010, "role": "holder"},
        {"op": "zygote", "uid": 0, "role": "holder"},
        {"op": "zygote", "uid": 41010, "role": "root"},
        {"op": "zygote"},
        {"op": "shell", "uid": 41010},
        {"op": "mount", "uid": 41010, "name": "millpond"},
        {"op": "umount", "uid": 41010, "name": "x", "lazy": True},
        {},
        [],
        7,
    ],
)
def test_the_spawner_refuses_what_is_not_allowed_and_goes_on(spawner: Spawned, request_: Any) -> None:
    answer, fds = spawner.say(json.dumps(request_).encode())
    assert answer["error"] and fds == []
    answer, fds = spawner.say(b"not json")
    assert answer["error"] and fds == []


def test_the_spawner_gives_a_callers_zygote(spawner: Spawned) -> None:
    answer, [fd] = spawner.ask(op="zygote", uid=ALICE, role="caller")
    assert answer == {}
    with socket.socket(fileno=fd) as zygote:
        zygote.sendall(json.dumps({"op": "status", "pid": 1}).encode())
        assert json.loads(zygote.recv(1000)) == {"status": None}
        [pid] = children_named("millpond-zygote", spawner.pid)
        assert uids(pid) == {ALICE}
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"HOME=" not in environ
    until(lambda: gone(pid))


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of ALICE's with an awkward name, unmounted at the end."""
    with tempfile.TemporaryDirectory(prefix="mp-") as name:
        path = Path(name, os.fsdecode(b"a b\\c\xff"))
        path.mkdir()
        os.chown(path, ALICE, ALICE)
        try:
            yield path
        finally:
            with contextlib.suppress(Exception):
                subprocess.run(["umount", "-l", path], capture_output=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def mounts_at(path: Path) -> list[str]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        where = line.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")
        if where == os.fsencode(path):
            found.append(line)
    return found


@pytest.mark.fuse
def test_the_spawner_mounts_for_its_caller_and_unmounts_only_that(spawner: Spawned, place: Path) -> None:
    with opened(place) as directory, opened(place.parent) as parent:
        answer, fds = spawner.ask(directory, op="mount", uid=BOB, name="millpond")
        assert "not a directory of uid" in answer["error"] and fds == []
        answer, fds = spawner.ask(directory, op="mount", uid=ALICE, name="a,allow_other")
        assert answer["error"] and fds == []

        answer, [device] = spawner.ask(directory, op="mount", uid=ALICE, name="millpond")
        assert answer == {}
        [line] = mounts_at(place)
        assert " - fuse.millpond millpond " in line
        assert {"ro", "nosuid", "nodev"} <= set(line.split(" ")[5].split(","))
        assert f"user_id={ALICE}" in line

        name = os.fsdecode(place.name)
        for wrong in ({"uid": BOB, "name": name}, {"uid": ALICE, "name": ".."}, {"uid": ALICE, "name": "x/y"}):
            answer, _ = spawner.ask(parent, op="umount", lazy=True, **wrong)
            assert answer["error"] and answer["errno"] is None
        assert len(mounts_at(place)) == 1

        os.close(device)
        answer, _ = spawner.ask(parent, op="umount", uid=ALICE, name=name, lazy=False)
        assert answer == {}
        assert mounts_at(place) == []
        answer, _ = spawner.ask(parent, op="umount", uid=ALICE, name=name, lazy=False)
        assert "no mount of this user" in answer["error"]


@pytest.mark.fuse
def test_a_busy_mount_is_refused_with_its_errno(spawner: Spawned, place: Path) -> None:
    with opened(place) as directory, opened(place.parent) as parent:
        _, [device] = spawner.ask(directory, op="mount", uid=ALICE, name="millpond")
        with opened(place):  # on the mount's root now
            answer, _ = spawner.ask(parent, op="umount", uid=ALICE, name=os.fsdecode(place.name), lazy=False)
            assert answer["errno"] == 16
            answer, _ = spawner.ask(parent, op="umount", uid=ALICE, name=os.fsdecode(place.name), lazy=True)
            assert answer == {}
        os.close(device)
    assert mounts_at(place) == []


def test_the_spawner_ends_with_the_daemon() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**os.environ, "PYTHONPATH": for_everyone().path}
    command = [
        for_everyone().python,
        "-P",
        "-m",
        "millpond.daemon.jobs.spawner",
        str(theirs.fileno()),
        "1",
        "2",
        "3",
        "m",
    ]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env) as process:
        theirs.close()
        ours.close()
        assert process.wait(20) == 0
