"""Environments between processes: on the wire, and in memory files that nobody on the way reads, since they may hold credentials."""

from __future__ import annotations

import json
from collections.abc import Mapping

from millpond.daemon import memfd, wirepath
from millpond.daemon.errors import ProtocolError


def to_wire(environ: Mapping[str, str]) -> dict[str, str]:
    """As requests carry it."""
    return {wirepath.encode(key): wirepath.encode(value) for key, value in environ.items()}


def to_file(environ: Mapping[str, str]) -> int:
    """In a sealed memory file; the caller closes it."""
    return memfd.from_bytes(json.dumps(to_wire(environ)).encode())


def read(fd: int) -> dict[str, str]:
    """What `to_file` holds; closes it. Raises ProtocolError."""
    with memfd.mapped(fd) as view:
        try:
            return {wirepath.decode(key): wirepath.decode(value) for key, value in json.loads(bytes(view)).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ProtocolError("an environment was sent that is none") from error
