"""The life of jobs in the daemon: given a place, started, watched, settled, adopted after a restart. The truth is the table
(jobtable.py); what runs is the shims', which need no daemon.

A job's end is learned of in one way only, whatever ended it: its shim's pidfd becomes readable, and a worker of the caller's
reads the result there is, or finds none and ends what is left (`job.settle`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import BusyError, DaemonUnavailableError, MillpondError, from_system
from millpond.daemon.jobs import states
from millpond.daemon.jobs.job import Job
from millpond.daemon.jobs.jobtable import JobTable
from millpond.daemon.jobs.outcomes import line_of, open_shim, refusal, row_of
from millpond.daemon.jobs.process import boot_id, start_ticks
from millpond.daemon.jobs.record import GO, MAX_TITLE, JobRecord
from millpond.daemon.jobs.scheduler import Scheduler
from millpond.daemon.jobs.states import Event
from millpond.daemon.jobs.zygotes import Child

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

log = logging.getLogger("millpond.jobs")
T = TypeVar("T")

# Workers that look after jobs that ended, at once; how often one that fails is tried, and what is between tries at most.
SETTLERS = 4
SETTLE_TRIES = 8
_PAUSE_S = 5.0
# A shim that ends before it has begun, or cannot be made for want of processes, is made again this often.
MAX_RETURNS = 3
_RETURN_S = 1.0
# The table is written again and again while its disk has no room.
_SAVE_S = 5.0
# Jobs that were running when a daemon starts are looked at for this long before it answers questions about jobs.
ADOPT_S = 10.0


class JobLife:
    """All jobs of this daemon that have not ended, and the table. `scheduler` says which of them run; `adopted` is set once those of
    the daemon before are known."""

    def __init__(self, daemon: Daemon, scheduler: Scheduler) -> None:
        self._daemon = daemon
        self._scheduler = scheduler
        self._threads = trio.CapacityLimiter(1)
        self._settlers = trio.CapacityLimiter(SETTLERS)
        self.jobs: dict[int, Job] = {}
        self.unsaved: dict[int, JobRecord] = {}
        self.adopted = trio.Event()
        self._wake = trio.Event()
        self.broken: MillpondError | None = None
        self._boot = boot_id()
        try:
            self.table = JobTable.open(daemon.settings.state / "jobs.db", fsync=daemon.settings.fsync)
            self.jobs = {record.number: Job(record) for record in self.table.active()}
        except MillpondError as error:  # the store is served all the same: it may be what frees the disk
            log.error("%s", error)
            self.broken = error

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs are queued and how many have a place."""
        queued = sum(1 for job in self.jobs.values() if job.record.state == "queued")
        return {"queued": queued, "running": len(self.jobs) - queued}

    def busy(self) -> bool:
        """Whether a job needs this daemon: to learn of its end at once, and to give the next one its place."""
        return bool(self.jobs or self.unsaved)

    async def run(self) -> None:
        """Adopt what the last daemon left, then give places to jobs, for ever."""
        if self.broken is not None:
            self.adopted.set()
            return
        async with trio.open_nursery() as nursery:
            looked = [trio.Event() for _ in self.jobs]
            for job, event in zip(list(self.jobs.values()), looked, strict=True):
                self._daemon.nursery.start_soon(self._adopt, job, event)
            with trio.move_on_after(ADOPT_S):
                for event in looked:
                    await event.wait()
            self.adopted.set()
            nursery.start_soon(self._save_later)
            while True:
                self._wake = trio.Event()
                self.give_places()
                await self._wake.wait()

    def give_places(self) -> None:
        """Start those of the waiting jobs that have a place."""
        records = [job.record for job in self.jobs.values()]
        waiting = [record for record in records if record.state == "queued"]
        placed = [record for record in records if record.state in states.PLACED]
        for record in self._scheduler.choose(waiting, placed):
            job = self.jobs[record.number]
            # Written down with the shim's pid: until then it is as good as queued.
            job.record = dataclasses.replace(record, state=states.after(record.state, "chosen"))
            self._daemon.nursery.start_soon(self._start, job)

    async def _adopt(self, job: Job, looked: trio.Event) -> None:
        """A job that an earlier daemon knew: its shim lives, or has ended, or never was."""
        record = job.record
        try:
            if record.state == "queued":
                return
            pidfd = await open_shim(record, self._boot)
            if pidfd < 0:
                await self._settle(job)
                return
            log.info("adopted job %d, pid %d", record.number, record.pid)
            talked = trio.Event()
            self._daemon.nursery.start_soon(self._watch, job, pidfd, talked)
            if record.state == "starting":
                await self._see_begun(job)
            talked.set()
        finally:
            looked.set()

    async def _see_begun(self, job: Job) -> None:
        """Whether a shim whose word went to an earlier daemon has begun: it writes so, or ends."""
        alive = await open_shim(job.record, self._boot)
        while alive >= 0:
            os.close(alive)
            if (await self._look(job, peek=True) or {}).get("begun"):
                await self.change(job, "begun", started=time.time())
                return
            await trio.sleep(0.1)
            alive = await open_shim(job.record, self._boot)

    async def _start(self, job: Job) -> None:
        """Fork the shim, write its pid down, let it begin."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            await self._not_started(job, from_system(error, "starting the job"))
            return
        with theirs:
            try:
                child = await self._forked(job.record, theirs.fileno())
            except MillpondError as error:
                ours.close()
                await self._not_started(job, error)
                return
        # From here on the pidfd says what becomes of it, whatever else happens.
        talked = trio.Event()
        self._daemon.nursery.start_soon(self._watch, job, child.pidfd, talked)
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                await self._let_begin(job, child.pid, stream)
        finally:
            talked.set()

    async def _forked(self, record: JobRecord, fd: int) -> Child:
        request = {
            "folder": record.folder,
            "number": record.number,
            "socket": wirepath.encode(os.fspath(self._daemon.settings.socket)),
            "verbs": self._daemon.settings.verbs,
            "system": self._daemon.system is not None,
        }
        return await self._daemon.zygotes.of(record.uid).fork("shim", request, [fd])

    async def _not_started(self, job: Job, error: MillpondError) -> None:
        """No shim could be made: where processes, descriptors or memory were short, it is tried again."""
        if isinstance(error, BusyError) and job.returns < MAX_RETURNS and job.cancelled is None:
            job.returns += 1
            await trio.sleep(_RETURN_S)
            await self.change(job, "returned")
            return
        await self.change(job, "failed", reason=error.message, ended=time.time())

    async def _let_begin(self, job: Job, pid: int, stream: trio.SocketStream) -> None:
        """Say `go` to a new shim, unless there is a reason not to: without it nothing begins."""
        try:
            record = dataclasses.replace(job.record, pid=pid, start=start_ticks(pid), boot=self._boot)
            await self._save(job, record)
        except MillpondError as error:
            await self.change(job, "failed", reason=error.message, ended=time.time())
            return
        job.tell()
        if job.cancelled is not None:
            await self.change(job, "cancelled", reason=job.cancelled, ended=time.time())
            return
        try:
            await stream.send_all(GO)
            answer = await line_of(stream)
        except trio.BrokenResourceError:
            return
        if answer == b"{}\n":
            await self.change(job, "begun", started=time.time())
        elif answer:
            await self.change(job, "failed", reason=refusal(answer), ended=time.time())

    async def _watch(self, job: Job, pidfd: int, talked: trio.Event) -> None:
        """Until the shim has ended, and has said what it had to say; then see how the job did."""
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        await talked.wait()
        if not job.record.over:
            await self._settle(job)

    async def _settle(self, job: Job) -> None:
        """The shim is gone: what became of the job."""
        found = await self._look(job)
        while found is not None and found.get("alive"):  # this process could not see it, its user's can
            await trio.sleep(_PAUSE_S)
            found = await self._look(job)
        if found is None:
            return
        result = found.get("result")
        if isinstance(result, dict) and result.get("state") in ("succeeded", "failed", "cancelled"):
            await self.change(job, result["state"], **{"ended": time.time(), **row_of(result)})
        elif job.cancelled is not None:
            await self.change(job, "cancelled", reason=job.cancelled, ended=time.time())
        elif found.get("begun"):
            reason = str(found.get("reason") or "its process is gone, and has left no result")[:MAX_TITLE]
            log.warning("job %d is lost: %s", job.record.number, reason)
            row = row_of({"ended_with_it": found.get("ended")})
            await self.change(job, "lost", reason=reason, ended=time.time(), outcome=row["outcome"])
        elif job.returns < MAX_RETURNS:
            job.returns += 1
            await self.change(job, "returned", pid=0, start=0, boot="")
        else:
            reason = f"its process ended {MAX_RETURNS} times before it could begin"
            await self.change(job, "failed", reason=reason, ended=time.time())

    async def _look(self, job: Job, *, peek: bool = False) -> dict[str, Any] | None:
        """What a worker of the caller's finds in the job's folder (`job.settle`); None when this daemon ends first."""
        record = job.record
        params = {"folder": record.folder, "peek": peek, "over": record.over, "context": {"cwd": "/", "env": {}}}
        tries, pause = SETTLE_TRIES, 0.1
        while True:
            try:
                async with self._settlers:
                    return await self._daemon.verbs.run_internal("job.settle", record.uid, dict(params))
            except MillpondError as error:
                if self._daemon.server.stopping:
                    return None  # the next one sees to it
                if not isinstance(error, BusyError):
                    tries -= 1
                if not tries:
                    return {"begun": True, "reason": f"its folder cannot be looked at: {error.message}"}
                await trio.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)

    async def change(self, job: Job, event: Event, **values: Any) -> None:
        """An event: known at once, and written down, now or when there is room again."""
        record = dataclasses.replace(job.record, state=states.after(job.record.state, event), **values)
        try:
            with trio.CancelScope(shield=True):
                await self._save(job, record)
        except MillpondError as error:
            log.error("job %d: %s", record.number, error)
            self.unsaved[record.number] = record
        if record.over:
            self.jobs.pop(record.number, None)
            extra = {"uid": record.uid, "pid": record.pid, "outcome": record.state}
            log.info("job %d", record.number, extra=extra)
            if record.started is None:  # its folder still has its environment
                self._daemon.nursery.start_soon(self._look, job)
        job.tell()
        self._wake.set()

    async def _save(self, job: Job, record: JobRecord) -> None:
        job.record = record
        if self.broken is None:
            await self.in_thread(lambda: self.table.save(record))

    async def _save_later(self) -> None:
        """What could not be written down is tried again."""
        while True:
            await trio.sleep(_SAVE_S)
            for number, record in list(self.unsaved.items()):
                job = self.jobs.get(number)
                latest = job.record if job else record
                try:
                    await self.in_thread(functools.partial(self.table.save, latest))
                except MillpondError:
                    break
                self.unsaved.pop(number, None)

    def require(self) -> None:
        """Raise what is wrong when there can be no jobs."""
        if self.broken is not None:
            raise self.broken

    async def close(self) -> None:
        """Write no more: what happens from now on the next daemon finds out."""
        if self.broken is None:
            self.broken = stopping()
            await self.in_thread(self.table.close)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Work on the table, one piece at a time."""
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def stopping() -> DaemonUnavailableError:
    """The error for what the next daemon should be asked."""
    return DaemonUnavailableError("the daemon is stopping", hint="run the command again", details={"stopping": True})
