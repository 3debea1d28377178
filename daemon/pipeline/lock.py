"""dvc.lock, byte for byte as DVC writes it. One stage's entry is replaced, all other lines stay as they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.names import ObjectName
from millpond.daemon.pipeline import schema
from millpond.daemon.project import quickyaml, yamlio
from millpond.daemon.project.dvcfile import name_of_files

LOCK_FILE = "dvc.lock"
_HEAD = "schema: '2.0'\nstages:\n"
_FRAME = re.compile(r"^stages:\n", re.MULTILINE)
# What comes after the stages.
_NEXT = re.compile(r"^[^ \n]", re.MULTILINE)
_KEY_LINE = re.compile(r"""^  ("(?:[^"\\\n]|\\.)*"|'(?:[^'\n]|'')*'|[^ \n"'][^\n]*?):(?: [^\n]*)?$""", re.MULTILINE)
# Where ruamel.yaml, and so DVC, begins to break lines.
_WIDTH = 80
# Keys that tell what lies at a url where its MD5 is not known.
TAGS = ("etag", "checksum")
_MD5 = re.compile(r"[0-9a-f]{32}(?:\.dir)?")


@dataclass(frozen=True, slots=True)
class Locked:
    """A dependency or output as a lock has it: `name` None where it has none; then `tag` may tell what it is, (`etag` or `checksum`,
    value) as a bucket or web server has it. `version` is that of a bucket that keeps them."""

    name: ObjectName | None
    size: int | None = None
    nfiles: int | None = None
    isexec: bool = False
    tag: tuple[str, str] | None = None
    version: str | None = None

    @property
    def token(self) -> tuple[str, str] | None:
        """What tells it from any other content; None where nothing does."""
        return self.tag if self.name is None else (self.name.algo, self.name.value)

    @property
    def value(self) -> str | None:
        """The token without its kind, for people."""
        return None if self.token is None else self.token[1]

    def entry(self, path: str) -> dict[str, Any]:
        """As dvc.lock has it, keys in DVC's order."""
        fields: dict[str, Any] = {"path": path}
        if self.name is None or self.name.algo == "md5":
            fields["hash"] = "md5"
        if self.name is not None:
            fields["md5"] = self.name.value
        elif self.tag is not None:
            fields[self.tag[0]] = self.tag[1]
        optional = {
            "size": self.size, "nfiles": self.nfiles, "isexec": True if self.isexec else None, "version_id": self.version
        }  # fmt: skip
        return fields | {key: value for key, value in optional.items() if value is not None}


@dataclass(slots=True)
class Lock:
    """A dvc.lock: its `text`, and the entries by stage as they are in it."""

    path: str
    text: str
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Only DVC before 2 wrote one without.
    has_schema: bool = True

    @classmethod
    def parse(cls, text: str, path: str) -> Lock:
        """Raises InvalidFileError for what is no lock file, Git's conflict markers included."""
        document = yamlio.load(text, path)
        if document is None:
            return cls(path, text)
        has_schema = isinstance(document, dict) and "schema" in document
        problem = next(_problems(document), None) if isinstance(document, dict) else None
        if problem is not None or not isinstance(document, dict):
            raise yamlio.invalid_at(path, text, *(problem or ((), "it is not a lock file")))
        entries = (document.get("stages") or {}) if has_schema else document
        return cls(path, text, entries, has_schema)

    def get(self, stage: str) -> dict[str, Any] | None:
        return self.entries.get(stage)

    def with_entry(self, stage: str, entry: dict[str, Any], *, before: Collection[str] = ()) -> Lock:
        """With a stage's entry as it should be now: in its place, or a new one before the first of `before`, else at the
        end. Raises InvalidFileError."""
        entries = {**self.entries, stage: entry}
        later = None if stage in self.entries else next((name for name in self.entries if name in before), None)
        if later is not None:
            at = list(self.entries).index(later)
            items = list(self.entries.items())
            entries = dict([*items[:at], (stage, entry), *items[at:]])
        text = self._spliced(stage, entry, later)
        if text is None:
            document = (yamlio.load(self.text, self.path, round_trip=True) if self.has_schema else None) or {}
            document.setdefault("schema", "2.0")
            # Not as they were read for a round trip, which changes the last digits of numbers.
            document["stages"] = entries
            text = yamlio.dump(document)
        return Lock(self.path, text, entries)

    def _spliced(self, stage: str, entry: dict[str, Any], later: str | None) -> str | None:
        """The text with the entry's lines exchanged; None where the lines do not show what belongs to whom."""
        text = self.text
        if not text.strip():
            return _HEAD + rendered(stage, entry)
        frame = _FRAME.search(text)
        if not self.has_schema or frame is None or not text.endswith("\n"):
            return None
        following = _NEXT.search(text, frame.end())
        end = len(text) if following is None else following.start()
        starts = {_unquoted(found[1]): found.start() for found in _KEY_LINE.finditer(text, frame.end(), end)}
        if list(starts) != list(self.entries):
            return None
        if stage not in starts:
            first = last = end if later is None else starts[later]
        else:
            first = starts[stage]
            last = next((at for at in starts.values() if at > first), end)
        return f"{text[:first]}{rendered(stage, entry)}{text[last:]}"


