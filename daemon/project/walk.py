"""The files of a folder in a manifest's order, each with the numbers that tell whether it changed.

Order: that of the paths as text, as in DVC's manifests: names of one folder sorted, a subfolder's as if it ended with a
slash, its files in its place. Links to files count as files (as in DVC, which stores what they point to); links to folders are left out.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from millpond.daemon.project.ignore import IGNORE_FILE, FolderRules

# Numbers kept of one file: dev, ino, size, mtime_ns, ctime_ns.
FIELDS = 5
_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _order(entry: os.DirEntry[str]) -> str:
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


@dataclass(slots=True)
class Listing:
    """The files below one folder.

    `paths`: relative, in order. `stats`: FIELDS numbers a file. `links`: indexes of files that are symbolic links.
    `odd`: (path, reason) of what cannot be stored. `skipped`: links to folders. `folders`: all subfolders, parents first.
    """

    paths: list[str] = field(default_factory=list)
    stats: array[int] = field(default_factory=lambda: array("q"))
    links: list[int] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> array[int]:
        return self.stats[2::FIELDS]

    @property
    def total(self) -> int:
        """Bytes in all files."""
        return sum(self.sizes)


def stat_fields(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """What identifies an unchanged file; in the order of Listing.stats."""
    dev, inode = found.st_dev, found.st_ino
    if (dev | inode) >> 63:  # unsigned 64-bit at the worst; kept as signed ones
        dev, inode = _signed(dev), _signed(inode)
    return dev, inode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def kind_of(mode: int) -> str | None:
    """What a file that is neither regular nor a folder is, in words; None for those two."""
    return _KINDS.get(stat.S_IFMT(mode))


def above(path: str) -> list[str]:
    """The folders above a relative path, nearest first."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


def list_folder(path: str, rules: FolderRules) -> Listing:
    """The files below `path`, a folder whose rules are `rules`.

    Raises PermissionError, FileNotFoundError, NotADirectoryError for `path` itself only; trouble below it goes to `odd`.
    """
    found = Listing()
    stack: list[tuple[str, FolderRules, Iterator[os.DirEntry[str]]]] = [("", rules, _entries(path))]
    while stack:
        prefix, rules, entries = stack[-1]
        folder = _take_files(found, prefix, rules, entries)
        if folder is None:
            stack.pop()
        elif not rules.ignores(folder.name, is_dir=True):
            inner = _enter(found, prefix + folder.name, folder, rules)
            if inner is not None:
                stack.append(inner)
    return found


def _take_files(
    found: Listing, prefix: str, rules: FolderRules, entries: Iterator[os.DirEntry[str]]
) -> os.DirEntry[str] | None:
    """Take entries up to the next folder, which is returned; None at the end. The loop that a status spends its time in."""
    ruled = bool(rules.levels)
    add_path, add_stats = found.paths.append, found.stats.extend
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            return entry
        name = entry.name
        # All names with built-in rules begin with a dot.
        if ((ruled or name[0] == ".") and (rules.ignores(name, is_dir=False) or name == IGNORE_FILE)) or not (
            entry.is_file(follow_symlinks=False)
        ):
            _take_other(found, prefix, entry, rules)
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            found.odd.append((prefix + name, _broken(False, error)))
            continue
        add_path(prefix + name)
        add_stats(stat_fields(status))
    return None


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return iter(sorted(entries, key=_order))


def _enter(
    found: Listing, relative: str, entry: os.DirEntry[str], rules: FolderRules
) -> tuple[str, FolderRules, Iterator[os.DirEntry[str]]] | None:
    try:
        with os.scandir(entry.path) as scan:
            entries = sorted(scan, key=_order)
    except OSError as error:
        found.odd.append((relative, f"cannot be read: {error.strerror}"))
        return None
    inner = rules.enter(entry.name, [item.name for item in entries])
    if inner is None:
        return None
    found.folders.append(relative)
    return relative + "/", inner, iter(entries)


def _take_other(found: Listing, prefix: str, entry: os.DirEntry[str], rules: FolderRules) -> None:
    """An entry that is neither a folder nor simply a file: ignored, a link, a socket..."""
    name = entry.name
    if rules.ignores(name, is_dir=False):
        return
    if name == IGNORE_FILE:
        found.odd.append((prefix + name, "is a file of ignore rules, which cannot lie inside tracked data"))
        return
    link = entry.is_symlink()
    try:
        status = entry.stat()
    except OSError as error:
        found.odd.append((prefix + name, _broken(link, error)))
        return
    if stat.S_ISREG(status.st_mode):
        found.links.append(len(found.paths))
        found.paths.append(prefix + name)
        found.stats.extend(stat_fields(status))
    elif stat.S_ISDIR(status.st_mode):
        found.skipped.append(prefix + name)
    else:
        found.odd.append((prefix + name, f"is {kind_of(status.st_mode) or 'of an unknown kind'}"))


def _broken(link: bool, error: OSError) -> str:
    if link and isinstance(error, FileNotFoundError):
        return "is a link to nothing"
    if isinstance(error, FileNotFoundError):
        return "vanished while the folder was read"
    return f"cannot be read: {error.strerror}"
