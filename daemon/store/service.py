"""The store's requests: what a worker may ask for, with its caller's uid, and `fsck` for the command line.

Bytes come and go in sealed memory files. A session of puts belongs to the connection that began it and is dropped with
it; nothing of it is named before `store.commit`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import memfd
from millpond.daemon.errors import AccessError, BusyError, ObjectMissingError, ProtocolError, StoreDamagedError
from millpond.daemon.names import ObjectName
from millpond.daemon.objects import Slice
from millpond.daemon.rpc.methods import Call, Handler, Registry, Reply
from millpond.daemon.store.evict_service import Room
from millpond.daemon.store.index import Content
from millpond.daemon.store.reader import Bytes, StoreReader
from millpond.daemon.store.records import Kind
from millpond.daemon.store.repair import sound_manifest
from millpond.daemon.store.scrubstate import state_of
from millpond.daemon.store.session import LEAST_BYTES, STRANDS, Feed, IngestSession
from millpond.daemon.store.store import Store

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

T = TypeVar("T")

# Threads that store and fetch may hold at once, over all callers; the store's own pool does the hashing.
MAX_THREADS = 16
# Sessions of puts that one connection may have open.
MAX_SESSIONS = 4
# Contents that are read at once, and copied to a memory file while the processor has them at hand.
_PART_BYTES = 2 << 20
# Names in one request.
MAX_NAMES = 4096
# Contents of so many bytes are worth a strand of their own as long as kernels must still be made for it.
_LEAST_BYTES_AT_FIRST = 32 << 20


def parse_name(text: str) -> ObjectName:
    """The object name of its wire form, `algo:hex[.dir]`. Raises ProtocolError."""
    algo, colon, value = text.partition(":")
    name = ObjectName(algo, value)
    try:
        name.key()
    except (KeyError, ValueError):
        colon = ""
    if not colon:
        raise ProtocolError(f"'{text[:80]}' is not an object name")
    return name


def _slices(pieces: Any) -> list[Slice]:
    """Pieces of their wire form, [length, last, is_dir, strand?] each. Raises ProtocolError."""
    try:
        return [
            (int(length), bool(last), bool(is_dir), int(strand[0]) if strand else 0)
            for length, last, is_dir, *strand in pieces
        ]
    except (TypeError, ValueError) as error:
        raise ProtocolError("the pieces of a feed are lists of a length, two truths and a strand") from error


@dataclass(slots=True)
class _Session:
    """Puts of one connection; `context` of a source: folder, environment and umask to evict with. Who begins a feed
    holds `beginning`, who waits for one `finishing`."""

    puts: IngestSession
    # Of the daemon's own user's memory files; None for another's, who must seal each.
    mappings: memfd.Mappings | None = None
    context: dict[str, Any] | None = None
    beginning: trio.Lock = field(default_factory=trio.Lock)
    finishing: trio.Lock = field(default_factory=trio.Lock)


class StoreService:
    """Handlers of `store.*` and `fsck` over one Store."""

    def __init__(self, store: Store, room: Room, on_manifest: Callable[[int, ObjectName], None]) -> None:
        self._store = store
        self._room = room
        self._on_manifest = on_manifest
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._numbers = itertools.count(1)
        self._sessions: dict[tuple[int, int], _Session] = {}

    async def begin(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{context?} -> {session, own, strands}; `own`: the daemon is this user's, and takes memory files that are used again.
        `context` is for who is no worker: what a verb of his would run with, to evict what remotes hold when the
        store's limit is reached."""
        owner = call.connection.id
        if sum(1 for key in self._sessions if key[0] == owner) >= MAX_SESSIONS:
            raise BusyError(f"this connection has {MAX_SESSIONS} sessions open already")
        number = next(self._numbers)
        self._claims(call)
        # Of what a source puts there are pointers already.
        now = None if call.connection.parent is None else self._store.now()
        self._store.claims.puts(owner, self._store.mark, now)
        mappings = memfd.Mappings() if call.uid == os.geteuid() else None
        puts = self._store.session(call.uid, owner)
        self._sessions[owner, number] = _Session(puts, mappings, params.get("context"))
        call.connection.on_close(lambda: self._drop((owner, number)))
        return {"session": number, "own": mappings is not None, "strands": self._strands()}

    def _strands(self) -> tuple[int, int]:
        """(contents that may come beside each other, the least bytes of one): hashed together they take less time, once the kernels
        for that are made."""
        kernels = self._store.kernels
        if kernels is None or kernels.tried is False:
            return 1, 0
        return STRANDS, LEAST_BYTES if kernels.tried else _LEAST_BYTES_AT_FIRST

    async def feed(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{session, pieces: [[length, last, is_dir, strand?]...], like?, anew?} + memfd -> {stored: [[md5, size, new_bytes]...]}. `like`
        names a manifest of the caller's that the next one that begins is mostly the same as (see parts.py); `anew`: contents that
        were begun before will not end."""
        session = self._session(call, params)
        like = parse_name(str(params["like"])) if params.get("like") else None
        pieces = _slices(params["pieces"])
        total = sum(piece[0] for piece in pieces)
        mapping = contextlib.ExitStack()

        def begin() -> Feed:
            fd = call.take_fd()
            received = memfd.mapped(fd) if session.mappings is None else session.mappings.mapped(fd, total)
            view = mapping.enter_context(received)
            if any(piece[0] < 0 for piece in pieces) or total != len(view):
                raise ProtocolError("the pieces of a feed do not add up to its memory file")
            if params.get("anew"):
                session.puts.break_off()
            if like is not None:
                session.puts.follow(self._store.resolve([like], call.uid, call.connection.id)[0])
            return session.puts.begin(view, pieces)

        with mapping:
            # Feeds begin and end in the order in which they came (both locks are fair), and two may be under way.
            async with contextlib.AsyncExitStack() as fitting:
                async with session.beginning:
                    await fitting.enter_async_context(self._room.for_feed(call, total, len(pieces), session.context))
                    feed = await self._in_thread(begin)
                try:
                    async with session.finishing:
                        stored = await self._in_thread(lambda: session.puts.finish(feed))
                except trio.Cancelled:
                    with trio.CancelScope(shield=True):
                        await self._in_thread(lambda: session.puts.fail(feed))
                    raise
        return {"stored": [(item.name.value, item.size, item.new_bytes) for item in stored]}

    async def commit(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{session} -> {again: [names]} when all else is durable; the session is over.

        Names in `again` lost chunks meanwhile and must be fed again in a new session."""
        session = self._session(call, params)
        async with session.beginning, session.finishing:
            if session.mappings is not None:
                self._store.do_beside(session.mappings.close)
            again = await self._in_thread(session.puts.commit)
        self._sessions.pop((call.connection.id, int(params["session"])), None)
        for name in session.puts.manifests:
            if name not in again:
                self._on_manifest(call.uid, name)
        return {"again": [str(name) for name in again[:MAX_NAMES]]}

    async def sizes(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{names, evicted?} -> {sizes: [bytes | null]} of the caller's objects; with `evicted` also of those that only
        remotes have now."""
        names = _names(params)
        owner = self._claims(call)
        contents = await self._in_thread(lambda: self._store.resolve(names, call.uid, owner))
        sizes = [None if content is None else content.size for content in contents]
        if params.get("evicted") and None in sizes:
            keys = [name.key() for name in names]
            sizes = await self._in_thread(lambda: self._store.reader.sizes(keys, call.uid, evicted=True))
        return {"sizes": sizes}

    async def complete(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{name} -> {complete}: whether a manifest and all that it names are the caller's."""
        name = parse_name(str(params["name"]))
        owner = self._claims(call)
        return {"complete": await self._in_thread(lambda: self._store.claim_complete(name, call.uid, owner))}

    async def fetch(self, call: Call, params: dict[str, Any]) -> Reply:
        """{names, offset} (+ memfd) -> {pieces: [[index, length, last]...], next: [names done, offset in the next], own} (+ memfd).

        Stateless: as many of the contents as fit into one memory file, beginning `offset` bytes into the first. `own`: the daemon is
        this user's, and fills a memory file that is used again, if one comes with the request; else it answers with one.
        """
        names, offset = _names(params), int(params.get("offset", 0))
        store, uid, owner = self._store, call.uid, self._claims(call)
        own = call.uid == os.geteuid()
        if call.fds and not own:
            raise ProtocolError("another user's memory file is not filled")
        into = call.take_fd() if call.fds else None

        def work() -> tuple[list[int], list[tuple[int, int, bool]], tuple[int, int]]:
            with memfd.Filling(into) as filling:
                contents = store.resolve(names, uid, owner)
                pieces, following = gather(store.reader, names, contents, offset, filling.write)
                return filling.sealed(), pieces, following

        fds, pieces, following = await self._in_thread(work)
        return Reply({"pieces": pieces, "next": following, "own": own}, fds=fds)

    async def read(self, call: Call, params: dict[str, Any]) -> Reply:
        """{name, offset, length} -> {size} of the object + memfd with that range of it, shorter at its end only.

        `length` is at most memfd.BATCH_BYTES."""
        name, offset, length = parse_name(str(params["name"])), int(params["offset"]), int(params["length"])
        if offset < 0 or not 0 <= length <= memfd.BATCH_BYTES:
            raise ProtocolError(f"bytes {offset} to {offset + length} cannot be read at once")
        reader, uid = self._store.reader, call.uid
        size, data = await self._in_thread(lambda: read_range(reader, name, uid, offset, length))
        return Reply({"size": size}, fds=[data])

    async def fsck(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{deep, repair} -> the report (see `Store.fsck`). It tells of all users' files, so others than the store's
        own user and root may not ask."""
        if call.uid not in (0, os.getuid()):
            raise AccessError("the store is everybody's: only root or the daemon's own user may check it")
        deep, repair = bool(params.get("deep")), bool(params.get("repair"))

        def progress(done: int, total: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(lambda: call.progress(phase="checking", bytes=(done, total)))

        source = partial(sound_manifest, self._store, call.uid)
        report = await self._in_thread(
            lambda: self._store.fsck(deep=deep, repair=repair, progress=progress, source=source)
        )
        return dict(asdict(report))

    async def stats(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{} -> the store's figures (see `Store.stats`), and how far `scrub` is (see `ScrubState`)."""
        found = asdict(await self._in_thread(self._store.stats))
        scrub = asdict(await self._in_thread(lambda: state_of(self._store.reader.index)))
        if call.uid not in (0, os.getuid()):
            del scrub["hurt"]  # names of others' files
        return {**found, "scrub": scrub}

    def _session(self, call: Call, params: dict[str, Any]) -> _Session:
        try:
            return self._sessions[call.connection.id, int(params["session"])]
        except KeyError:
            raise ProtocolError("there is no such session of puts on this connection") from None

    def _claims(self, call: Call) -> int:
        """The owner of what this connection claims."""
        claims, owner = self._store.claims, call.connection.id
        if claims.begin(owner):
            call.connection.on_close(lambda: claims.end(owner))
        return owner

    def _drop(self, key: tuple[int, int]) -> None:
        found = self._sessions.pop(key, None)
        if found is not None:
            found.puts.abort()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def gather(
    reader: StoreReader,
    names: Sequence[ObjectName],
    contents: Sequence[Content | None],
    offset: int,
    write: Callable[[Sequence[Bytes]], None],
) -> tuple[list[tuple[int, int, bool]], tuple[int, int]]:
    """Give `write` as many contents as one memory file takes, in parts; (pieces, (names done, offset in the next one)).

    Raises ObjectMissingError for a name without a content, StoreDamagedError.
    """
    lengths: list[int] = []
    chunks: list[bytes] = []
    pieces: list[tuple[int, int, bool]] = []
    size = waiting = 0
    following = len(names), 0

    def put(buffers: Sequence[Bytes]) -> None:
        if list(map(len, buffers)) != lengths:  # a name's size in the index: what comes behind would be another's bytes
            raise StoreDamagedError(
                "a content in the store is not as long as the index says", hint="run `millpond fsck`"
            )
        write(buffers)
        lengths.clear()

    def put_chunks() -> None:
        """Many at once: what was stored together lies side by side."""
        if chunks:
            put(reader.read_chunks(chunks))
            chunks.clear()

    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        if content is None:
            raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
        begin = size
        whole = True
        for chunk, start, end in _chunks(reader, content):
            if end <= offset:
                continue
            if size and size + end - start > memfd.BATCH_BYTES:
                whole = False
                following = index, start
                break
            if not isinstance(chunk, bytes):
                put_chunks()
            lengths.append(end - start)
            size += end - start
            waiting += end - start
            if isinstance(chunk, bytes):
                chunks.append(chunk)
                if waiting >= _PART_BYTES:
                    put_chunks()
                    waiting = 0
            else:
                put([chunk()])
        if whole or size > begin:
            pieces.append((index, size - begin, whole))
        if not whole:
            break
        offset = 0
    put_chunks()
    return pieces, following


def _chunks(reader: StoreReader, content: Content) -> Iterator[tuple[bytes | Callable[[], Bytes], int, int]]:
    """(id of a chunk or, of a part of one, what reads it; begin; end) in the order of a content. Raises StoreDamagedError."""
    if content.kind == Kind.CHUNK:
        if content.size:
            yield content.id, 0, content.size
        return
    layout = reader.layout(content)
    parts = None if layout.starts is None else reader.parts(layout)
    for number in range(len(layout)):
        found = layout.id(number) if parts is None else partial(parts.read, number)
        yield found, layout.offsets[number], layout.offsets[number + 1]


def read_range(reader: StoreReader, name: ObjectName, uid: int, offset: int, length: int) -> tuple[int, int]:
    """(size of an object, sealed memory file with a range of it). Raises as `gather`."""
    content = reader.resolve([name], uid)[0]
    if content is None:
        raise ObjectMissingError(f"object {name} is not in the store", details={"name": str(name)})
    layout = reader.layout(content)
    end = min(offset + length, layout.size)
    if offset >= end:
        return layout.size, memfd.from_bytes(b"")
    first, last = layout.find(offset), layout.find(end - 1)
    if layout.starts is None:
        chunks = reader.read_chunks([layout.id(number) for number in range(first, last + 1)])
    else:
        parts = reader.parts(layout)
        chunks = [bytes(parts.read(number)) for number in range(first, last + 1)]
    data = chunks[0] if first == last else b"".join(chunks)
    begin = offset - layout.offsets[first]
    return layout.size, memfd.from_bytes(memoryview(data)[begin : begin + end - offset])


def _names(params: dict[str, Any]) -> list[ObjectName]:
    names = params.get("names")
    if not isinstance(names, list) or len(names) > MAX_NAMES:
        raise ProtocolError(f"'names' must be a list of at most {MAX_NAMES} object names")
    return [parse_name(str(name)) for name in names]


def register(registry: Registry, daemon: Daemon) -> None:
    """Add the store's methods."""

    def on_manifest(uid: int, name: ObjectName) -> None:
        for hook in daemon.on_manifest:
            hook(uid, name)

    service = StoreService(daemon.store, Room(daemon), on_manifest)
    handlers: dict[str, Handler] = {
        "store.begin": service.begin,
        "store.feed": service.feed,
        "store.commit": service.commit,
        "store.sizes": service.sizes,
        "store.complete": service.complete,
        "store.fetch": service.fetch,
        "store.read": service.read,
    }
    for name, handler in handlers.items():
        registry.register(name, handler, who="both")
    registry.register("store.stats", service.stats)
    registry.register("store.fsck", service.fsck, who="worker")
