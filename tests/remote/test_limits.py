"""Bounds of lazy reads: bytes a second (MILLPOND_RATE), and requests at once (the remote's `jobs`)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cli.helpers import Home
from tests.mounts.conftest import contents
from tests.remote.proxy import Proxy, proxy
from tests.remote.servers import S3Server
from tests.remote.shared import Team
from tests.store.helpers import sample

from millpond.daemon.errors import UsageError
from millpond.daemon.remote.pace import Budget, Turns, rate

LARGE, RATE = 8 << 20, 2 << 20


@pytest.fixture
def far(s3: S3Server) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as made:
        yield made


class Counting:
    """A fault that is none: how many exchanges of objects were under way at once."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, head: bytes, given: bytes) -> bytes:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.15)
        with self._lock:
            self._now -= 1
        return given


def mounted(home: Home, name: str, env: dict[str, str] | None = None) -> Path:
    place = home.path / name
    place.mkdir()
    home.run("mount", "-q", "data", str(place), env=env)
    return place


@pytest.mark.long
@pytest.mark.fuse
@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_lazy_reads_keep_to_the_remote_s_jobs_and_the_rate(team: Team, far: Proxy) -> None:
    ann = team.person("ann")
    expected = {f"many/{number:02}": sample(number, 2_000_000 // 20) for number in range(24)} | {
        "large": sample(99, LARGE)
    }
    for path, data in expected.items():
        (ann.repo / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (ann.repo / "data" / path).write_bytes(data)
    ann.run("add", "-q", "data")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "1")
    ann.run("push", "-q")
    most = {}
    for jobs in (2, None):
        bob = team.person(f"bob{jobs}", ann)
        config = bob.repo / ".dvc/config.local"
        config.write_text(config.read_text() + f"    endpointurl = {far.endpoint}\n")
        if jobs is not None:
            bob.run("remote", "modify", "--local", "-q", "team", "jobs", str(jobs))
        place = mounted(bob, "m")
        counting = Counting()
        far.fault = counting
        with ThreadPoolExecutor(12) as pool:
            paths = [path for path in expected if path != "large"]
            assert list(pool.map(lambda path, top=place: (top / path).read_bytes(), paths)) == [
                expected[each] for each in paths
            ]
        far.fault = None
        most[jobs] = counting.most
        said = bob.run("mounts", "-v").stdout
        assert ("at most 2 requests at once" in said) is (jobs == 2)
    assert most[2] <= 2 < most[None]
    # What the settings say counts from the next mount on.
    bob.run("remote", "modify", "--local", "-q", "team", "jobs", "3")
    assert json.loads((place / ".millpond/stats").read_bytes())["remote_jobs"] == 0
    bob.run("umount", str(place))
    slow = mounted(bob, "n", {"MILLPOND_RATE": f"{RATE}"})
    began = time.monotonic()
    assert contents(slow) == expected
    told = json.loads((slow / ".millpond/stats").read_bytes())
    assert (told["remote_rate"], told["remote_jobs"]) == (RATE, 3)
    # A second's worth comes at once; and what was asked for last, two requests of two blocks, is had before it is paid for.
    least = (LARGE - RATE - 4 * (1 << 20)) / RATE
    assert time.monotonic() - began >= least
    assert "at most 2.00 MiB a second" in (said := bob.run("mounts", "-v").stdout) or "2.10 MB a second" in said


def test_turns_bound_who_asks_at_once_and_pay_for_what_came() -> None:
    """By the budget's own clock: four takings of a second's worth are three seconds' debt."""
    budget = Budget(1 << 20)
    assert budget.wait_s(1 << 20) == 0
    assert 1.9 < budget.wait_s(2 << 20) <= 2.0
    turns, stop = Turns(2, None), threading.Event()
    with turns.turn(stop), turns.turn(stop):
        third = threading.Thread(target=lambda: turns.turn(stop).__enter__(), daemon=True)
        third.start()
        third.join(0.2)
        assert third.is_alive(), "a third one waits"
    third.join(5)
    assert not third.is_alive()
    stop.set()
    with Turns(None, budget).turn(stop) as took:  # who is not wanted any more waits for nothing
        took(100)
    for text, value in (("20M", 20 << 20), ("1.5k", 1536.0), ("", None)):
        assert rate({"MILLPOND_RATE": text}) == value
    for text in ("nan", "-1", "fast", "0"):
        with pytest.raises(UsageError):
            rate({"MILLPOND_RATE": text})
