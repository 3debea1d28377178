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
from operator import attrgetter

from millpond.daemon.project.ignore import IGNORE_FILE, FolderRules

# Numbers kept of one file: dev, ino, size, mtime_ns, ctime_ns.
FIELDS = 5
# Folders on the way down that are kept open: below them each is asked for by its path.
_OPEN_LEVELS = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAME = attrgetter("name")
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


@dataclass(slots=True)
class _Level:
    """A folder on the way down: `prefix` is its relative path and a slash, `entries` what is left of it, `fd` the folder itself
    (what is asked of an open folder needs no long path to be gone along each time), None deep down."""

    prefix: str
    rules: FolderRules
    entries: Iterator[os.DirEntry[str]]
    fd: int | None

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)


def list_folder(path: str, rules: FolderRules) -> Listing:
    """The files below `path`, a folder whose rules are `rules`.

    Raises PermissionError, FileNotFoundError, NotADirectoryError for `path` itself only; trouble below it goes to `odd`.
    """
    found = Listing()
    stack = [_top(path, rules)]
    try:
        while stack:
            level = stack[-1]
            folder = _take_files(found, level)
            if folder is None:
                stack.pop().close()
            elif not level.rules.ignores(folder.name, is_dir=True):
                inner = _enter(found, path, level, folder, len(stack) < _OPEN_LEVELS)
                if inner is not None:
                    stack.append(inner)
        return found
    finally:
        for level in stack:
            level.close()


def _take_files(found: Listing, level: _Level) -> os.DirEntry[str] | None:
    """Take entries up to the next folder, which is returned; None at the end. The loop that a status spends its time in."""
    prefix, rules = level.prefix, level.rules
    ruled = bool(rules.levels)
    add_path, add_stats = found.paths.append, found.stats.extend
    for entry in level.entries:
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


def _in_order(scan: Iterator[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    entries = list(scan)
    has_folders = True in [entry.is_dir(follow_symlinks=False) for entry in entries]
    entries.sort(key=_order if has_folders else _NAME)
    return entries


def _top(path: str, rules: FolderRules) -> _Level:
    fd = os.open(path, _FOLDER)
    try:
        with os.scandir(fd) as scan:
            return _Level("", rules, iter(_in_order(scan)), fd)
    except BaseException:
        os.close(fd)
        raise


def _enter(found: Listing, path: str, above: _Level, entry: os.DirEntry[str], keep_open: bool) -> _Level | None:
    """A folder, to be gone through; None for what is ignored or cannot be read. `path` is the uppermost one's."""
    relative = above.prefix + entry.name
    level: _Level | None = None
    fd = None
    try:
        if keep_open and above.fd is not None:
            fd = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=above.fd)
        with os.scandir(f"{path}/{relative}" if fd is None else fd) as scan:
            entries = _in_order(scan)
        rules = above.rules.enter(entry.name, [each.name for each in entries])
        if rules is not None:
            found.folders.append(relative)
            level = _Level(f"{relative}/", rules, iter(entries), fd)
    except OSError as error:
        found.odd.append((relative, f"cannot be read: {error.strerror}"))
    finally:
        if level is None and fd is not None:
            os.close(fd)
    return level


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
