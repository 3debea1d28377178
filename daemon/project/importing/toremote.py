"""--to-remote: data goes from where it is to a remote, in DVC's layout, without coming to rest here.

An object's name is its digest, so a file must be read to its end before its first byte can go out under that name. What is small is
held in memory for that long; what is large is read twice, and the second reading must give the same bytes, or the upload is given
up before its end. A manifest goes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

from millpond.daemon.errors import RemoteChangedError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.importing.keep import counted, found_of, manifest_of
from millpond.daemon.project.importing.pointer import Found
from millpond.daemon.project.importing.source import Source
from millpond.daemon.project.sharing import Link
from millpond.daemon.remote.upload import Upload

# Files up to this size are held in memory, and at most so many bytes of them at once.
_SMALL_BYTES, _HELD_BYTES = 8 << 20, 64 << 20


class Uploading:
    """One source on its way to one remote."""

    def __init__(self, context: VerbContext, link: Link) -> None:
        self._context = context
        self._link = link

    def run(self, source: Source) -> Found:
        """Have all of it on the remote; what it is. Raises RemoteChangedError when a file changes, and as push."""
        names: dict[int, ObjectName] = {}
        held: dict[ObjectName, bytes] = {}
        size = 0
        small = [index for index, each in enumerate(source.sizes) if each <= _SMALL_BYTES]
        large = [index for index, each in enumerate(source.sizes) if each > _SMALL_BYTES]
        buffer = bytearray()
        for index, data, last in counted(self._context, "uploading", source, small):
            buffer += data
            if not last:
                continue
            names[index] = _name(buffer)
            held[names[index]] = bytes(buffer)
            size += len(buffer)
            buffer = bytearray()
            if size >= _HELD_BYTES:
                self._send(held)
                held, size = {}, 0
        self._send(held)
        self._large(source, large, names)
        ordered = [names[index] for index in range(len(source.paths))]
        found = found_of(source, ordered)
        if found.name is not None and found.name.is_dir:
            self._send({found.name: manifest_of(source.paths, ordered)})
        return found

    def _large(self, source: Source, indexes: list[int], names: dict[int, ObjectName]) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for index, data, last in counted(self._context, "hashing", source, indexes):
            digest.update(data)
            if last:
                names[index] = ObjectName("md5", digest.hexdigest())
                digest = hashlib.md5(usedforsecurity=False)
        there = self._present({names[index] for index in indexes})
        for index in indexes:
            if there.get(names[index]) != source.sizes[index]:
                pieces = _again(self._context, source, index, names[index])
                self._upload([Upload(names[index], source.sizes[index], pieces)])
                there[names[index]] = source.sizes[index]

    def _send(self, held: dict[ObjectName, bytes]) -> None:
        there = self._present(held)
        self._upload([Upload(name, len(data), [data]) for name, data in held.items() if there.get(name) != len(data)])

    def _present(self, names: Collection[ObjectName]) -> dict[ObjectName, int]:
        """What is there already, for good: nobody else has it."""
        there = self._link.present(list(names))
        self._link.transfer.sync_found(there)
        return there

    def _upload(self, uploads: list[Upload]) -> None:
        def created(sent: object) -> None:
            """What went up is on the remote for good."""

        self._link.transfer.upload(uploads, created=created)
        # A manifest goes up when all that it names is there.
        self._link.known.add((each.name for each in uploads if each.name.is_dir), complete=True)


def _again(context: VerbContext, source: Source, index: int, name: ObjectName) -> Iterator[Data]:
    """A file's bytes once more; the last of them only when they make the same digest."""
    digest = hashlib.md5(usedforsecurity=False)
    waiting: Data = b""
    for _, data, _ in counted(context, "uploading", source, [index]):
        digest.update(data)
        yield waiting
        waiting = bytes(data)
    if digest.hexdigest() != name.hex:
        raise RemoteChangedError(
            f"'{source.url}' changed while it was uploaded", path=source.paths[index] or source.url, hint="try again"
        )
    yield waiting


def _name(data: bytes | bytearray) -> ObjectName:
    return ObjectName("md5", hashlib.md5(data, usedforsecurity=False).hexdigest())
