"""Jobs in the daemon: queued, given a place, watched, adopted after a restart. The truth is the table (jobtable.py); what
runs is the shims', which need no daemon.

A job's end is learned of in one way only, whatever ended it: its shim's pidfd becomes readable, and a worker of the caller's
reads the result there is, or finds none and ends what is left (`job.settle`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from millpond.daemon import wirepath
from millpond.daemon.errors import (
    AccessError,
    BusyError,
    DaemonUnavailableError,
    JobError,
    MillpondError,
    ProtocolError,
    from_system,
)
from millpond.daemon.jobs import states
from millpond.daemon.jobs.jobtable import JobTable
from millpond.daemon.jobs.outcomes import line_of, open_shim, refusal, row_of, session_of
from millpond.daemon.jobs.process import boot_id, start_ticks
from millpond.daemon.jobs.record import GO, MAX_TITLE, JobRecord, checked_name, chosen
from millpond.daemon.jobs.scheduler import AtOnce, Scheduler
from millpond.daemon.jobs.states import Event
from millpond.daemon.jobs.zygotes import Child
from millpond.daemon.rpc.methods import Call, Registry, Reply

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon
    from millpond.daemon.rpc.connection import Connection

log = logging.getLogger("millpond.jobs")
T = TypeVar("T")

# Jobs of one user that have not ended.
MAX_ACTIVE = 1000
# Ended jobs of one user that are kept; older ones go, folder and row, when he runs another.
MAX_KEPT = 200
# Of these this many at a time.
MAX_EXPIRED = 50
MAX_RESOURCES = 4096
MAX_PATH = 16 << 10
# Connections of one job's processes at once.
MAX_JOINED = 8
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


@dataclass(slots=True, eq=False)
class Job:
    """A job that has not ended. `cancelled` says who asked for its end; `progress` is what its verb told last."""

    record: JobRecord
    cancelled: str | None = None
    progress: dict[str, Any] | None = None
    returns: int = 0
    joined: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        """Have those who wait look at it again."""
        self.changed.set()
        self.changed = trio.Event()

    def left(self) -> None:
        """One of its connections has ended."""
        self.joined -= 1
        self.progress = None


class JobCall(Call):
    """What the requests of a job's own connection belong to: their progress is the job's; whom they wait for it is told, too."""

    def __init__(self, job: Job, connection: Connection, pid: int) -> None:
        number = job.record.number
        super().__init__(connection, number, f"job {number}", job.record.uid, pid, f"job-{number}", [])
        self._job = job

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """See Call.notify."""
        self.tell(method, params)

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See Call.tell."""
        if method != "$/log":
            self._job.progress = params
        if method == "$/waiting":
            super().tell(method, params)


