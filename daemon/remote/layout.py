"""The `dvc` layout: where a whole object lies on a remote. DVC 3 puts it at `files/md5/ab/cdef...`, DVC 1 and 2 at `ab/cdef...`."""

from __future__ import annotations

from millpond.daemon.names import ObjectName

MODERN = "files/md5"
LEGACY = "md5-dos2unix"
_HEX = frozenset("0123456789abcdef")


def key_of(name: ObjectName) -> str:
    """Where an object is written."""
    return keys_of(name)[0]


def keys_of(name: ObjectName) -> tuple[str, str]:
    """Where an object is looked for, the likelier place first: a migrated project names by MD5 what lies where DVC 2 put it, and
    the bytes are checked against the name in any case."""
    legacy = f"{name.value[:2]}/{name.value[2:]}"
    modern = f"{MODERN}/{legacy}"
    return (legacy, modern) if name.algo == LEGACY else (modern, legacy)


def digest_of(key: str) -> str | None:
    """The value of the name of what lies at a key; None for what is no object."""
    head, _, tail = key.removeprefix(f"{MODERN}/").partition("/")
    value = head + tail
    return value if len(head) == 2 and set(value.removesuffix(".dir")) <= _HEX and len(value) in (32, 36) else None
