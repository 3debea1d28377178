"""`${...}` in values of dvc.yaml: parsed once, filled in for each stage that is made of them.

`${a.b[0]}` alone stands for the value itself; inside a text for its text (`true`, `1e-05`), and a mapping in a command for
options: `--lr 0.1 --layers 1 2`. `\\${` is `${` as it stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_OPEN = re.compile(r"(?<!\\)\$\{(.*?)\}")
_EXPRESSION = re.compile(r"[^.\[\]]+(?:\s*\.[^.\[\]]+|\s*\[[^.\[\]]+\s*\])*")


class TemplateError(Exception):
    """What is wrong with a template: part of a sentence."""


class Scope(Protocol):
    """Where names of templates are looked up."""

    def select(self, expression: str) -> Any:
        """The value that `a.b[0]` stands for. Raises TemplateError."""
        ...


@dataclass(frozen=True, slots=True)
class Style:
    """How a mapping becomes options, as `parsing` in the config says: `negated`: false makes `--no-KEY`, else nothing;
    `repeated`: each item of a list gets the option's name again."""

    negated: bool = False
    repeated: bool = False

    @classmethod
    def of(cls, section: Mapping[str, str]) -> Style:
        return cls(section.get("bool") == "boolean_optional", section.get("list") == "append")


@dataclass(frozen=True, slots=True)
class Use:
    """What a template is filled in for: `free` where any value may come of it, `command` where a mapping may."""

    free: bool = False
    command: bool = False
    style: Style = Style()


class Template:
    """A value as it is written."""

    def render(self, scope: Scope, use: Use) -> Any:
        """The value with all names filled in. Raises TemplateError."""
        raise AssertionError("every kind of template renders itself")


@dataclass(frozen=True, slots=True)
class _Constant(Template):
    value: Any

    def render(self, scope: Scope, use: Use) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class _Whole(Template):
    expression: str

    def render(self, scope: Scope, use: Use) -> Any:
        return _allowed(scope.select(self.expression), self.expression, use)


@dataclass(frozen=True, slots=True)
class _Text(Template):
    # Texts and expressions in turn.
    parts: tuple[str, ...]

    def render(self, scope: Scope, use: Use) -> Any:
        filled = list(self.parts)
        for index in range(1, len(filled), 2):
            value = _allowed(scope.select(filled[index]), filled[index], use)
            filled[index] = text_of(value, use.style)
        return "".join(filled).replace("\\${", "${")


@dataclass(frozen=True, slots=True)
class _List(Template):
    items: tuple[Template, ...]

    def render(self, scope: Scope, use: Use) -> Any:
        return [item.render(scope, use) for item in self.items]


@dataclass(frozen=True, slots=True)
class _Mapping(Template):
    items: tuple[tuple[Template, Template], ...]

    def render(self, scope: Scope, use: Use) -> Any:
        found = {}
        for key, value in self.items:
            name = key.render(scope, use)
            if isinstance(name, dict | list):
                raise TemplateError("a list or mapping cannot be a key")
            found[name] = value.render(scope, use)
        return found


def parse(value: Any) -> Template:
    """The template of a value. Raises TemplateError."""
    if isinstance(value, dict):
        return _Mapping(tuple((parse(key), parse(each)) for key, each in value.items()))
    if isinstance(value, list):
        return _List(tuple(map(parse, value)))
    if not isinstance(value, str) or "${" not in value:
        return _Constant(value)
    parts = _OPEN.split(value)
    for expression in parts[1::2]:
        if not _EXPRESSION.fullmatch(expression):
            raise TemplateError(
                f"'${{{expression}}}' cannot be read, expected a name as in ${{a}}, ${{a.b}} or ${{a[0]}}"
            )
    if len(parts) == 3 and not parts[0] and not parts[2]:
        return _Whole(parts[1])
    return _Constant(value.replace("\\${", "${")) if len(parts) == 1 else _Text(tuple(parts))


def has_expressions(value: Any) -> bool:
    """Whether any text in a value is a template."""
    if isinstance(value, dict):
        return any(has_expressions(key) or has_expressions(each) for key, each in value.items())
    if isinstance(value, list):
        return any(map(has_expressions, value))
    return isinstance(value, str) and _OPEN.search(value) is not None


def expressions(value: Any) -> Iterator[str]:
    """What stands between `${` and `}` in all texts of a value."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from expressions(key)
            yield from expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each)
    elif isinstance(value, str):
        yield from _OPEN.findall(value)


def text_of(value: Any, style: Style = Style()) -> str:
    """A value inside a text. Raises TemplateError for a mapping that has lists in lists."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return " ".join(word for key, each in _flat(value, "") for word in _option(key, each, style))
    return str(value)


def _allowed(value: Any, expression: str, use: Use) -> Any:
    """Only what is one word can stand inside a field; a mapping can in a command."""
    if isinstance(value, list | dict) and not use.free and not (use.command and isinstance(value, dict)):
        kind = "list" if isinstance(value, list) else "mapping"
        raise TemplateError(f"'${{{expression}}}' is a {kind}, expected one value")
    return value


def _flat(value: dict[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, each in value.items():
        if isinstance(key, str):
            found += _flat(each, f"{prefix}{key}.") if isinstance(each, dict) else [(f"{prefix}{key}", each)]
    return found


def _option(key: str, value: Any, style: Style) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}"] if value else [f"--no-{key}"] if style.negated else []
    if not isinstance(value, list):
        return [f"--{key}", shlex.quote(value) if isinstance(value, str) else str(value)]
    if any(isinstance(item, list | dict) for item in value):
        raise TemplateError(f"'{key}' has a list in a list, which is no command's option")
    words = [shlex.quote(item) if isinstance(item, str) else str(item) for item in value]
    if style.repeated:
        return [part for word in words for part in (f"--{key}", word)]
    return [f"--{key}", *words] if words else []
