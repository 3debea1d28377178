"""check-ignore, with DVC's options and words."""

from __future__ import annotations

import json
import sys

import click

from millpond.cli import text
from millpond.cli.connection import verb
from millpond.cli.console import Console
from millpond.cli.group import Verb, json_option
from millpond.daemon import wirepath
from millpond.daemon.errors import UsageError


@click.command(
    "check-ignore",
    cls=Verb,
    example="""
$ millpond check-ignore --details scratch.tmp
.dvcignore:3:*.tmp	scratch.tmp
""",
)
@click.argument("targets", nargs=-1, type=click.Path())
@click.option("-d", "--details", is_flag=True, help="Show the rule that decides, too.")
@click.option("-a", "--all", "all_rules", is_flag=True, help="With --details: all rules that match.")
@click.option("-n", "--non-matching", is_flag=True, help="With --details: also targets that no rule matches.")
@click.option("--stdin", is_flag=True, help="Read targets from standard input, one a line, up to an empty one.")
@json_option
@click.pass_context
def check_ignore(
    ctx: click.Context,
    targets: tuple[str, ...],
    details: bool,
    all_rules: bool,
    non_matching: bool,
    stdin: bool,
    as_json: bool,
) -> None:
    """Show which of these files and directories .dvcignore rules out. Exit code 0 if a rule matches any, 1 if none."""
    console: Console = ctx.obj
    _check(targets, console, details=details, all_rules=all_rules, non_matching=non_matching, stdin=stdin)
    names = _from_stdin() if stdin else list(targets)
    found = verb(console, "check-ignore", {"targets": [wirepath.encode(name) for name in names]})
    rows = [
        (wirepath.decode(name), ignored, [wirepath.decode(rule) for rule in rules])
        for name, ignored, rules in found["rows"]
    ]
    if as_json:
        console.write(json.dumps([{"path": name, "ignored": ignored, "rules": rules} for name, ignored, rules in rows]))
    for name, ignored, rules in () if as_json else rows:
        if details:
            shown = rules or (["::"] if non_matching else [])
            for rule in shown if all_rules else shown[-1:]:
                console.say(f"{text.printable(rule)}\t{text.printable(name)}")
        elif ignored:
            console.say(text.printable(name))
    matched = any(rules and (details or ignored) for _, ignored, rules in rows)
    ctx.exit(0 if matched else 1)


def _check(
    targets: tuple[str, ...], console: Console, *, details: bool, all_rules: bool, non_matching: bool, stdin: bool
) -> None:
    if not stdin and not targets:
        raise UsageError("`targets` or `--stdin` needed")
    if stdin and targets:
        raise UsageError("cannot have both `targets` and `--stdin`")
    for given, name in ((non_matching, "--non-matching"), (all_rules, "--all")):
        if given and not details:
            raise UsageError(f"`{name}` is only valid with `--details`")
    if console.quiet and details:
        raise UsageError("cannot use both `--details` and `--quiet`")


def _from_stdin() -> list[str]:
    names: list[str] = []
    for line in sys.stdin.buffer:
        name = line.rstrip(b"\r\n")
        if not name:
            break
        names.append(name.decode(sys.getfilesystemencoding(), "surrogateescape"))
    return names
