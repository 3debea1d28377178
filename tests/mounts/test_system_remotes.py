"""System mode with two users over one remote: what one may read there is not the other's, and nobody keeps what either logs in with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs.helpers import System
from tests.jobs.reach import for_everyone
from tests.mounts.test_system_mode import Person, machine
from tests.remote.servers import S3Server, s3_server
from tests.remote.shared import key_of
from tests.store.helpers import sample

from millpond.daemon.project import manifest

__all__ = ["machine"]
pytestmark = [pytest.mark.root, pytest.mark.fuse]

ALICE, BOB = 41030, 41031
SECRETS = {ALICE: "the-secret-of-alice", BOB: "the-secret-of-bob"}
FILES = {"large.bin": sample(3, 9_000_000), "sub/small": b"small\n"}
# Reads a file of the current version, and asks the store for it by its name; prints what came of each.
READS = """
import sys, millpond
from millpond.daemon.api.contents import stored
from millpond.daemon.names import ObjectName
for path, digest in zip(sys.argv[1::2], sys.argv[2::2]):
    for read in (lambda: millpond.read(path, "rb"), lambda: stored(ObjectName("md5", digest), 0, 100)):
        try:
            read()
            print("read")
        except millpond.MillpondError as error:
            print(error.kind)
"""


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, str]]:
    """A server with a folder that nobody on this machine has, and the pointer to it."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
        server.bucket("far")
        digests = {path: hashlib.md5(data).hexdigest() for path, data in FILES.items()}
        text = manifest.serialise(sorted(digests.items()))
        name = manifest.manifest_name(text).value
        for value, data in [*((digests[path], data) for path, data in FILES.items()), (name, text)]:
            server.client().put_object(Bucket="far", Key=key_of(value), Body=data)
        size = sum(map(len, FILES.values()))
        yield server, f"outs:\n- md5: {name}\n  size: {size}\n  nfiles: {len(FILES)}\n  hash: md5\n  path: data\n"


def begin(machine: System, far: tuple[S3Server, str], uid: int) -> tuple[Person, Path]:
    """A user with the pointer and no credentials."""
    person, (server, pointer) = Person(machine, uid), far
    repo = person.folder("repo")
    person.run("git", "init", "-q", str(repo))
    person.millpond("init", "-q", cwd=repo)
    config = f"[core]\n    remote = far\n['remote \"far\"']\n    url = s3://far\n    endpointurl = {server.endpoint}\n"
    for path, text in ((repo / ".dvc/config", config), (repo / "data.dvc", pointer)):
        path.write_text(text)
        os.chown(path, uid, uid)
    person.extra = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    return person, repo


def log_in(person: Person) -> None:
    person.extra |= {"AWS_ACCESS_KEY_ID": f"AKID{person.uid}", "AWS_SECRET_ACCESS_KEY": SECRETS[person.uid]}


def reads(person: Person, repo: Path) -> set[str]:
    """What comes of reading each file by the library, and by its name."""
    asked = [each for path, data in FILES.items() for each in (f"data/{path}", hashlib.md5(data).hexdigest())]
    return set(person.run(for_everyone().python, "-c", READS, *asked, cwd=repo).split())


def gets_nothing(person: Person, repo: Path, place: Path) -> None:
    for words in (("mount", "data", str(place)), ("fetch",), ("pull",), ("fetch", "data/sub/small")):
        said = person.millpond(*words, cwd=repo, code=10)
        assert "credentials" in said and "'far'" in said, words
    assert "read" not in reads(person, repo)
    assert not os.listdir(place) and not (repo / "data").exists()


def traces(machine: System) -> list[str]:
    """Where a secret is: in a command line, the environment of a process that is not its user's, in what lies below the machine's folder."""
    secrets = [secret.encode() for secret in SECRETS.values()]
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command, uid = Path(f"/proc/{pid}/cmdline").read_bytes(), os.stat(f"/proc/{pid}").st_uid
            environ = b"" if SECRETS.get(uid) else Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if int(pid) != os.getpid() and any(secret in command + environ for secret in secrets):
            found.append(f"process {pid} of {uid}: {command[:80]!r}")
    for folder, folders, files in os.walk(machine.folder):
        folders[:] = [name for name in folders if name != "m"]  # a mount is its user's alone
        for path in (os.path.join(folder, name) for name in files):
            if os.path.isfile(path) and any(secret in Path(path).read_bytes() for secret in secrets):
                found.append(path)
    return found


def test_what_one_may_read_on_a_remote_is_not_the_other_s(machine: System, far: tuple[S3Server, str]) -> None:
    (alice, hers), (bob, his) = begin(machine, far, ALICE), begin(machine, far, BOB)
    place, other = alice.folder("m"), bob.folder("m")
    log_in(alice)
    alice.millpond("mount", "data", str(place), cwd=hers)
    alice.run(
        "cmp", "-n", "6", str(place / "sub/small"), "/dev/stdin", code=1
    )  # its input is empty: it has read the file
    assert alice.run("head", "-c", "5", str(place / "sub/small")) == "small"
    gets_nothing(bob, his, other)
    # All of it is in the store they share now, and hers.
    assert "fetched" in alice.millpond("fetch", cwd=hers) and reads(alice, hers) == {"read"}
    gets_nothing(bob, his, other)
    [mount] = json.loads(alice.millpond("mounts", "--json"))["mounts"]
    assert mount["state"] == "mounted" and json.loads(bob.millpond("mounts", "--json"))["mounts"] == []
    planted = machine.folder / "planted"
    planted.write_text(SECRETS[ALICE])
    assert traces(machine) == [str(planted)]
    planted.unlink()
    log_in(bob)
    assert "fetched" in bob.millpond("fetch", cwd=his) and reads(bob, his) == {"read"}
    bob.millpond("mount", "data", str(other), cwd=his)
    assert bob.run("head", "-c", "5", str(other / "sub/small")) == "small"
    assert traces(machine) == []
    for person, where in ((alice, place), (bob, other)):
        person.millpond("umount", str(where))
