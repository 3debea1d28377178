"""Data that stages need and that is not in the workspace: mounted before their commands start, and taken away when nothing needs it
any more. See Pipelines, "Mounted inputs", in DESIGN.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millpond.daemon.errors import BusyError, MillpondError
from millpond.daemon.jobs.runner import is_running
from millpond.daemon.mounts.inputs import InputMounts
from millpond.daemon.mounts.place import shown_objects
from millpond.daemon.pipeline.absent import Absent, AbsentOut
from millpond.daemon.pipeline.contents import Contents
from millpond.daemon.pipeline.memory import log_path
from millpond.daemon.pipeline.mounting import Policy
from millpond.daemon.pipeline.pipelines import Pipelines
from millpond.daemon.pipeline.stage import Stage, address
from millpond.daemon.project import mounted
from millpond.daemon.project.paths import printable
from millpond.daemon.project.repo import Repo

if TYPE_CHECKING:
    from millpond.daemon.jobs.worker import WorkerContext

# Descriptors of locks that a command takes with it; a stage with more mounted inputs is one whose mounts only the repro keeps.
_MOST_KEPT = 200


@dataclass(slots=True)
class StageInputs:
    """What one repro mounts. `say` and `warn` tell a person."""

    context: WorkerContext
    repo: Repo
    policy: Policy
    say: Callable[[str], None]
    warn: Callable[[str], None]
    mounts: InputMounts
    absent: Absent
    # Places whose mounts this repro keeps, and which of its stages still need each.
    _needed: dict[str, set[Stage]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        context: WorkerContext,
        contents: Contents,
        loaded: Pipelines,
        policy: Policy,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> StageInputs:
        repo = contents.repo
        absent = contents.absent = Absent(contents, loaded)
        return cls(context, repo, policy, say, warn, InputMounts(context, repo.root, warn), absent)

    def look(self, steps: Iterable[Stage], *, only: bool) -> None:
        """Find what the stages need and make that is absent; unless they are `only` looked at, take away first what a repro that was
        killed has left. Raises InvalidFileError, StoreDamagedError."""
        if not only:
            self.mounts.sweep()
        self.context.progress("looking for data that is not here")
        self.absent.look(steps)
        if self.absent.unasked is not None:
            self.warn(f"what is only on a remote is taken to be there: {self.absent.unasked.message}")

    def mount_for(self, stage: Stage) -> list[AbsentOut]:
        """Mount what the stage needs, as the policy has it; the rest, which is to be brought. Raises ObjectMissingError, RemoteError,
        CredentialsError, MountError, ConflictError, BusyError."""
        rest = []
        for absent in self.absent.touched(stage):
            if absent.stage.name and is_running(log_path(os.path.join(self.repo.temporary, "millpond"), absent.stage)):
                name = printable(address(absent.stage, self.repo.seen(absent.stage.file)))
                raise BusyError(
                    f"'{name}' is being run, which makes '{absent.place}' anew", hint="wait until it is done"
                )
            size = self.absent.size(absent)
            if not self.policy.mounts(size, is_dir=absent.name.is_dir, here=absent.here):
                rest.append(absent)
                continue
            shown = printable(self.repo.seen(absent.place))
            self.context.progress(f"mounting {shown}")
            path = self.repo.path(absent.place)
            held = self.mounts.mount(path, absent.place, absent.name, isexec=absent.known.isexec)
            if held.made:
                held.made = False
                self.say(f"Mounting '{shown}': {_counted(held.files)}, {size:,} bytes{'' if absent.here else ', from the remote as it is read'}")  # fmt: skip
            self._needed.setdefault(absent.place, set(self.absent.users.get(absent.place, ())) | {stage})
        self._keep_others(stage)
        return rest

    def _keep_others(self, stage: Stage) -> None:
        """What another repro has mounted, or one that was killed and whose commands still run, stays for this stage as well."""
        if len(shown_objects()) <= len(self.mounts.held):
            return
        for place, users in self.absent.users.items():
            mine = stage in users and place not in self._needed and self._is_mounted(place)
            if mine and self.mounts.adopt(self.repo.path(place)) is not None:
                self._needed[place] = set(users)

    def _is_mounted(self, place: str) -> bool:
        return mounted.object_at(self.repo.path(place)) is not None

    def locks(self, stage: Stage) -> tuple[int, ...]:
        """What the stage's commands take with them, so that nobody takes the mounts away under them."""
        return tuple(
            self.mounts.locks(self.repo.path(place) for place, users in self._needed.items() if stage in users)
        )[:_MOST_KEPT]

    def give_up(self, places: Iterable[str]) -> None:
        """What is made anew at these places, or brought back, takes the place of mounts that are there. Raises MountBusyError."""
        for place in places:
            path = self.repo.path(place)
            if self._is_mounted(place) and self.mounts.adopt(path) is not None:
                self._needed.pop(place, None)
                self.mounts.release(path)

    def done(self, stage: Stage) -> None:
        """The stage has ended, however it did: what no other one needs goes."""
        for place, users in list(self._needed.items()):
            users.discard(stage)
            if not users:
                del self._needed[place]
                try:
                    self.mounts.release(self.repo.path(place))
                except MillpondError as error:
                    self.warn(f"'{printable(self.repo.seen(place))}' stays mounted: {error.message}")

    def end(self, *, sweep: bool) -> None:
        """No more stages run. With `sweep` what earlier ones left goes, too: where nothing was to run, nobody else does it."""
        self._needed.clear()
        self.mounts.release_all()
        if sweep:
            self.mounts.sweep()


def _counted(files: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}"
