"""`.dvc` files: pointers to data, read and written so that DVC and people find them as they left them.

Comments, unknown order and annotations survive a rewrite; an unchanged legacy out (DVC 1 and 2: no `hash:`, named by
md5-dos2unix) keeps its text, a changed one becomes `hash: md5`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project import manifest, yamlio

SUFFIX = ".dvc"
_STAGE_KEYS = frozenset(["md5", "wdir", "frozen", "deps", "outs", "meta", "desc", "always_changed", "cmd", "locked"])
_OUT_KEYS = frozenset(
    [
        "md5",
        "size",
        "nfiles",
        "isexec",
        "hash",
        "path",
        "cache",
        "persist",
        "push",
        "remote",
        "desc",
        "type",
        "labels",
        "meta",
        "files",
        "cloud",
        "etag",
        "checksum",
        "metric",
        "plot",
        "version_id",
        "annot",
        "fs_config",
    ]
)
_HASH_KEYS = ("md5", "size", "nfiles", "isexec", "hash")
# A path that YAML takes for text as it stands: it begins with a letter, or has two letters in a row, which no number, date
# or time has (but for 0x, 0o, 0b).
_PLAIN = r"(?:[A-Za-z_]|(?!0[xob])[0-9](?=[A-Za-z0-9_./-]*[A-Za-z]{2}))[A-Za-z0-9_./-]*"
_PLAIN_PATH = re.compile(_PLAIN)
_PLAIN_DIGEST = re.compile(r"(?=.*[a-f]{2})[0-9a-f]{32}(?:\.dir)?")
# What `add` writes, exactly: parsed and written without YAML, which takes a hundred times as long.
_CANONICAL = re.compile(
    r"outs:\n- md5: ([0-9a-f]{32}(?:\.dir)?)\n  size: (\d+)\n(?:  nfiles: (\d+)\n)?(?:  (isexec: true)\n)?  hash: md5\n"
    rf"  path: ({_PLAIN})\n"
)
_NOT_PLAIN = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])


@dataclass(frozen=True, slots=True)
class Out:
    """One output of a pointer: `path` is relative to the pointer's folder (and `wdir`); `name` None before the first
    commit; `size` in bytes, `nfiles` for directories; `cache` False when the data is Git's; `extra` all other keys."""

    path: str
    name: ObjectName | None
    size: int | None = None
    nfiles: int | None = None
    isexec: bool = False
    cache: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def legacy(self) -> bool:
        """Named by DVC 1 or 2."""
        return self.name is not None and self.name.algo == "md5-dos2unix"


@dataclass(slots=True)
class DvcFile:
    """A pointer file. `text` is what it was read from; `outs` in order; `deps` and `frozen` of imports."""

    path: str
    text: str
    outs: list[Out]
    wdir: str = "."
    frozen: bool = False
    deps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_import(self) -> bool:
        return bool(self.deps)


def parse(text: str, path: str) -> DvcFile:
    """A pointer of its text. Raises InvalidFileError with file, line and column."""
    canonical = _CANONICAL.fullmatch(text)
    if canonical is not None and canonical[5].lower() not in _NOT_PLAIN:
        value, size, nfiles, isexec, out_path = canonical.groups()
        out = Out(out_path, ObjectName("md5", value), int(size), int(nfiles) if nfiles else None, bool(isexec))
        return DvcFile(path, text, [out])
    document = yamlio.load(text, path, round_trip=True)
    if document is None:
        raise yamlio.invalid(path, "it is empty", 1, 1)
    if not isinstance(document, dict):
        raise yamlio.invalid(path, "it is not a mapping", 1, 1)
    _check_keys(document, _STAGE_KEYS, path)
    if "cmd" in document:
        line, column = _place(document, "cmd")
        raise yamlio.invalid(
            path, "it has a command, as DVC 0.x wrote", line, column, hint="move the command to dvc.yaml"
        )
    outs = _list(document, "outs", path)
    deps = _list(document, "deps", path)
    wdir = document.get("wdir") or "."
    return DvcFile(path, text, [_out(out, path) for out in outs], str(wdir), bool(document.get("frozen")), deps)


def read(path: str) -> DvcFile:
    """The pointer at `path`. Raises InvalidFileError; OSError of open."""
    with open(path, "rb") as file:
        return parse(yamlio.decode(yamlio.read(file), path), path)


def _canonical_text(out: Out) -> str | None:
    """What `new_text` makes, without YAML; None for what has anything unusual."""
    name = out.name
    if name is None or out.legacy or out.size is None or out.extra or not out.cache:
        return None
    if not _PLAIN_PATH.fullmatch(out.path) or out.path.lower() in _NOT_PLAIN or not _PLAIN_DIGEST.fullmatch(name.value):
        return None
    nfiles = "" if out.nfiles is None else f"  nfiles: {out.nfiles}\n"
    isexec = "  isexec: true\n" if out.isexec else ""
    return f"outs:\n- md5: {name.value}\n  size: {out.size}\n{nfiles}{isexec}  hash: md5\n  path: {out.path}\n"


