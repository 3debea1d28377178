"""What manifests name, wherever they can be read: in the store, in DVC's cache, on a remote. For those who remove on remotes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from millpond.daemon.errors import MillpondError, ObjectMissingError, StoreDamagedError
from millpond.daemon.names import DIR_SUFFIX, ObjectName
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import LEGACY, Objects
from millpond.daemon.project.hashing import is_md5
from millpond.daemon.project.sharing import Link, in_parts
from millpond.daemon.store.ledger import MANIFEST

_HEX = re.compile(rb"(?<![0-9a-fA-F])[0-9a-f]{32}(?![0-9a-fA-F])")
_PART = 256


class Follower:
    """Reads manifests: in `places` here first, then on `links`, in their order. `must` are roots that have to be read, with where they are; with `skip`
    one that cannot be is told of and passed over."""

    def __init__(
        self,
        context: VerbContext,
        places: Sequence[Objects],
        links: Sequence[Link],
        must: Mapping[bytes, str],
        *,
        skip: bool,
    ) -> None:
        self._context = context
        self._places = places
        self._links = links
        self._must = must
        self._skip = skip
        self._done: set[bytes] = set()

    def members(self, roots: Iterable[bytes]) -> set[bytes]:
        """Roots of all that the manifests among `roots` name, each manifest once. One that is nowhere names nothing, unless it must be
        read. Raises ObjectMissingError, StoreDamagedError, RemoteError, CredentialsError."""
        todo = [root for root in sorted(roots) if root[0] == MANIFEST and root not in self._done]
        self._done.update(todo)
        found: set[bytes] = set()
        lacking: list[bytes] = []
        damaged: dict[bytes, str] = {}
        for number, root in enumerate(todo, 1):
            self._context.progress("reading manifests", (number, len(todo)))
            raw = self._here(root, damaged)
            if raw is None:
                lacking.append(root)
            else:
                found |= _named_in(raw)
        for link in self._links:
            lacking = self._on(link, lacking, found, damaged)
        for root in lacking:
            self._give_up(root, damaged.get(root))
        return found

    def _here(self, root: bytes, damaged: dict[bytes, str]) -> bytes | None:
        for objects, algo in product(self._places, ("md5", LEGACY)):
            try:
                raw = objects.manifest(_name(root, algo))
            except StoreDamagedError as error:
                damaged[root] = error.message
                continue
            if raw is not None:
                return raw
        return None

    def _on(self, link: Link, roots: list[bytes], found: set[bytes], damaged: dict[bytes, str]) -> list[bytes]:
        """Read them on a remote; those that it has not."""
        lacking = []
        for part in in_parts([_name(root) for root in roots], _PART):
            raw: dict[ObjectName, bytearray] = {name: bytearray() for name in part}
            absent = set()
            for got in link.transfer.download(part):
                raw[got.name] += got.data
                if got.error is not None:
                    absent.add(got.name)
            for name, data in raw.items():
                root = bytes([MANIFEST]) + bytes.fromhex(name.hex)
                if name not in absent and is_md5(data, name.hex):
                    found |= _named_in(bytes(data))
                    continue
                lacking.append(root)
                if name not in absent:
                    damaged[root] = f"on remote '{link.remote.name}' its bytes are not what its name says"
        return lacking

    def _give_up(self, root: bytes, damage: str | None) -> None:
        """A manifest is nowhere whole. Raises unless nobody can have needed it."""
        if damage is None and root not in self._must:
            return
        where = f" of '{self._must[root]}'" if self._must.get(root) else ""
        what = f"manifest {_name(root)}{where}"
        why = f"cannot be read: {damage}" if damage else "is neither here nor on a remote"
        if self._skip:
            self._context.log("warning", f"{what} {why}; what only it names does not stay for it")
            return
        kind: type[MillpondError] = StoreDamagedError if damage else ObjectMissingError
        raise kind(
            f"nothing is removed, because {what} {why}, and so what it needs is not known",
            hint="push it from where it still is, or have such versions passed over: --skip-failed",
        )


def _name(root: bytes, algo: str = "md5") -> ObjectName:
    return ObjectName(algo, root[1:].hex() + DIR_SUFFIX)


def _named_in(manifest: bytes) -> set[bytes]:
    """The roots of what a manifest names, under both of DVC's algorithms."""
    return {b"\0" + bytes.fromhex(hexed.decode()) for hexed in _HEX.findall(manifest)}
