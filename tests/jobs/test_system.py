"""System mode as root: who runs as whom, and what the spawner refuses."""

from __future__ import annotations

import contextlib
import errno
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

from millpond.daemon.mounts import connections
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


def test_what_a_caller_reads_comes_in_memory_files_of_the_daemons(machine: System) -> None:
    """Those of another user it does not write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        paths = [f"{folder}/{number}" for number in range(40)]
        for number, path in enumerate(paths):
            Path(path).write_bytes(bytes([number]) * (1 << 20))
        [answer] = ask(machine, ALICE, ("fetch", {"paths": paths, "after": 1, "context": context("/")}))
    found = answer["result"]
    assert found["digests"] == found["names"] * 2 and found["left open"] == 0
    assert len(found["refusals"]) == 2 and all("another user's" in each for each in found["refusals"])


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
        {"op": "abort", "uid": 41010, "place": "/", "record": "x"},
        {"op": "abort", "uid": 41010, "place": "/nowhere", "record": "x"},
        {"op": "abort", "uid": 41010},
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

        answer, [device] = spawner.ask(directory, op="mount", uid=ALICE, name="millpond:7")
        assert answer == {}
        [line] = mounts_at(place)
        assert " - fuse.millpond millpond:7 " in line
        assert {"ro", "nosuid", "nodev"} <= set(line.split(" ")[5].split(","))
        assert f"user_id={ALICE}" in line

        name = os.fsdecode(place.name)
        for wrong in ({"uid": BOB, "name": name}, {"uid": ALICE, "name": ".."}, {"uid": ALICE, "name": "x/y"}):
            answer, _ = spawner.ask(parent, op="umount", lazy=True, **wrong)
            assert answer["error"] and answer["errno"] is None
        assert len(mounts_at(place)) == 1

        where = os.fspath(place)
        for wrong in ({"uid": BOB, "record": "7"}, {"uid": ALICE, "record": "8"}):
            answer, _ = spawner.ask(op="abort", place=where, **wrong)
            assert "no mount of this user" in answer["error"]
        answer, _ = spawner.ask(op="abort", place=where, uid=ALICE, record="7")
        # By the kernel's control files alone, where they are.
        if os.path.ismount(connections.CONTROL):
            assert answer == {}
        else:
            assert answer["errno"] == errno.ENOENT

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


def job(machine: System, uid: int, *argv: str, **params: Any) -> dict[str, Any]:
    """A job of `uid`, when it has begun."""
    surroundings = context("/", env={"PATH": os.environ["PATH"], "HOME": str(params.pop("home"))})
    [answer] = ask(machine, uid, ("job.run", {"argv": list(argv), "context": surroundings, **params}))
    number = answer["result"]["job"]["number"]
    [begun] = ask(machine, uid, ("jobs.wait", {"job": number, "until": "begun"}))
    found: dict[str, Any] = begun["result"]["job"]
    return found


def test_a_job_is_its_callers_and_nobody_elses() -> None:
    with (
        system(MILLPOND_VERBS="tests.jobs.verbtable:VERBS", ROOT_SECRET="hunter2") as machine,
        tempfile.TemporaryDirectory(prefix="mp-") as name,
    ):
        homes = {uid: Path(name, str(uid)) for uid in (ALICE, BOB)}
        os.chmod(name, 0o755)
        for uid, home in homes.items():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        alice = job(machine, ALICE, "sh", "-c", "id -u; env; exec sleep 1000", name="mine", home=homes[ALICE])
        bob = job(machine, BOB, "sleep", "1000", home=homes[BOB])
        folder = Path(alice["folder"])
        assert folder.is_relative_to(homes[ALICE]) and folder.stat().st_uid == ALICE
        assert folder.stat().st_mode & 0o777 == 0o700
        log = until(lambda: (folder / "log").exists() and (folder / "log").read_text())
        assert f" stdout F {ALICE}\n" in log and "hunter2" not in log
        assert uids(alice["pid"]) == {ALICE} and uids(bob["pid"]) == {BOB}

        # Bob sees and ends his own only; that of another is no job to him, by number, by name, or by the job's own door.
        number = alice["number"]
        seen, by_number, by_name, ended, removed, joined = ask(
            machine,
            BOB,
            ("jobs", {"limit": 100}),
            ("jobs.find", {"job": number}),
            ("jobs.find", {"job": "mine"}),
            ("job.cancel", {"jobs": [str(number)], "context": context("/")}),
            ("job.remove", {"jobs": [str(number)], "keep": None, "context": context("/")}),
            ("jobs.join", {"number": number}),
        )
        assert [row["number"] for row in seen["result"]["jobs"]] == [bob["number"]]
        for answer in (by_number, by_name, ended, removed):
            assert answer["error"]["data"]["kind"] == "job"
        assert joined["error"]["data"]["kind"] == "permission"
        # Nor may he say what a worker says.
        for method in ("jobs.submit", "jobs.cancelling", "jobs.forget", "jobs.hold"):
            [answer] = ask(machine, BOB, (method, {"job": number, "numbers": [number]}))
            assert answer["error"]["data"]["kind"] == "permission"
        [everybodys] = ask(machine, 0, ("jobs", {"limit": 100}))
        assert {row["uid"] for row in everybodys["result"]["jobs"]} == {ALICE, BOB}

        # Jobs outlive the daemon and its spawner, and their callers' next zygotes adopt nothing that is not theirs.
        machine.process.kill()
        machine.process.wait()
        with system(
            MILLPOND_VERBS="tests.jobs.verbtable:VERBS",
            MILLPOND_STORE=str(machine.folder / "store"),
            MILLPOND_STATE=str(machine.folder / "state"),
        ) as second:
            [shown] = ask(second, ALICE, ("jobs", {"limit": 100}))
            assert [(row["number"], row["state"]) for row in shown["result"]["jobs"]] == [(number, "running")]
            os.kill(bob["pid"], 9)
            [lost] = ask(second, BOB, ("jobs.wait", {"job": bob["number"], "until": "ended"}))
            assert lost["result"]["job"]["state"] == "lost"
            [ended] = ask(second, ALICE, ("job.cancel", {"jobs": ["mine"], "context": context("/")}))
            assert [row["state"] for row in ended["result"]["jobs"]] == ["cancelled"]