def new_text(out: Out) -> str:
    """The text of a new pointer with one out."""
    canonical = _canonical_text(out)
    if canonical is not None:
        return canonical
    return yamlio.dump({"outs": [_hash_fields(out) | out.extra | {"path": out.path}]})


def updated_text(old: DvcFile, outs: list[Out]) -> str:
    """The text with the hashes of `outs` (matched by path) in place; the old text itself where nothing changed."""
    before = {out.path: out for out in old.outs}
    changed = [out for out in outs if _hash_fields(out) != _hash_fields(before[out.path])]
    if not changed:
        return old.text
    if len(old.outs) == 1 and _canonical_text(before[changed[0].path]) == old.text:
        canonical = _canonical_text(changed[0])
        # New keys go to the end of an out that is there, as DVC puts them.
        if canonical is not None and _hash_fields(changed[0]).keys() == _hash_fields(old.outs[0]).keys():
            return canonical
    document = yamlio.load(old.text, old.path, round_trip=True)
    entries = {str(entry["path"]): entry for entry in document["outs"]}
    for out in changed:
        _update(entries[out.path], _hash_fields(out))
    return yamlio.dump(document)


def _hash_fields(out: Out) -> dict[str, Any]:
    """md5, size, nfiles, isexec, hash in DVC's order; `hash` is left out of legacy names."""
    fields: dict[str, Any] = {}
    if out.name is not None:
        fields["md5"] = out.name.value
    if out.size is not None:
        fields["size"] = out.size
    if out.nfiles is not None:
        fields["nfiles"] = out.nfiles
    if out.isexec:
        fields["isexec"] = True
    if out.name is not None and not out.legacy:
        fields["hash"] = "md5"
    return fields


def _update(entry: Any, fields: dict[str, Any]) -> None:
    """Set hash fields of a round-trip mapping: those that are there in place, new ones at its end, as DVC does."""
    for key in _HASH_KEYS:
        if key not in fields:
            entry.pop(key, None)
    for key in ("etag", "checksum", "version_id", "files", "cloud"):
        entry.pop(key, None)  # of the old content
    for key, value in fields.items():
        entry[key] = value


def _out(entry: Any, path: str) -> Out:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str | int | float):
        line, column = _place(entry, None)
        raise yamlio.invalid(path, "an out needs a path", line, column)
    _check_keys(entry, _OUT_KEYS, path)
    value = entry.get("md5") or entry.get("checksum")
    name = None
    if value is not None:
        algo = "md5" if entry.get("hash") == "md5" else "md5-dos2unix"
        hex_part = str(value).removesuffix(DIR_SUFFIX)
        if not re.fullmatch(r"[0-9a-f]{32}", hex_part):
            line, column = _place(entry, "md5")
            raise yamlio.invalid(path, f"'{value}' is not an MD5", line, column)
        name = ObjectName(algo, str(value))
    elif isinstance(entry.get("files"), list):
        name = _name_of_files(entry["files"])
    extra = {key: entry[key] for key in entry if key not in _HASH_KEYS and key not in ("path", "cache")}
    size, nfiles = entry.get("size"), entry.get("nfiles")
    return Out(
        str(entry["path"]),
        name,
        int(size) if size is not None else None,
        int(nfiles) if nfiles is not None else None,
        bool(entry.get("isexec")),
        entry.get("cache", True) is not False,
        extra,
    )


def _name_of_files(files: list[Any]) -> ObjectName | None:
    """A version_aware directory has its files in the pointer, and the name of the manifest that they would make."""
    try:
        rows = sorted((str(file["relpath"]), str(file["md5"])) for file in files)
    except (KeyError, TypeError):
        return None
    return manifest.manifest_name(manifest.serialise(rows))


def _list(document: Any, key: str, path: str) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        line, column = _place(document, key)
        raise yamlio.invalid(path, f"'{key}' is not a list", line, column)
    return value


def _check_keys(mapping: Any, known: frozenset[str], path: str) -> None:
    for key in mapping:
        if key not in known:
            line, column = _place(mapping, key)
            raise yamlio.invalid(path, f"unknown key '{key}'", line, column)


def _place(mapping: Any, key: str | None) -> tuple[int, int]:
    """Line and column (from 1) of a key of a round-trip mapping."""
    marks = getattr(mapping, "lc", None)
    if marks is None:
        return 1, 1
    if key is not None and marks.data and key in marks.data:
        line, column = marks.data[key][:2]
        return int(line) + 1, int(column) + 1
    return int(marks.line or 0) + 1, int(marks.col or 0) + 1
