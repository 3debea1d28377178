"""`.dvc` files: pointers to data, read and written so that DVC and people find them as they left them.

Comments, unknown order and annotations survive a rewrite; an unchanged legacy out (DVC 1 and 2: no `hash:`, named by
md5-dos2unix) keeps its text, a changed one becomes `hash: md5`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest, pointerkeys, yamlio
from millpond.daemon.project.paths import is_utf8

SUFFIX = ".dvc"
_HASH_KEYS = ("md5", "size", "nfiles", "isexec", "hash")
# A path that YAML takes for text as it stands: it begins with a letter, or has two letters in a row, which no number, date
# or time has (but for 0x, 0o, 0b).
_PLAIN = r"(?:[A-Za-z_]|(?!0[xob])[0-9](?=[A-Za-z0-9_./-]*[A-Za-z]{2}))[A-Za-z0-9_./-]*"
_PLAIN_PATH = re.compile(_PLAIN)
# As above: neither a number nor one in scientific notation.
_DIGEST = r"(?=[0-9a-f]*[a-f]{2})[0-9a-f]{32}(?:\.dir)?"
_PLAIN_DIGEST = re.compile(_DIGEST)
_NUMBER = r"0|[1-9][0-9]{0,17}"
# What `add` writes, exactly: parsed and written without YAML, which takes a hundred times as long.
_CANONICAL = re.compile(
    rf"outs:\n- md5: ({_DIGEST})\n  size: ({_NUMBER})\n(?:  nfiles: ({_NUMBER})\n)?(?:  (isexec: true)\n)?  hash: md5\n"
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
    document = yamlio.load(text, path)
    problem = next(pointerkeys.problems(document), None)
    if problem is not None:
        raise yamlio.invalid_at(path, text, *problem)
    outs, deps = document.get("outs") or [], document.get("deps") or []
    return DvcFile(
        path, text, [_out(out) for out in outs], document.get("wdir") or ".", bool(document.get("frozen")), deps
    )


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


def updated_text(
    old: DvcFile, outs: list[Out], rows: Callable[[], Sequence[tuple[str, str, int | None]]] | None = None
) -> str:
    """The text with the hashes of `outs` (matched by path) in place; the old text itself where nothing changed. `rows` gives the files of a
    directory: path, MD5, bytes. A pointer that lists them (fileversions.py) goes on doing so, with the versions of those that are as
    they were."""
    before = {out.path: out for out in old.outs}
    changed = [out for out in outs if not _is_as_before(out, before[out.path])]
    if not changed:
        return old.text
    if len(old.outs) == 1 and _canonical_text(before[changed[0].path]) == old.text:
        canonical = _canonical_text(changed[0])
        # New keys go to the end of an out that is there, as DVC puts them.
        if canonical is not None and _hash_fields(changed[0]).keys() == _hash_fields(old.outs[0]).keys():
            return canonical
    document = yamlio.load(old.text, old.path, round_trip=True)
    places = [out.path for out in old.outs]
    for out in changed:
        entry = document["outs"][places.index(out.path)]
        listed = entry.get("files")
        _update(entry, _hash_fields(out))
        files = rows() if listed and rows is not None else []
        if files and is_utf8("".join(relpath for relpath, _, _ in files)):
            for key in ("md5", "size", "nfiles"):
                entry.pop(key, None)
            entry["files"] = [_row(relpath, md5, size, listed) for relpath, md5, size in files]
    return yamlio.dump(document)


def _is_as_before(new: Out, old: Out) -> bool:
    """Whether an out's entry says all that is to be said: one with files says nothing of the whole."""
    if "files" in old.extra:
        return new.name == old.name and new.isexec == old.isexec
    return _hash_fields(new) == _hash_fields(old)


def _row(relpath: str, md5: str, size: int | None, listed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A file as a list has it: as in the one before, if its content is the same."""
    for row in listed:
        if row.get("relpath") == relpath and row.get("md5") == md5:
            return row
    return {"relpath": relpath, "md5": md5, **({} if size is None else {"size": size})}


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


def _out(entry: dict[str, Any]) -> Out:
    value, algo = entry.get("md5"), entry.get("hash")
    name = None
    if value and algo in (None, "md5"):
        name = ObjectName(algo or "md5-dos2unix", value)
    elif not value and entry.get("files"):
        name = name_of_files(entry["files"])
    size, nfiles, isexec = entry.get("size"), entry.get("nfiles"), entry.get("isexec", False)
    extra = {key: entry[key] for key in entry if key not in _HASH_KEYS and key not in ("path", "cache")}
    return Out(entry["path"], name, size, nfiles, isexec, entry.get("cache", True), extra)


def name_of_files(files: list[Any]) -> ObjectName | None:
    """A version_aware directory has its files in the pointer, and the name of the manifest that they would make."""
    try:
        rows = sorted((str(file["relpath"]), str(file["md5"])) for file in files)
    except (KeyError, TypeError):
        return None
    return manifest.manifest_name(manifest.serialise(rows))
