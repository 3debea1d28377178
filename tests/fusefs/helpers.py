"""A store, a tree in it, and a holder of its own process that shows it: mounted for real, always undone.

The holder runs below coreutils' `timeout`, so that a mount that hangs is ended from outside and every system call that
waits for it comes back with an error, whatever this process is doing then. Nothing here touches a mount but through
its reader: the table of mounts and the control socket tell the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.mounts.place import mounted_at
from millpond.daemon.names import ObjectName
from millpond.daemon.rpc import framing
from millpond.daemon.store.folders import Totals
from millpond.daemon.store.store import Store, StoreSettings
from millpond.daemon.store.trees import TreeEntry, build_tree

ROOT = Path(__file__).resolve().parents[2]
# Packages that are not where Python looks come the same way to the processes that are started.
PYTHONPATH = os.pathsep.join([os.fspath(ROOT / ".src"), *filter(None, [os.environ.get("PYTHONPATH")])])
UID = os.getuid()
# A holder is killed after this time, whatever happens.
LIFE_S = 110
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class File:
    """A file of a tree."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link of a tree."""

    target: bytes


Node = File | Link
# The engine of mounts that name none: the last one. See the fixture `engine`.
under_test = ["auto"]
ENGINES = ("direct", "erofs", "pyfuse3")


def open_store(path: Path) -> Store:
    return Store.open(StoreSettings(path, fsync=False, reserve_bytes=0))


def put(store: Store, contents: list[bytes], uid: int = UID) -> list[ObjectName]:
    """Store contents for `uid`; their names."""
    session = store.session(uid)
    names = []
    for start in range(0, len(contents), 500):
        part = contents[start : start + 500]
        pieces = [(len(data), True, False) for data in part]
        names += [stored.name for stored in session.feed(memoryview(b"".join(part)), pieces)]
    assert session.commit() == []
    return names


def put_tree(store: Store, tree: Mapping[bytes, Node], uid: int = UID) -> Totals:
    """Store every file of a tree and make its folders."""
    files = [node.data for node in tree.values() if isinstance(node, File)]
    names = iter(put(store, files, uid))
    entries = []
    for path, node in tree.items():
        if isinstance(node, File):
            entries.append(TreeEntry(path, len(node.data), node.executable, next(names)))
        else:
            entries.append(TreeEntry(path, target=node.target))
    return build_tree(store, sorted(entries, key=lambda entry: entry.path.split(b"/")))


