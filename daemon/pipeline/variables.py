"""What `${...}` may name in a dvc.yaml: params.yaml, the files and mappings of `vars`, and `item` and `key` in a loop."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.pipeline.template import TemplateError

PARAMS_FILE = "params.yaml"
# A file's document by its path from the project's root; None where it is not there. Raises InvalidFileError.
Reader = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Variables:
    """Values by name. Changes make another one, which shares with this one what is the same.

    `files`: which keys of which file are in (None: all); `origins`: (where it is from, values) of all that came in;
    `reserved`: names that only a loop sets.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    origins: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    reserved: frozenset[str] = frozenset()

    def select(self, expression: str) -> Any:
        """The value that `a.b[0]` stands for. Raises TemplateError."""
        found: Any = self.values
        for part in expression.replace("[", ".").replace("]", "").split("."):
            try:
                if isinstance(found, list):
                    found = found[int(part)]
                elif isinstance(found, Mapping):
                    found = found[part.strip()]
                else:
                    raise LookupError
            except (LookupError, ValueError):
                raise TemplateError(f"there is no '{expression}'") from None
        return found

    def in_loop(self, values: Mapping[str, Any]) -> Variables:
        """With `item` and `key` of one turn."""
        return Variables({**self.values, **values}, self.files, self.origins, self.reserved | values.keys())

    def with_vars(self, read: Reader, entries: list[Any], folder: str, *, default: bool, name: str) -> Variables:
        """With what a list `vars` says: files (`FILE`, `FILE:KEY,KEY`; relative to `folder`) and mappings.

        With `default` params.yaml comes first if it is there. `name` is the list's own. Raises TemplateError,
        InvalidFileError.
        """
        found = self
        if default and read(posixpath.normpath(posixpath.join(folder, PARAMS_FILE))) is not None:
            found = found._with_file(read, PARAMS_FILE, folder)
        for index, entry in enumerate(entries):
            if isinstance(entry, str):
                found = found._with_file(read, entry, folder)
            else:
                found = found._with(entry, f"{name}[{index}]")
        return found

    def _with_file(self, read: Reader, entry: str, folder: str) -> Variables:
        file, _, listed = entry.partition(":")
        path = posixpath.normpath(posixpath.join(folder, file))
        keys = tuple(key for key in listed.split(",") if key) or None
        if path in self.files:
            loaded = self.files[path]
            if loaded is None and keys is None:
                return self
            if loaded is None or keys is None or set(loaded) & set(keys):
                raise TemplateError(f"'{entry}' is loaded already, {'all' if loaded is None else 'a part'} of it")
        values = read(path)
        if values is None:
            raise TemplateError(f"the file '{path}' does not exist")
        if not isinstance(values, dict):
            raise TemplateError(f"the file '{path}' holds no mapping")
        if keys is not None:
            lacking = next((key for key in keys if key not in values), None)
            if lacking is not None:
                raise TemplateError(f"there is no '{lacking}' in '{path}'")
            values = {key: values[key] for key in keys}
        found = self._with(values, path)
        before = self.files.get(path) or ()
        return Variables(
            found.values, {**self.files, path: None if keys is None else (*before, *keys)}, found.origins, self.reserved
        )

    def _with(self, values: Mapping[str, Any], origin: str) -> Variables:
        taken = sorted(self.reserved & values.keys())
        if taken:
            raise TemplateError(f"'{taken[0]}' in '{origin}' has the name of a loop's own value")
        merged = _merged(self.values, values, (), self.origins, origin)
        return Variables(merged, self.files, (*self.origins, (origin, values)), self.reserved)


def _merged(
    into: Mapping[str, Any],
    new: Mapping[str, Any],
    above: tuple[str, ...],
    origins: tuple[tuple[str, Mapping[str, Any]], ...],
    origin: str,
) -> dict[str, Any]:
    found = dict(into)
    for key, value in new.items():
        if not isinstance(key, str):
            continue
        old = found.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            found[key] = _merged(old, value, (*above, key), origins, origin)
        elif key in found:
            path = (*above, key)
            raise TemplateError(f"'{'.'.join(path)}' of '{origin}' is in '{_origin(origins, path)}' already")
        else:
            found[key] = value
    return found


def _origin(origins: tuple[tuple[str, Mapping[str, Any]], ...], path: tuple[str, ...]) -> str:
    for name, values in origins:
        found: Any = values
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return name
    return "vars"
