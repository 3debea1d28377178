"""Sizes told ahead: while a remote is listed the daemon hears what came, and need not do all of its work when the last page is here."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from millpond.daemon import memfd
from millpond.daemon.names import ALGORITHMS
from millpond.daemon.store.inodes import MOST_AHEAD

if TYPE_CHECKING:
    from millpond.daemon.mounts.plan import Peer

# Objects that are told together, but for the last ones.
_TOGETHER = 4000
# Bytes of a manifest that are looked at: what is told ahead is bounded, too.
_LOOKED_AT = 150 * MOST_AHEAD
_DIGEST = re.compile(rb'"md5": ?"([0-9a-f]{32})"')
_TAG = f"{ALGORITHMS['md5']:02x}"


class Foretelling:
    """For the tree that `listing.ensure` has begun of a manifest. Nothing is claimed to be whole: what is not told, or not taken, is asked
    for by the daemon afterwards."""

    def __init__(self, peer: Peer, manifest: bytes) -> None:
        """`manifest`: its bytes, which nobody has checked."""
        self._peer = peer
        found = _DIGEST.findall(manifest, 0, _LOOKED_AT)[:MOST_AHEAD]
        self._wanted = set(b" ".join(found).decode().split())
        self._rows: list[tuple[str, int]] = []
        # Whether anything was told.
        self.has_told = False

    def tell(self, rows: Iterable[tuple[str, int]], *, last: bool = False) -> None:
        """Digests and bytes of objects on the remote."""
        self._rows += [row for row in rows if row[0] in self._wanted]
        if len(self._rows) < _TOGETHER and not (last and self._rows):
            return
        digests, sizes = zip(*self._rows, strict=True)
        self._rows, self.has_told = [], True
        keys = bytes.fromhex(_TAG + _TAG.join(digests))
        with memfd.sent(keys + array("Q", sizes).tobytes()) as fd:
            self._peer.call("listing.foretell", {}, fds=[fd])
