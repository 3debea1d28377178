"""The section of one remote in DVC's config, read by the kinds: what cannot be meant is refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from millpond.daemon.errors import RemoteConfigError


class Values:
    """Settings of the remote `name`. All methods raise RemoteConfigError for what is no value of its kind."""

    def __init__(self, name: str, values: Mapping[str, str]) -> None:
        self.name = name
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str | None:
        """As it stands; what is empty is not set."""
        return self._values.get(key) or None

    def file(self, key: str) -> str | None:
        """A path, `~` followed."""
        value = self.text(key)
        return None if value is None else os.path.expanduser(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._values.get(key)
        return default if value is None else value.strip().lower() in ("true", "1", "yes", "on")

    def number(self, key: str, least: int, most: int) -> int | None:
        value = self.text(key)
        if value is None:
            return None
        if not value.isdecimal() or not least <= int(value) <= most:
            raise self.wrong(f"{key} = {value} is no number from {least} to {most}", self.modify(key))
        return int(value)

    def seconds(self, key: str) -> float | None:
        """A time; 0, with which DVC means none, is as if it were not set."""
        value = self.text(key)
        try:
            found = float(value or 0)
        except ValueError:
            found = -1.0
        if not 0 <= found <= 86_400:
            raise self.wrong(f"{key} = {value} is no number of seconds", self.modify(key))
        return found or None

    def verify(self) -> bool | str:
        """`ssl_verify`: False, or a file of certificates."""
        value = self.text("ssl_verify")
        if value is None or value.strip().lower() == "true":
            return True
        if value.strip().lower() == "false":
            return False
        path = os.path.expanduser(value)
        if not os.access(path, os.R_OK):
            raise self.wrong(
                f"cannot read ssl_verify's file '{path}'", "it is a file of certificates, or true or false"
            )
        return path

    def place(self, url: str) -> tuple[SplitResult, int | None]:
        """A url's parts, with a host, and its port."""
        parts = urlsplit(url)
        way = f"write {parts.scheme}://[USER@]HOST[:PORT]/PATH"
        if not parts.hostname:
            raise self.wrong("its url names no host", way)
        if parts.query or parts.fragment:
            raise self.wrong("its url has a ? or #, behind which no path can be", way)
        try:
            return parts, parts.port
        except ValueError as error:
            raise self.wrong("the port in its url is no number from 0 to 65535", way) from error

    def wrong(self, problem: str, hint: str) -> RemoteConfigError:
        """What the config says cannot be done."""
        return RemoteConfigError(f"remote '{self.name}': {problem}", hint=hint)

    def modify(self, key: str) -> str:
        """The command that changes a setting."""
        return f"change it: millpond remote modify {self.name} {key} ..."
