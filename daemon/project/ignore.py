"""`.dvcignore` rules, as DVC applies them: which paths of a workspace do not exist for us.

Built in: `.git` (file or folder) and folders `.dvc`, always; folders `.hg`, unless a rule says otherwise. A folder below the
root that holds an entry named `.dvc` is another repository and is ignored whole. Rules of a folder's `.dvcignore` are Git's
patterns and bind that folder and all below it; the last rule that matches wins, deeper files being later; a `.dvcignore` that
is ignored itself, or inside an ignored folder, is never read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.project.rootdir import DVC_DIR as DVC_DIR

IGNORE_FILE = ".dvcignore"
_BUILTIN_ANY = frozenset({".git"})
_BUILTIN_DIRS = frozenset({".git", DVC_DIR})
# Folders of the tools themselves: what is tracked never lies in one, whatever a pointer says.
OWN_FOLDERS = frozenset({".git", ".hg", DVC_DIR})
# A file of rules beyond this is refused: the rules of a level become one regular expression.
MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Rule:
    """`regex` is searched in a path relative to the rule's folder; `folders_only`: says nothing of files."""

    line: int
    text: str
    regex: re.Pattern[str]
    ignores: bool
    folders_only: bool


@dataclass(frozen=True, slots=True)
class _Level:
    """One `.dvcignore`: `folder` is "" or "a/b/", relative to the root; `any_ignoring` joins all rules that ignore."""

    folder: str
    rules: tuple[_Rule, ...]
    any_ignoring: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class FolderRules:
    """The rules in force in one folder. `folder` is "" for the root, else "a/b/"; `levels` deepest first."""

    root: str
    folder: str
    levels: tuple[_Level, ...]

    def ignores(self, name: str, is_dir: bool) -> bool:
        """Whether the entry `name` of this folder is ignored (other repositories are seen by `enter` only)."""
        if name in (_BUILTIN_DIRS if is_dir else _BUILTIN_ANY):
            return True
        path = f"{self.folder}{name}/" if is_dir else self.folder + name
        hg = is_dir and name == ".hg"
        if not hg and not any(
            level.any_ignoring is not None and level.any_ignoring.search(path[len(level.folder) :])
            for level in self.levels
        ):
            return False
        _, rule = self.deciding(path)
        return rule.ignores if rule is not None else hg

    def deciding(self, path: str) -> tuple[_Level | None, _Rule | None]:
        """The rule that decides on `path` (relative to the root; a folder's ends with a slash), None where none matches.

        The last that matches, by the entry's own name or by that of a folder above it. Rules with a slash at the end
        are for folders only: what is in an ignored folder is never asked for.
        """
        is_file = not path.endswith("/")
        for level in self.levels:
            rest = path[len(level.folder) :]
            for rule in reversed(level.rules):
                if not (is_file and rule.folders_only) and rule.regex.search(rest):
                    return level, rule
        return None, None

    def enter(self, name: str, entries: Iterable[str] | None = None) -> FolderRules | None:
        """The rules inside the subfolder `name` (itself not ignored by `ignores`), None if it is another repository.

        `entries`: the names in that folder where they are known; saves two system calls.
        """
        folder = f"{self.folder}{name}/"
        path = os.path.join(self.root, folder)
        known = None if entries is None else frozenset(entries)
        if (DVC_DIR in known) if known is not None else os.path.lexists(path + DVC_DIR):
            return None
        inner = FolderRules(self.root, folder, self.levels)
        if known is not None and IGNORE_FILE not in known or inner.ignores(IGNORE_FILE, is_dir=False):
            return inner
        return inner.with_file(path)

    def with_file(self, path: str) -> FolderRules:
        """These rules and those of the `.dvcignore` in the folder `path`, if there is one."""
        level = _load(path, self.folder)
        return FolderRules(self.root, self.folder, (level, *self.levels)) if level else self


def in_tree(folder: str, files: Iterable[tuple[str, bytes]]) -> FolderRules:
    """The rules in a folder ("" or "a/b/") of a tree that is not on disk; `files`: (folder, content) of each `.dvcignore` from the
    root down to it. Raises InvalidFileError."""
    levels = [_level(raw, f"{place}{IGNORE_FILE}", place) for place, raw in files]
    return FolderRules("", folder, tuple(level for level in reversed(levels) if level is not None))