def _unquoted(key: str) -> str:
    return str(yamlio.load(key, LOCK_FILE)) if key[0] in "'\"" else key


def locked(entry: Mapping[str, Any] | None, section: str) -> dict[str, Locked]:
    """The deps or outs of a stage's entry, by their paths as written."""
    found = {}
    for item in (entry or {}).get(section) or []:
        value = item.get("md5")
        name = name_of_files(item["files"]) if value is None and isinstance(item.get("files"), list) else None
        if value is not None:
            name = ObjectName("md5" if item.get("hash") == "md5" else "md5-dos2unix", str(value))
        tag = next(((key, str(item[key])) for key in TAGS if item.get(key)), None) if name is None else None
        version = item.get("version_id")
        found[item["path"]] = Locked(
            name,
            item.get("size"),
            item.get("nfiles"),
            bool(item.get("isexec")),
            tag,
            str(version) if version else None,
        )
    return found


def is_entry(entry: Any) -> bool:
    """Whether it is what a stage's entry can be."""
    return next(_problems({"schema": "2.0", "stages": {"stage": entry}}), None) is None


def with_versions(entry: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A stage's entry, with the versions on remotes (fileversions.py) that the one before knew of outputs that are as they were."""
    known = {out["path"]: out for out in (before or {}).get("outs") or [] if "cloud" in out or "files" in out}
    if not known or not entry.get("outs"):
        return entry
    names = locked(before, "outs")
    outs = []
    for out in entry["outs"]:
        old = known.get(out["path"])
        new = locked({"outs": [out]}, "outs")[out["path"]]
        is_same = old is not None and names[out["path"]].name == new.name and names[out["path"]].isexec == new.isexec
        outs.append(old if is_same else out)
    return {**entry, "outs": outs}


def rendered(stage: str, entry: dict[str, Any]) -> str:
    """The lines of a stage's entry."""
    try:
        return "".join(_mapping({stage: entry}, 2))
    except _UnusualError:
        return yamlio.dump({"stages": {stage: entry}}).removeprefix("stages:\n")


def rendered_alone(entry: dict[str, Any]) -> str:
    """An entry as a file of its own, as the run cache has it."""
    try:
        return "".join(_mapping(entry, 0))
    except _UnusualError:
        return yamlio.dump(entry)


class _UnusualError(Exception):
    """What YAML's own writer must write: quotes, broken lines, odd types."""


def _mapping(values: Mapping[Any, Any], indent: int, first: str | None = None) -> Iterator[str]:
    """The lines of a mapping; `first` is what the first one begins with instead of spaces."""
    for key, value in values.items():
        if not isinstance(key, str) or not quickyaml.is_text(key) or ":" in key or len(key) > _WIDTH:
            raise _UnusualError
        lead = " " * indent if first is None else first
        first = None
        if isinstance(value, dict) and value:
            yield f"{lead}{key}:\n"
            yield from _mapping(value, indent + 2)
        elif isinstance(value, list) and value:
            yield f"{lead}{key}:\n"
            for item in value:
                if isinstance(item, dict) and item:
                    yield from _mapping(item, indent + 2, f"{' ' * indent}- ")
                else:
                    yield _line(f"{' ' * indent}- {_scalar(item)}")
        else:
            yield _line(f"{lead}{key}: {_scalar(value)}")


def _line(line: str) -> str:
    if len(line) > _WIDTH:
        raise _UnusualError
    return line + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and (shown := quickyaml.number(value)) is not None:
        return shown
    if isinstance(value, str) and value and quickyaml.is_text(value):
        return value
    raise _UnusualError


def _problems(document: dict[str, Any]) -> Iterator[schema.Problem]:
    if "schema" not in document:
        yield from _stage_problems(document, ())
        return
    if document["schema"] != "2.0":
        yield ("schema",), f"its schema is '{document['schema']}', expected '2.0'"
    stages = document.get("stages")
    if stages is not None and not isinstance(stages, dict):
        yield ("stages",), "'stages' is not a mapping"
        return
    yield from _stage_problems(stages or {}, ("stages",))


def _stage_problems(stages: dict[str, Any], at: schema.Keys) -> Iterator[schema.Problem]:
    for name, entry in stages.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str | list):
            yield (*at, name), f"stage '{name}' has no command"
            continue
        for section in ("deps", "outs"):
            yield from _item_problems(entry.get(section), (*at, name, section))
        params = entry.get("params")
        if params is not None and not (
            isinstance(params, dict) and all(isinstance(values, dict) for values in params.values())
        ):
            yield (*at, name, "params"), "'params' is not a mapping of files to their values"


def _item_problems(items: Any, at: schema.Keys) -> Iterator[schema.Problem]:
    if items is not None and not isinstance(items, list):
        yield at, f"'{at[-1]}' is not a list"
        return
    for index, item in enumerate(items or []):
        if not isinstance(item, dict) or not isinstance(item.get("path"), str):
            yield (*at, index), "an entry has no path"
        elif item.get("md5") is not None and not _MD5.fullmatch(str(item["md5"])):
            yield (*at, index), f"'{item['md5']}' is not an MD5"
