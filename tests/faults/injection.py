"""The n-th operation by which a process changes what is on disk fails, or is the moment at which the process is killed.

It is the system calls that fail, not code of ours: in a forked process `os`'s functions are replaced, and nothing needs to
be put back. What C libraries write (LMDB's pages, Git's index) is not seen; LMDB's commits are.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millpond.daemon.errors import MillpondError, from_system
from millpond.daemon.store.files import Files

KILL = 0
# Functions of `os` that change what is on disk. `open` does when it may write.
_CALLS = (
    *("write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "truncate", "ftruncate"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir"),
    *("fsync", "fdatasync", "fchmod", "chmod", "utime"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Injector:
    """Counts operations; at the `fail_at`-th (from 1) raises OSError(`number`), or for KILL ends the process by SIGKILL."""

    def __init__(self, fail_at: int, number: int) -> None:
        self.count = 0
        self.failed = ""
        self._fail_at = fail_at
        self._number = number
        self._lock = threading.Lock()

    def install(self) -> None:
        """From here on this process' operations count."""
        for name in _CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        real_open, real_builtin = os.open, builtins.open

        def opens(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & _WRITING:
                self.step("open", path)
            return real_open(path, flags, *args, **kwargs)

        def opens_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                self.step("open", path)
            return real_builtin(path, mode, *args, **kwargs)

        setattr(os, "open", opens)  # noqa: B010
        setattr(builtins, "open", opens_file)  # noqa: B010

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step(name, args[0])
            return real(*args, **kwargs)

        return call

    def step(self, name: str, what: Any) -> None:
        """One operation is about to be done."""
        with self._lock:
            self.count += 1
            if self.count != self._fail_at:
                return
            self.failed = f"{name} {what!r}"
        if self._number == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self._number, os.strerror(self._number), what if isinstance(what, str | bytes | Path) else None)


class CountedFiles(Files):
    """The store's operations: commits of LMDB count too."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def commit(self, txn: Any) -> None:
        self._injector.step("commit", "index")
        super().commit(txn)


def in_child(work: Callable[[Injector], None], fail_at: int, number: int) -> dict[str, Any]:
    """Run `work` in a forked process: {count, failed, error: text or None, odd: whether no sentence was made of the error}.

    {"killed": True} of one that was killed at the operation.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _child(work, Injector(fail_at, number), theirs)
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        return {"killed": True, "count": fail_at, "failed": "killed", "error": None, "odd": False}
    assert said, f"the child ended with {status}"
    answer: dict[str, Any] = json.loads(said)
    return answer


def _child(work: Callable[[Injector], None], injector: Injector, answer: int) -> int:
    error, odd = None, False
    write = os.write
    try:
        work(injector)
    except MillpondError as found:
        error = str(found)
    except OSError as found:  # as a worker does
        error = str(from_system(found, "it"))
    except BaseException as found:
        error, odd = repr(found), True
    told = {"killed": False, "count": injector.count, "failed": injector.failed, "error": error, "odd": odd}
    write(answer, json.dumps(told).encode())
    return 0
