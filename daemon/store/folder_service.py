"""`folders.*`: the folders of a version, for programs that look into it without a mount.

A folder's id is the hash of its listing: who can name it knows what it says, or was told by somebody who does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import ProtocolError, StoreDamagedError
from millpond.daemon.rpc.methods import Call, Registry
from millpond.daemon.store.folders import FOLDER, Entry, FolderReader

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

T = TypeVar("T")

# Entries in one answer.
PAGE = 4096
_THREADS = 4


class FolderService:
    """Handlers of `folders.*`. A row is [name, type (1 file, 2 folder, 3 link), executable, bytes, object or null]."""

    def __init__(self, reader: FolderReader) -> None:
        self._reader = reader
        self._threads = trio.CapacityLimiter(_THREADS)

    async def find(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{root, path} -> {row}, null when nothing is there. Raises StoreDamagedError when there is no such folder."""
        root, path = _place(params)

        def work() -> list[Any] | None:
            entry = self._reader.walk_path(root, path)
            return None if entry is None else self._row(entry)

        return {"row": await self._in_thread(work)}

    async def list_(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{root, path, start} -> {rows, next}, in the order of names; `next` is where the rest begins, null when there is
        none. {rows: null} when no folder is there. Raises as `find`."""
        root, path = _place(params)
        start = int(params.get("start") or 0)

        def work() -> dict[str, Any]:
            entry = self._reader.walk_path(root, path)
            if entry is None or entry.child is None:
                return {"rows": None, "next": None}
            page = self._reader.list(entry.child, start, PAGE)
            return {"rows": [self._row(each) for each in page], "next": start + PAGE if len(page) == PAGE else None}

        return await self._in_thread(work)

    def _row(self, entry: Entry) -> list[Any]:
        record = None if entry.type == FOLDER else self._reader.inode(entry.inode)
        if entry.type != FOLDER and record is None:
            raise StoreDamagedError("a folder names a file that the index has not", hint="mount the version again")
        name = None if record is None or record.name is None else str(record.name)
        return [wirepath.encode(entry.name), entry.type, entry.executable, entry.size, name]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _place(params: dict[str, Any]) -> tuple[bytes, bytes]:
    try:
        root = bytes.fromhex(str(params["root"]))
    except ValueError:
        root = b""
    if len(root) != 32:
        raise ProtocolError("'root' must be the id of a folder")
    return root, os.fsencode(wirepath.decode(str(params.get("path") or "")))


def register(registry: Registry, daemon: Daemon) -> None:
    """Add the folders' methods."""
    service = FolderService(FolderReader(daemon.store.reader.index))
    registry.register("folders.find", service.find)
    registry.register("folders.list", service.list_)