def write_plain(folder: Path, tree: Mapping[bytes, Node]) -> None:
    """The same tree as plain files, with the modes that a mount shows."""
    base = os.fsencode(folder)
    for path, node in tree.items():
        full = os.path.join(base, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if isinstance(node, Link):
            os.symlink(node.target, full)
            continue
        with open(full, "wb") as file:
            file.write(node.data)
        os.chmod(full, 0o555 if node.executable else 0o444)
    for top, _, _ in os.walk(base, topdown=False):
        os.chmod(top, 0o555)


@dataclass(slots=True)
class Mounted:
    """A running holder and its mount. `pid` is the holder's own."""

    place: Path
    control: Path
    guard: subprocess.Popen[bytes]
    log: Path
    source: socket.socket
    pid: int = field(default=0)

    def ask(self, op: str = "state") -> dict[str, Any]:
        """What the control socket answers."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(os.fspath(self.control))
            sock.sendall(json.dumps({"op": op}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                part = sock.recv(65536)
                if not part:
                    break
                answer += part
        found: dict[str, Any] = json.loads(answer)
        return found

    def stats(self) -> dict[str, Any]:
        """The holder's counters."""
        found: dict[str, Any] = self.ask()["stats"]
        return found

    def memory_kib(self, field_name: str = "VmRSS") -> int:
        """A figure of the holder's /proc/PID/status, in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field_name + ":"):
                return int(line.split()[1])
        raise AssertionError(f"no {field_name} of process {self.pid}")

    def umount(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["fusermount3", "-u", *options, self.place], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def ended(self, seconds: float = TIMEOUT_S) -> int:
        """Wait for the holder's end; its exit status."""
        return self.guard.wait(seconds)

    def close(self) -> None:
        """Undo the mount, whatever state it is in."""
        while mounted_at(os.fspath(self.place)) is not None:
            self.umount("-z")
        try:
            self.guard.wait(5)
        except subprocess.TimeoutExpired:
            self.guard.terminate()  # passed on by `timeout`
            os.kill(self.pid, 9)
            self.guard.wait(10)
        self.source.close()


@contextlib.contextmanager
def mount(
    store: Path,
    totals: Totals | None,
    place: Path,
    *,
    source: Callable[[socket.socket], None] | None = None,
    uid: int = UID,
    engine: str | None = None,
    life_s: int = LIFE_S,
    device: int | None = None,
    **settings: Any,
) -> Iterator[Mounted]:
    """Run a holder of its own process. `source` is given the other end of the holder's source socket; without it
    that end is closed. `engine` is the one under test unless it is named. `device` is mounted there already."""
    if device is None:  # else nobody answers there yet
        place.mkdir(parents=True, exist_ok=True)
    control, log = place.with_name(place.name + ".sock"), place.with_name(place.name + ".log")
    ours, ready = socket.socketpair()
    source_ours, source_theirs = socket.socketpair()
    values = {
        "id": place.name,
        "store": wirepath.encode(os.fspath(store)),
        "uid": uid,
        "mountpoint": wirepath.encode(os.fspath(place)),
        "root": totals.root.hex() if totals else None,
        "files": totals.files if totals else 0,
        "bytes": totals.bytes if totals else 0,
        "engine": engine or under_test[-1],
        "control": wirepath.encode(os.fspath(control)),
        "log": wirepath.encode(os.fspath(log)),
        **settings,
    }
    fds = (ready.fileno(), source_theirs.fileno())
    given = () if device is None else (device,)
    command = ["timeout", "-s", "KILL", str(life_s), sys.executable, "-m", "millpond.fusefs.holder"]
    guard = subprocess.Popen(
        [*command, *map(str, fds), json.dumps(values), *map(str, given)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH},
        pass_fds=(*fds, *given),
        stdin=subprocess.DEVNULL,
    )
    ready.close()
    source_theirs.close()
    if source is None:
        source_ours.close()
    mounted = Mounted(place, control, guard, log, source_ours)
    try:
        ours.settimeout(TIMEOUT_S)
        answer = ours.recv(65536)
        assert "engine" in json.loads(answer), f"the holder said {answer!r}"
        mounted.pid = int(mounted.ask()["pid"])
        if source is not None:
            source(source_ours)
        yield mounted
    finally:
        ours.close()
        mounted.close()


@contextlib.contextmanager
def waiting_reader(program: str, mounted: Mounted, name: str, *more: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program that says "open", then reads what the source has not given yet: it sleeps in the kernel. Its arguments are the
    file's path, and more."""
    command = [sys.executable, "-c", program, os.fspath(mounted.place / name), *map(str, more)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        mounted.source.settimeout(TIMEOUT_S)
        try:
            yield process
        finally:
            process.kill()


# What a source of a test makes of a request: an answer with its descriptors, or bytes to be sent as they are.
Answer = Callable[[dict[str, Any]], "tuple[dict[str, Any], list[int]] | bytes"]


def answer_all(sock: socket.socket, make: Answer) -> None:
    """A source that answers as `make` says, in this thread, until the other side hangs up."""
    decoder = framing.Decoder(framing.parse_json)
    with contextlib.suppress(OSError):
        while framing.receive(sock, decoder):
            while (item := decoder.next()) is not None:
                made = make(item[0])
                if isinstance(made, bytes):
                    sock.sendall(made)
                    continue
                answer, fds = made
                framing.send(sock, framing.encode({"id": item[0].get("id"), **answer}, fds), fds)
                framing.close_all(fds)


def answering(make: Answer) -> Callable[[socket.socket], None]:
    """`answer_all` in a thread, for `mount`."""
    return lambda sock: threading.Thread(target=answer_all, args=(sock, make), daemon=True).start()


def eventually(check: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def share(mounted: Mounted) -> None:
    """Ask for something until servers take part in the answers."""
    before = mounted.stats()["served"]

    def shared() -> bool:
        for number in range(50):
            (mounted.place / f"none-{time.monotonic()}-{number}").exists()
        return bool(mounted.stats()["served"] > before + 5)

    eventually(shared, "servers take part")


def used_inodes(mounted: Mounted) -> int:
    """How many files `df -i` shows as used."""
    found = os.statvfs(mounted.place)
    return found.f_files - found.f_ffree


def run(*command: str | bytes | Path, cwd: Path | None = None) -> bytes:
    """A program's standard output; it must succeed, and say nothing on standard error."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode == 0 and not done.stderr, (command, done.returncode, done.stderr[-2000:])
    return done.stdout


def mixed(size: int, seed: int) -> bytes:
    """Bytes of which about half compress."""
    rng = random.Random(seed)
    parts = []
    left = size
    while left > 0:
        length = min(left, rng.randint(1, 50_000))
        parts.append(rng.randbytes(length) if rng.random() < 0.5 else bytes([rng.randrange(256)]) * length)
        left -= length
    return b"".join(parts)


# Around pages, the kernel's requests, and the smallest and largest chunk.
EDGES = sorted(
    {edge + step for edge in (0, 4096, 65536, 131072, 262144, 1 << 20) for step in (-1, 0, 1) if edge + step >= 0}
)


def strange_names() -> list[bytes]:
    """File names of all bytes that a name may have, of the greatest length, and such as trip programs up."""
    all_bytes = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    singles = [bytes([byte]) for byte in all_bytes if byte != ord(".")]
    odd = [
        b"...",
        b"-rf",
        b"a\nb",
        b" ",
        b"\\x41",
        b"%2F",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"\xff\xfe",
        b"\xed\xa0\x80",
    ]
    return [*singles, all_bytes, b"x" * 255, b"\xf0\x9f\x8c\x8a" * 63, *odd]


def sample_tree() -> dict[bytes, Node]:
    """A tree with everything that can be in one."""
    tree: dict[bytes, Node] = {b"empty": File(b""), b"run.sh": File(b'#!/bin/sh\necho ran "$@"\n', executable=True)}
    for size in EDGES:
        tree[b"sizes/%d" % size] = File(mixed(size, size))
    tree[b"big/mixed.bin"] = File(mixed(9_000_017, 1))
    tree[b"big/random.bin"] = File(random.Random(2).randbytes(5 << 20))
    # As of a file with holes; and equal chunks, over and over.
    tree[b"big/holes.bin"] = File(mixed(5000, 3) + bytes(2 << 20) + mixed(70_000, 4) + bytes(100_001))
    tree[b"big/zeros.bin"] = File(bytes(4 << 20))
    tree[b"same/one"] = tree[b"same/two"] = File(b"the same content")
    tree[b"same/runs"] = File(b"the same content", executable=True)
    tree[b"links/file"] = Link(b"../run.sh")
    tree[b"links/nowhere"] = Link(b"not/there\xff")
    tree[b"links/folder"] = Link(b"../sizes")
    tree[b"links/long"] = Link(b"x/" * 1000 + b"y")
    for number, name in enumerate(strange_names()):
        tree[b"names/" + name] = File(b"%d" % number)
        if number % 16 == 0:
            tree[b"folders/" + name + b"/inside"] = File(name)
    deep = b"/".join(b"level%d" % level for level in range(40))
    tree[b"deep/" + deep + b"/bottom"] = File(b"reached")
    return tree
