"""A mount of 1,000,000 files: time until a listing is answered, `find`, and what the holder's memory is after it.

The repository is as DVC makes one: a manifest and objects in `.dvc/cache`. Making a million different files would take
longer than all the rest, so every tenth is another object; a mount knows files by object, so this is told here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.context import Context
from bench.host import BenchError, memory
from bench.projects import Millpond
from bench.reading import find
from millpond.daemon.mounts.kernel import why_no_image

SECTION = "a million files"
FULL = 1_000_000
A_FOLDER = 1000
SAME = 10
SAMPLE = 500


def measure(context: Context) -> None:
    """Mounted for the first time, found through, unmounted, mounted again."""
    millpond = Millpond(context.folder / "million")
    context.stack.callback(millpond.close)
    millpond.init()
    files = max(100, round(FULL * context.scale))
    make(millpond.repo, files)
    millpond.command("daemon", "start", "-q")
    context.host.settle()
    for work, engine in (("first mount until ls", ""), ("next mount until ls", ""), ("next mount until ls", "erofs")):
        tool = f"millpond, {engine}" if engine else "millpond"
        if engine and why_no_image():
            continue
        options = ("--engine", engine) if engine else ()
        mounted = millpond.mount("data", context.place(SECTION.replace(" ", "-")), *options)
        try:
            before = memory(mounted.pid or 0)
            checked = _sample(mounted.root, files)
            context.figures.tell(SECTION, work, tool, mounted.ready_s, checked=checked)
            if engine or work.startswith("first"):
                _tell_memory(context, tool, "after ls", before, checked)
                _find(context, tool, mounted.root, files)
                _tell_memory(context, tool, "after find", memory(mounted.pid or 0), checked)
        finally:
            mounted.close()
    peak = millpond.daemon_peak()
    context.figures.tell(SECTION, "memory of the daemon, peak", "millpond", peak / 2**20, checked=checked, unit="MiB")


def _find(context: Context, tool: str, root: Path, files: int) -> None:
    seconds, found, size = find(root)
    if (found, size) != (files, sum(len(content(number)) for number in range(files))):
        raise BenchError(f"find saw {found} files of {size} bytes, {files} were named")
    context.figures.tell(SECTION, "find", tool, seconds, checked=size)


def make(repo: Path, files: int) -> None:
    """Write objects, manifest and pointer as DVC does."""
    cache, digests = repo / ".dvc/cache/files/md5", dict[bytes, str]()
    for number in range(256):
        (cache / f"{number:02x}").mkdir(parents=True)
    listing = cache / "listing"
    whole = hashlib.md5(usedforsecurity=False)
    with open(listing, "wb") as file:
        for number in range(files):
            data = content(number)
            if data not in digests:
                digests[data] = hashlib.md5(data, usedforsecurity=False).hexdigest()
                (cache / digests[data][:2] / digests[data][2:]).write_bytes(data)
            entry = f'{{"md5": "{digests[data]}", "relpath": "{path(number)}"}}'
            text = (("[" if number == 0 else ", ") + entry + ("]" if number == files - 1 else "")).encode()
            whole.update(text)
            file.write(text)
    name = whole.hexdigest()
    listing.rename(cache / name[:2] / f"{name[2:]}.dir")
    size = sum(len(content(number)) for number in range(files))
    pointer = f"outs:\n- md5: {name}.dir\n  size: {size}\n  nfiles: {files}\n  hash: md5\n  path: data\n"
    (repo / "data.dvc").write_text(pointer)


def path(number: int) -> str:
    """Relative path of a file; ascending, as a manifest is sorted."""
    return f"part-{number // A_FOLDER:04d}/file-{number:07d}.txt"


def content(number: int) -> bytes:
    """What a file holds."""
    return f"sample {number // SAME}\n".encode()


def _sample(root: Path, files: int) -> int:
    """Some files hold what they must; bytes compared."""
    checked = 0
    for number in range(0, files, max(1, files // SAMPLE)):
        data = (root / path(number)).read_bytes()
        if data != content(number):
            raise BenchError(f"{root / path(number)} does not hold what was stored")
        checked += len(data)
    return checked


def _tell_memory(context: Context, tool: str, when: str, seen: dict[str, int], checked: int) -> None:
    for what, label in (("rss", "holder's memory"), ("anon", "holder's memory without pages of files")):
        context.figures.tell(SECTION, f"{label} {when}", tool, seen[what] / 2**20, checked=checked, unit="MiB")
