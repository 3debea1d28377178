"""`remote`: the remotes of a project's config added, listed, changed, renamed and removed, in files written as DVC writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import RemoteConfigError, UsageError
from millpond.daemon.project import config
from millpond.daemon.project.configedit import Levels, Sections, relative
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.paths import printable


def remote(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {action, level, name, ...} -> {}; strings that people typed in wire form.

    `add` {url, default, force}, `modify` {option, value | null}, `rename` {new}, `remove`, `default` {name | null, unset} -> {name},
    `list` -> {rows: [{name, url, default}]}. Without a level the project's file is changed, and all are read. Raises
    RemoteConfigError (there is none of that name, or there is one), NotARepoError, TargetError (a change that DVC would refuse),
    InvalidFileError, UsageError.
    """
    editing = _Editing(context, Levels(params.get("level")), params)
    action = str(params.get("action"))
    if action not in ("add", "modify", "rename", "remove", "default", "list"):
        raise UsageError(f"there is no `remote {printable(action)}`")
    result: dict[str, Any] = getattr(editing, action)()
    return result


class _Editing:
    """One request."""

    def __init__(self, context: VerbContext, levels: Levels, params: dict[str, Any]) -> None:
        self._context = context
        self._levels = levels
        self._params = params
        self._level = levels.level or "project"
        self._name = self._text("name").lower()

    def add(self) -> dict[str, Any]:
        name, section = self._name, _section(self._name)

        def edit(sections: Sections, folder: str) -> None:
            if section in sections and not self._params.get("force"):
                raise RemoteConfigError(f"remote '{name}' already exists", hint="use -f/--force to overwrite it")
            url = relative(section, "url", self._text("url"), os.getcwd(), folder)
            sections[section] = {"url": url}
            if self._params.get("default"):
                sections.setdefault("core", {})["remote"] = name

        self._levels.edit(self._context, self._level, edit)
        return {}

    def modify(self) -> dict[str, Any]:
        section, option = _section(self._name), self._text("option").lower()
        self._require(self._name)

        def edit(sections: Sections, folder: str) -> None:
            values = sections.setdefault(section, {})
            if self._params.get("value") is None:
                values.pop(option, None)
            else:
                values[option] = relative(section, option, self._text("value"), os.getcwd(), folder)

        self._levels.edit(self._context, self._level, edit)
        return {}

    def rename(self) -> dict[str, Any]:
        name, new = self._name, self._text("new").lower()

        def edit(sections: Sections, folder: str) -> None:
            if _section(name) not in sections:
                raise _unknown(name)
            if _section(new) in sections:
                raise RemoteConfigError(f"remote '{new}' already exists", hint="choose another name")
            sections[_section(new)] = sections.pop(_section(name))
            _follow(sections, name, new)

        self._levels.edit(self._context, self._level, edit)
        self._follow_above(name, new)
        return {}

    def remove(self) -> dict[str, Any]:
        name = self._name

        def edit(sections: Sections, folder: str) -> None:
            if sections.pop(_section(name), None) is None:
                raise _unknown(name)
            _follow(sections, name, None)

        for level in self._above():
            above = self._levels.sections(level).get(_section(name), {})
            if above and "url" not in above:
                raise RemoteConfigError(
                    f"remote '{name}' has settings in the {level} config too",
                    hint=f"first: millpond remote remove --{level} {name}",
                )
        # What stands above is changed first: a default that names no remote is refused by DVC.
        if _section(name) in self._levels.sections(self._level):
            self._follow_above(name, None)
        self._levels.edit(self._context, self._level, edit)
        return {}

    def default(self) -> dict[str, Any]:
        if not self._name and not self._params.get("unset"):
            found = self._found_default()
            return {"name": None if found is None else wirepath.encode(found)}
        if self._name:
            self._require(self._name)

        def edit(sections: Sections, folder: str) -> None:
            if self._name:
                sections.setdefault("core", {})["remote"] = self._name
            else:
                sections.get("core", {}).pop("remote", None)

        self._levels.edit(self._context, self._level, edit)
        return {"name": None}

    def list(self) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {}
        for level in self._levels.read:
            for row in self._levels.rows(level):
                kind, _, rest = wirepath.decode(row["name"]).partition(".")
                name, _, key = rest.rpartition(".")
                if kind == "remote" and key == "url":
                    rows[name] = {"name": wirepath.encode(name), "url": row["value"], "default": False}
        chosen = self._found_default()
        if chosen in rows:
            rows[chosen]["default"] = True
        return {"rows": list(rows.values())}

    def _found_default(self) -> str | None:
        """What the strongest of the levels asked for says."""
        for level in reversed(self._levels.read):
            found = self._levels.sections(level).get("core", {}).get("remote")
            if found is not None:
                return str(found).lower()
        return None

    def _above(self) -> Sequence[str]:
        """The levels that are stronger than the one being changed."""
        return config.LEVELS[config.LEVELS.index(self._level) + 1 :]

    def _require(self, name: str) -> None:
        """Raise RemoteConfigError unless some level has the remote."""
        if not any(_section(name) in self._levels.sections(level) for level in self._levels.files):
            raise _unknown(name)

    def _follow_above(self, name: str, new: str | None) -> None:
        """Have the default of stronger levels follow."""
        for level in self._above():
            if self._levels.sections(level).get("core", {}).get("remote") == name:
                self._levels.edit(self._context, level, lambda sections, folder: _follow(sections, name, new))

    def _text(self, key: str) -> str:
        value = self._params.get(key)
        return "" if value is None else wirepath.decode(str(value))


def _section(name: str) -> str:
    return f'remote "{name}"'


def _follow(sections: Sections, name: str, new: str | None) -> None:
    core = sections.get("core", {})
    if core.get("remote") == name:
        if new is None:
            del core["remote"]
        else:
            core["remote"] = new


def _unknown(name: str) -> RemoteConfigError:
    return RemoteConfigError(f"remote '{printable(name)}' doesn't exist", hint="see `millpond remote list`")
