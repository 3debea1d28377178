"""The store as an ObjectStore in this process: for tests, and for programs that embed it without a daemon."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing

from millpond.daemon.errors import BusyError, ObjectMissingError
from millpond.daemon.jobs.batches import Batch, Memory, piece_batches, tell_whole
from millpond.daemon.jobs.hashing import hash_files
from millpond.daemon.jobs.reading import in_order, read_batches
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Data, Keep, Piece, Put, Tick
from millpond.daemon.store.index import Content
from millpond.daemon.store.session import LEAST_BYTES, STRANDS, IngestSession, Stored
from millpond.daemon.store.store import Store


class LocalObjectStore:
    """ObjectStore over an open Store, with the rights of `uid`."""

    def __init__(self, store: Store, uid: int) -> None:
        self._store = store
        self._uid = uid
        self._session: IngestSession | None = None
        self.new_bytes = 0

    def put_files(self, paths: Iterable[str], *, tick: Tick | None = None, store: bool = True) -> Iterator[Put]:
        """See ObjectStore.put_files."""
        if not store:
            yield from hash_files(paths, tick)
            return
        yield from in_order(self._put_files(paths, tick))

    def _put_files(self, paths: Iterable[str], tick: Tick | None) -> Iterator[tuple[int, Put]]:
        files = total = 0
        strands = 1 if self._store.kernels is None else STRANDS
        with closing(self._flow(lambda memory: read_batches(paths, memory, strands, LEAST_BYTES))) as flow:
            for batch, stored in flow:
                for file, item in zip(batch.ends, stored, strict=True):
                    files, total = files + 1, total + item.size
                    self.new_bytes += item.new_bytes
                    if tick is not None:
                        tick(files, total)
                    yield file.number, Put(file.path, item.name, item.size, file.stat)

    def put_bytes(self, data: bytes, *, is_dir: bool = False, like: ObjectName | None = None) -> ObjectName:
        """See ObjectStore.put_bytes."""
        session = self._begin()
        if like is not None and like.is_sound_dir:
            session.follow(self._store.reader.resolve([like], self._uid)[0])
        return session.feed(memoryview(data), [(len(data), True, is_dir)])[0].name

    def put_pieces(
        self, pieces: Iterable[tuple[Data, bool, bool]], keep: Keep | None = None
    ) -> Generator[tuple[ObjectName, int], None, None]:
        """See ObjectStore.put_pieces."""
        with closing(self._flow(lambda memory: piece_batches(pieces, memory), keep)) as flow:
            for _, stored in flow:
                for item in stored:
                    self.new_bytes += item.new_bytes
                    yield item.name, item.new_bytes

    def commit(self) -> None:
        """See ObjectStore.commit."""
        if self._session is not None:
            session, self._session = self._session, None
            if session.commit():
                raise BusyError("stored data was removed while it was added", hint="run the command again")

    def sizes(self, names: Sequence[ObjectName], *, evicted: bool = False) -> list[int | None]:
        """See ObjectStore.sizes."""
        return self._store.reader.sizes([name.key() for name in names], self._uid, evicted=evicted)

    def complete(self, name: ObjectName) -> bool:
        """See ObjectStore.complete."""
        return self._store.complete(name, self._uid)

    def read(self, name: ObjectName) -> bytes:
        """See ObjectStore.read."""
        return b"".join(bytes(piece.data) for piece in self.fetch([name]))

    def fetch(self, names: Iterable[ObjectName]) -> Iterator[Piece]:
        """See ObjectStore.fetch."""
        for name in names:
            content = self._store.reader.resolve([name], self._uid)[0]
            if content is None:
                raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
            yield from self._pieces(name, content)

    def _pieces(self, name: ObjectName, content: Content) -> Iterator[Piece]:
        layout = self._store.reader.layout(content)
        if not len(layout):
            yield Piece(name, memoryview(b""), True)
        parts = self._store.reader.parts(layout)
        for number in range(len(layout)):
            yield Piece(name, memoryview(parts.read(number)), number == len(layout) - 1)

    def _flow(
        self, batches: Callable[[Memory], Iterator[Batch]], keep: Keep | None = None
    ) -> Generator[tuple[Batch, list[Stored]], None, None]:
        """Store what `batches` fills; each batch with the contents that end in it."""
        memory = Memory(reuse=True)
        try:
            for batch in batches(memory):
                assert batch.view is not None  # as memory is used again
                try:
                    stored = self._begin().feed(batch.view[: batch.size], batch.pieces)
                    if keep is not None:
                        tell_whole(batch, [item.name for item in stored], keep)
                finally:
                    memory.give_back(batch)
                yield batch, stored
        except BaseException:
            # A content may have been begun and never ended: nothing more can be put behind it.
            session, self._session = self._session, None
            if session is not None:
                session.abort()
            raise
        finally:
            memory.close()

    def _begin(self) -> IngestSession:
        if self._session is None:
            self._session = self._store.session(self._uid)
        return self._session
