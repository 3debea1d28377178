"""Commands: side by side, read while they run, ended with what they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fusefs.helpers import PYTHONPATH
from tests.jobs.helpers import gone, until

from millpond.daemon.jobs.commands import Command, Commands, CommandSpec, shell_command

ENV = {"PATH": os.environ["PATH"]}


class Heard:
    """A sink that keeps all."""

    def __init__(self) -> None:
        self.streams: dict[bytes, bytes] = defaultdict(bytes)

    def __call__(self, stream: bytes, data: bytes) -> None:
        self.streams[stream] += data


@pytest.fixture
def commands() -> Iterator[Commands]:
    found = Commands()
    yield found
    found.close()


def sh(script: str, **values: object) -> CommandSpec:
    return CommandSpec(["sh", "-c", script], ENV, **values)  # type: ignore[arg-type]


def test_many_run_side_by_side(commands: Commands) -> None:
    heard = [Heard() for _ in range(10)]
    began = time.monotonic()
    running = [commands.start(sh(f"sleep 0.3; echo {n}; exit {n}"), heard[n]) for n in range(10)]
    ended: list[Command] = []
    while len(ended) < 10:
        ended.extend(commands.wait(None))
    assert time.monotonic() - began < 3  # one after the other
    assert [command.ended.code for command in running if command.ended] == list(range(10))
    assert [each.streams[b"stdout"] for each in heard] == [f"{n}\n".encode() for n in range(10)]
    assert set(ended) == set(running)


def test_what_it_used_is_its_own(commands: Commands) -> None:
    small = commands.run(sh("exit 3"), Heard())
    large = commands.run(CommandSpec(["python3", "-c", "x = b'x' * 700_000_000; sum(range(3_000_000))"], ENV), Heard())
    assert (small.exit_code, small.signal, small.code) == (3, None, 3)
    assert large.code == 0 and large.max_rss_bytes > 700_000_000
    # A peak counts from the fork on, so it is never below that of the process which forked.
    assert small.max_rss_bytes < large.max_rss_bytes
    assert large.user_s > small.user_s and large.seconds > 0
    killed = commands.run(sh("kill -TERM $$"), Heard())
    assert (killed.exit_code, killed.signal, killed.code) == (None, signal.SIGTERM, 143)


def test_all_of_a_long_output_comes(commands: Commands) -> None:
    heard = Heard()
    commands.run(sh("seq 300000; seq 300000 >&2; head -c 100000 /dev/zero"), heard)
    numbers = "".join(f"{n}\n" for n in range(1, 300001)).encode()
    assert heard.streams[b"stdout"] == numbers + b"\0" * 100000 and heard.streams[b"stderr"] == numbers


@pytest.mark.parametrize(
    ("spec", "number", "what"),
    [
        (CommandSpec(["no-such-x"], ENV), 2, "no-such-x"),
        (CommandSpec(["/"], ENV), 13, "/"),
        (CommandSpec(["true"], ENV, "/no/such"), 2, "/no/such"),
    ],
)
def test_what_cannot_be_run_is_named(commands: Commands, spec: CommandSpec, number: int, what: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        commands.start(spec, Heard())
    assert (caught.value.errno, caught.value.filename) == (number, what)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_an_interrupted_run_ends_the_command_and_what_it_started(commands: Commands, tmp_path: Path) -> None:
    def interrupt(stream: bytes, data: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.run(sh(f"sleep 100 & echo $! > {tmp_path}/p; echo go; wait"), interrupt)
    until(lambda: gone(int((tmp_path / "p").read_text())))


def test_who_does_not_end_is_killed_after_the_grace(commands: Commands) -> None:
    heard = Heard()
    deaf = commands.start(sh("trap '' TERM; echo ready; while :; do sleep 0.05; done"), heard)
    quick = commands.start(sh("sleep 100"), heard)
    while not heard.streams[b"stdout"]:
        commands.wait(0.05)
    commands.stop([deaf, quick], 0.3)
    assert deaf.ended and deaf.ended.signal == signal.SIGKILL and quick.ended and quick.ended.signal == signal.SIGTERM


def test_a_terminal_for_each(commands: Commands) -> None:
    heard = Heard()
    script = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size(2)); print('a', file=sys.stderr)"
    commands.run(CommandSpec(["python3", "-c", script], ENV, output="terminal", size=(33, 44)), heard)
    assert heard.streams[b"stdout"] == b"True os.terminal_size(columns=44, lines=33)\na\n"


def test_a_watched_descriptor_ends_a_wait(commands: Commands) -> None:
    read, write = os.pipe()
    commands.watch(read)
    command = commands.start(sh("sleep 100"), Heard())
    began = time.monotonic()
    assert commands.wait(0.1) == [] and time.monotonic() - began >= 0.1
    os.write(write, b"x")
    assert commands.wait(None) == [] and command.ended is None
    os.read(read, 1)
    os.close(write)
    os.close(read)


def test_commands_die_with_their_process(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        try:
            Commands().start(sh(f"echo $$ > {tmp_path}/p; exec sleep 100"), Heard())
            until((tmp_path / "p").exists)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    until(lambda: gone(int((tmp_path / "p").read_text())))


def test_the_shell_is_the_clients_without_its_start_up_files() -> None:
    assert shell_command("a b", {}) == ["/bin/sh", "-c", "a b"]
    assert shell_command("a", {"SHELL": "/usr/bin/bash"}) == ["/usr/bin/bash", "--noprofile", "--norc", "-c", "a"]
    assert shell_command("a", {"SHELL": "/bin/zsh"}) == ["/bin/zsh", "--no-rcs", "-c", "a"]
    assert shell_command("a", {"SHELL": "/bin/csh"}) == ["/bin/csh", "-c", "a"]


# Has a signal while Python prepares itself for a fork; its handler raises.
_AT_FORK = """
import os, signal, sys
from millpond.daemon.jobs.commands import Commands, CommandSpec

class Stop(Exception):
    pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGUSR1, stop)
os.register_at_fork(before=lambda: (os.kill(os.getpid(), signal.SIGUSR1), sum(range(1000))))
commands = Commands()
try:
    commands.start(CommandSpec(["true"], {"PATH": os.environ["PATH"]}), lambda stream, data: None)
except Stop:
    print("stopped")
"""


def test_a_signal_at_a_fork_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_FORK],
        capture_output=True,
        text=True,
        check=False,
        env={**ENV, "PYTHONPATH": PYTHONPATH},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("stopped\n", "", 0)