class IgnoreRules:
    """All `.dvcignore` rules of a repository at `root` (absolute)."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"
        self._top: FolderRules | None = None
        # The way to the folder that was asked for last, which is mostly the way to the next one too.
        self._way: list[tuple[str, FolderRules]] = []

    @property
    def top(self) -> FolderRules:
        """The rules in the root folder. Raises InvalidFileError."""
        if self._top is None:
            self._top = FolderRules(self.root, "", ()).with_file(os.path.join(self.root, ""))
        return self._top

    def at(self, folder: str) -> FolderRules | None:
        """The rules inside `folder` (relative to the root, "" for the root); None if it is ignored."""
        names = folder.split("/") if folder else []
        same = len(os.path.commonprefix([names, [name for name, _ in self._way]]))
        del self._way[same:]
        rules = self._way[-1][1] if self._way else self.top
        for name in names[same:]:
            inner = None if rules.ignores(name, is_dir=True) else rules.enter(name)
            if inner is None:
                return None
            rules = inner
            self._way.append((name, rules))
        return rules

    def is_ignored(self, path: str, is_dir: bool) -> bool:
        """Whether `path` (relative to the root) is ignored, itself or by a folder above it."""
        return self.explain(path, is_dir) is not None

    def explain(self, path: str, is_dir: bool) -> str | None:
        """Why `path` is ignored: "FILE:LINE:PATTERN", or words for a built-in rule; None if it is not ignored."""
        rules: FolderRules | None = self.top
        names = path.split("/")
        for depth, name in enumerate(names):
            folder = is_dir or depth < len(names) - 1
            assert rules is not None
            if rules.ignores(name, folder):
                return _why(rules, name, folder)
            if folder:
                rules = rules.enter(name)
                if rules is None:
                    return f"another repository in '{'/'.join(names[: depth + 1])}'"
        return None

    def matching(self, path: str, is_dir: bool) -> tuple[bool, list[str]]:
        """(is it ignored, "FILE:LINE:PATTERN" of each rule that says something of `path`, the deciding one last); a built-in
        rule has neither file nor line."""
        names = path.split("/")
        folders = names if is_dir else names[:-1]
        found = [f":{name}/" for name in (".hg", DVC_DIR) if name in folders]
        found += [":.git"] if ".git" in names else []
        rules = self._nearest(names[:-1])
        target = f"{path}/" if is_dir else path
        for level in reversed(rules.levels):
            for rule in level.rules:
                if rule.regex.search(target[len(level.folder) :]):
                    found.append(f"{level.folder}{IGNORE_FILE}:{rule.line}:{rule.text}")
        return self.is_ignored(path, is_dir), found

    def _nearest(self, names: list[str]) -> FolderRules:
        """The rules inside the innermost of these folders that is not ignored."""
        rules = self.top
        for name in names:
            inner = None if rules.ignores(name, is_dir=True) else rules.enter(name)
            if inner is None:
                break
            rules = inner
        return rules


def _why(rules: FolderRules, name: str, is_dir: bool) -> str:
    if name in (_BUILTIN_DIRS if is_dir else _BUILTIN_ANY):
        return f"built-in rule for '{name}'"
    path = f"{rules.folder}{name}/" if is_dir else rules.folder + name
    level, rule = rules.deciding(path)
    if level is not None and rule is not None:
        return f"{level.folder}{IGNORE_FILE}:{rule.line}:{rule.text}"
    return f"built-in rule for '{name}'"


def _load(folder_path: str, folder: str) -> _Level | None:
    """The rules of one `.dvcignore`, None where there is no such file or it has no rules."""
    path = os.path.join(folder_path, IGNORE_FILE)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        if not os.access(folder_path, os.X_OK):
            return None  # whoever lists this folder will say that it cannot be read
        raise InvalidFileError(f"cannot read '{path}': {error.strerror}", path=path) from error
    return _level(raw, path, folder)


def _level(raw: bytes, path: str, folder: str) -> _Level | None:
    if len(raw) > MAX_BYTES:
        raise InvalidFileError(f"'{path}' has more than {MAX_BYTES >> 20} MiB of ignore rules", path=path)
    rules = tuple(_parse(raw, path))
    if not rules:
        return None
    # The patterns' named groups would clash when joined.
    ignoring = [rule.regex.pattern.replace("(?P<ps_d>", "(?:") for rule in rules if rule.ignores]
    joined = re.compile("|".join(f"(?:{text})" for text in ignoring)) if ignoring else None
    return _Level(folder, rules, joined)


def _parse(raw: bytes, path: str) -> Iterable[_Rule]:
    # A byte order mark is not part of the first pattern; Git strips it as well.
    lines = raw.removeprefix(b"\xef\xbb\xbf").splitlines()
    if not any(line.strip() and not line.startswith(b"#") for line in lines):
        return
    # Late: most repositories have no rules, and the import takes longer than a status.
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InvalidFileError(
                f"'{path}' line {number} is not UTF-8 text",
                path=path,
                details={"line": number, "column": error.start + 1},
            ) from error
        try:
            pattern, include = GitIgnoreSpecPattern.pattern_to_regex(text)
        except ValueError as error:
            raise InvalidFileError(
                f"'{path}' line {number}: '{text}' is not a valid pattern",
                path=path,
                details={"line": number, "column": 1},
            ) from error
        if pattern is None or include is None:
            continue
        yield _Rule(number, text, re.compile(str(pattern)), bool(include), text.endswith("/"))
