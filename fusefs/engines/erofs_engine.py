"""The erofs engine: the kernel's own file system over an image that is made as it is read (fusefs/image/).

The image is the one file of a FUSE mount that is in no directory; EROFS is mounted of it at the place. So names, attributes and cached
pages are the kernel's, and cost what they cost on a disk; what is not in its page cache is asked for here, and nothing else. The kernel keeps
the file open as long as EROFS is mounted; behind that, the FUSE mount ends by itself.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from millpond.daemon.mounts import left
from millpond.daemon.mounts.detach import detach
from millpond.daemon.mounts.place import IMAGE_FSTYPE, MountEntry, mount_table, mounted_at
from millpond.fusefs.engines import EngineRefused, EngineSettings, mounting
from millpond.fusefs.engines.answers import Later
from millpond.fusefs.engines.arrival import Arrival
from millpond.fusefs.engines.channel import Channel
from millpond.fusefs.engines.imaging import ImageAnswers
from millpond.fusefs.engines.readahead import ReadAhead
from millpond.fusefs.engines.session import Session
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.filling.keeper import Keeper
from millpond.fusefs.filling.tally import available_bytes
from millpond.fusefs.image.ahead import Ahead, is_of_use
from millpond.fusefs.image.format import blocks_of
from millpond.fusefs.image.image import Image
from millpond.fusefs.image.mounter import Wanted
from millpond.fusefs.image.space import DATA_BLOCKS, Space
from millpond.fusefs.serving.servers import Servers

log = logging.getLogger("millpond.fusefs")

# The part of the memory that is filled (one in so many).
_PART = 4


async def serve(filesystem: Filesystem, settings: EngineSettings, mounted: Callable[[], Awaitable[None]]) -> None:
    """See engines.Engine. Raises EngineRefused where the kernel is not fit for it, and nothing is mounted."""
    files, size = filesystem.statfs()
    if files + blocks_of(size) > DATA_BLOCKS:
        raise EngineRefused("the version is larger than an image can be")
    engine = _Engine(filesystem, settings, directly=not is_of_use(files, size, far=settings.far))
    try:
        await engine.run(mounted)
    except BaseException:
        with trio.CancelScope(shield=True), suppress(OSError):
            await trio.to_thread.run_sync(engine.take_away)
        raise
    finally:
        engine.close()


class _Engine:
    """One mount."""

    def __init__(self, filesystem: Filesystem, settings: EngineSettings, *, directly: bool) -> None:
        self._fs = filesystem
        self._settings = settings
        self._directly = directly
        self._name = settings.name
        self._space_fd = Space.create(settings.name)
        places = Space(self._space_fd)
        root = filesystem.folder_of(1)
        assert root is not None
        places.begin(root)
        self._image = Image(
            filesystem.folders, places, uid=filesystem.uid, gid=os.getgid(), closed=not settings.allow_other
        )
        self._image.totals = filesystem.statfs()
        self._ahead = Ahead(self._image, lambda: available_bytes() // _PART)
        self._device, self._nowhere = mounting.mount_nowhere(settings.name)
        os.set_blocking(self._device, False)
        self._keeper: Keeper | None = None
        self._refused = ""
        # Why nothing is brought any more; "" as long as it is.
        self._stopped = ""

    async def run(self, mounted: Callable[[], Awaitable[None]]) -> None:
        """Mount, serve, return when the mount is gone."""
        filesystem, settings = self._fs, self._settings
        async with trio.open_nursery() as nursery:
            ahead = ReadAhead(settings.read_ahead_kb)

            def answers(channel: Channel, later: Later) -> ImageAnswers:
                read, is_ahead = (None, None) if self._directly else (self._ahead.read, self._ahead.is_of)
                return ImageAnswers(
                    filesystem, self._image, channel, later, ahead,
                    name=self._name.encode(), pid=lambda: session.pid, read=read, is_ahead=is_ahead,
                )  # fmt: skip

            session = Session(filesystem, self._device, nursery, answers)
            filesystem.more_statistics += [ahead.statistics, self.statistics]
            servers = Servers(
                filesystem,
                session,
                nursery,
                device=self._device,
                store=settings.store,
                fixed=settings.serving,
                most=settings.serving_most,
                image=self._space_fd,
                asked=self._ahead.read,
            )

            async def announce() -> None:
                """Once requests are answered, the kernel can mount what they bring."""
                await session.initialised.wait()
                try:
                    made, image = await self._mount()
                except EngineRefused as refused:
                    self._refused = str(refused)
                    nursery.cancel_scope.cancel()
                    return
                if made:
                    ahead.begin_with(made)
                await mounted()
                nursery.start_soon(servers.run)
                nursery.start_soon(self._bring, image, session.arrival)

            nursery.start_soon(announce)
            await session.run()
            filesystem.ended()
            nursery.cancel_scope.cancel()
        if self._refused:
            raise EngineRefused(self._refused)

    async def _mount(self) -> tuple[str, int]:
        """What the mount is called where its read-ahead is set, "" if that cannot be told, and a descriptor of the image. Raises EngineRefused,
        MountError."""
        settings = self._settings
        assert settings.mounter is not None
        wanted = Wanted(self._name, settings.place, settings.read_ahead_kb, self._directly)
        try:
            return await settings.mounter.mount(wanted, self._nowhere)
        finally:
            settings.mounter.close()

    async def _bring(self, image: int, arrival: Arrival) -> None:
        """Bring what lies around files that are read, as long as the mount is in the kernel's table: the image, which is open for that, would keep
        it from ending."""
        nowhere, self._nowhere = self._nowhere, -1
        os.close(nowhere)
        try:
            if self._directly or not self._settings.fills:
                return
            try:
                entry = mounted_at(self._settings.place)
                if entry is None:
                    return
                self._keeper = keeper = self._begin_filling()
            except OSError as error:
                self._stop(error)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, self._ahead.run, image)
                nursery.start_soon(keeper.run, arrival)
                try:
                    await _until_gone(entry)
                except OSError as error:
                    self._stop(error)
                finally:
                    self._ahead.end()
                nursery.cancel_scope.cancel()
            # If the image is open nowhere else any more, closing it ends the FUSE mount, and so waits in the kernel for fillers that write to it; which
            # may wait for pages that only an answer of this very thread unlocks.
            await keeper.ended()
        finally:
            os.close(image)

    def _stop(self, error: OSError) -> None:
        """The mount's end would not be seen, so nothing of it may be kept open."""
        self._stopped = f"the kernel's table cannot be read ({error.strerror})"
        log.error("nothing is brought ahead: %s", self._stopped)

    def _begin_filling(self) -> Keeper:
        """Of the fillers, who do most of it where there may be any. Raises OSError."""
        settings = self._settings
        keeper = Keeper(
            settings.fillers,
            self._fs,
            device=self._device,
            place=settings.place,
            why_not=left.why_not(self._device),
            image=self._space_fd,
        )
        self._ahead.fillers = keeper.windows
        return keeper

    def statistics(self) -> dict[str, object]:
        """For the mount's statistics."""
        found = {} if self._keeper is None else self._keeper.statistics()
        # Where there is no filler, for whatever reason, a thread does it.
        found["filling_by_thread"] = found.pop("filling_why", "")
        files, size = (0, 0) if self._keeper is None else self._keeper.counts()
        far = "not all is here" if self._settings.far else "its files are large"
        why = far if self._directly else self._stopped
        return {
            **found,
            "filled_files": files,
            "filled_bytes": size + self._ahead.brought,
            "image": "direct" if self._directly else "cached",
            "filling_why": why if self._settings.fills else self._settings.why_no_filler,
        }

    def take_away(self) -> None:
        """Nobody serves it any more, if it is mounted, and on top: who made it may have been killed before he said so. Raises OSError. The connection is
        ended first: unmounting waits for fillers, which may wait for an answer."""
        with suppress(OSError):
            left.end_own(self._device)
        entry = mounted_at(self._settings.place)
        if entry is not None and entry.fstype == IMAGE_FSTYPE and entry.source.endswith(f"/{self._name}"):
            detach(self._settings.place)

    def close(self) -> None:
        """Close what is open."""
        for fd in (self._device, self._nowhere, self._space_fd):
            if fd >= 0:
                os.close(fd)


async def _until_gone(mount: MountEntry) -> None:
    """Return when this mount's file system is in no directory any more (proc_pid_mountinfo(5))."""
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with select.epoll() as changes:
            changes.register(table, select.EPOLLPRI | select.EPOLLERR)
            while any((entry.device, entry.source) == (mount.device, mount.source) for entry in mount_table()):
                await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)
    finally:
        os.close(table)
