"""The direct engine's session against the test's own kernel: agreement, counts, requests taken back, nonsense."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fusefs.helpers import File, Node, answering, eventually, mixed, open_store, put, put_tree
from tests.fusefs.wire import ALL_FLAGS, Kernel, entries_plus, read_body, serve

from millpond.daemon import memfd
from millpond.daemon.errors import MountError
from millpond.daemon.names import ObjectName
from millpond.daemon.store.folders import Totals
from millpond.daemon.store.trees import TreeEntry, build_tree
from millpond.fusefs.engines import protocol, signals
from millpond.fusefs.engines.protocol import Init, Op
from millpond.fusefs.engines.session import MAX_WAITING
from millpond.fusefs.nodes import ROOT
from millpond.fusefs.sources import Sources

LARGE = mixed(900_000, 5)
TREE: dict[bytes, Node] = {
    b"file": File(b"some content"),
    b"large": File(LARGE),
    **{b"folders/%02d/inner/x" % number: File(b"%d" % number) for number in range(40)},
}
AWAY = b"content of an object that only the source has"
AWAY_NAME = ObjectName("md5", "5e" * 16)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Totals]:
    path = tmp_path_factory.mktemp("session") / "store"
    store = open_store(path)
    totals = put_tree(store, TREE)
    store.close()
    return path, totals


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Totals]:
    """A tree with a file whose content the store has not."""
    path = tmp_path_factory.mktemp("away") / "store"
    store = open_store(path)
    here = put(store, [b"here"])[0]
    entries = [TreeEntry(b"away", len(AWAY), name=AWAY_NAME), TreeEntry(b"here", 4, name=here)]
    totals = build_tree(store, entries)
    store.close()
    return path, totals


# -- the agreement ----------------------------------------------------------------------------------------------------


def test_the_kernel_is_asked_for_what_it_offers_and_we_know(tree: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        for offered in (ALL_FLAGS, int(Init.ASYNC_READ | Init.MAX_PAGES), 0):
            error, body = await kernel.begin(flags=offered)
            major, minor, _, agreed, background, threshold, _, _, pages, _, more, depth = protocol.INIT_OUT.unpack(body)
            assert (error, major, minor) == (0, 7, 31)
            # Not those that only --materialize is for.
            known = sum(protocol.FLAGS) & ~(Init.INIT_EXT | Init.PASSTHROUGH)
            assert agreed & ~offered == 0 and agreed & ~known == 0
            assert offered != ALL_FLAGS or agreed == known
            assert 0 < threshold <= background and pages == 256 and more == depth == 0

    serve(*tree, work)


@pytest.mark.parametrize("lacking", list(protocol.FLAGS), ids=lambda flag: flag.name)
def test_a_kernel_without_a_feature_goes_without_it(tree: tuple[Path, Totals], lacking: Init) -> None:
    async def work(kernel: Kernel) -> None:
        error, body = await kernel.begin(flags=ALL_FLAGS & ~int(lacking))
        agreed = protocol.INIT_OUT.unpack(body)[3]
        assert not error and not agreed & lacking
        folders = await kernel.lookup(ROOT, b"folders")
        error, body = await kernel.ask(Op.OPENDIR, folders, bytes(8))
        assert error == (0 if lacking == Init.NO_OPENDIR_SUPPORT else errno.ENOSYS)
        error, body = await kernel.ask(Op.READDIR, folders, read_body(0, 65536))
        assert not error and body.count(b"\0\0\0\0\0\0\0") and b"07" in body and b"39" in body
        error, body = await kernel.ask(Op.READDIRPLUS, folders, read_body(0, 65536))
        assert not error and len(list(entries_plus(body))) == 40
        inode = await kernel.lookup(ROOT, b"large")
        error, body = await kernel.ask(Op.OPEN, inode, bytes(8))
        assert error == (0 if lacking == Init.NO_OPEN_SUPPORT else errno.ENOSYS)
        for offset in range(0, len(LARGE), 131072):  # as much as a request may be without MAX_PAGES
            assert await kernel.read(inode, offset, 131072) == (0, LARGE[offset : offset + 131072])

    serve(*tree, work)


def test_a_kernel_without_passthrough_reads_large_files_by_requests(tree: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()  # nothing beyond the 32nd flag is offered
        inode = await kernel.lookup(ROOT, b"large")
        assert await kernel.ask(Op.OPEN, inode, bytes(8)) == (
            errno.ENOSYS,
            b"",
        )  # then there is nothing to count, either
        assert await kernel.read(inode, 1000, 4096) == (0, LARGE[1000:5096])
        told = kernel.filesystem.statistics()
        assert told["passthrough_files"] == 0
        assert told["passthrough"] == "the kernel is older than 6.9, or made without it"

    serve(*tree, work, materialize=1 << 30)


def test_a_kernel_that_is_too_old_is_refused_and_a_newer_one_asked_to_speak_ours(tree: tuple[Path, Totals]) -> None:
    async def newer(kernel: Kernel) -> None:
        error, body = await kernel.begin(major=8)
        assert not error and protocol.INIT_OUT.unpack(body)[:2] == (7, 31)
        assert not (await kernel.begin())[0]
        assert await kernel.lookup(ROOT, b"file")

    async def older(kernel: Kernel) -> None:
        assert (await kernel.begin(minor=30))[0] == errno.EPROTO
        await trio.sleep_forever()

    serve(*tree, newer)
    with pytest.raises((MountError, ExceptionGroup)) as refused:
        serve(*tree, older)
    found = refused.value.exceptions[0] if isinstance(refused.value, ExceptionGroup) else refused.value
    assert "7.30" in str(found)


def test_opens_are_not_asked_for_unless_they_are_recorded(tree: tuple[Path, Totals]) -> None:
    opened: list[int] = []

    async def not_asked(kernel: Kernel) -> None:
        await kernel.begin()
        inode = await kernel.lookup(ROOT, b"file")
        assert await kernel.ask(Op.OPEN, inode, bytes(8)) == (errno.ENOSYS, b"")
        assert await kernel.ask(Op.OPENDIR, ROOT, bytes(8)) == (errno.ENOSYS, b"")
        assert (await kernel.read(inode, 0, 4096)) == (0, b"some content")

    async def recorded(kernel: Kernel) -> None:
        _, body = await kernel.begin()
        assert not protocol.INIT_OUT.unpack(body)[3] & Init.NO_OPEN_SUPPORT
        inode = await kernel.lookup(ROOT, b"file")
        for _ in range(2):
            error, answer = await kernel.ask(Op.OPEN, inode, bytes(8))
            assert not error and protocol.OPEN_OUT.unpack(answer) == (0, protocol.KEEP_CACHE, 0)
            assert await kernel.read(inode, 5, 4096) == (0, b"content")
            assert await kernel.ask(Op.RELEASE, inode, bytes(24)) == (0, b"")
        assert opened == [inode, inode]

    async def old_kernel(kernel: Kernel) -> None:
        """ENOSYS would be an error where the kernel does not know what it means."""
        await kernel.begin(flags=0)
        inode = await kernel.lookup(ROOT, b"file")
        assert not (await kernel.ask(Op.OPEN, inode, bytes(8)))[0]
        assert not (await kernel.ask(Op.OPENDIR, ROOT, bytes(8)))[0]

    serve(*tree, not_asked)
    serve(*tree, recorded, on_open=opened.append)
    serve(*tree, old_kernel)


# -- counts -----------------------------------------------------------------------------------------------------------


def test_what_was_told_is_counted_and_what_is_forgotten_goes(tree: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()

        def known() -> int:
            return int(kernel.filesystem.statistics()["known_directories"])

        folders = await kernel.lookup(ROOT, b"folders")
        assert folders == await kernel.lookup(ROOT, b"folders")
        told: dict[int, int] = {folders: 2}
        for size in (100, 200, 700, 65536):  # the first holds no entry at all
            error, body = await kernel.ask(Op.READDIRPLUS, folders, read_body(0, size))
            found = list(entries_plus(body))
            assert not error and len(body) <= size and len(found) == min(40, size // 160)
            for inode, _ in found:
                told[inode] = told.get(inode, 0) + 1
        assert known() == 42
        first = next(iter(told))
        await kernel.send(Op.FORGET, first, protocol.FORGET_IN.pack(1))
        assert await kernel.lookup(ROOT, b"folders") == first  # still known by that number
        pairs = b"".join(protocol.FORGET_ONE.pack(inode, count) for inode, count in told.items())
        await kernel.send(Op.BATCH_FORGET, 0, protocol.BATCH_FORGET_IN.pack(len(told), 0) + pairs)
        assert (await kernel.ask(Op.GETATTR, first, bytes(16)))[0] == errno.ESTALE
        assert known() == 1
        assert await kernel.lookup(ROOT, b"folders") != first

    serve(*tree, work)


def test_names_that_are_not_there_are_remembered_where_nothing_changes(tree: tuple[Path, Totals]) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        error, body = await kernel.ask(Op.LOOKUP, ROOT, b"nothing\0")
        node, _, entry_valid, *_ = protocol.ENTRY_OUT.unpack(body)
        assert (error, node) == (0, 0) and entry_valid > 86400

    serve(*tree, work)


# -- requests taken back ----------------------------------------------------------------------------------------------

_HANDLES = "import signal; signal.signal(signal.{}, lambda *_: None); print('ready', flush=True); signal.pause()"


@contextmanager
def pending(number: signal.Signals, *, handled: bool) -> Iterator[int]:
    """A process that has a signal pending and cannot take it: it is stopped."""
    command = [sys.executable, "-c", _HANDLES.format(number.name if handled else "SIGUSR2")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", "it is stopped")
        process.send_signal(number)
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "handled", "ends"),
    [
        (signal.SIGTERM, False, True),
        (signal.SIGINT, True, True),
        (signal.SIGALRM, False, True),
        (signal.SIGALRM, True, False),
        (signal.SIGUSR1, True, False),
        (signal.SIGCHLD, False, False),
        (signal.SIGWINCH, True, False),
    ],
)
def test_a_signal_ends_a_program_or_does_not(number: signal.Signals, handled: bool, ends: bool) -> None:
    with pending(number, handled=handled) as pid:
        assert signals.is_ending(pid) == ends


def test_nobody_known_is_taken_to_end() -> None:
    assert signals.is_ending(0) and signals.is_ending(2**22 + 1)
    assert not signals.is_ending(os.getpid())


def test_an_interrupted_read_is_given_up_at_once_and_holds_up_nobody(away: tuple[Path, Totals]) -> None:
    ours, theirs = socket.socketpair()

    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        inode = await kernel.lookup(ROOT, b"away")
        waiting = [await kernel.send(Op.READ, inode, read_body(0, 4096), pid=pid) for pid in (0, os.getpid())]
        assert await kernel.read(await kernel.lookup(ROOT, b"here"), 0, 100) == (0, b"here")
        for unique in (*waiting, 4, 4444):  # the last: answered long ago, and never asked
            await kernel.interrupt(unique)
        assert await kernel.answer(waiting[0]) == (errno.EINTR, b"")
        assert await kernel.read(await kernel.lookup(ROOT, b"here"), 1, 100) == (0, b"ere")
        assert waiting[1] not in kernel.answers  # this process lives on
        answering(lambda request: ({"size": len(AWAY)}, [memfd.from_bytes(AWAY)]))(ours)
        assert await kernel.answer(waiting[1]) == (0, AWAY)

    with ours:
        serve(*away, work, source=Sources(theirs))


def test_many_that_wait_hold_up_nobody_and_their_number_is_bounded(away: tuple[Path, Totals]) -> None:
    ours, theirs = socket.socketpair()
    asked: list[object] = []

    def give(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        asked.append(request)
        return {"size": len(AWAY)}, [memfd.from_bytes(AWAY)]

    async def work(kernel: Kernel) -> None:
        await kernel.begin(flags=0)
        inode, here = await kernel.lookup(ROOT, b"away"), await kernel.lookup(ROOT, b"here")
        waiting = [await kernel.send(Op.READ, inode, read_body(0, 4096)) for _ in range(MAX_WAITING - 1)]
        assert await kernel.read(here, 0, 100) == (0, b"here")
        waiting.append(await kernel.send(Op.READ, inode, read_body(0, 4096)))
        late = await kernel.send(Op.READ, here, read_body(0, 4096))  # not looked at before one of them is done
        with trio.move_on_after(0.2):
            await kernel.answer(late)
        assert late not in kernel.answers
        answering(give)(ours)
        assert await kernel.answer(late) == (0, b"here")
        for unique in waiting:
            assert await kernel.answer(unique) == (0, AWAY)
        assert len(asked) == 1, "one question for all of them"

    with ours:
        serve(*away, work, source=Sources(theirs))


def test_who_shares_an_opening_shares_its_failure_and_not_its_interruption(away: tuple[Path, Totals]) -> None:
    ours, theirs = socket.socketpair()

    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        inode = await kernel.lookup(ROOT, b"away")
        first = await kernel.send(Op.READ, inode, read_body(0, 4096))
        second = await kernel.send(Op.READ, inode, read_body(8, 4096), pid=os.getpid())
        await kernel.ask(Op.STATFS, ROOT)
        await kernel.interrupt(first)
        assert await kernel.answer(first) == (errno.EINTR, b"")
        ours.shutdown(socket.SHUT_RDWR)
        assert await kernel.answer(second) == (errno.EIO, b"")

    with ours:
        serve(*away, work, source=Sources(theirs))


def test_the_end_of_the_mount_ends_what_waits(away: tuple[Path, Totals]) -> None:
    ours, theirs = socket.socketpair()

    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        await kernel.send(Op.READ, await kernel.lookup(ROOT, b"away"), read_body(0, 4096))
        await kernel.ask(Op.STATFS, ROOT)

    with ours:
        serve(*away, work, source=Sources(theirs))  # else it would take the source's whole minute


# -- nonsense ---------------------------------------------------------------------------------------------------------

INODES = st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**62, 2**64 - 1]))
OPS = st.one_of(st.sampled_from([int(op) for op in Op]), st.integers(0, 2**32 - 1))
NUMBERS = st.one_of(st.sampled_from([0, 1, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
BODIES = st.one_of(
    st.binary(max_size=100),
    st.lists(NUMBERS, max_size=8).map(lambda values: b"".join(value.to_bytes(8, "little") for value in values)),
    st.sampled_from([b"file\0", b"folders\0", b".millpond\0", b"stats\0", b"x" * 300 + b"\0", b"\0", b"/\0", b"..\0"]),
    st.builds(read_body, NUMBERS, st.integers(0, 2**32 - 1)),
)


@example(requests=[(int(Op.INIT), 0, bytes(16))], cuts=[])
@given(
    requests=st.lists(st.tuples(OPS, INODES, BODIES), max_size=30), cuts=st.lists(st.binary(max_size=39), max_size=3)
)
def test_no_request_ends_the_session(
    tree: tuple[Path, Totals], requests: list[tuple[int, int, bytes]], cuts: list[bytes]
) -> None:
    async def work(kernel: Kernel) -> None:
        await kernel.begin()
        asked = []
        for op, inode, body in requests:
            asked.append((op, await kernel.send(op, inode, body)))
        for cut in filter(None, cuts):
            await kernel.sock.send(cut)
        for op, unique in asked:
            if op not in protocol.SILENT:
                error, _ = await kernel.answer(unique)
                assert op not in protocol.CHANGES or error == errno.EROFS
        inode = await kernel.lookup(ROOT, b"large")
        assert await kernel.read(inode, 0, 1 << 20) == (0, LARGE)
        assert len(kernel.answers) <= kernel.unique
        silent = {unique for op, unique in asked if op in protocol.SILENT}
        assert not silent & set(kernel.answers), "these have no answer"
        assert not kernel.filesystem.errors, kernel.filesystem.last_error

    serve(*tree, work)
