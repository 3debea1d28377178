"""Which inputs of stages are mounted instead of copied, as the command, the environment or a file says.

DVC refuses what it does not know in its own files. So what is millpond's alone has files of its own, in the same dialect:
`.dvc/config.millpond` of a project, which Git keeps, and `$XDG_CONFIG_HOME/millpond/config` of a user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from millpond.daemon.errors import InvalidFileError, UsageError
from millpond.daemon.project import config
from millpond.daemon.settings import parsed_size

NEVER, AUTO, ALWAYS = "never", "auto", "always"
MODES = (NEVER, AUTO, ALWAYS)
# With AUTO what is here and smaller is copied.
ABOVE = 1_000_000_000
# A single file that is smaller is always brought: that takes no longer than a mount.
SMALL_FILE = 16_000_000
SECTION, MODE_KEY, ABOVE_KEY = "repro", "mount", "mount_above"
MODE_SETTING, ABOVE_SETTING = "MILLPOND_MOUNT", "MILLPOND_MOUNT_ABOVE"


@dataclass(frozen=True, slots=True)
class Policy:
    """`mode`: NEVER; AUTO: what is only on a remote, and of what is here what has `above` bytes or more; ALWAYS."""

    mode: str = NEVER
    above: int = ABOVE

    @property
    def on(self) -> bool:
        return self.mode != NEVER

    def mounts(self, size: int, *, is_dir: bool, here: bool) -> bool:
        """Whether data of so many bytes is mounted; `here`: it is in the store, or in DVC's cache."""
        if not is_dir and size < SMALL_FILE:
            return False
        return self.mode == ALWAYS or not here or size >= self.above


def policy(dvc_dir: str, environ: Mapping[str, str], asked: bool | None) -> Policy:
    """What holds: what the command `asked`, else the environment, the project's file, the user's. Raises InvalidFileError,
    UsageError."""
    settings: dict[str, str] = {}
    for path in _files(dvc_dir, environ):
        settings |= _read(path)
    for key, name in ((MODE_KEY, MODE_SETTING), (ABOVE_KEY, ABOVE_SETTING)):
        if environ.get(name):
            settings[key] = _checked(key, environ[name], name)
    mode = settings.get(MODE_KEY, NEVER)
    if asked is not None:
        mode = ALWAYS if asked else NEVER
    return Policy(mode, parsed_size(settings[ABOVE_KEY]) if ABOVE_KEY in settings else ABOVE)


def _files(dvc_dir: str, environ: Mapping[str, str]) -> list[str]:
    """The user's, then the project's, which counts more."""
    home = environ.get("HOME") or os.path.expanduser("~")
    base = environ.get("XDG_CONFIG_HOME", "")
    base = base if os.path.isabs(base) else os.path.join(home, ".config")
    return [os.path.join(base, "millpond", "config"), os.path.join(dvc_dir, "config.millpond")]


def _read(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for section, values in config.entries(config.text_of(path) or "", path, check=False).items():
        for key, value in values.items():
            if section != SECTION or key not in (MODE_KEY, ABOVE_KEY) or not isinstance(value, str):
                raise InvalidFileError(f"'{path}': there is no setting '{section}.{key}'", path=path)
            try:
                found[key] = _checked(key, value, f"{section}.{key}")
            except UsageError as error:
                raise InvalidFileError(f"'{path}': {error.message}", path=path, hint=error.hint) from error
    return found


def _checked(key: str, value: str, name: str) -> str:
    """Raises UsageError."""
    if key == ABOVE_KEY:
        try:
            parsed_size(value)
        except UsageError as error:
            raise UsageError(f"{name}: '{value}' is no size like 2GB") from error
    elif value not in MODES:
        raise UsageError(f"{name}: '{value}' is none of {', '.join(MODES)}")
    return value
