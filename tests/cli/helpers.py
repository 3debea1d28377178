"""Running the real program: its own directories, real Git, real DVC, and a terminal where one is wanted."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.project.realdvc import real_dvc

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TIMEOUT_S = 30.0


@dataclass(slots=True)
class Home:
    """A user's directories below one folder, and a repository to work in."""

    path: Path
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.repo.mkdir(parents=True)
        (self.path / "run").mkdir(mode=0o700)

    @property
    def repo(self) -> Path:
        return self.path / "repo"

    @property
    def env(self) -> dict[str, str]:
        """A whole environment: nothing of the tests' own reaches the program."""
        return {
            "HOME": str(self.path),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / ".src"),
            "LANG": "C.UTF-8",
            "XDG_CACHE_HOME": str(self.path / "cache"),
            "XDG_STATE_HOME": str(self.path / "state"),
            "XDG_CONFIG_HOME": str(self.path / "config"),
            "XDG_RUNTIME_DIR": str(self.path / "run"),
            "MILLPOND_FSYNC": "0",
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
            **self.extra,
        }

    def command(self, *args: str | bytes) -> list[str | bytes]:
        return [sys.executable, "-m", "millpond.cli", *args]

    def run(
        self,
        *args: str | bytes,
        code: int | None = 0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `millpond ARGS`; its exit code must be `code` (None: any)."""
        done = subprocess.run(
            self.command(*args),
            cwd=cwd or self.repo,
            env=self.env | dict(env or {}),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
        )
        assert code is None or done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *args: str, code: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run real DVC."""
        ran = real_dvc().run(*args, cwd=cwd or self.repo, env=self.env)
        done = subprocess.CompletedProcess(args, ran.code, ran.out, ran.err)
        assert code is None or done.returncode == code, f"dvc {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def git(self, *args: str, cwd: Path | None = None) -> str:
        command = ["git", *args]
        return subprocess.run(
            command, cwd=cwd or self.repo, env=self.env, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        ).stdout

    def close(self) -> None:
        """End mounts and the daemon, if there is one."""
        if not (self.path / "run/millpond/millpond.sock").exists():
            return
        self.run("-q", "umount", "--all", "--lazy", code=None)
        self.run("-q", "daemon", "stop", code=None)


class Terminal:
    """A program on a pseudo-terminal: what it writes to stderr (and stdout), keys pressed there."""

    def __init__(self, home: Home, *args: str, env: Mapping[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            home.command(*args),
            cwd=home.repo,
            env=home.env | {"TERM": "xterm", "COLUMNS": "100"} | dict(env or {}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # The terminal becomes the controlling one, so that Ctrl-C is a signal.
            preexec_fn=_control,
        )
        os.close(slave)
        self.seen = ""

    def close(self) -> None:
        """End the program if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def press_interrupt(self) -> None:
        os.write(self.master, b"\x03")

    def read_until(self, text: str) -> str:
        """Read until `text` was written; what was written so far."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"never wrote {text!r}: {self.seen!r}"
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"ended without {text!r}: {self.seen!r}")
        return self.seen

    def finish(self) -> int:
        """Read to the end; the exit code."""
        while self._read(TIMEOUT_S):
            continue
        return self.process.wait(TIMEOUT_S)

    def _read(self, timeout: float) -> bool:
        if not select.select([self.master], [], [], max(timeout, 0))[0]:
            raise AssertionError(f"silent: {self.seen!r}")
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def _control() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
