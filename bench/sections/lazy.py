"""Versions that only a remote has, read as they come, beside rclone, s3fs and `dvc pull`: through one S3 service that answers a
request after 20 ms, behind a link of 1 Gbit/s (bench/s3.py).

Every run begins with nothing here: a new user or an empty cache, a new mount. Times of the first byte and of reads include the mount, or
the pull, since without it nothing can be read. What was read is compared with what was stored; requests and bytes are the
service's own count. Peers that are not installed are named on stderr.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.context import Context
from bench.data import DataSet
from bench.figures import OURS
from bench.host import BenchError
from bench.projects import Dvc, Millpond
from bench.reading import COMMON, Reading, check, read, read_together
from bench.remotes import DvcPull, Lazy, Rclone, Reader, S3fs
from bench.s3 import S3, missing

SECTION = "lazy reads from S3"
FIRST, SOME = "mount to the first byte", "mount, 256 random small files"
EPOCH, STREAM = "mount, small files shuffled, 16 readers", "mount, 1 large file in sequence"
LISTED, BESIDE = (
    "mount of many remote-only files until ls",
    "mount of many remote-only files until ls, beside the listing",
)
PUSH, PULL = "push of small files to S3", "pull of small files from S3"
MEMORY = "memory of daemon and fetcher, small files"
LINK = "link"
_FILES, _READERS = 100_000, 16


def measure(context: Context) -> None:
    """All of it, or nothing where the service cannot run here."""
    lacks = missing()
    if lacks is not None:
        raise BenchError(f"lazy reads need an S3 service: {lacks}")
    folder = context.folder
    (folder / "s3").mkdir()
    service = S3(folder / "s3")
    context.stack.callback(service.close)
    pointers = _publish(context, service)
    readers: list[Reader] = [Lazy(folder / "lazy", service, pointers), DvcPull(folder / "dvc", service, pointers)]
    for program, make in (("rclone", Rclone), ("s3fs", S3fs)):
        if shutil.which(program) is None:
            print(f"bench: {program} is not installed, so it is not measured", file=sys.stderr)
        else:
            readers.append(make(folder / program, service))
    for reader in context.rounds(readers):
        small = context.data.get("small")
        if small is not None:
            _first(context, service, reader, small)
            _some(context, service, reader, small)
            _epoch(context, service, reader, small)
        if "shard" in context.data:
            _stream(context, service, reader, context.data["shard"])
    if "shard" in context.data:
        _through_the_link(context, service, context.data["shard"])
    _many(context, service)
    if "small" in context.data:
        _share(context, service, context.data["small"])


def _publish(context: Context, service: S3) -> Path:
    """Put the data sets on the service: pushed by millpond, and as plain trees; a folder of their pointers."""
    author = Millpond(context.folder / "author")
    try:
        author.init()
        # The bucket is a folder here, and so a remote without a network.
        (author.repo / ".dvc/config").write_text(
            f"[core]\n    remote = r\n    no_scm = True\n['remote \"r\"']\n    url = {service.bucket / 'team'}\n"
        )
        pointers = context.folder / "pointers"
        pointers.mkdir()
        for name, made in context.data.items():
            author.take(made.root, name)
            author.command("add", "-q", name)
            author.command("push", "-q")
            shutil.copytree(made.root, service.bucket / "tree" / name)
            shutil.copy(author.repo / f"{name}.dvc", pointers)
        return pointers
    finally:
        author.close()
        shutil.rmtree(author.folder)


def _timed(
    context: Context,
    service: S3,
    reader: Reader,
    made: DataSet,
    work: str,
    reading: Callable[[Path], Reading],
    volume: int = 0,
) -> None:
    """One run from nothing: mount (or pull) and read, and what that asked of the service."""
    place = context.place(reader.name.replace(" ", "-"))
    context.host.settle()
    mark = service.mark()
    mounted = reader.open(made.name, place)
    try:
        done = reading(mounted.root)
        if work == EPOCH and reader.name == OURS:
            context.figures.tell(
                SECTION, MEMORY, OURS, reader.memory(mounted) / 2**20, checked=done.checked, unit="MiB"
            )
    finally:
        mounted.close()
    traffic = service.since(mark)
    tell, checked = context.figures.tell, done.checked
    tell(SECTION, work, reader.name, mounted.ready_s + done.seconds, checked=checked, volume=volume)
    if work != FIRST:
        tell(SECTION, f"{work}: requests", reader.name, traffic.requests, checked=checked, unit="requests")
        tell(SECTION, f"{work}: sent", reader.name, traffic.bytes / 2**20, checked=checked, unit="MiB")


def _first(context: Context, service: S3, reader: Reader, made: DataSet) -> None:
    path = made.shuffled()[0]

    def reading(root: Path) -> Reading:
        began = time.perf_counter()
        with open(root / path, "rb", buffering=0) as file:
            found = file.read(1)
        seconds = time.perf_counter() - began
        with open(made.root / path, "rb") as file:
            if file.read(1) != found:
                raise BenchError(f"the first byte of {path} is another")
        return Reading(seconds, 1)

    _timed(context, service, reader, made, FIRST, reading)


def _some(context: Context, service: S3, reader: Reader, made: DataSet) -> None:
    _timed(context, service, reader, made, SOME, lambda root: read(root, made, made.shuffled()[:256]))


def _epoch(context: Context, service: S3, reader: Reader, made: DataSet) -> None:
    paths = made.shuffled()
    _timed(
        context, service, reader, made, EPOCH, lambda root: read_together(root, made, paths, _READERS), volume=made.size
    )


def _stream(context: Context, service: S3, reader: Reader, made: DataSet) -> None:
    _timed(context, service, reader, made, STREAM, lambda root: read(root, made, made.paths, COMMON), volume=made.size)


def _through_the_link(context: Context, service: S3, made: DataSet) -> None:
    """The large file by one request that is thrown away: what the link gives anybody."""
    [path] = made.paths
    for _ in range(context.runs):
        seconds, size = service.fetch(f"tree/{made.name}/{path}")
        if size != made.size:
            raise BenchError(f"the service gave {size} bytes of {path}, which has {made.size}")
        context.figures.tell(SECTION, STREAM, LINK, seconds, checked=size, volume=made.size)


def _many(context: Context, service: S3) -> None:
    """A version of very many files, none of which is here, mounted for the first time; and without the time of the listing, which is the
    service's: from its first request's start to its last one's end."""
    files = max(50, round(_FILES * context.scale))
    pointer = _make_many(service.bucket / "many", files)
    for number in range(context.runs):
        user = Millpond(context.folder / f"many-{number}")
        try:
            user.env |= service.environ
            user.init()
            (user.repo / ".dvc/config").write_text(service.config("many"))
            (user.repo / "data.dvc").write_text(pointer)
            user.command("daemon", "start", "-q")
            place = context.place(f"many-{number}")
            mark = service.mark()
            mounted = user.mount("data", place)
            began = time.perf_counter()
            seen = len(os.listdir(place / "0000"))
            seconds = mounted.ready_s + time.perf_counter() - began
            traffic = service.since(mark)
            context.figures.tell(SECTION, LISTED, OURS, seconds, checked=seen)
            context.figures.tell(SECTION, BESIDE, OURS, max(0.0, seconds - traffic.listing_s), checked=seen)
        finally:
            user.close()
            shutil.rmtree(user.folder)
    shutil.rmtree(service.bucket / "many")


