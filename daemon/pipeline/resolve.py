"""A dvc.yaml with its templates filled in: one body for each stage, what loops make included."""

from __future__ import annotations

import contextlib
import itertools
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.errors import InvalidFileError
from millpond.daemon.pipeline import schema, template
from millpond.daemon.pipeline.template import Style, Template, TemplateError, Use
from millpond.daemon.pipeline.variables import Reader, Variables
from millpond.daemon.project import yamlio

# Between the name of a loop and what is of one turn.
JOIN = "@"
_FREE = Use(free=True)


@dataclass(frozen=True, slots=True)
class Body:
    """A stage as dvc.yaml has it, filled in. `definition`: its key in dvc.yaml, another than `name` for one turn of a
    loop; `written` is its entry there."""

    name: str
    definition: str
    entry: dict[str, Any]
    written: dict[str, Any]

    @property
    def looped(self) -> bool:
        return self.name != self.definition


@dataclass(slots=True)
class Document:
    """A dvc.yaml: `path` and `text` for errors, `bodies` by name, and the sections beside the stages; `variables` without
    any stage's own."""

    path: str
    text: str
    variables: Variables = field(default_factory=Variables)
    bodies: dict[str, Body] = field(default_factory=dict)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    params: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    plots: list[Any] = field(default_factory=list)
    artifacts: dict[str, Any] = field(default_factory=dict)
    datasets: list[Any] = field(default_factory=list)


def resolve(raw: bytes, path: str, read: Reader, style: Style, shown: str) -> Document:
    """The document of a dvc.yaml at `path` (from the project's root), `shown` so in errors. Raises InvalidFileError."""
    text = yamlio.decode(raw, shown)
    document = yamlio.load(text, shown)
    problem = next(schema.problems(document), None)
    if problem is not None:
        raise yamlio.invalid_at(shown, text, *problem)
    return _Resolver(Document(shown, text), document or {}, posixpath.dirname(path), read, style).run()


class _Resolver:
    def __init__(self, found: Document, document: dict[str, Any], folder: str, read: Reader, style: Style) -> None:
        self._found = found
        self._document = document
        self._folder = folder
        self._read = read
        self._style = style

    def run(self) -> Document:
        found, document = self._found, self._document
        found.variables = self._with_vars(
            Variables(), document.get("vars") or [], self._folder, ("vars",), default=True
        )
        found.definitions = document.get("stages") or {}
        for name, entry in found.definitions.items():
            for body in self._bodies(name, entry):
                found.bodies[body.name] = body
        for section in ("params", "metrics", "plots", "artifacts", "datasets"):
            if section in document:
                setattr(found, section, self._free(document[section], (section,)))
        return found

    def _bodies(self, name: str, entry: dict[str, Any]) -> Iterator[Body]:
        at: schema.Keys = ("stages", name)
        if "foreach" in entry:
            turns, entry, at = self._foreach(name, entry["foreach"]), entry["do"], (*at, "do")
        elif "matrix" in entry:
            turns = self._matrix(name, entry["matrix"])
            entry = {key: value for key, value in entry.items() if key != "matrix"}
        else:
            parsed = self._parsed(entry, at)
            yield Body(name, name, self._filled(parsed, entry, self._found.variables, at), entry)
            return
        parsed = self._parsed(entry, at)
        for key, values in turns.items():
            variables = self._found.variables.in_loop(values)
            yield Body(f"{name}{JOIN}{key}", name, self._filled(parsed, entry, variables, at), entry)

    def _foreach(self, name: str, written: Any) -> dict[str, dict[str, Any]]:
        """What is set in each turn, by the turn's key."""
        at = ("stages", name, "foreach")
        data = self._free(written, at)
        if isinstance(data, dict):
            texts = {template.text_of(key): value for key, value in data.items()}
            return {key: {"item": value, "key": key} for key, value in texts.items()}
        if not isinstance(data, list):
            raise self._error(at, f"'{_dotted(at)}' is '{data}', expected a list or a mapping")
        if any(isinstance(value, dict | list) for value in data):
            return {str(index): {"item": value} for index, value in enumerate(data)}
        return {_named(value, written, index): {"item": value} for index, value in enumerate(data)}

    def _matrix(self, name: str, written: dict[str, Any]) -> dict[str, dict[str, Any]]:
        at = ("stages", name, "matrix")
        data = self._free(written, at)
        for variable, values in data.items():
            if not isinstance(values, list | dict):
                raise self._error((*at, variable), f"'{_dotted((*at, variable))}' is '{values}', expected a list")
        found = {}
        for turn in itertools.product(*(enumerate(values) for values in data.values())):
            parts = [
                f"{variable}{index}" if isinstance(value, dict | list) else _named(value, written[variable], index)
                for variable, (index, value) in zip(data, turn, strict=True)
            ]
            item = {variable: value for variable, (_, value) in zip(data, turn, strict=True)}
            found["-".join(parts)] = {"item": item, "key": "-".join(parts)}
        return found

    def _parsed(self, entry: dict[str, Any], at: schema.Keys) -> dict[str, Template]:
        found = {}
        for key, value in entry.items():
            if key != "vars":
                with self._placed((*at, key)):
                    found[key] = template.parse(value)
        return found

    def _filled(
        self, parsed: Mapping[str, Template], entry: dict[str, Any], variables: Variables, at: schema.Keys
    ) -> dict[str, Any]:
        if entry.get("vars"):
            folder = self._folder
            if "wdir" in parsed:
                with self._placed((*at, "wdir")):
                    folder = posixpath.join(folder, template.text_of(parsed["wdir"].render(variables, Use())))
            variables = self._with_vars(variables, entry["vars"], folder, (*at, "vars"), default=False)
        found = {}
        for key, each in parsed.items():
            with self._placed((*at, key)):
                found[key] = each.render(variables, Use(command=key == "cmd", style=self._style))
        return found

    def _with_vars(
        self, variables: Variables, entries: list[Any], folder: str, at: schema.Keys, *, default: bool
    ) -> Variables:
        if template.has_expressions(entries):
            raise self._error(at, f"'{_dotted(at)}' cannot hold templates")
        with self._placed(at):
            return variables.with_vars(self._read, entries, folder, default=default, name=_dotted(at))

    def _free(self, value: Any, at: schema.Keys) -> Any:
        """A value that may be anything, filled in."""
        with self._placed(at):
            return template.parse(value).render(self._found.variables, _FREE)

    @contextlib.contextmanager
    def _placed(self, at: schema.Keys) -> Iterator[None]:
        """A TemplateError in it is an error of the file at that place."""
        try:
            yield
        except TemplateError as error:
            raise self._error(at, f"cannot resolve '{_dotted(at)}': {error}") from None

    def _error(self, at: schema.Keys, problem: str) -> InvalidFileError:
        return yamlio.invalid_at(self._found.path, self._found.text, at, problem)


def _named(value: Any, written: Any, index: int) -> str:
    """A value as part of a stage's name: as Python has it (`True`) if it came out of a template, as DVC has it."""
    if isinstance(written, list) and not template.has_expressions(written[index]):
        return template.text_of(value)
    return str(value)


def _dotted(at: schema.Keys) -> str:
    return ".".join(map(str, at))
