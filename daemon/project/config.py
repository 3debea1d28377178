"""`.dvc/config` and its levels: system, global, project, local; later ones win.

The text is the INI dialect that DVC writes: `[core]`, `['remote "name"']`, indented `key = value`, quotes around what
needs them, `#` comments. Unknown sections and keys are refused, as DVC does, because they are spelling mistakes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon import xdg
from millpond.daemon.errors import InvalidFileError
from millpond.daemon.project import configkeys
from millpond.daemon.project.paths import printable

LEVELS = ("system", "global", "project", "local")
# A value as it is written: one, or the items of a list.
Value = str | list[str]
# Quoted or bare; `[remote "name"]` as Git writes it is a bare one.
_SECTION = re.compile(r"""(\[+)\s*('\s*\S.*?\s*'|"\s*\S.*?\s*"|[^'"\s].*?)\s*(\]+)\s*(?:#.*)?""")
_NAMED = re.compile(r"(remote|machine|db)\s+\"(.*)\"")
_KEY = re.compile(r"""('.*?'|".*?"|[^'"=].*?)\s*=\s*(.*)""")
_TRIPLE = re.compile(r"""(\'\'\'|\"\"\")(.*?)\1\s*(?:#.*)?""")
# One value, then one item of several: a comment begins at any `#` outside of quotes.
_SINGLE = re.compile(r"""(".*?"|'.*?'|[^'",#][^,]*?|)\s*(?:#.*)?""")
_ITEM = re.compile(r"""\s*(".*?"|'.*?'|[^'",#][^,#]*?)\s*(?:(,)|(?=#)|\Z)""")


@dataclass(slots=True)
class Config:
    """Merged settings: `values[section][key]`, `remotes[name][key]`; `origin[section, key]` is the file that said it; `dvc_dir` of the
    project."""

    values: dict[str, dict[str, str]] = field(default_factory=dict)
    remotes: dict[str, dict[str, str]] = field(default_factory=dict)
    origin: dict[tuple[str, str], str] = field(default_factory=dict)
    dvc_dir: str = ""

    def get(self, section: str, key: str) -> str | None:
        return self.values.get(section, {}).get(key)

    def flag(self, section: str, key: str, default: bool = False) -> bool:
        """A boolean setting; `parse` has seen to it that it is one."""
        value = self.get(section, key)
        if value is None:
            return default
        return value.lower() == "true"

    def cache_dir(self, dvc_dir: str) -> str:
        """Where DVC's own cache is, absolute; a relative `cache.dir` belongs to the folder of the file that has it."""
        value = self.get("cache", "dir")
        if value is None:
            return os.path.join(dvc_dir, "cache")
        base = os.path.dirname(self.origin["cache", "dir"])
        return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


def level_paths(dvc_dir: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The file of each level."""
    user = environ.get("DVC_GLOBAL_CONFIG_DIR") or os.path.join(xdg.base(environ, "XDG_CONFIG_HOME", ".config"), "dvc")
    system = environ.get("DVC_SYSTEM_CONFIG_DIR") or os.path.join(
        xdg.absolute(environ.get("XDG_CONFIG_DIRS", "").split(":")[0]) or "/etc/xdg", "dvc"
    )
    return {
        "system": os.path.join(system, "config"),
        "global": os.path.join(user, "config"),
        "project": os.path.join(dvc_dir, "config"),
        "local": os.path.join(dvc_dir, "config.local"),
    }


def load(dvc_dir: str, environ: Mapping[str, str]) -> Config:
    """All levels merged. Raises InvalidFileError with file and line."""
    config = Config(dvc_dir=dvc_dir)
    for path in level_paths(dvc_dir, environ).values():
        merge_file(config, path)
    return config


def merge_file(config: Config, path: str) -> bool:
    """Lay a file's sections over what is there; False where there is no such file. Raises InvalidFileError."""
    text = text_of(path)
    if text is None:
        return False
    merge(config, parse(text, path), path)
    return True


def text_of(path: str) -> str | None:
    """A file's text; None where there is no such file. Raises InvalidFileError."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidFileError(f"cannot read '{printable(path)}': {error.strerror}", path=printable(path)) from error


def parse(text: str, path: str) -> dict[str, dict[str, str]]:
    """Sections (`core`, `remote "name"`) of one file, lower-cased as DVC does; a list's items are joined by commas.

    Raises InvalidFileError with the line of what DVC would not take.
    """
    return {
        name: {key: _meant(name, key, value) for key, value in section.items()}
        for name, section in entries(text, path).items()
    }


def entries(text: str, path: str, *, check: bool = True) -> dict[str, dict[str, Value]]:
    """The sections of one file with their values as they are written.

    Raises InvalidFileError as `parse` does. Without `check` any section, key and value is taken, so that what is wrong
    can be changed; sections within sections are refused then, for they would be lost.
    """
    sections: dict[str, dict[str, Value]] = {}
    spellings: set[str] = set()
    current: dict[str, Value] | None = None
    known: Mapping[str, int] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        header = _SECTION.fullmatch(stripped)
        if header is not None:
            spelling, name = _section_name(header, known is None and current is not None, path, number)
            if name is None:
                if not check:
                    raise _invalid(path, number, "a section within a section: change this file with an editor")
                current = {}  # a section within one whose keys are free
                continue
            if spelling in spellings:
                raise _invalid(path, number, f"section [{name}] is there twice")
            spellings.add(spelling)
            known = _known_keys(name, path, number) if check else None
            current = sections[name] = {}
            continue
        if current is None:
            raise _invalid(path, number, f"'{stripped}' stands before any section")
        _setting(stripped, current, known, path, number)
    return sections


def merge(config: Config, sections: Mapping[str, Mapping[str, str]], path: str) -> None:
    """Lay one file's sections over what is there."""
    for section, values in sections.items():
        named = _NAMED.fullmatch(section)
        if named is not None and named[1] == "remote":
            target = config.remotes.setdefault(named[2], {})
        else:
            target = config.values.setdefault(section, {})
        for key, value in values.items():
            target[key] = value
            config.origin[section, key] = path


def _section_name(header: re.Match[str], free: bool, path: str, line: int) -> tuple[str, str | None]:
    """A section's name as it is spelled and as it is meant; None for one within another whose keys are free."""
    opening, name, closing = header.groups()
    if len(opening) != len(closing) or (len(opening) > 1 and not free):
        raise _invalid(path, line, f"'{header[0]}' is no section")
    if name[0] in "'\"":
        name = name[1:-1]
    return name, None if len(opening) > 1 else name.strip().lower()


def _known_keys(section: str, path: str, line: int) -> Mapping[str, int] | None:
    """The keys that a section may have, None where they are free."""
    named = _NAMED.fullmatch(section)
    if named is not None:
        return {"remote": configkeys.REMOTE, "db": configkeys.DATABASE}.get(named[1])
    if section in ("feature", "machine"):
        return None
    if section in ("remote", "db"):
        return {}
    if section not in configkeys.SECTIONS:
        raise _invalid(path, line, f"unknown section [{section}]")
    return configkeys.SECTIONS[section]


def _meant(section: str, key: str, value: Value) -> str:
    """A value as it counts: names are lower-cased."""
    text = value if isinstance(value, str) else ",".join(value)
    return text.lower() if configkeys.SECTIONS.get(section, {}).get(key) == configkeys.NAME else text


def _near(key: str, known: Iterable[str]) -> str:
    """Which key may have been meant."""
    # The shorter of two that begin alike comes first: access_key is access_key_id.
    begun = sorted((each for each in known if each.startswith(key) and len(key) > 2), key=len)
    close = begun or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _setting(text: str, section: dict[str, Value], known: Mapping[str, int] | None, path: str, line: int) -> None:
    """Put one `key = value` into its section."""
    pair = _KEY.fullmatch(text)
    if pair is None:
        raise _invalid(path, line, f"'{text}' is neither a section nor key = value")
    key = _unquoted(pair[1]).lower()
    # A remote within another's has the keys of that one's kind.
    free = known is configkeys.REMOTE and str(section.get("url", "")).startswith("remote://")
    if known is not None and key not in known and not free:
        raise _invalid(path, line, f"unknown key '{key}'{_near(key, known)}")
    if key in section:
        raise _invalid(path, line, f"key '{key}' is there twice")
    values, listed = _values(pair[2], path, line)
    kind = configkeys.FREE if known is None or free else known[key]
    problem = configkeys.problem(kind, values, listed)
    if problem is not None:
        raise _invalid(path, line, f"{key}: {problem}")
    section[key] = values if listed else values[0]


def _values(text: str, path: str, line: int) -> tuple[list[str], bool]:
    """The items of a value, and whether it is written as a list."""
    triple = _TRIPLE.fullmatch(text)
    if triple is not None:
        return [triple[2]], False
    single = _SINGLE.fullmatch(text)
    if single is not None:
        return [_unquoted(single[1])], False
    rest = text.partition(",")[2].strip() if text.startswith(",") else None
    if rest is not None and (not rest or rest.startswith("#")):
        return [], True
    items, at = [], 0
    while at < len(text) and text[at] != "#":
        item = _ITEM.match(text, at)
        if item is None:
            raise _invalid(path, line, f"{text} has a quote or a comma that does not fit")
        items.append(_unquoted(item[1]))
        at = item.end()
        if not item[2]:
            break
        at += len(text[at:]) - len(text[at:].lstrip())
    return items, True


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] else text


def _invalid(path: str, line: int, problem: str) -> InvalidFileError:
    details: dict[str, Any] = {"line": line, "column": 1}
    return InvalidFileError(f"'{path}' line {line}: {problem}", path=path, details=details)