def _make_many(remote: Path, files: int) -> str:
    """Objects of a manifest of so many small files, laid out as a DVC remote; the text of the pointer."""
    rng = random.Random("many")
    entries = []
    for number in range(files):
        data = rng.randbytes(40)
        entries.append({"md5": _put(remote, data, ""), "relpath": f"{number // 1000:04d}/{number:06d}.bin"})
    manifest = json.dumps(entries).encode()
    value = _put(remote, manifest, ".dir")
    return f"outs:\n- md5: {value}\n  size: {40 * files}\n  nfiles: {files}\n  hash: md5\n  path: data\n"


def _put(remote: Path, data: bytes, suffix: str) -> str:
    value = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
    path = remote / "files/md5" / value[:2] / value[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return value


def _share(context: Context, service: S3, made: DataSet) -> None:
    """Push and pull, each of a prefix of its own, as share.py does with a folder."""
    tools: list[Millpond | Dvc] = [make(context.folder / f"share-{make.name}") for make in (Millpond, Dvc)]
    for tool in tools:
        context.stack.callback(tool.close)
        tool.env |= service.environ
        tool.init()
        tool.take(made.root, "data")
        tool.command("add", "-q", "data")
    for number, tool in enumerate(context.rounds(tools)):
        context.host.settle()
        (tool.repo / ".dvc/config").write_text(service.config(f"share-{number}"))
        ran = tool.command("push")
        context.figures.tell(SECTION, PUSH, tool.name, ran.seconds, checked=len(ran.stdout))
        user = type(tool)(context.folder / f"user-{number}")
        try:
            user.env |= service.environ
            user.init()
            for name in ("data.dvc", ".dvc/config"):
                shutil.copy(tool.repo / name, user.repo / name)
            ran = user.command("pull")
            context.figures.tell(SECTION, PULL, tool.name, ran.seconds, checked=check(user.repo / "data", made))
        finally:
            user.close()
            shutil.rmtree(user.folder)
        shutil.rmtree(service.bucket / f"share-{number}")
