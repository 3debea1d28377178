"""Files that need not lie in the project: sources of `add --out` and of imports."""

from __future__ import annotations

import os

from millpond.daemon.errors import TargetError
from millpond.daemon.project.ignore import FolderRules
from millpond.daemon.project.paths import printable
from millpond.daemon.project.walk import Listing, list_folder, stat_fields


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
