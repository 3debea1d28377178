"""Manifests by parts of others: what a version's manifest has in common with the one before is not stored again.

A manifest of many files changes a little all over, so its chunks are never those of another. Its entries mostly are. A recipe
of parts (recipes.py) names runs of entries in chunks that are there, and chunks with the entries that are new. It names
chunks, never another recipe: to read it costs the chunks and no chain, and garbage collection, eviction and fsck see a recipe.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from millpond.daemon.errors import StoreDamagedError
from millpond.daemon.store.recipes import Layout, PartsBuilder

if TYPE_CHECKING:
    from millpond.daemon.store.reader import StoreReader

# What ends an entry that another one follows, as DVC writes it. Elsewhere it would cut entries in odd places, and no more.
_BORDER = b"}, "
# Bytes of a manifest that are matched at once.
_STEP = 1 << 20
# Bytes of the former manifest, ahead of where the last match ended, whose entries are known: at first, and at most, where much of it
# is gone. About three bytes of memory each, five at most.
_AHEAD, _MAX_AHEAD = 2 << 20, 16 << 20
# Bytes of what is an entry, its border not counted: at least, a digest and its quotes being more; and at most, as of what has no borders.
_LEAST_ENTRY, _LARGEST_ENTRY = 40, 256 << 10
# New entries of one chunk, bytes.
_FRESH = 256 << 10
# Bytes that the parts of a manifest must have on average for another one to follow it; and for more matches to be looked for. A part takes
# about 12 bytes on disk, an entry of 80 bytes about 20; and each version adds parts.
_FOLLOWED_BYTES, _PART_BYTES = 640, 384
# Bytes of chunks kept by who reads parts: they come from one of the first version and one or two of each later one, in turn.
_KEPT = 16 << 20
# Parts are given to who reads a content as a stream in pieces of this many bytes.
_PIECE = 256 << 10


class PartReader:
    """The bytes of a layout's parts; what several parts come from is read once as long as they are near each other."""

    def __init__(self, reader: StoreReader, layout: Layout) -> None:
        self._reader = reader
        self._layout = layout
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept = 0

    def read(self, number: int) -> bytes | memoryview:
        """Raises StoreDamagedError."""
        layout = self._layout
        chunk_id = layout.id(number)
        if layout.starts is None:
            return self._reader.read_chunks([chunk_id])[0]
        chunk = self._chunks.get(chunk_id)
        if chunk is None:
            chunk = self._chunks[chunk_id] = self._reader.read_chunk(chunk_id)
            self._kept += len(chunk)
            while self._kept > _KEPT:
                self._kept -= len(self._chunks.popitem(last=False)[1])
        else:
            self._chunks.move_to_end(chunk_id)
        start, length = layout.starts[number], layout.offsets[number + 1] - layout.offsets[number]
        if start + length > len(chunk):
            raise StoreDamagedError(
                f"chunk {chunk_id.hex()[:16]} has not the bytes that a recipe names", details={"id": chunk_id.hex()}
            )
        return memoryview(chunk)[start : start + length]

    def pieces(self) -> Iterator[bytes]:
        """All parts one behind the other. Raises StoreDamagedError."""
        piece = bytearray()
        for number in range(len(self._layout)):
            piece += self.read(number)
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)


def is_worth_following(layout: Layout) -> bool:
    """Whether a manifest may be described by parts of this one: it has not become too many parts itself."""
    return len(layout) * _FOLLOWED_BYTES <= layout.size


