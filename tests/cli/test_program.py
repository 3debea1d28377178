"""The command line as a whole, where it needs no daemon: usage, refusals, exit codes, streams."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from tests.cli.helpers import BIN, Home, Terminal

from millpond.cli import exits
from millpond.cli.commands.about import ENVIRONMENT
from millpond.cli.exit_table import exit_codes
from millpond.cli.group import DVC_ONLY, ENTRIES, Group, Main, Verb
from millpond.cli.program import cli
from millpond.daemon.errors import registry


def all_commands() -> list[tuple[str, click.Command]]:
    """Every command with its path, groups' members too."""
    found: list[tuple[str, click.Command]] = []
    ctx = click.Context(cli, info_name="millpond")
    for name in ENTRIES:
        command = cli.get_command(ctx, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, Group):
            found.extend((f"{name} {part}", member) for part, member in command.commands.items())
    return found


@pytest.mark.parametrize("path", [path for path, _ in all_commands()])
def test_every_command_explains_itself_with_an_example(path: str) -> None:
    command = dict(all_commands())[path]
    text = command.get_help(click.Context(command, info_name=path))
    assert len(text.splitlines()) > 5
    for option in [param for param in command.params if isinstance(param, click.Option)]:
        assert option.help, f"{path}: {option.opts} has no help"
    if isinstance(command, Verb):
        assert re.search(rf"Example:\n(.*\n)*  \$ .*millpond {path.split()[0]}\b", text)


_SHARING = ("push", "fetch", "pull")
_PLOTS = ("plots show", "plots diff", "plots modify")
_ELSEWHERE = ("import", "import-url", "update", "get", "get-url", "list-url")


def test_dvc_s_options_are_all_there(home: Home) -> None:
    """Each option of DVC's verb is known here, to be honoured or refused by name."""
    for verb in ("init", "add", "checkout", "status", "root", "version", "completion", *_SHARING, *_ELSEWHERE, *_PLOTS):
        theirs = set(
            re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", home.dvc(*verb.split(), "--help").stdout.split("options:")[1])
        )
        command = dict(all_commands())[verb]
        ours = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}
        # Words of the explanations, not options.
        assert theirs - ours <= {"-config"} & theirs, f"{verb}: {theirs - ours}"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("plots show --split", "--split"),
        ("plots diff -e", "-e/--experiment"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(home: Home, command: str, option: str) -> None:
    done = home.run(*command.split(), code=exits.USAGE)
    assert done.stdout == ""
    name = command.partition(" -")[0]
    assert done.stderr.startswith(f"ERROR: `{name} {option}` is not in this version: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("add", "Missing argument 'TARGETS...'."),
        ("status --bogus", "No such option '--bogus'"),
        ("stauts", "there is no command `stauts`; did you mean `millpond status`?"),
        ("xyzzy", "there is no command `xyzzy`; `millpond help` lists the commands"),
        ("queue", "`queue` is a command of DVC that this version of millpond does not have"),
        ("mount a b c", "`mount` takes a target and a mountpoint, 3 arguments were given"),
        ("mount --versions data /m", "`mount --versions` shows all revisions"),
        ("umount", "`umount` takes either a mountpoint or --all"),
        ("umount --all /m", "`umount` takes either a mountpoint or --all"),
        ("add -o x a b", "--out takes one target"),
        ("completion", "`completion` takes one shell: bash, zsh, fish"),
        ("help nothing", "there is no command `nothing`"),
        ("help daemon nothing", "there is no command `daemon nothing`"),
        ("-q -v root", "-v/--verbose is not allowed together with -q/--quiet"),
        ("-q root -v", "-v/--verbose is not allowed together with -q/--quiet"),
        ("daemon logs -n -1", "Invalid value for '-n' / '--lines'"),
    ],
)
def test_wrong_usage(home: Home, command: str, message: str) -> None:
    done = home.run(*command.split(), code=exits.USAGE)
    assert done.stdout == ""
    assert done.stderr.startswith(f"ERROR: {message}")


def test_no_command_shows_help_on_stderr(home: Home) -> None:
    done = home.run(code=exits.USAGE)
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: millpond [OPTIONS] COMMAND")


def test_help_goes_to_stdout(home: Home) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        text = home.run(*words).stdout
        assert all(f"  {name} " in text for name in ENTRIES)
    assert home.run("help", "daemon", "logs").stdout == home.run("daemon", "logs", "--help").stdout


def test_the_environment_is_one_list(home: Home) -> None:
    ours = re.findall(r"^(MILLPOND_\w+)", home.run("help", "environment").stdout, re.MULTILINE)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert ours == [name for name, _ in ENVIRONMENT if name.startswith("MILLPOND_")]
    assert sorted(ours) == sorted(re.findall(r"^\| `(MILLPOND_\w+)` \|", readme, re.MULTILINE))


