"""`config`, `cache dir`: settings of DVC's levels shown and changed, in files written as DVC writes them.

DVC writes a level's file anew from its values: comments and empty sections go, named sections come last, paths become
relative to the file's folder. What the changed file would have DVC refuse is refused before anything is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import InvalidFileError, NotARepoError, TargetError, UsageError
from millpond.daemon.project import config, configkeys
from millpond.daemon.project.config import Value
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.ignore import DVC_DIR
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import find_root

Sections = dict[str, dict[str, Value]]

_REPO_LEVELS = ("project", "local")
_KINDS = ("remote", "machine", "db")
_NAME = re.compile(r"(?:(remote|db)\.)?([^.]*)\.([^.]*)")
_NAMED = re.compile(r'(remote|machine|db)\s*"(.*)"')
_URL = re.compile(r"\w+://")
# Keys whose values are paths, by the kind of section.
_PATHS = {
    "cache": {"dir"},
    "remote": {
        *("url", "credentialpath", "configpath", "keyfile", "cert_path", "key_path"),
        *("gdrive_user_credentials_file", "gdrive_service_account_json_file_path"),
    },
    "machine": {"startup_script", "setup_script"},
}
_EDGES = " \r\n\v\t'\""


def config_verb(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {name, value, unset, level} -> {rows: [{name, value, file}]}; values and files in wire form.

    Without a name all settings are rows, with one what it is (no row where no level says it); with `value` or `unset`
    there are none: the level (by default the project's) is changed. Raises UsageError, NotARepoError, TargetError (no
    such option, or a change that DVC would refuse), InvalidFileError.
    """
    levels = Levels(params.get("level"))
    if params.get("name") is None:
        rows = [row for level in levels.read for row in levels.rows(level)]
        return {"rows": rows}
    section, key = _split(str(params["name"]))
    if params.get("value") is not None or params.get("unset"):
        levels.change(context, section, key, params.get("value"))
        return {"rows": []}
    row = levels.find(section, key)
    return {"rows": [row] if row else []}


