"""format.json: what a store is, written once when it is made."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from millpond.daemon.errors import BusyError, StoreFormatError, from_system
from millpond.daemon.store import chunking, layout
from millpond.daemon.store.files import Files, write_durably

FORMAT = 2
# Former ones: all that they have is read, and the next daemon makes them stores of this one. 1 had no recipes of parts.
_FORMER = (1,)


@dataclass(frozen=True, slots=True)
class Format:
    """`version` of everything in the store; its `uuid` (16 bytes); how contents are cut (`chunking.parameters`)."""

    version: int
    uuid: bytes
    chunking: dict[str, Any]


def read_format(store: Path) -> Format:
    """The format of the store at `store`. Raises StoreFormatError for what is none, or one that this program is too old
    for."""
    path = store / "format.json"
    try:
        found = json.loads(path.read_bytes())
        format_ = Format(int(found["format"]), bytes.fromhex(found["uuid"]), dict(found.get("chunking", {})))
        if len(format_.uuid) != 16:
            raise ValueError("uuid")
    except OSError as error:
        if isinstance(told := from_system(error, "opening the store"), BusyError):
            raise told from error
        raise StoreFormatError(f"'{store}' is no store: {error.strerror}", path=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreFormatError(f"'{path}' is not a store's format file", path=str(path)) from error
    if format_.version not in (FORMAT, *_FORMER) or format_.chunking != chunking.parameters():
        raise StoreFormatError(
            f"the store in '{store}' has format {format_.version} ({format_.chunking}); this program writes {FORMAT}",
            path=str(path),
            hint="use the newer millpond that made it, or another MILLPOND_STORE",
        )
    return format_


def ensure_format(store: Path, files: Files, mode: int) -> Format:
    """`read_format`, of a new format file if the store is empty; a store of a former format becomes one of this. Raises StoreFormatError,
    OSError."""
    path = store / "format.json"
    if not path.exists():
        if any((store / "segments").glob("*.seg")):
            raise StoreFormatError(
                f"'{store}' has segments but no format.json", path=str(path), hint="restore it from a backup"
            )
        made = {"format": FORMAT, "uuid": secrets.token_hex(16), "created": int(time.time())}
        data = json.dumps(made | {"chunking": chunking.parameters()}, indent=1).encode()
        write_durably(files, path, data + b"\n", mode)
        layout.sync_parents(store, files)
    found = read_format(store)
    if found.version != FORMAT:
        said = json.loads(path.read_bytes()) | {"format": FORMAT}
        write_durably(files, path, json.dumps(said, indent=1).encode() + b"\n", mode)
        found = replace(found, version=FORMAT)
    return found
