"""Completion for bash, zsh and fish: the script that a shell loads, and the answers that it then asks us for.

The shell calls `millpond` with `_MILLPOND_COMPLETE=<shell>` and what was typed up to the cursor: the words after `millpond`
joined by newlines in `_MILLPOND_WORDS`, with a full stop as one more (shells drop empty lines at the end); or the whole
line in `_MILLPOND_LINE` (bash parts words at @, : and =, which targets hold). The answer is one line a candidate: type
(`plain`, `file`, `dir`), value, help, parted by tabs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

SHELLS = ("bash", "zsh", "fish")

# Time that Git has to list branches and tags.
GIT_S = 2.0

# What bash counts as the current word is only its part after a break: the rest is taken off the candidates. Names of
# files are left to bash itself (-o default), which knows about quotes.
_BASH = """\
_millpond_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" last="${COMP_WORDS[COMP_CWORD]}" type value help cur typed
    cur="${line##*[[:space:]]}"
    [[ "$last" == [@:=] ]] && last=""
    typed="${cur%"$last"}"
    COMPREPLY=()
    while IFS=$'\\t' read -r type value help; do
        case "$type" in
            dir) compopt -o dirnames 2>/dev/null ;;
            plain) COMPREPLY+=("${value#"$typed"}") ;;
        esac
    done < <(_MILLPOND_LINE="$line" _MILLPOND_COMPLETE=bash "${COMP_WORDS[0]}" 2>/dev/null)
}
complete -o default -o nosort -F _millpond_completion millpond 2>/dev/null ||
    complete -o default -F _millpond_completion millpond
"""

_ZSH = """\
#compdef millpond
_millpond() {
    local -a plain
    local type value help
    while IFS=$'\\t' read -r type value help; do
        case "$type" in
            file) _files ;;
            dir) _files -/ ;;
            plain) plain+=("${value//:/\\\\:}${help:+:$help}") ;;
        esac
    done < <(_MILLPOND_WORDS="${(@pj:\\n:)${(@Q)words[2,CURRENT]}}"$'\\n.' _MILLPOND_COMPLETE=zsh "${words[1]}" 2>/dev/null)
    (( ${#plain} )) && _describe -V '' plain
}
if [[ "${zsh_eval_context[-1]}" == loadautofunc ]]; then
    _millpond "$@"
else
    compdef _millpond millpond
fi
"""

_FISH = """\
function __millpond_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l joined (string join \\n -- $words[2..-1] . | string collect)
    for line in (_MILLPOND_WORDS=$joined _MILLPOND_COMPLETE=fish $words[1] 2>/dev/null)
        set -l part (string split \\t -- $line)
        switch $part[1]
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case plain
                printf '%s\\t%s\\n' $part[2] $part[3]
        end
    end
end
complete --no-files --command millpond --arguments '(__millpond_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """What a shell loads."""
    return _SCRIPTS[shell].rstrip("\n")


def complete(cli: click.Command, environ: Mapping[str, str]) -> Iterator[str]:
    """The answer to a shell, line by line."""
    for item in candidates(cli, typed_words(environ)):
        yield "\t".join([item.type, str(item.value), (item.help or "").replace("\t", " ").replace("\n", " ")])


def typed_words(environ: Mapping[str, str]) -> list[str]:
    """The words after the program's name; the last one, perhaps empty, is being completed."""
    line = environ.get("_MILLPOND_LINE")
    if line is None:
        return environ.get("_MILLPOND_WORDS", "").removesuffix("\n.").split("\n")
    words = split_arg_string(line)[1:]
    return [*words, ""] if line[-1:].isspace() or not words else words


def candidates(cli: click.Command, words: Sequence[str]) -> list[CompletionItem]:
    """What may follow the words before the last one and begins with the last one."""
    *before, incomplete = words
    return ShellComplete(cli, {}, "millpond", "").get_completions(before, incomplete)


def mountpoints(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Mountpoints of millpond, from the kernel's table alone: no daemon is asked, no mount is touched."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for raw in file:
            fields, _, tail = os.fsdecode(raw).partition(" - ")
            where, kind = fields.split(" ")[4], tail.split(" ")[0]
            if "millpond" in kind and "\\" not in where and where.startswith(incomplete):
                found.append(CompletionItem(where))
    return found or [CompletionItem(incomplete, type="dir")]


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`TARGET@` is followed by a branch or a tag; everything else is a path."""
    target, at, rev = incomplete.rpartition("@")
    if not at:
        return [CompletionItem(incomplete, type="file")]
    import subprocess

    command = ["git", "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [CompletionItem(f"{target}@{name}") for name in found.splitlines() if name.startswith(rev)]