def cache_dir(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {value, unset, level} -> {path}: where DVC's cache is, in wire form, absolute; "" after a change.

    Raises as `config_verb` does.
    """
    levels = Levels(params.get("level"))
    if params.get("value") is not None or params.get("unset"):
        levels.change(context, "cache", "dir", params.get("value"))
        return {"path": ""}
    row = levels.find("cache", "dir")
    if row is not None:
        return {"path": row["value"]}
    return {"path": wirepath.encode(os.path.join(levels.require_root(), DVC_DIR, "cache"))}


class Levels:
    """The levels that a request is about, and their files."""

    def __init__(self, level: str | None) -> None:
        self.level = level
        try:
            self.root: str | None = find_root(os.getcwd())
        except NotARepoError:
            self.root = None
        if level in _REPO_LEVELS:
            self.require_root()
        every = config.level_paths(os.path.join(self.root or "", DVC_DIR), os.environ)
        self.files = {name: path for name, path in every.items() if self.root or name not in _REPO_LEVELS}
        self.read = [level] if level else list(self.files)

    def require_root(self) -> str:
        """The project's root. Raises NotARepoError."""
        return self.root or find_root(os.getcwd())

    def rows(self, level: str) -> list[dict[str, Any]]:
        """A level's settings, in DVC's order."""
        path = self.files[level]
        shown = path if self.root is None or level not in _REPO_LEVELS else os.path.relpath(path, self.root)
        found = []
        for section, values in _ordered(_load(path), named_first=True):
            named = _NAMED.fullmatch(section)
            prefix = f"{named[1]}.{named[2]}" if named else section
            for key, value in values.items():
                name = wirepath.encode(f"{prefix}.{key}")
                text = str(_resolved(section, key, value, os.path.dirname(path)))
                found.append({"name": name, "value": wirepath.encode(text), "file": wirepath.encode(shown)})
        return found

    def find(self, section: str, key: str) -> dict[str, Any] | None:
        """What the strongest level says. Raises TargetError where one level was asked for and says nothing."""
        named = _NAMED.fullmatch(section)
        name = wirepath.encode(f"{named[1]}.{named[2]}.{key}" if named else f"{section}.{key}")
        for level in reversed(self.read):
            for row in self.rows(level):
                if row["name"] == name:
                    return row
        if self.level:
            raise _missing(_load(self.files[self.level]), section, key)
        return None

    def change(self, context: VerbContext, section: str, key: str, value: str | None) -> None:
        """Set an option (`value` in wire form), or unset it (None), durably. Raises TargetError; nothing changed then."""

        def edit(sections: Sections, folder: str) -> None:
            if value is not None:
                text = relative(section, key, wirepath.decode(value), os.getcwd(), folder)
                sections.setdefault(section, {})[key] = text
            elif key not in sections.get(section, {}):
                raise _missing(sections, section, key)
            else:
                del sections[section][key]

        self.edit(context, self.level or "project", edit)

    def sections(self, level: str) -> Sections:
        """What one level's file says, as written. Raises InvalidFileError."""
        return _load(self.files[level]) if level in self.files else {}

    def edit(self, context: VerbContext, level: str, change: Callable[[Sections, str], None]) -> None:
        """Have `change` alter a level's sections, given its folder, and write the file durably. Raises what that raises, and
        TargetError where DVC would refuse the file; nothing changed then."""
        if level in _REPO_LEVELS:
            self.require_root()
        # The file itself, where it is reached by a link.
        path = self.files[level]
        with context.lock((self.root if level in _REPO_LEVELS else None) or os.path.dirname(path), "write"):
            sections = _load(path)
            folder = os.path.dirname(path)
            before = {name: dict(values) for name, values in sections.items()}
            change(sections, folder)
            for name, values in sections.items():
                for other, kept in values.items():
                    if isinstance(kept, str) and before.get(name, {}).get(other) == kept:
                        values[other] = relative(name, other, kept, folder, folder)
            written = render(sections)
            self._check(level, sections, written)
            try:
                os.makedirs(folder, exist_ok=True)
                write_all({os.path.realpath(path): written})
            except OSError as error:
                raise write_error(error) from error

    def _check(self, level: str, sections: Sections, written: str) -> None:
        """Raise TargetError where DVC would refuse the levels up to this one."""
        try:
            config.entries(written, "")
        except InvalidFileError as error:
            problem = str(error).partition(": ")[2]
            raise TargetError(f"'{printable(self.files[level])}' would not be valid: {problem}") from error
        known: set[str] = set()
        remotes: dict[str, None] = {}
        lower = list(self.files)[: list(self.files).index(level)]
        for each in [*(_load(self.files[name]) for name in lower), sections]:
            remotes |= {name: None for name in each if name.startswith("remote ")}
            known |= {name for name, values in each.items() if "url" in values}
        for name in remotes:
            if name not in known:
                raise TargetError(f"'{printable(self.files[level])}' would not be valid: {name} has no url")


def render(sections: Sections) -> str:
    """The text of a config file, byte for byte as DVC writes it. Raises TargetError (quotes that no quoting can hold)."""
    lines = []
    for section, values in _ordered(sections, named_first=False):
        if values or _NAMED.fullmatch(section):
            lines.append(f"[{_quoted(section, multiline=False)}]")
            lines += [f"    {_quoted(key, multiline=False)} = {_quoted_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _split(name: str) -> tuple[str, str]:
    """Section and key of `core.remote`, `remote.name.url`. Raises UsageError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError("name argument should look like remote.name.option or db.name.option or section.option")
    section = f'{match[1]} "{match[2].lower()}"' if match[1] else match[2].lower()
    return section, match[3].lower()


def _load(path: str) -> Sections:
    """One level's sections as written; none where there is no file. Raises InvalidFileError."""
    found: Sections = {}
    for section, values in config.entries(config.text_of(path) or "", path, check=False).items():
        named = _NAMED.fullmatch(section)
        found[f'{named[1]} "{named[2]}"' if named else section] = values
    return found


def _ordered(sections: Sections, *, named_first: bool) -> list[tuple[str, dict[str, Value]]]:
    """Sections as DVC orders them: plain ones as they stand, remotes, machines and databases before or behind them."""
    plain = [(name, values) for name, values in sections.items() if not _NAMED.fullmatch(name)]
    named = [item for kind in _KINDS for item in sections.items() if item[0].startswith(f'{kind} "')]
    return [*named, *plain] if named_first else [*plain, *named]


def _is_path(section: str, key: str, value: Value) -> bool:
    named = _NAMED.fullmatch(section)
    paths = _PATHS.get(named[1] if named else section, set())
    return key in paths and isinstance(value, str) and not _URL.match(value)


def _resolved(section: str, key: str, value: Value, folder: str) -> Value:
    """A value as it is shown: paths absolute, from the file's folder."""
    if not isinstance(value, str) or not _is_path(section, key, value) or os.path.isabs(value):
        return value
    expanded = os.path.expanduser(value)
    return expanded if os.path.isabs(expanded) else os.path.abspath(os.path.join(folder, value))


def relative(section: str, key: str, value: str, base: str, folder: str) -> str:
    """A value as it is written: a path relative to `base` becomes relative to the file's folder."""
    if not _is_path(section, key, value) or os.path.expanduser(value) != value or os.path.isabs(value):
        return value
    return os.path.relpath(os.path.join(base, value), folder)


def _quoted_value(value: Value) -> str:
    if isinstance(value, str):
        return _quoted(value, multiline=True)
    items = [_quoted(item, multiline=False) for item in value]
    return ", ".join(items) if len(items) > 1 else "".join(items) + ","


def _quoted(value: str, *, multiline: bool) -> str:
    if not value:
        return '""'
    both = "'" in value and '"' in value
    if multiline and (both or "\n" in value):
        if "'''" not in value or '"""' not in value:
            return f"'''{value}'''" if '"""' not in value else f'"""{value}"""'
    elif "\n" not in value:
        if value[0] not in _EDGES and value[-1] not in _EDGES and "," not in value and "#" not in value:
            return value
        if not both:
            return f"'{value}'" if '"' in value else f'"{value}"'
    raise TargetError(f"'{printable(value)}' has quotes or line breaks that a config file cannot hold")


def _missing(sections: Sections, section: str, key: str) -> TargetError:
    named = _NAMED.fullmatch(section)
    kind, name = (named[1], named[2]) if named else ("section", section)
    if section not in sections and (named or section not in configkeys.SECTIONS):
        return TargetError(f"{kind} '{printable(name)}' doesn't exist")
    return TargetError(f"option '{printable(key)}' doesn't exist in {kind} '{printable(name)}'")
