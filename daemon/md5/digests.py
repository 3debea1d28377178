"""The MD5 of streams whose parts come faster than they can be hashed: by one thread each, or several in one call (`Lanes`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from millpond.daemon.md5.kernels import WIDEST, Kernels
from millpond.daemon.md5.streams import Stream, single, update

Submit = Callable[[Callable[[], None]], object]
_Waiting = deque[tuple[memoryview, "Future[None]"]]


class Digest(Protocol):
    """A stream's MD5. Parts are added by one thread, in order."""

    def add(self, part: memoryview) -> Future[None]:
        """Hash one more part; done when nobody looks at it any more."""
        ...

    def hexdigest(self) -> str:
        """Of the parts that are done; nothing may come behind it."""
        ...


class SingleDigest:
    """One thread at a time works off what has come of the stream. `also` is given each part behind that."""

    def __init__(
        self, submit: Submit, also: Callable[[memoryview], None] | None = None, kernels: Kernels | None = None
    ) -> None:
        self._submit = submit
        self._also = also
        self._md5 = single(kernels)
        self._lock = threading.Lock()
        self._parts: _Waiting = deque()
        self._working = False

    def add(self, part: memoryview) -> Future[None]:
        """See Digest."""
        done: Future[None] = Future()
        with self._lock:
            self._parts.append((part, done))
            starts, self._working = not self._working, True
        if starts:
            try:
                self._submit(self._work)
            except BaseException:
                self._drop()
                raise
        return done

    def hexdigest(self) -> str:
        """See Digest."""
        return self._md5.hexdigest()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._parts:
                    self._working = False
                    return
                part, done = self._parts.popleft()
            try:
                if done.set_running_or_notify_cancel():
                    self._md5.update(part)
                    if self._also is not None:
                        self._also(part)
                    done.set_result(None)
            except Exception as error:  # told to who waits for it
                done.set_exception(error)
            del part

    def _drop(self) -> None:
        with self._lock:
            self._working = False
            _cancel(self._parts)


class LaneDigest(Stream):
    """A stream beside others; made by `Lanes.digest`."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__(lanes.kernels)
        self._lanes = lanes
        self.parts: _Waiting = deque()

    def add(self, part: memoryview) -> Future[None]:
        """See Digest. Not begun before `Lanes.start`."""
        return self._lanes.add(self, part)


class Lanes:
    """Streams of one session, hashed beside each other: what is at hand of them is taken together, a part of each, by as many
    threads as `threads` says (more of them share the streams)."""

    def __init__(self, kernels: Kernels, submit: Submit, threads: int) -> None:
        self.kernels = kernels
        self._submit = submit
        self._threads = threads
        self._lock = threading.Lock()
        # Streams of which parts wait, and none is being hashed.
        self._ready: deque[LaneDigest] = deque()
        self._busy: set[LaneDigest] = set()
        self._working = 0

    def digest(self) -> LaneDigest:
        """A new stream."""
        return LaneDigest(self)

    def add(self, stream: LaneDigest, part: memoryview) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            if not stream.parts and stream not in self._busy:
                self._ready.append(stream)
            stream.parts.append((part, done))
        return done

    def start(self) -> None:
        """Have the parts hashed that were added: more of them are better together."""
        with self._lock:
            fresh = min(self._threads - self._working, len(self._ready))
            self._working += fresh
        for begun in range(fresh):
            try:
                self._submit(self._work)
            except BaseException:
                with self._lock:
                    self._working -= fresh - begun
                    if not self._working:
                        self._drop()
                raise

    def _work(self) -> None:
        while group := self._take():
            wanted = [(stream, part, done) for stream, part, done in group if done.set_running_or_notify_cancel()]
            try:
                update([stream for stream, _, _ in wanted], [part for _, part, _ in wanted])
            except Exception as error:  # told to who waits for it
                for _, _, done in wanted:
                    done.set_exception(error)
            else:
                for _, _, done in wanted:
                    done.set_result(None)
            with self._lock:
                self._busy.difference_update(stream for stream, _, _ in group)
                self._ready.extend(stream for stream, _, _ in group if stream.parts)
            del group, wanted

    def _take(self) -> list[tuple[LaneDigest, memoryview, Future[None]]]:
        """A part of each of some streams, which are busy then; at the end the thread is done with, in the same moment."""
        with self._lock:
            share = min(WIDEST, -(-len(self._ready) // self._working))
            streams = [self._ready.popleft() for _ in range(share)]
            self._busy.update(streams)
            self._working -= not streams
            return [(stream, *stream.parts.popleft()) for stream in streams]

    def _drop(self) -> None:
        while self._ready:
            _cancel(self._ready.popleft().parts)


def _cancel(parts: _Waiting) -> None:
    for _, done in parts:
        done.cancel()
    parts.clear()
