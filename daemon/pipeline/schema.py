"""What a dvc.yaml may hold. What DVC refuses is refused, at its place, with what was expected there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Where something is wrong: the keys and indices that lead to it. What is wrong: part of a sentence.
Keys = tuple[str | int, ...]
Problem = tuple[Keys, str]


class Rule:
    """A check of a value: `expected` says in words what it takes."""

    def __init__(self, expected: str, problems: Callable[[Any, Keys], Iterator[Problem]]) -> None:
        self.expected = expected
        self.problems = problems

    def takes(self, value: Any) -> bool:
        return next(self.problems(value, ()), None) is None


def problems(document: Any) -> Iterator[Problem]:
    """Everything that is wrong with a dvc.yaml's document, first things first. None is an empty one."""
    if document is not None:
        yield from _FILE.problems(document, ())


def _of_type(kind: type, expected: str) -> Rule:
    def check(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, kind):
            yield at, f"{_named(at)} is {_shown(value)}, expected {expected}"

    return Rule(expected, check)


def _list_of(item: Rule) -> Rule:
    expected = f"a list, of {item.expected} each"

    def check(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, list):
            yield at, f"{_named(at)} is {_shown(value)}, expected {expected}"
            return
        for index, each in enumerate(value):
            yield from item.problems(each, (*at, index))

    return Rule(expected, check)


def _map_of(item: Rule, expected: str) -> Rule:
    def check(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield at, f"{_named(at)} is {_shown(value)}, expected {expected}"
            return
        for key, each in value.items():
            if not isinstance(key, str):
                yield (*at, key), f"{_named(at)} has the key {_shown(key)}, expected text (in quotes)"
            else:
                yield from item.problems(each, (*at, key))

    return Rule(expected, check)


def _mapping(known: Mapping[str, Rule], required: tuple[str, ...], expected: str) -> Rule:
    def check(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield at, f"{_named(at)} is {_shown(value)}, expected {expected}"
            return
        for key in value:
            if key not in known:
                yield (*at, key), f"unknown key '{key}'{_inside(at)}, expected one of {', '.join(known)}"
        for key in required:
            if key not in value:
                yield at, f"{_named(at)} has no '{key}'"
        for key, each in value.items():
            if key in known:
                yield from known[key].problems(each, (*at, key))

    return Rule(expected, check)


def _either(*rules: Rule) -> Rule:
    """The first rule that takes the value; else what the rule for its type (the last one) says."""
    expected = " or ".join(dict.fromkeys(rule.expected for rule in rules))

    def check(value: Any, at: Keys) -> Iterator[Problem]:
        if not any(rule.takes(value) for rule in rules):
            deeper = [found for rule in rules for found in rule.problems(value, at) if len(found[0]) > len(at)]
            yield deeper[0] if deeper else (at, f"{_named(at)} is {_shown(value)}, expected {expected}")

    return Rule(expected, check)


def _stage(value: Any, at: Keys) -> Iterator[Problem]:
    looped = isinstance(value, dict) and ("foreach" in value or "do" in value)
    yield from (_FOREACH if looped else _STAGE).problems(value, at)


def _named(at: Keys) -> str:
    return f"'{'.'.join(map(str, at))}'" if at else "the file"


def _inside(at: Keys) -> str:
    return f" in '{'.'.join(map(str, at))}'" if at else ""


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


_TEXT = _of_type(str, "text")
_FLAG = _of_type(bool, "true or false")
_LIST = _of_type(list, "a list")
_DICT = _of_type(dict, "a mapping")
_ANY = Rule("anything", lambda value, at: iter(()))
_NOTHING = _of_type(type(None), "nothing")

_ANNOTATIONS = {"desc": _TEXT, "type": _TEXT, "labels": _list_of(_TEXT), "meta": _ANY}
_OUT_OPTIONS = {
    **_ANNOTATIONS,
    "cache": _FLAG,
    "persist": _FLAG,
    "checkpoint": _FLAG,
    "remote": _TEXT,
    "push": _FLAG,
}
_PLOT_OPTIONS = {
    **_OUT_OPTIONS,
    **dict.fromkeys(("template", "x", "y", "x_label", "y_label", "title"), _TEXT),
    "header": _FLAG,
}
_OUT = _either(_TEXT, _map_of(_mapping(_OUT_OPTIONS, (), "options of the output"), "a path with options"))
_PLOT_RULE = _mapping(_PLOT_OPTIONS, (), "options of the plot")
_PLOT = _either(_TEXT, _map_of(_either(_PLOT_RULE, _list_of(_PLOT_RULE)), "a path with options"))
_COMMAND = _either(_TEXT, _LIST)
_VARS = _list_of(_either(_TEXT, _DICT))
_STAGE_KEYS = {
    "cmd": _COMMAND,
    "wdir": _TEXT,
    "deps": _list_of(_TEXT),
    "params": _list_of(_either(_TEXT, _DICT)),
    "vars": _VARS,
    "outs": _list_of(_OUT),
    "metrics": _list_of(_OUT),
    "plots": _list_of(_PLOT),
    "frozen": _FLAG,
    "always_changed": _FLAG,
    "desc": _TEXT,
    "meta": _ANY,
    "matrix": _map_of(_either(_TEXT, _LIST), "a mapping of lists"),
}
_STAGE = _mapping(_STAGE_KEYS, ("cmd",), "a stage")
_FOREACH = _mapping({"foreach": _either(_DICT, _LIST, _TEXT), "do": _STAGE}, ("foreach", "do"), "a stage")
_TEXT_OR_TEXTS = _either(_TEXT, _list_of(_TEXT))
_TOP_PLOT = _mapping(
    {
        "x": _either(_TEXT, _map_of(_TEXT, "a mapping of files to fields")),
        "y": _either(_TEXT_OR_TEXTS, _map_of(_TEXT_OR_TEXTS, "a mapping of files to fields")),
        **dict.fromkeys(("x_label", "y_label", "title", "template"), _TEXT),
    },
    (),
    "options of the plot",
)
_FILE = _mapping(
    {
        "stages": _map_of(Rule("a stage", _stage), "a mapping of stages"),
        "vars": _VARS,
        "params": _list_of(_TEXT),
        "metrics": _list_of(_TEXT),
        "plots": _list_of(_either(_TEXT, _map_of(_either(_TOP_PLOT, _NOTHING), "a plot with options"))),
        "artifacts": _map_of(_mapping({"path": _TEXT, **_ANNOTATIONS}, ("path",), "an artifact"), "a mapping"),
        "datasets": _ANY,
    },
    (),
    "a mapping",
)
