"""The run cache on its way to and from a remote: what stages made of what, in files `runs/KK/KEY/VALUE` below DVC's cache and the remote.

As in DVC only the entries are moved; the objects that they name are pushed with the versions that name them. An entry is a small YAML
file that is written once; what is there already is not sent again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from millpond.daemon.errors import InvalidFileError, RemoteConfigError
from millpond.daemon.objects import Data
from millpond.daemon.project import yamlio
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.durable import write_all, write_error
from millpond.daemon.project.repo import Repo
from millpond.daemon.project.sharing import Link, Links

_FOLDER = "runs"
_KEY = re.compile(r"runs/([0-9a-f]{2})/([0-9a-f]{64})/[0-9a-f]{64}")
# An entry names a stage's dependencies and outputs; none has so many bytes.
_MAX_BYTES = 4 << 20
# Entries that are written together.
_BATCH = 256


def push_runs(context: VerbContext, repo: Repo, links: Links) -> int:
    """Send the entries that the remote lacks; how many. Raises RemoteConfigError, RemoteError, CredentialsError."""
    link = links.of(links.remote_of(None))
    there = _there(context, link)
    if there is None:
        return 0
    todo = sorted(key for key in _here(repo) if key not in there)

    def items() -> Iterator[tuple[str, bytes]]:
        for key in todo:
            try:
                with open(os.path.join(repo.cache.folder, key), "rb") as file:
                    data = file.read(_MAX_BYTES + 1)
            except OSError as error:
                context.log("warning", f"'{key}' of the run cache cannot be read: {error.strerror}")
                continue
            if len(data) <= _MAX_BYTES:
                yield key, data

    done = 0
    for done in link.transfer.put_small(items()):
        context.progress("pushing the run cache", (done, len(todo)))
    return done


def fetch_runs(context: VerbContext, repo: Repo, links: Links) -> int:
    """Bring the entries that are lacking here; how many. Raises RemoteConfigError, RemoteError, CredentialsError, DiskFullError."""
    link = links.of(links.remote_of(None))
    here, there = set(_here(repo)), _there(context, link)
    todo = sorted(key for key in there or () if key not in here)
    taken = 0
    texts: dict[str, str] = {}
    for number, (key, data) in enumerate(zip(todo, link.transfer.get_small(todo), strict=True), 1):
        context.progress("fetching the run cache", (number, len(todo)))
        text = _entry(data, key)
        if text is None:
            context.log(
                "warning", f"'{key}' on remote '{link.remote.name}' is no entry of a run cache: it is left there"
            )
        else:
            texts[os.path.join(repo.cache.folder, key)] = text
        if len(texts) >= _BATCH or number == len(todo):
            taken += len(texts)
            _write(texts)
            texts = {}
    return taken


def _write(texts: Mapping[str, str]) -> None:
    try:
        for path in texts:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        write_all(texts)
    except OSError as error:
        raise write_error(error, hint="make room, then fetch again") from error


def _here(repo: Repo) -> Iterator[str]:
    """The keys of entries in the project's cache."""
    top = os.path.join(repo.cache.folder, _FOLDER)
    for folder, _, files in os.walk(top):
        for name in files:
            key = os.path.relpath(os.path.join(folder, name), repo.cache.folder)
            if _is_key(key):
                yield key


def _there(context: VerbContext, link: Link) -> set[str] | None:
    """The keys of entries on a remote; None, with a warning, where it can have none."""
    try:
        found = [entry for page in link.transfer.listings([_FOLDER]) for entry in page]
    except RemoteConfigError as error:
        context.log("warning", f"the run cache stays where it is: {error.message}")
        return None
    return {entry.key for entry in found if _is_key(entry.key) and entry.size <= _MAX_BYTES}


def _is_key(key: str) -> bool:
    found = _KEY.fullmatch(key)
    return found is not None and found[1] == found[2][:2]


def _entry(data: Data, key: str) -> str | None:
    """The text of an entry; None for what is none."""
    try:
        text = yamlio.decode(bytes(data), key)
        document = yamlio.load(text, key)
    except InvalidFileError:
        return None
    is_one = isinstance(document, dict) and "cmd" in document and isinstance(document.get("outs"), list)
    return text if is_one else None