class JobService:
    """All jobs of this daemon. `scheduler` says which of them run."""

    def __init__(self, daemon: Daemon, scheduler: Scheduler) -> None:
        self._daemon = daemon
        self._scheduler = scheduler
        self._threads = trio.CapacityLimiter(1)
        self._settlers = trio.CapacityLimiter(SETTLERS)
        self._jobs: dict[int, Job] = {}
        self._unsaved: dict[int, JobRecord] = {}
        self._adopted = trio.Event()
        self._wake = trio.Event()
        self._broken: MillpondError | None = None
        self._boot = boot_id()
        try:
            self._table = JobTable.open(daemon.settings.state / "jobs.db", fsync=daemon.settings.fsync)
            self._jobs = {record.number: Job(record) for record in self._table.active()}
        except MillpondError as error:  # the store is served all the same: it may be what frees the disk
            log.error("%s", error)
            self._broken = error

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs are queued and how many have a place."""
        queued = sum(1 for job in self._jobs.values() if job.record.state == "queued")
        return {"queued": queued, "running": len(self._jobs) - queued}

    def busy(self) -> bool:
        """Whether a job needs this daemon: to learn of its end at once, and to give the next one its place."""
        return bool(self._jobs or self._unsaved)

    # -- requests -------------------------------------------------------------------------------------------------

    async def submit(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{folder, kind, title, cwd, name?, resources?} -> {job, expired: [{number, folder}]} once the job is written down: `starting`
        if it has a place, else `queued`.

        `expired` are old jobs whose folders the caller's worker removes, and then tells `jobs.forget`.
        """
        self._require()
        mine = sum(1 for job in self._jobs.values() if job.record.uid == call.uid)
        if mine >= MAX_ACTIVE:
            raise BusyError(f"{MAX_ACTIVE} of your jobs have not ended yet", hint="try again later")
        resources = params.get("resources") or {}
        if not isinstance(resources, dict) or len(json.dumps(resources)) > MAX_RESOURCES:
            raise ProtocolError("a job's resources are a small JSON object")
        cwd, folder = str(params["cwd"]), str(params["folder"])
        if params["kind"] not in ("command", "verb") or max(len(cwd), len(folder)) > MAX_PATH:
            raise ProtocolError("a job is a command or a verb, with paths that the system has")
        record = JobRecord(
            0,
            call.uid,
            "queued",
            str(params["kind"]),
            str(params["title"])[:MAX_TITLE],
            cwd,
            folder,
            checked_name(params.get("name")),
            resources,
            created=time.time(),
        )
        await self._adopted.wait()  # what runs already has its places first
        with trio.CancelScope(shield=True):  # what is written down runs, also when its client is gone by now
            number = await self._in_thread(lambda: self._table.add(record))
            job = self._jobs[number] = Job(dataclasses.replace(record, number=number))
            self._give_places()  # now, so that the answer says whether it has one
            expired = await self._in_thread(lambda: self._table.beyond(call.uid, MAX_KEPT, MAX_EXPIRED))
        return {
            "job": dataclasses.asdict(job.record),
            "expired": [{"number": old.number, "folder": old.folder} for old in expired],
        }

    async def show(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{limit} -> {jobs: [row + progress]} of the caller (root: of all), newest first: those that have not ended, and the
        last `limit` that have."""
        records = await self._records(call, max(0, min(int(params.get("limit") or 0), MAX_ACTIVE)))
        found = []
        for record in records:
            job = self._jobs.get(record.number)
            found.append({**dataclasses.asdict(record), "progress": job.progress if job else None})
        return {"jobs": found}

    async def find(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{job: number, name or (unless `exact`) its beginning, or null} -> {job: row}. Raises JobError."""
        records = await self._records(call, MAX_KEPT + MAX_EXPIRED)
        word = params.get("job")
        return {
            "job": dataclasses.asdict(
                chosen(records, None if word is None else str(word), exact=bool(params.get("exact")))
            )
        }

    async def wait(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{job, until: begun or ended} -> {job: row} when it has. Raises JobError."""
        record = JobRecord(**(await self.find(call, params))["job"])
        if params.get("until") not in ("begun", "ended"):
            raise ProtocolError("a job is waited for until it has begun or ended")
        waited = time.monotonic()
        while (job := self._jobs.get(record.number)) is not None:
            if self._daemon.server.stopping:  # it may take days: ask the next daemon
                raise _stopping()
            if params["until"] == "begun" and job.record.state == "running":
                break
            changed = job.changed
            if job.record.state == "queued":
                call.waiting("a place among the jobs that run at once", time.monotonic() - waited)
            with trio.move_on_after(1.0):
                await changed.wait()
        return await self.find(call, {"job": record.number})

    async def cancelling(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{job} -> {job: row}: the caller's worker is about to end it. One that is queued is cancelled by this."""
        record = JobRecord(**(await self.find(call, params))["job"])
        job = self._jobs.get(record.number)
        if job is not None:
            job.cancelled = f"cancelled by pid {call.origin.pid}"
            if job.record.state == "queued":
                await self._change(job, "cancelled", reason="cancelled before it began", ended=time.time())
            while not job.record.over and not job.record.pid:  # it is being started: `_start` sees that it is cancelled
                await job.changed.wait()
        return await self.find(call, {"job": record.number})

    async def forget(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{numbers} -> {}: the folders of these ended jobs of the caller's are gone, now their rows go. Raises JobError."""
        self._require()
        known = {record.number for record in await self._records(call, MAX_KEPT + MAX_ACTIVE)}
        numbers = [int(number) for number in params["numbers"]]
        for number in numbers:
            if number in self._jobs or number not in known:
                raise JobError(f"job {number} is not an ended job of yours")
        await self._in_thread(lambda: self._table.remove(numbers))
        return {}

    async def join(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{number} -> {}: from a process of the job's session, whose connection may do from now on what a worker's may."""
        job = self._jobs.get(int(params["number"]))
        if job is None or job.record.uid != call.uid or not job.record.pid or session_of(call.pid) != job.record.pid:
            raise AccessError("this process is not of that job")
        if job.joined >= MAX_JOINED:
            raise BusyError(f"{MAX_JOINED} processes of that job are connected already")
        job.joined += 1
        call.connection.role, call.connection.parent = "worker", JobCall(job, call.connection, call.pid)
        call.connection.on_close(job.left)
        return {}

    async def hold(self, call: Call, params: dict[str, Any]) -> Reply:
        """{} -> {} + the descriptor that keeps the next daemon from giving out locks, for as long as it is open."""
        if not isinstance(call.connection.parent, JobCall):
            raise AccessError("only jobs hold the daemon's lock by request")
        return Reply({}, [os.dup(self._daemon.listener.work_lock)])

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Adopt what the last daemon left, then give places to jobs, for ever."""
        if self._broken is not None:
            self._adopted.set()
            return
        async with trio.open_nursery() as nursery:
            looked = [trio.Event() for _ in self._jobs]
            for job, event in zip(list(self._jobs.values()), looked, strict=True):
                self._daemon.nursery.start_soon(self._adopt, job, event)
            with trio.move_on_after(ADOPT_S):
                for event in looked:
                    await event.wait()
            self._adopted.set()
            nursery.start_soon(self._save_later)
            while True:
                self._wake = trio.Event()
                self._give_places()
                await self._wake.wait()

    def _give_places(self) -> None:
        records = [job.record for job in self._jobs.values()]
        waiting = [record for record in records if record.state == "queued"]
        placed = [record for record in records if record.state in states.PLACED]
        for record in self._scheduler.choose(waiting, placed):
            job = self._jobs[record.number]
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
                await self._change(job, "begun", started=time.time())
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
            await self._change(job, "returned")
            return
        await self._change(job, "failed", reason=error.message, ended=time.time())

    async def _let_begin(self, job: Job, pid: int, stream: trio.SocketStream) -> None:
        """Say `go` to a new shim, unless there is a reason not to: without it nothing begins."""
        try:
            record = dataclasses.replace(job.record, pid=pid, start=start_ticks(pid), boot=self._boot)
            await self._save(job, record)
        except MillpondError as error:
            await self._change(job, "failed", reason=error.message, ended=time.time())
            return
        job.tell()
        if job.cancelled is not None:
            await self._change(job, "cancelled", reason=job.cancelled, ended=time.time())
            return
        try:
            await stream.send_all(GO)
            answer = await line_of(stream)
        except trio.BrokenResourceError:
            return
        if answer == b"{}\n":
            await self._change(job, "begun", started=time.time())
        elif answer:
            await self._change(job, "failed", reason=refusal(answer), ended=time.time())

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
            await self._change(job, result["state"], **{"ended": time.time(), **row_of(result)})
        elif job.cancelled is not None:
            await self._change(job, "cancelled", reason=job.cancelled, ended=time.time())
        elif found.get("begun"):
            reason = str(found.get("reason") or "its process is gone, and has left no result")[:MAX_TITLE]
            log.warning("job %d is lost: %s", job.record.number, reason)
            row = row_of({"ended_with_it": found.get("ended")})
            await self._change(job, "lost", reason=reason, ended=time.time(), outcome=row["outcome"])
        elif job.returns < MAX_RETURNS:
            job.returns += 1
            await self._change(job, "returned", pid=0, start=0, boot="")
        else:
            reason = f"its process ended {MAX_RETURNS} times before it could begin"
            await self._change(job, "failed", reason=reason, ended=time.time())

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

    async def _change(self, job: Job, event: Event, **values: Any) -> None:
        """An event: known at once, and written down, now or when there is room again."""
        record = dataclasses.replace(job.record, state=states.after(job.record.state, event), **values)
        try:
            with trio.CancelScope(shield=True):
                await self._save(job, record)
        except MillpondError as error:
            log.error("job %d: %s", record.number, error)
            self._unsaved[record.number] = record
        if record.over:
            self._jobs.pop(record.number, None)
            extra = {"uid": record.uid, "pid": record.pid, "outcome": record.state}
            log.info("job %d", record.number, extra=extra)
            if record.started is None:  # its folder still has its environment
                self._daemon.nursery.start_soon(self._look, job)
        job.tell()
        self._wake.set()

    async def _save(self, job: Job, record: JobRecord) -> None:
        job.record = record
        if self._broken is None:
            await self._in_thread(lambda: self._table.save(record))

    async def _save_later(self) -> None:
        """What could not be written down is tried again."""
        while True:
            await trio.sleep(_SAVE_S)
            for number, record in list(self._unsaved.items()):
                job = self._jobs.get(number)
                latest = job.record if job else record
                try:
                    await self._in_thread(functools.partial(self._table.save, latest))
                except MillpondError:
                    break
                self._unsaved.pop(number, None)

    async def _records(self, call: Call, limit: int) -> list[JobRecord]:
        """The caller's jobs (root: everybody's), newest first: all that have not ended, `limit` that have."""
        self._require()
        await self._adopted.wait()
        uid = None if call.uid == 0 else call.uid
        ended = await self._in_thread(lambda: self._table.of(uid, limit))
        active = {n: job.record for n, job in self._jobs.items() if uid in (None, job.record.uid)}
        unsaved = {n: record for n, record in self._unsaved.items() if uid in (None, record.uid)}
        found = {record.number: record for record in ended} | unsaved | active
        return sorted(found.values(), key=lambda record: -record.number)

    def _require(self) -> None:
        if self._broken is not None:
            raise self._broken

    async def close(self) -> None:
        """Write no more: what happens from now on the next daemon finds out."""
        if self._broken is None:
            self._broken = _stopping()
            await self._in_thread(self._table.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _stopping() -> DaemonUnavailableError:
    return DaemonUnavailableError("the daemon is stopping", hint="run the command again", details={"stopping": True})


def register(registry: Registry, daemon: Daemon) -> JobService:
    """Add the jobs' methods."""
    service = JobService(daemon, AtOnce(daemon.settings.jobs_at_once))
    registry.register("jobs.submit", service.submit, who="worker")
    registry.register("jobs.cancelling", service.cancelling, who="worker")
    registry.register("jobs.forget", service.forget, who="worker")
    registry.register("jobs.hold", service.hold, who="worker")
    registry.register("jobs.find", service.find, who="both")
    registry.register("jobs.wait", service.wait, who="both")
    registry.register("jobs.join", service.join)
    registry.register("jobs", service.show, who="both")
    daemon.busy.append(service.busy)
    daemon.at_start.append(service.run)
    return service
