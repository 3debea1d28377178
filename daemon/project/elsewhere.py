"""Files that need not lie in the project: sources of `add --out` and of imports."""

from __future__ import annotations

import os
import stat

from millpond.daemon.errors import TargetError
from millpond.daemon.project.copying import below
from millpond.daemon.project.ignore import FolderRules
from millpond.daemon.project.manifest import sort_key
from millpond.daemon.project.paths import printable
from millpond.daemon.project.walk import Listing, kind_of, list_folder, stat_fields


def listing(source: str, *, is_dir: bool) -> Listing:
    """The files of a source: only built-in rules hold there. Raises TargetError for what cannot be stored; OSError."""
    if not is_dir:
        found = Listing(paths=[os.path.basename(source)])
        found.stats.extend(stat_fields(os.stat(source)))
        return found
    found = list_folder(source, FolderRules(os.path.dirname(source), "", ()))
    for path, reason in found.odd:
        shown = printable(f"{source}/{path}")
        raise TargetError(f"cannot add '{shown}': it {reason}", path=shown, hint="remove it first")
    return found


def everything(source: str) -> Listing:
    """As `listing` of a folder, with no rules at all: repositories and Git's own files are among it."""
    found = Listing()
    for path in sorted((each[len(source) :].lstrip("/") for each in below(source)[0]), key=sort_key):
        full = os.path.join(source, path)
        shown = printable(full)
        try:
            status = os.stat(full)
        except OSError as error:
            raise TargetError(f"cannot read '{shown}': {error.strerror}", path=shown, hint="remove it first") from error
        if stat.S_ISREG(status.st_mode):
            found.paths.append(path)
            found.stats.extend(stat_fields(status))
        elif stat.S_ISDIR(status.st_mode):
            found.skipped.append(path)
        else:
            raise TargetError(f"'{shown}' is {kind_of(status.st_mode)}", path=shown, hint="remove it first")
    return found
