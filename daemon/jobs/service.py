"""What clients, workers and jobs ask the daemon about jobs; how jobs live is life.py's."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Any

import trio

from millpond.daemon.errors import AccessError, BusyError, JobError, ProtocolError
from millpond.daemon.jobs.job import Job, JobCall
from millpond.daemon.jobs.life import JobLife, stopping
from millpond.daemon.jobs.outcomes import session_of
from millpond.daemon.jobs.record import MAX_TITLE, JobRecord, checked_name, chosen
from millpond.daemon.jobs.scheduler import AtOnce
from millpond.daemon.rpc.methods import Call, Registry, Reply

if TYPE_CHECKING:
    from millpond.daemon.main import Daemon

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


class JobService:
    """The requests."""

    def __init__(self, daemon: Daemon, life: JobLife) -> None:
        self._daemon = daemon
        self._life = life

    async def submit(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{folder, kind, title, cwd, name?, resources?} -> {job, expired: [{number, folder}]} once the job is written down: `starting`
        if it has a place, else `queued`.

        `expired` are old jobs whose folders the caller's worker removes, and then tells `jobs.forget`.
        """
        self._life.require()
        mine = sum(1 for job in self._life.jobs.values() if job.record.uid == call.uid)
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
        await self._life.adopted.wait()  # what runs already has its places first
        with trio.CancelScope(shield=True):  # what is written down runs, also when its client is gone by now
            number = await self._life.in_thread(lambda: self._life.table.add(record))
            job = self._life.jobs[number] = Job(dataclasses.replace(record, number=number))
            self._life.give_places()  # now, so that the answer says whether it has one
            expired = await self._life.in_thread(lambda: self._life.table.beyond(call.uid, MAX_KEPT, MAX_EXPIRED))
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
            job = self._life.jobs.get(record.number)
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
        while (job := self._life.jobs.get(record.number)) is not None:
            if self._daemon.server.stopping:  # it may take days: ask the next daemon
                raise stopping()
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
        job = self._life.jobs.get(record.number)
        if job is not None:
            job.cancelled = f"cancelled by pid {call.origin.pid}"
            if job.record.state == "queued":
                await self._life.change(job, "cancelled", reason="cancelled before it began", ended=time.time())
            while not job.record.over and not job.record.pid:  # it is being started: `_start` sees that it is cancelled
                await job.changed.wait()
        return await self.find(call, {"job": record.number})

    async def forget(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{numbers} -> {}: the folders of these ended jobs of the caller's are gone, now their rows go. Raises JobError."""
        self._life.require()
        known = {record.number for record in await self._records(call, MAX_KEPT + MAX_ACTIVE)}
        numbers = [int(number) for number in params["numbers"]]
        for number in numbers:
            if number in self._life.jobs or number not in known:
                raise JobError(f"job {number} is not an ended job of yours")
        await self._life.in_thread(lambda: self._life.table.remove(numbers))
        return {}

    async def join(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """{number} -> {}: from a process of the job's session, whose connection may do from now on what a worker's may."""
        job = self._life.jobs.get(int(params["number"]))
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

    async def _records(self, call: Call, limit: int) -> list[JobRecord]:
        """The caller's jobs (root: everybody's), newest first: all that have not ended, `limit` that have."""
        self._life.require()
        await self._life.adopted.wait()
        uid = None if call.uid == 0 else call.uid
        ended = await self._life.in_thread(lambda: self._life.table.of(uid, limit))
        active = {n: job.record for n, job in self._life.jobs.items() if uid in (None, job.record.uid)}
        unsaved = {n: record for n, record in self._life.unsaved.items() if uid in (None, record.uid)}
        found = {record.number: record for record in ended} | unsaved | active
        return sorted(found.values(), key=lambda record: -record.number)


def register(registry: Registry, daemon: Daemon) -> JobLife:
    """Add the jobs' methods."""
    life = JobLife(daemon, AtOnce(daemon.settings.jobs_at_once))
    service = JobService(daemon, life)
    registry.register("jobs.submit", service.submit, who="worker")
    registry.register("jobs.cancelling", service.cancelling, who="worker")
    registry.register("jobs.forget", service.forget, who="worker")
    registry.register("jobs.hold", service.hold, who="worker")
    registry.register("jobs.find", service.find, who="both")
    registry.register("jobs.wait", service.wait, who="both")
    registry.register("jobs.join", service.join)
    registry.register("jobs", service.show, who="both")
    daemon.busy.append(life.busy)
    daemon.at_start.append(life.run)
    return life
