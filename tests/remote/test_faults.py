"""A network that fails, over each way to use it: what a user sees is in DESIGN.md's table, which is made of these cells.

Each cell: the fault, then what the command says or the reader gets; nothing wrong is ever taken for right; and once the network is well
the same thing works, without mounting anew. The quick tests take some cells, the long ones all.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.conftest import contents
from tests.remote import proxy as proxies
from tests.remote.proxy import Fault, Proxy
from tests.remote.shared import Team, key_of
from tests.remote.test_lazy import far, mount, stats, through
from tests.remote.test_revival import only_s3, shown
from tests.store.helpers import sample

__all__ = ["far"]
pytestmark = pytest.mark.fuse
ROOT = Path(__file__).resolve().parents[2]

OPERATIONS = ("push", "fetch", "lazy small", "lazy large", "lazy whole")
FINE, DENIED, DAMAGED, CHANGED, LATER = "fine", "needs-credentials", "damaged", "changed", "found out at its end"
# What a user sees, for each fault by operation.
OUTCOMES = {
    "latency": dict.fromkeys(OPERATIONS, FINE),
    "reset": dict.fromkeys(OPERATIONS, FINE),
    "truncated": dict.fromkeys(OPERATIONS, FINE),
    "503": dict.fromkeys(OPERATIONS, FINE),
    "stall": dict.fromkeys(OPERATIONS, FINE),
    "403 midway": dict.fromkeys(OPERATIONS, DENIED),
    "wrong bytes": {
        "push": FINE,
        "fetch": DAMAGED,
        "lazy small": DAMAGED,
        "lazy large": LATER,
        "lazy whole": DAMAGED,
    },
    "another ETag": {
        "push": FINE,
        "fetch": CHANGED,
        "lazy small": FINE,
        "lazy large": CHANGED,
        "lazy whole": CHANGED,
    },
}
CELLS = [(operation, fault) for operation in OPERATIONS for fault in OUTCOMES]
# A stall takes the time that a read may take.
_SLOW = [cell for cell in CELLS if cell[1] in ("stall", "latency")]
SEED = int(os.environ.get("MILLPOND_SEED") or 3)
SAMPLE = random.Random(SEED).sample([cell for cell in CELLS if cell not in _SLOW], 2)
# What exit code tells of what went wrong.
_CODES = {FINE: 0, DENIED: 10, DAMAGED: 6, CHANGED: 9}


@dataclass
class Scene:
    """Who uses the network, and what belongs in his workspace."""

    home: Home
    far: Proxy
    data: dict[str, bytes]

    def value(self, name: str) -> str:
        return hashlib.md5(self.data[name]).hexdigest()


def faults(far: Proxy, few: int) -> dict[str, Callable[[], Fault]]:
    """Each fault, made anew: some count from when they begin."""

    def each(number: int, spoil: Fault) -> Callable[[], Fault]:
        return lambda: lambda request, given: spoil(request, given) if far.count % number == 0 else given

    def of_objects(spoil: Fault) -> Callable[[], Fault]:
        def fault(request: bytes, given: bytes) -> bytes | None:
            is_read = request.startswith(b"GET") and b"/files/md5/" in request and b".dir " not in request
            return spoil(request, given) if is_read else given

        return lambda: fault

    def midway() -> Fault:
        begun = far.count
        return lambda request, given: proxies.denied(request, given) if far.count > begun + few else given

    def stalled(request: bytes, given: bytes) -> bytes | None:
        proxies.stall(far, 60.0)
        return None

    return {
        "latency": lambda: lambda request, given: given,
        "reset": each(3, proxies.broken),
        "truncated": each(3, proxies.truncated),
        "503": each(3, proxies.slow_down),
        "stall": each(9, stalled),
        "403 midway": midway,
        "wrong bytes": of_objects(proxies.wrong),
        "another ETag": of_objects(proxies.changed),
    }


def prepare(team: Team, far: Proxy, operation: str) -> Scene:
    ann = team.person("ann")
    data = {f"small/{number:02}": sample(number, 2000 + 100 * number) for number in range(12)}
    data["large.bin"] = sample(99, 9_000_000)
    for name, content in data.items():
        (ann.repo / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (ann.repo / "data" / name).write_bytes(content)
    ann.run("add", "-q", "data")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "first")
    home = ann
    if operation != "push":
        ann.run("push", "-q")
        home = team.person("bob", ann)
    through(home, far)
    with open(home.repo / ".dvc/config.local", "a") as config:
        config.write("    read_timeout = 2\n")
    return Scene(home, far, data)


def outcome_of_command(scene: Scene, verb: str) -> str:
    done = scene.home.run(verb, code=None)
    if done.returncode:
        sentence(done)
    [found] = [outcome for outcome, code in _CODES.items() if code == done.returncode]
    return found


def outcome_of_reads(scene: Scene, place: Path, names: list[str]) -> str:
    """Each byte that a reader gets is right, or he gets an error; of a large object that nobody has checked yet the error may come
    after its bytes."""
    failed = wrong = 0
    for name in names:
        try:
            wrong += (place / name).read_bytes() != scene.data[name]
        except OSError:
            failed += 1
    if not (failed or wrong):
        return FINE
    if wrong:
        large = scene.value("large.bin")
        eventually(lambda: large in scene.home.run("mounts").stdout, "it is found out, and told")
        return LATER
    if shown(scene.home)["state"] == "needs-credentials":
        return DENIED
    return DAMAGED if "not what its name says" in str(stats(place)["last_error"]) else CHANGED


def is_error(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return True
    return False


def check_cell(team: Team, far: Proxy, operation: str, fault: str) -> None:
    scene = prepare(team, far, operation)
    make = faults(far, 1 if operation in ("lazy large", "lazy whole") else 6)[fault]
    if operation in ("push", "fetch"):
        far.fault, far.delay_s = make(), 0.15 if fault == "latency" else 0.0
        found = outcome_of_command(scene, operation)
        far.fault, far.delay_s = None, 0.0
        scene.home.run(operation, "-q")
        check_end(team, scene, operation)
    else:
        place = mount(scene.home, "m", *(["--verify", "whole"] if operation == "lazy whole" else []))
        names = [name for name in scene.data if name.startswith("small") == (operation == "lazy small")]
        far.fault, far.delay_s = make(), 0.15 if fault == "latency" else 0.0
        found = outcome_of_reads(scene, place, names)
        far.fault, far.delay_s = None, 0.0
        if found in (LATER, DAMAGED) and operation != "lazy small":
            # What was found to be wrong is not asked for again for a minute.
            scene.home.run("umount", str(place))
            place = mount(scene.home, "n")
        eventually(
            lambda: not any(is_error(place / name) for name in scene.data), "it is read once the network is well"
        )
        assert contents(place) == scene.data
    assert found == OUTCOMES[fault][operation], f"{operation} with {fault} (seed {SEED})"
    assert "is clean" in scene.home.run("fsck", "--deep").stdout


def check_end(team: Team, scene: Scene, operation: str) -> None:
    if operation == "push":
        there = team.keys()
        for name, data in scene.data.items():
            assert there[key_of(scene.value(name))] == len(data)
        bob = team.person("bob", scene.home)
        bob.run("pull", "-q")
        assert contents(bob.repo / "data") == scene.data
    else:
        scene.home.run("checkout", "-q")
        assert contents(scene.home.repo / "data") == scene.data
    if os.environ.get("MILLPOND_TESTS") == "long":
        cat = team.person("cat", scene.home)
        cat.dvc("pull")
        assert contents(cat.repo / "data") == scene.data and "in sync" in cat.dvc("status", "-c").stdout


@only_s3
@pytest.mark.parametrize(
    ("operation", "fault"),
    [pytest.param(*cell, marks=() if cell in SAMPLE else pytest.mark.long, id="-".join(cell)) for cell in CELLS],
)
def test_a_network_that_fails(team: Team, far: Proxy, operation: str, fault: str) -> None:
    check_cell(team, far, operation, fault)


def test_the_table_of_design_md_is_this_one() -> None:
    text = (ROOT / "DESIGN.md").read_text()
    for fault, outcomes in OUTCOMES.items():
        row = re.search(rf"^\| {re.escape(fault)} \|(.*)\|$", text, re.MULTILINE)
        assert row is not None, fault
        told = [cell.strip().split(":")[0] for cell in row[1].split("|")]
        assert told == [outcomes[operation] for operation in OPERATIONS], fault
