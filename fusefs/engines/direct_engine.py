"""The direct engine: the kernel's protocol spoken without a library, for what a library does not let one leave out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from millpond.daemon.mounts.detach import detach
from millpond.fusefs.engines import EngineSettings, mounting
from millpond.fusefs.engines.answers import Answers, Later
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.passthrough import Passthrough
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.engines.session import Session
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling.keeper import Keeper, why_not
from millpond.fusefs.serving.servers import Servers


async def serve(filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]) -> None:
    """See engines.Engine."""
    given = settings.mountpoint.startswith("/dev/fd/")
    if given:
        fd = int(settings.mountpoint.removeprefix("/dev/fd/"))
    else:
        fd = await trio.to_thread.run_sync(mounting.mount, settings)
    os.set_blocking(fd, False)
    try:
        async with trio.open_nursery() as nursery:
            ahead = ReadAhead(settings.read_ahead_kb)
            passthrough = None
            if settings.materialize:
                reader, folder = filesystem.reader, Path(settings.scratch)
                passthrough = Passthrough(fd, filesystem, reader, nursery, folder=folder, budget=settings.materialize)
            why = why_not(settings.place, recorded=settings.on_open is not None, system=given)
            keeper = Keeper(settings.fillers, filesystem, device=fd, place=settings.place, why_not=why)

            def answers(channel: Channel, later: Later) -> Answers:
                return Answers(filesystem, channel, later, ahead, settings.on_open, passthrough, keeper.feed)

            session = Session(filesystem, fd, nursery, answers)
            filesystem.more_statistics += [ahead.statistics, keeper.statistics]
            filesystem.when_ending = keeper.ending
            servers = Servers(
                filesystem,
                session,
                nursery,
                device=fd,
                store=settings.store,
                fixed=settings.serving,
                most=settings.serving_most,
                feed=lambda: keeper.fds,
            )

            async def announce() -> None:
                """Once requests are answered: set what the answer to the first one would have reset, then say so."""
                await session.initialised.wait()
                ahead.begin(settings.place)
                await mounted()
                nursery.start_soon(servers.run)
                nursery.start_soon(keeper.run, session.arrival)

            nursery.start_soon(announce)
            await session.run()
            if passthrough is not None:
                passthrough.end()
            filesystem.ended()
            nursery.cancel_scope.cancel()
    except BaseException:
        if not given:
            with trio.CancelScope(shield=True), suppress(OSError):
                await trio.to_thread.run_sync(detach, settings.place)  # nobody serves it any more
        raise
    finally:
        os.close(fd)
