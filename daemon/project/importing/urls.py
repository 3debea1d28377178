"""The text of urls: their parts, how they are shown, what their data is called."""

from __future__ import annotations

import posixpath
from urllib.parse import SplitResult, urlsplit

from millpond.daemon.errors import TargetError
from millpond.daemon.project.paths import printable


def parsed(url: str) -> SplitResult:
    """The parts of a url. Raises TargetError for what is none."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise TargetError(f"'{printable(url)}' is no url: {error}", path=printable(url)) from error


def is_local(url: str) -> bool:
    """Whether a url is a path of this machine."""
    return parsed(url).scheme in ("", "file") or len(parsed(url).scheme) == 1


def shown_url(url: str) -> str:
    """A url for messages: without a password, and without a web server's query, which may be a signature."""
    parts = parsed(url)
    if parts.query and parts.scheme in ("http", "https"):
        url = f"{url.partition('?')[0]}?..."
    if parts.password is None:
        return printable(url)
    return printable(url.replace(f":{parts.password}@", "@", 1))


def basename(url: str) -> str:
    """What a url's data is called. Raises TargetError for one that names nothing."""
    name = posixpath.basename(posixpath.normpath(parsed(url).path))
    if name in ("", ".", ".."):
        shown = shown_url(url)
        raise TargetError(f"'{shown}' has no name to give to its data", path=shown, hint="say where it goes: OUT")
    return name
