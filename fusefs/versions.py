"""All versions of a repo in one mount: a folder for each branch and tag, and for any revision that is asked for.

    <branch or tag>           a link to .commits/<commit>; a name with slashes lies in folders
    <any other revision>      likewise, when it is looked up: `HEAD~3`, an abbreviated commit, `v1^{}`
    .commits/<commit>         the version: immutable, made when it is first looked at

Links may change when branches move, so the kernel asks again after a second; versions never change.
"""

from __future__ import annotations

import errno
import re
import time
from dataclasses import dataclass

from millpond.daemon.errors import MillpondError, RevisionError
from millpond.fusefs.attributes import Attributes, FileError
from millpond.fusefs.filesystem import Filesystem
from millpond.fusefs.nodes import ROOT, Node

COMMITS = b".commits"
_COMMIT = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?\Z")
# Branches and tags are asked for again after this time.
REFS_S = 1.0
# Versions remembered; the oldest are asked for again.
_MAX_VERSIONS = 4096
# Names that programs look for in every folder, and that are no revisions: not worth a question.
_NOT_REVISIONS = (b".", b"_")


@dataclass(slots=True)
class _Place:
    """A directory of this view: the commits' (`commits`), or the refs that begin with `prefix`."""

    prefix: bytes = b""
    commits: bool = False


class VersionsFilesystem(Filesystem):
    """The root has no folder of the index; everything below a commit has."""

    immutable = False
    _refs: dict[bytes, bytes]
    _refs_at = float("-inf")
    _versions: dict[bytes, bytes]

    async def lookup_special(self, node: Node, name: bytes) -> Attributes | None:
        """See Filesystem.lookup_special."""
        place = self._place(node)
        if node.inode == ROOT and name == COMMITS:
            return self.node_attributes(self.nodes.remember(ROOT, name, None, extra=_Place(commits=True)))
        if place.commits:
            if not _COMMIT.match(name):
                return None
            root = (await self._version(name))[1]
            return self.node_attributes(self.nodes.remember(node.inode, name, root))
        path = place.prefix + name
        refs = await self._current_refs()
        if path in refs:
            return self._link(node, name, place, refs[path])
        if any(ref.startswith(path + b"/") for ref in refs):
            return self.node_attributes(self.nodes.remember(node.inode, name, None, extra=_Place(prefix=path + b"/")))
        if name.startswith(_NOT_REVISIONS):
            return None
        try:
            commit, _ = await self._version(path)
        except RevisionError:
            return None
        return self._link(node, name, place, commit)

    async def list_special(self, node: Node) -> list[bytes]:
        """See Filesystem.list_special: branches and tags; commits that were looked at."""
        place = self._place(node)
        if place.commits:
            return sorted(self._known())
        refs = await self._current_refs()
        below = [ref[len(place.prefix) :] for ref in refs if ref.startswith(place.prefix)]
        return sorted({name.split(b"/")[0] for name in below})

    def _link(self, node: Node, name: bytes, place: _Place, commit: bytes) -> Attributes:
        target = b"../" * place.prefix.count(b"/") + COMMITS + b"/" + commit
        return self.node_attributes(self.nodes.remember(node.inode, name, None, target=target, extra=place))

    @staticmethod
    def _place(node: Node) -> _Place:
        return node.extra if isinstance(node.extra, _Place) else _Place()

    def _known(self) -> dict[bytes, bytes]:
        if "_versions" not in self.__dict__:
            self._versions = {}
        return self._versions

    async def _current_refs(self) -> dict[bytes, bytes]:
        now = time.monotonic()
        if now - self._refs_at > REFS_S:
            if self._source is None:
                raise FileError(errno.EIO)
            try:
                found = await self.ask_source(lambda source: source.refs(), self._source)
            except (MillpondError, OSError) as error:
                raise self.failed(f"cannot list branches and tags: {error}") from error
            self._refs = {name.encode("utf-8", "surrogateescape"): commit.encode() for name, commit in found.items()}
            self._refs_at = now
        return self._refs

    async def _version(self, revision: bytes) -> tuple[bytes, bytes]:
        """(commit, root folder) of a revision. Raises RevisionError, FileError (EIO) when the daemon cannot be asked."""
        known = self._known()
        if revision in known:
            return revision, known[revision]
        if self._source is None:
            raise FileError(errno.EIO)
        text = revision.decode("utf-8", "surrogateescape")
        try:
            commit, root = await self.ask_source(self._source.version, text)
        except RevisionError:
            raise
        except (MillpondError, OSError) as error:
            raise self.failed(f"cannot show revision '{text}': {error}") from error
        if len(known) >= _MAX_VERSIONS:
            del known[next(iter(known))]
        known[commit.encode()] = root
        return commit.encode(), root