class Follower:
    """Describes a manifest that comes in parts by those of a former one (`layout`, whose bytes `pieces` gives), and by chunks of
    what is new, which `keep` stores: it gives (id, bytes added). Memory is bounded, whatever both of them are."""

    def __init__(self, layout: Layout, pieces: Iterator[bytes], keep: Callable[[bytes], tuple[bytes, int]]) -> None:
        self._layout, self._pieces, self._keep = layout, pieces, keep
        self.recipe = PartsBuilder()
        self.new_bytes = 0
        self._text = b""
        self._seen = 0
        # New bytes, and the runs (begin, end in them, or None; else begin, end in the former manifest) that wait for their id.
        self._fresh = bytearray()
        self._waiting: list[tuple[bool, int, int]] = []
        # Entries of the former manifest -> where they are; by blocks, with each one's end, so that they can be forgotten.
        self._known: dict[bytes, int] = {}
        self._blocks: deque[tuple[int, dict[bytes, int]]] = deque()
        self._loaded = 0
        self._rest = b""
        self._ahead = _AHEAD
        # Where in the former manifest the next match is expected.
        self._at = 0

    def feed(self, part: memoryview) -> None:
        """The manifest's next bytes. Raises as `keep`."""
        text, begin = self._text + bytes(part), 0
        while len(text) - begin > _STEP:
            border = text.rfind(_BORDER, begin, begin + _STEP)
            end = begin + _STEP if border < 0 else border + len(_BORDER)
            self._match(text[begin:end])
            begin = end
        self._text = text[begin:]

    def finish(self) -> PartsBuilder:
        """The recipe. Raises as `keep`."""
        self._match(self._text)
        self._text = b""
        self._flush()
        return self.recipe

    def _match(self, text: bytes) -> None:
        """Describe some entries."""
        self._load()
        self._seen += len(text)
        rows = text.split(_BORDER)
        tail = len(rows.pop())
        begin = end = 0
        source: int | None = None
        expected: int | None = None
        last = -1
        for row, found in zip(rows, map(self._known.get, rows), strict=True):
            if found != expected:
                last = self._run(text, begin, end, source) or last
                begin, source = end, found
            end += len(row) + len(_BORDER)
            expected = None if source is None else source + end - begin
        last = self._run(text, begin, end, source) or last
        self._run(text, end, end + tail, None)
        if last < 0 < len(text):
            self._ahead = min(2 * self._ahead, _MAX_AHEAD)
            self._at += len(text)
        else:
            self._ahead, self._at = _AHEAD, max(last, self._at)

    def _run(self, text: bytes, begin: int, end: int, source: int | None) -> int | None:
        """Bytes of the text that lie so in the former manifest from `source` on, or are new; where they end there."""
        if begin == end:
            return None
        if source is None:
            while begin < end:
                part = text[begin : min(end, begin + _FRESH - len(self._fresh))]
                self._waiting.append((True, len(self._fresh), len(self._fresh) + len(part)))
                self._fresh += part
                begin += len(part)
                if len(self._fresh) == _FRESH:
                    self._flush()
            return None
        self._waiting.append((False, source, source + end - begin))
        return source + end - begin

    def _flush(self) -> None:
        """Store what is new, and tell the recipe of all that waited for it."""
        fresh, added = self._keep(bytes(self._fresh)) if self._fresh else (b"", 0)
        self.new_bytes += added
        for is_fresh, begin, end in self._waiting:
            if is_fresh:
                self.recipe.add(fresh, begin, end - begin)
            else:
                self._copy(begin, end)
        self._fresh.clear()
        self._waiting.clear()

    def _copy(self, begin: int, end: int) -> None:
        """A range of the former manifest, by the parts that it is made of."""
        layout, number = self._layout, self._layout.find(begin)
        while begin < end:
            stop = min(end, layout.offsets[number + 1])
            start = begin - layout.offsets[number] + (0 if layout.starts is None else layout.starts[number])
            self.recipe.add(layout.id(number), start, stop - begin)
            begin, number = stop, number + 1

    def _load(self) -> None:
        """Know the former manifest's entries from about where the next match is expected; none, and so no more matches, when
        there would be too many parts."""
        if (len(self.recipe) + len(self._waiting)) * _PART_BYTES > self._seen + _STEP:
            self._pieces = iter(())
            self._known.clear()
            self._blocks.clear()
        while self._blocks and self._blocks[0][0] < self._at - _STEP:
            for row in self._blocks.popleft()[1]:
                self._known.pop(row, None)
        while self._loaded < self._at + self._ahead:
            try:
                piece = next(self._pieces, None)
            except StoreDamagedError:
                piece = None
            if piece is None:
                self._pieces = iter(())
                return
            text = self._rest + piece
            rows = text.split(_BORDER)
            self._rest = rows.pop()
            begins = accumulate((len(row) + len(_BORDER) for row in rows), initial=self._loaded)
            found = {row: begin for row, begin in zip(rows, begins, strict=False) if len(row) >= _LEAST_ENTRY}
            self._loaded += len(text) - len(self._rest)
            self._known.update(found)
            self._blocks.append((self._loaded, found))
            if len(self._rest) > _LARGEST_ENTRY:
                self._loaded, self._rest = self._loaded + len(self._rest), b""
