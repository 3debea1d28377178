"""The command line's frame: verbs that are imported when they are run, options that all of them share, help texts."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from millpond.cli.console import Console
from millpond.daemon.errors import TargetError, UsageError

Callback = Callable[..., Any]


class Entry(NamedTuple):
    """A verb: the module under `millpond.cli.commands`, its name there, one line of help, the section it is listed in."""

    module: str
    attribute: str
    help: str
    section: str


_PROJECT, _PIPELINES, _REMOTES, _MOUNTS = "Project", "Pipelines", "Remotes", "Mounts"
_JOBS, _STORE, _OTHER = "Jobs", "Store and daemon", "Other"
ENTRIES: dict[str, Entry] = {
    "init": Entry("project", "init", "Make a directory a DVC repository.", _PROJECT),
    "add": Entry("project", "add", "Store files and directories and track them.", _PROJECT),
    "checkout": Entry("project", "checkout", "Bring the workspace to what the .dvc files name.", _PROJECT),
    "commit": Entry("tracking", "commit", "Store what tracked data holds now.", _PROJECT),
    "remove": Entry("tracking", "remove", "Stop tracking files and directories; remove stages.", _PROJECT),
    "rm": Entry("tracking", "remove", "As `remove`.", _PROJECT),
    "status": Entry("project", "status", "Show what differs from the .dvc files.", _PROJECT),
    "data": Entry("compare", "data", "Compare the last commit, the .dvc files and the workspace.", _PROJECT),
    "diff": Entry("compare", "diff", "Show what differs between revisions, or from the workspace.", _PROJECT),
    "list": Entry("listing", "list_", "List what a repository holds, Git's files and tracked data.", _PROJECT),
    "ls": Entry("listing", "list_", "As `list`.", _PROJECT),
    "du": Entry("listing", "du", "Show how much a repository's files and tracked data take.", _PROJECT),
    "move": Entry("tracking", "move", "Rename tracked data, or move it, with its .dvc file.", _PROJECT),
    "mv": Entry("tracking", "move", "As `move`.", _PROJECT),
    "freeze": Entry("tracking", "freeze", "Have stages and .dvc files keep what they have.", _PROJECT),
    "unfreeze": Entry("tracking", "unfreeze", "Let frozen stages and .dvc files be updated again.", _PROJECT),
    "check-ignore": Entry("ignoring", "check_ignore", "Show what .dvcignore rules out, and by which rule.", _PROJECT),
    "unprotect": Entry("leaving", "unprotect", "Have files share nothing with DVC's cache.", _PROJECT),
    "purge": Entry("leaving", "purge", "Remove data from the workspace and from the store.", _PROJECT),
    "destroy": Entry("leaving", "destroy", "Remove all of DVC's files from a project, but for its data.", _PROJECT),
    "config": Entry("settings", "config", "Get or set config options.", _PROJECT),
    "install": Entry("hooks", "install", "Install Git hooks, and the merge driver for .dvc files.", _PROJECT),
    "import": Entry("importing", "import_", "Bring data from another repository, and remember which.", _REMOTES),
    "import-url": Entry("importing", "import_url", "Bring data from a url, and remember where it is from.", _REMOTES),
    "get": Entry("getting", "get", "Bring data from another repository, untracked.", _REMOTES),
    "get-url": Entry("getting", "get_url", "Bring data from a url, untracked.", _REMOTES),
    "list-url": Entry("getting", "list_url", "List what lies at a url.", _REMOTES),
    "ls-url": Entry("getting", "list_url", "As `list-url`.", _REMOTES),
    "update": Entry("importing", "update", "Bring what has changed at the sources of imports.", _REMOTES),
    "stage": Entry("stages", "stage", "Add and list stages.", _PIPELINES),
    "repro": Entry("repro", "repro", "Run stages that are out of date.", _PIPELINES),
    "why": Entry("repro", "why", "Say why a stage would run, or did.", _PIPELINES),
    "runs": Entry("lineage", "runs", "List the last runs of stages.", _PIPELINES),
    "lineage": Entry("lineage", "lineage", "Show what a file was made from, or what was made from it.", _PIPELINES),
    "dag": Entry("stages", "dag", "Show how stages hang together.", _PIPELINES),
    "metrics": Entry("figures", "metrics", "Show and compare metrics.", _PIPELINES),
    "params": Entry("figures", "params", "Compare parameters.", _PIPELINES),
    "plots": Entry("plots", "plots", "Draw plots of data files, over revisions.", _PIPELINES),
    "push": Entry("sharing", "push", "Bring tracked data to a remote.", _REMOTES),
    "fetch": Entry("sharing", "fetch", "Bring tracked data from a remote into the store.", _REMOTES),
    "pull": Entry("sharing", "pull", "Bring tracked data from a remote into the workspace.", _REMOTES),
    "remote": Entry("remotes", "remote", "Add, list and change remotes.", _REMOTES),
    "root": Entry("project", "root", "Print the path to the repository's root.", _PROJECT),
    "warm": Entry("sharing", "warm", "Bring what a mount would show here, before it is read.", _REMOTES),
    "mount": Entry("mounts", "mount", "Show a version of the data as a read-only directory.", _MOUNTS),
    "umount": Entry("mounts", "umount", "End a mount, or all of them.", _MOUNTS),
    "mounts": Entry("mounts", "mounts", "List mounts; mount again what is gone.", _MOUNTS),
    "jobs": Entry("jobs", "jobs", "List jobs.", _JOBS),
    "job": Entry("jobs", "job", "Run commands as jobs, which outlive their terminal; remove them.", _JOBS),
    "logs": Entry("jobs", "logs", "Print what a job has written.", _JOBS),
    "attach": Entry("jobs", "attach", "Follow a job to its end.", _JOBS),
    "cancel": Entry("jobs", "cancel", "End jobs.", _JOBS),
    "fsck": Entry("store", "fsck", "Check the store, and repair it.", _STORE),
    "gc": Entry("gc", "gc", "Remove data that no version needs any more.", _STORE),
    "pin": Entry("gc", "pin", "Keep a version's data whatever happens to its project.", _STORE),
    "unpin": Entry("gc", "unpin", "Let pinned versions go.", _STORE),
    "pins": Entry("gc", "pins", "List pinned versions.", _STORE),
    "forget-project": Entry("gc", "forget_project", "Have a project that is gone keep nothing any more.", _STORE),
    "cache": Entry("cache", "cache", "What the store holds.", _STORE),
    "daemon": Entry("daemon", "daemon", "Start, stop and look at the daemon.", _STORE),
    "doctor": Entry("about", "doctor", "Check this machine and repository for what millpond needs.", _OTHER),
    "version": Entry("about", "version", "Print versions.", _OTHER),
    "completion": Entry("about", "completion", "Print a shell's completion script.", _OTHER),
    "git-hook": Entry("hooks", "git_hook", "What the hooks of `install` run.", _OTHER),
    "help": Entry("about", "help_", "Explain a command, or exit codes and environment.", _OTHER),
}

# What DVC 3 has and this version has not: named, so that a script that uses one learns why it fails.
_DVC_ONLY = """
artifacts experiments exp
import-db queue
studio
"""
DVC_ONLY = frozenset(_DVC_ONLY.split())

# Click's own --help writes past the console.
_CONTEXT: dict[str, Any] = {"help_option_names": [], "max_content_width": 100}


class Verb(click.Command):
    """A command with -q and -v, an example in its help, and paths of any bytes."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", _CONTEXT)
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.extend([*loudness(), help_option()])

    def invoke(self, ctx: click.Context) -> Any:
        check_loudness(ctx)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.strip("\n").splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Spread(Verb):
    """A verb with options that take all words up to the next option, as DVC's do: `--targets A B`."""

    def __init__(self, *args: Any, spread: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spread = spread

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        inside: str | None = None
        for word in args:
            if word.startswith("-"):
                inside = word if word in self._spread else None
                if inside is not None:
                    continue
            words += [inside, word] if inside is not None else [word]
        return super().parse_args(ctx, words)


def settings_option(name: str, help: str) -> Callable[[Callback], Callback]:
    """An option of NAME=VALUE words; the command gets a mapping. It must be among the verb's `spread`."""

    def parsed(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for word in values:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise UsageError(f"'{word}' of {name} is not NAME=VALUE")
            found[key] = value
        return found

    return click.option(name, multiple=True, metavar="NAME=VALUE", callback=parsed, help=help)


def with_options(function: Callback, *options: Callback) -> Callback:
    """A command with these options and arguments of click, in this order, for several commands that have them in common."""
    for option in reversed(options):
        function = option(function)
    return function


def repo_settings(function: Callback) -> Callback:
    """Options for a repository that is elsewhere; the verb's `spread` must have --remote-config."""
    return with_options(
        function,
        click.option(
            "--config", metavar="PATH", type=click.Path(), help="A config file to lay over the repository's own."
        ),
        click.option("--remote", metavar="NAME", help="Which of the repository's remotes has the data."),
        settings_option("--remote-config", "Settings to lay over that remote's; all words that follow."),
    )


class Group(click.Group):
    """A group of verbs that are in its own module (`daemon`, `cache`)."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", _CONTEXT)
        super().__init__(*args, **kwargs)
        self.params.append(help_option())


class Main(click.Group):
    """`millpond`: finds verbs in ENTRIES."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(context_settings=_CONTEXT, **kwargs)
        self.params.extend([*loudness(), *_global_options(), help_option()])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"millpond.cli.commands.{entry.module}")
        command: click.Command = getattr(module, entry.attribute)
        command.short_help = entry.help
        return command

    def invoke(self, ctx: click.Context) -> Any:
        check_loudness(ctx)
        return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in ENTRIES and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise unknown_command(args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in (_PROJECT, _PIPELINES, _REMOTES, _MOUNTS, _JOBS, _STORE, _OTHER):
            with formatter.section(section):
                formatter.write_dl([(name, e.help) for name, e in ENTRIES.items() if e.section == section])


def unknown_command(name: str) -> UsageError:
    """The error for a verb that is not there, with what may have been meant."""
    if name in DVC_ONLY:
        return UsageError(
            f"`{name}` is a command of DVC that this version of millpond does not have",
            hint="`millpond help` lists those it has",
        )
    import difflib

    close = difflib.get_close_matches(name, ENTRIES, n=1)
    hint = f"did you mean `millpond {close[0]}`?" if close else "`millpond help` lists the commands"
    return UsageError(f"there is no command `{name}`", hint=hint)


def help_option() -> click.Option:
    """-h and --help."""

    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.obj.write(ctx.get_help())
            ctx.exit()

    return click.Option(
        ["-h", "--help"], is_flag=True, expose_value=False, is_eager=True, callback=show, help="Print this text."
    )


def loudness() -> list[click.Option]:
    """-q and -v, which every verb takes beside the program itself."""

    def quieter(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and isinstance(ctx.obj, Console):
            ctx.obj.quiet = True

    def louder(ctx: click.Context, _: click.Parameter, value: int) -> None:
        if value and isinstance(ctx.obj, Console):
            ctx.obj.verbose += value

    return [
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=quieter, help="Print errors only."),
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=louder, help="Print more."),
    ]


def check_loudness(ctx: click.Context) -> None:
    """Raise UsageError for -q together with -v, as DVC does."""
    if isinstance(ctx.obj, Console) and ctx.obj.quiet and ctx.obj.verbose:
        raise UsageError("-v/--verbose is not allowed together with -q/--quiet")


def _global_options() -> list[click.Parameter]:
    def change(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is None or ctx.resilient_parsing:
            return
        try:
            os.chdir(value)
        except OSError as error:
            raise TargetError(f"cannot change to directory '{value}': {error.strerror}", path=value) from error

    def wait(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and isinstance(ctx.obj, Console):
            ctx.obj.wait_for_lock = True

    def version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            from millpond.daemon.version import VERSION

            ctx.obj.write(VERSION)
            ctx.exit()

    return [
        click.Option(
            ["--cd"], metavar="PATH", expose_value=False, is_eager=True, callback=change,
            help="Change to this directory first.",
        ),
        click.Option(
            ["--wait-for-lock"], is_flag=True, expose_value=False, callback=wait,
            help="Wait as long as it takes for a repository that another command is changing.",
        ),
        click.Option(
            ["-V", "--version"], is_flag=True, expose_value=False, is_eager=True, callback=version,
            help="Print the version and exit.",
        ),
    ]  # fmt: skip


def json_option(function: Callback) -> Callback:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
