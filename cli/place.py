"""Where the command line is: the repository's config, as the shell sees it."""

from __future__ import annotations

import os


def config_file() -> str | None:
    """The repository's config, from here; None above no repository."""
    folder = "."
    while not os.path.samefile(folder, "/"):
        if os.path.isdir(os.path.join(folder, ".dvc")):
            return os.path.normpath(os.path.join(folder, ".dvc", "config"))
        folder = os.path.join(folder, "..")
    return None
