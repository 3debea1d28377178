"""Every error that crosses a boundary: its kind, its code on the wire, its exit code.

One class is one row of the table that `millpond help exit-codes` shows (cli/exit_table.py). Classes are split by who must act: the person
at the terminal, the machine's admin, or us (`InternalError`). Codes follow one rule: 254 is what cannot be understood, 255 (as with DVC) what
cannot be done with what was named, 1 what would lose something or is not so; a code of its own has what a script must tell apart.
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar


class MillpondError(Exception):
    """Base of all reported errors: one sentence, the path it is about, and what to do.

    `message` is shown as is, on one line; `path` and `hint` are optional parts of it for machines; `details` is
    JSON-safe. An error of this family never shows a traceback.
    """

    kind: ClassVar[str] = "error"
    code: ClassVar[int] = 1000
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, path: str | None = None, hint: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def to_wire(self) -> dict[str, Any]:
        """The JSON-RPC error object: {code, message, data: {kind, path, hint, details}}."""
        data = {"kind": self.kind, "path": self.path, "hint": self.hint, "details": self.details}
        return {"code": self.code, "message": self.message, "data": data}


class UsageError(MillpondError):
    """The command line, an environment variable or a request's parameters cannot be understood, or do not fit together."""

    kind, code, exit_code = "usage", 1001, 254


class NotARepoError(MillpondError):
    """No DVC repository here or above."""

    kind, code, exit_code = "not-a-repo", 1002, 253


class InvalidFileError(MillpondError):
    """A file of the project (pointer, config, ignore rules) cannot be read as what it should be.

    `details` holds `line` and `column` (both from 1) where they are known.
    """

    kind, code, exit_code = "invalid-file", 1003, 255


class TargetError(MillpondError):
    """A target is outside the repo, missing, ignored, there already, unreadable, or has no name or command that it could have."""

    kind, code, exit_code = "target", 1004, 255


class OverlapError(MillpondError):
    """A target overlaps another output."""

    kind, code, exit_code = "overlap", 1005, 255


class TrackedByGitError(MillpondError):
    """A target is tracked by Git already."""

    kind, code, exit_code = "tracked-by-git", 1006, 255


class RevisionError(MillpondError):
    """A Git revision is not known."""

    kind, code, exit_code = "revision", 1007, 255


class ConflictError(MillpondError):
    """The workspace holds changes that the command would lose, or nobody agreed to what it would remove."""

    kind, code, exit_code = "conflict", 1010, 1


class FileChangedError(MillpondError):
    """A file changed while it was read; nothing of it was kept."""

    kind, code, exit_code = "file-changed", 1011, 1


class ObjectMissingError(MillpondError):
    """An object is neither in the store nor in any cache that the caller may read."""

    kind, code, exit_code = "object-missing", 1020, 8


class StoreDamagedError(MillpondError):
    """Stored bytes do not match their checksum, or fsck found damage."""

    kind, code, exit_code = "store-damaged", 1021, 6


class StoreFormatError(MillpondError):
    """The store has a newer format, lies on a network file system, or is not a store."""

    kind, code, exit_code = "store-format", 1022, 6


class DiskFullError(MillpondError):
    """No room is left for the store (or for the workspace); nothing was half-written."""

    kind, code, exit_code = "disk-full", 1023, 7


class MountError(MillpondError):
    """A mount cannot be made: mountpoint, /dev/fuse, fusermount3."""

    kind, code, exit_code = "mount", 1030, 9


class MountBusyError(MillpondError):
    """A mount is in use; `details["holders"]` lists who holds it."""

    kind, code, exit_code = "mount-busy", 1031, 9


class NotMountedError(MillpondError):
    """A place that should be a mount is not one now."""

    kind, code, exit_code = "not-mounted", 1032, 9


class AccessError(MillpondError):
    """The caller has no right to this."""

    kind, code, exit_code = "permission", 1040, 10


class DaemonUnavailableError(MillpondError):
    """The daemon does not answer and could not be started."""

    kind, code, exit_code = "daemon-unavailable", 1050, 3


class ProtocolError(MillpondError):
    """The other side speaks another protocol version, lacks a capability, or sent what is no message."""

    kind, code, exit_code = "protocol", 1051, 4


class LockTimeoutError(MillpondError):
    """The project's lock was not free in the time given."""

    kind, code, exit_code = "lock-timeout", 1052, 5


class BusyError(MillpondError):
    """A bound is reached: requests in flight, workers, mounts."""

    kind, code, exit_code = "busy", 1053, 5


class RemoteConfigError(MillpondError):
    """No remote is configured, or not one of that name, or what its settings say cannot be done."""

    kind, code, exit_code = "remote-config", 1070, 251


class RemoteError(MillpondError):
    """A remote cannot be reached, is full, or answers nonsense."""

    kind, code, exit_code = "remote", 1071, 9


class RemoteChangedError(MillpondError):
    """An object of a remote is not what it was when its reading began."""

    kind, code, exit_code = "remote-changed", 1072, 9


class CredentialsError(MillpondError):
    """A remote does not let the caller in: no credentials, expired ones, or no permission."""

    kind, code, exit_code = "needs-credentials", 1073, 10


class JobError(MillpondError):
    """There is no such job, or it is not in a state for this."""

    kind, code, exit_code = "job", 1085, 255


class JobLostError(MillpondError):
    """A job's process is gone and has left no result."""

    kind, code, exit_code = "job-lost", 1086, 11


class StageFailedError(MillpondError):
    """A stage of a pipeline did not do what it should: `details` has the stages that failed and those left out."""

    kind, code, exit_code = "stage-failed", 1080, 255


class CancelledError(MillpondError):
    """The request was cancelled by its caller, or its caller is gone."""

    kind, code, exit_code = "cancelled", 1060, 130


class InternalError(MillpondError):
    """Our bug. The log has the traceback under the request's id."""

    kind, code, exit_code = "internal", 1099, 70


def registry() -> dict[str, type[MillpondError]]:
    """All error classes by kind."""
    found: dict[str, type[MillpondError]] = {}
    queue: list[type[MillpondError]] = [MillpondError]
    while queue:
        cls = queue.pop()
        found[cls.kind] = cls
        queue.extend(cls.__subclasses__())
    return found


def from_system(error: OSError, doing: str) -> MillpondError:
    """The error for a system call that failed where nobody had more to say about it: `doing` is what was being done."""
    path = os.fsdecode(error.filename).encode(errors="backslashreplace").decode() if error.filename else None
    where = f" on '{path}'" if path else ""
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"{doing} failed{where}: {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(message, path=path, hint="free some space, then do it again")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return BusyError(
            message, path=path, hint="raise the limit (ulimit -n, -v, -u), or try again when less is under way"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessError(message, path=path, hint="check who may write there")
    if error.errno == errno.EIO:
        return AccessError(message, path=path, hint="check the disk (dmesg), then do it again")
    return TargetError(message, path=path, hint="do it again; if it stays so, see `millpond daemon logs`")


def from_wire(error: dict[str, Any]) -> MillpondError:
    """The exception for a JSON-RPC error object; an unknown kind becomes the base class."""
    data = error.get("data") or {}
    cls = registry().get(data.get("kind", ""), MillpondError)
    return cls(
        str(error.get("message", "unknown error")),
        path=data.get("path"),
        hint=data.get("hint"),
        details=data.get("details") or {},
    )
