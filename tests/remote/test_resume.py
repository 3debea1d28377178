"""Transfers of large objects that were cut, in both directions: what went over the line is not sent again."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest
from tests.cli.helpers import Home
from tests.faults.test_limits import sentence
from tests.fusefs.helpers import eventually
from tests.mounts.test_kills import processes
from tests.remote import proxy as proxies
from tests.remote.proxy import Proxy
from tests.remote.shared import Team, key_of
from tests.remote.test_lazy import far, through
from tests.store.helpers import sample

from millpond.daemon.remote.backend import PART_BYTES
from millpond.daemon.remote.download import RESUMED_BYTES
from millpond.daemon.remote.s3multipart import KEPT_S, part_bytes

__all__ = ["far"]
pytestmark = pytest.mark.parametrize("team", ["s3"], indirect=True)
SIZE = 2 * PART_BYTES + 5_000_000
assert SIZE > RESUMED_BYTES


def with_a_large_file(team: Team) -> tuple[Home, bytes]:
    ann = team.person("ann")
    data = sample(3, SIZE)
    (ann.repo / "large.bin").write_bytes(data)
    ann.run("add", "-q", "large.bin")
    ann.git("add", "-A")
    ann.git("commit", "-qm", "first")
    return ann, data


def parts_sent(far: Proxy) -> list[int]:
    found = [re.search(rb"^PUT .*partNumber=(\d+)", line) for line in far.seen]
    return sorted(int(each[1]) for each in found if each)


def unfinished(team: Team) -> list[dict[str, Any]]:
    assert team.server is not None
    bucket = team.url.removeprefix("s3://").split("/")[0]
    return list(team.server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []))


@pytest.mark.long
def test_a_push_that_was_cut_goes_on_with_its_parts(team: Team, far: Proxy) -> None:
    ann, data = with_a_large_file(team)
    through(ann, far)
    far.fault = lambda request, given: (
        proxies.denied(request, given) if b"partNumber=3" in request.split(b"\r\n")[0] else given
    )
    sentence(ann.run("push", code=10))
    [upload] = unfinished(team)
    notes = ann.path / "cache/millpond-user/uploads"
    [note] = notes.iterdir()
    far.fault = None
    far.seen.clear()
    assert ann.run("push").stdout.startswith("1 file pushed")
    assert parts_sent(far) == [3], "parts 1 and 2 were there"
    assert not unfinished(team) and not list(notes.iterdir())
    assert upload["Key"].endswith(key_of(hashlib.md5(data).hexdigest()))
    bob = team.person("bob", ann)
    bob.run("pull", "-q")
    assert (bob.repo / "large.bin").read_bytes() == data
    assert not note.exists()


@pytest.mark.long
def test_what_was_begun_long_ago_or_is_gone_is_begun_anew(team: Team, far: Proxy) -> None:
    ann, _ = with_a_large_file(team)
    through(ann, far)
    far.fault = lambda request, given: (
        proxies.denied(request, given) if b"partNumber=3" in request.split(b"\r\n")[0] else given
    )
    ann.run("push", code=10)
    [upload] = unfinished(team)
    assert team.server is not None
    bucket = team.url.removeprefix("s3://").split("/")[0]
    client = team.server.client()
    client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    ann.run("push", code=10)
    [second] = unfinished(team)
    [note] = (ann.path / "cache/millpond-user/uploads").iterdir()
    old = time.time() - KEPT_S - 60
    note.write_text(re.sub(r'"at": [\d.]+', f'"at": {old}', note.read_text()))
    os.utime(note, (old, old))
    far.fault = None
    far.seen.clear()
    assert ann.run("push").stdout.startswith("1 file pushed")
    assert parts_sent(far) == [1, 2, 3] and not unfinished(team), "the old one was aborted"
    assert second["UploadId"] != upload["UploadId"]


@pytest.mark.long
def test_a_fetch_that_was_cut_goes_on_with_its_blocks(team: Team, far: Proxy) -> None:
    ann, data = with_a_large_file(team)
    ann.run("push", "-q")
    bob = team.person("bob", ann)
    through(bob, far)
    key = key_of(hashlib.md5(data).hexdigest()).encode()
    asked: list[int] = []
    cut_at = SIZE

    def cut(request: bytes, given: bytes) -> bytes:
        found = re.search(rb"range: *bytes=(\d+)-", request, re.IGNORECASE) if key in request else None
        if found is None:
            return given
        asked.append(int(found[1]))
        return proxies.denied(request, given) if asked[-1] >= cut_at else given

    far.fault, cut_at = cut, 24_000_000
    sentence(bob.run("fetch", code=10))
    asked.clear()
    cut_at = SIZE
    assert bob.run("fetch").stdout.startswith("1 file fetched")
    assert min(set(asked) - {0}) > 20_000_000, "what had come is not asked for again, but for its ETag"
    assert not list((bob.path / "cache/millpond-user/partial").rglob("*.map"))
    bob.run("checkout", "-q")
    assert (bob.repo / "large.bin").read_bytes() == data


@pytest.mark.long
def test_a_push_is_cancelled_at_once_though_the_line_stands_still(team: Team, far: Proxy) -> None:
    ann, _ = with_a_large_file(team)
    through(ann, far)
    far.stalled.clear()
    far.fault = lambda request, given: proxies.stall(far) if b"partNumber" in request else given
    push = subprocess.Popen(ann.command("push"), cwd=ann.repo, env=ann.env, stderr=subprocess.PIPE, text=True)
    with push:
        eventually(lambda: far.waiting > 0, "a part is under way")
        began = time.monotonic()
        push.send_signal(signal.SIGINT)
        _, said = push.communicate(timeout=20)
    assert push.returncode == 130 and time.monotonic() - began < 3, said
    far.stalled.set()
    eventually(lambda: len(processes(ann, "worker")) <= 1, "the worker is gone")


def test_parts_grow_where_there_would_be_too_many(team: Team) -> None:
    assert part_bytes(100) == part_bytes(9_000 * PART_BYTES) == PART_BYTES
    for size in (9_000 * PART_BYTES + 1, 5 << 40):
        assert -(-size // part_bytes(size)) <= 9_000 and part_bytes(size) % (1 << 20) == 0