def test_exit_codes_are_a_table_of_all_errors(home: Home) -> None:
    text = home.run("help", "exit-codes").stdout
    rows = {(row.code, row.kind) for row in exit_codes()}
    for kind, cls in registry().items():
        if kind != "error":
            assert (cls.exit_code, kind) in rows
            assert re.search(rf"^{cls.exit_code} +{kind} +[A-Z].*\.$", text, re.MULTILINE)
    assert len(rows) == len(exit_codes())
    assert {row.code for row in exit_codes() if not row.kind} == {exits.OK, exits.DIFFERENT, exits.BROKEN_PIPE}


def test_sections_hold_every_command() -> None:
    assert isinstance(cli, Main)
    assert set(cli.list_commands(click.Context(cli))) == set(ENTRIES)
    assert not DVC_ONLY & set(ENTRIES)


def test_dvc_s_commands_are_ours_or_named(home: Home) -> None:
    usage = home.dvc("nosuch", code=254).stderr
    theirs = set(re.findall(r"'([a-z-]+)'", usage.split("choose from")[1]))
    hidden = {"daemon", "git-hook", "test-db", "nosuch"}
    assert theirs - hidden <= DVC_ONLY | set(ENTRIES)


def test_version(home: Home) -> None:
    number = home.run("-V").stdout
    assert home.run("--version").stdout == number
    text = home.run("version").stdout
    assert text.startswith(f"millpond {number}")
    assert "Daemon:   not running" in text
    assert "lmdb " in home.run("version", "-v").stdout


def test_cd_comes_first(home: Home) -> None:
    done = home.run("--cd", "nowhere", "root", code=255)
    assert done.stderr == "ERROR: cannot change to directory 'nowhere': No such file or directory\n"


def test_a_settings_error_is_one_line(home: Home) -> None:
    done = home.run("root", code=exits.USAGE, env={"MILLPOND_SOCKET": "/" + "x" * 200})
    assert done.stderr.count("\n") == 1 and "107 bytes" in done.stderr


def test_daemon_commands_without_a_daemon(home: Home) -> None:
    assert home.run("daemon", "status", code=exits.NOT_RUNNING).stdout == "The daemon is not running.\n"
    assert home.run("daemon", "status", "--json", code=exits.NOT_RUNNING).stdout == "null\n"
    assert home.run("daemon", "stop").stdout == "The daemon is not running.\n"
    assert home.run("-q", "daemon", "stop").stdout == ""
    assert home.run("daemon", "logs").stdout.startswith("There is no log yet: ")
    assert not (home.path / "cache").exists(), "looking does not start it"


def test_a_log_that_cannot_be_read(home: Home) -> None:
    (home.path / "state/millpond/log/daemon.log").mkdir(parents=True)
    done = home.run("daemon", "logs", code=10)
    assert done.stderr.startswith("ERROR: cannot read the log '") and "Is a directory" in done.stderr


def test_a_reader_that_goes_away_is_no_error(home: Home) -> None:
    out, into = os.pipe()
    os.close(out)
    process = subprocess.Popen(home.command("help"), env=home.env, stdout=into, stderr=subprocess.PIPE, text=True)
    os.close(into)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (exits.BROKEN_PIPE, "")


def test_a_full_disk_behind_stdout_is_an_error(home: Home) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(home.command("help"), env=home.env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 7
    assert done.stderr == "ERROR: cannot write the output: No space left on device\n"


def test_a_closed_stdout_is_an_error(home: Home) -> None:
    command = ["bash", "-c", 'exec "$@" >&-', "bash", *map(str, home.command("help"))]
    done = subprocess.run(command, env=home.env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "ERROR: cannot write the output: Bad file descriptor\n"


def test_errors_are_coloured_on_a_terminal_only(home: Home, terminal: Callable[..., Terminal]) -> None:
    assert "\x1b" not in home.run("stauts", code=exits.USAGE).stderr
    colored = terminal(home, "stauts")
    assert colored.finish() == exits.USAGE
    assert "\x1b[31mERROR\x1b[0m: there is no command" in colored.seen
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = terminal(home, "stauts", env=env)
        assert plain.finish() == exits.USAGE
        assert "\x1b" not in plain.seen


def test_the_program_runs_as_a_script(home: Home) -> None:
    """What the entry point of the package does."""
    code = (
        "import sys; from millpond.cli.main import main; sys.argv = ['millpond', 'help', 'nothing']; sys.exit(main())"
    )
    done = subprocess.run([BIN / "python", "-c", code], env=home.env, capture_output=True, text=True)
    assert done.returncode == exits.USAGE
    assert done.stderr.startswith("ERROR: there is no command `nothing`")
