"""`push` to remotes that keep versions themselves: each file to its own path, and what it became there into its pointer.

A file is there when the version that its pointer names is. Else the latest one at its path will do, if its ETag is the content's MD5: so
a push that was cut, whose pointers say nothing yet, is gone on with. All others are written, each as a new version; nothing is ever
removed. The pointers are written at the end, however it comes: what they name then is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from posixpath import join

from millpond.daemon.errors import UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import manifest
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.digests import LEGACY, Objects, Place
from millpond.daemon.project.fileversions import FileVersions, Version
from millpond.daemon.project.outgoing import uploads
from millpond.daemon.project.outputs import Output
from millpond.daemon.project.paths import is_utf8, printable
from millpond.daemon.project.select import Choice
from millpond.daemon.project.sharing import Link
from millpond.daemon.remote.backend import Entry, parts
from millpond.daemon.remote.s3multipart import part_bytes
from millpond.daemon.remote.upload import Upload
from millpond.daemon.remote.versioned import VersionedBackend


@dataclass(slots=True)
class Versions:
    """What a push to one remote came to: what each file of an output is there; what is neither here nor there, with a path of each."""

    remote: str
    found: dict[Output, dict[str, Version]] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0
    there: int = 0
    missing: dict[ObjectName, str] = field(default_factory=dict)

    def note(self, file: _File, version: Version) -> None:
        self.found.setdefault(file.output, {})[file.about.relpath] = version


@dataclass(frozen=True, slots=True)
class _File:
    """A file of an output, and its path below the remote's url."""

    output: Output
    about: FileVersions

    @property
    def key(self) -> str:
        return join(self.output.path, self.about.relpath) if self.about.relpath else self.output.path


class PushingVersions:
    """One remote's part of a push. `done` is right at any time, also after an error."""

    def __init__(self, context: VerbContext, objects: Objects, link: Link, chosen: Sequence[Choice]) -> None:
        backend = link.transfer.backend
        assert isinstance(backend, VersionedBackend)
        self._context = context
        self._objects = objects
        self._link = link
        self._backend = backend
        self._chosen = chosen
        self.done = Versions(link.remote.name)

    def run(self) -> Versions:
        """Raises RemoteConfigError for a bucket that keeps no versions, UsageError, RemoteError, CredentialsError, StoreDamagedError."""
        files = list(self._files())
        lacking = []
        calls = [partial(self._there, file) for file in files]
        for number, (file, version) in enumerate(zip(files, self._link.transfer.ask(calls), strict=True), 1):
            self._context.progress("looking at the remote", (number, len(files)))
            if isinstance(version, Entry):
                version = self._version(version) if self._is_in_parts(file, version) else None
            if version is None:
                lacking.append(file)
            else:
                self.done.note(file, version)
        self.done.there = len(files) - len(lacking)
        self._send(lacking)
        return self.done

    def _files(self) -> Iterator[_File]:
        """All files that are meant, each once. A folder whose files nobody knows is missing."""
        inner: dict[Output, list[str]] = {}
        for choice in self._chosen:
            inner.setdefault(choice.output, []).append(choice.inner)
        for output, wanted in inner.items():
            assert output.name is not None
            if output.name.algo == LEGACY:
                raise UsageError(
                    f"'{printable(output.path)}' has a name of DVC 2, which no remote with versions takes",
                    path=printable(output.path),
                    hint="`millpond cache migrate --dvc-files` gives it one of DVC 3",
                )
            about = files_of(output, self._objects)
            if about is None:
                self.done.missing[output.name] = output.path
            for each in about or ():
                if any(each.relpath == one or each.relpath.startswith(f"{one}/") or not one for one in wanted):
                    file = _File(output, each)
                    refuse_undecodable(file.key)
                    yield file

    def _there(self, file: _File) -> Version | Entry | None:
        """The version of a file that the remote has; what may be one where only its parts' digests tell."""
        about = file.about
        for known in about.versions:
            if known.remote in (None, self.done.remote):
                entry = self._backend.here(file.key, known.version)
                if entry is not None and known.etag in (None, tag_of(entry)) and about.size in (None, entry.size):
                    return self._version(entry)
        latest = self._backend.here(file.key)
        if latest is None or about.size not in (None, latest.size):
            return None
        tag = tag_of(latest) or ""
        # A remote that encrypts by keys of its own has other ETags: the file is written again.
        return self._version(latest) if tag == about.name.hex else latest if "-" in tag else None

    def _is_in_parts(self, file: _File, entry: Entry) -> bool:
        """Whether an object that was sent in parts, as they are made here, is a file's content: its ETag is the MD5 of their MD5s."""
        place = self._objects.places([file.about.name])[0]
        if place is None or place.size != entry.size:
            return False
        (upload,) = uploads(self._objects, [(file.about.name, place, None)])
        digests = [_md5(part).digest() for part in parts(upload.pieces, part_bytes(entry.size))]
        return tag_of(entry) == f"{_md5(b''.join(digests)).hexdigest()}-{len(digests)}"

    def _version(self, entry: Entry) -> Version:
        assert entry.version is not None
        return Version(self.done.remote, entry.version, tag_of(entry))

    def _send(self, files: Sequence[_File]) -> None:
        places = self._objects.places([file.about.name for file in files])
        todo: list[tuple[_File, Place]] = []
        for file, place in zip(files, places, strict=True):
            if place is None:
                self.done.missing.setdefault(file.about.name, file.key)
            else:
                todo.append((file, place))
        if not todo:
            return
        self._backend.refuse_unversioned()
        by_key = {file.key: file for file, _ in todo}
        count, size = len(todo), sum(place.size for _, place in todo)
        before, gone = self.done.bytes, 0

        def went(size_gone: int) -> None:
            nonlocal gone
            gone = size_gone
            self._context.progress("pushing", (self.done.objects, count), (before + gone, size))

        def created(sent: Sequence[Upload]) -> None:
            done = self.done
            for each in sent:
                done.note(by_key[each.key], self._version(self._backend.written.pop(each.key)))
                done.objects += 1
                done.bytes += each.size
            went(gone)

        items = [(file.about.name, place, file.key) for file, place in todo]
        self._link.transfer.upload(uploads(self._objects, items), created=created, went=went)


def files_of(output: Output, objects: Objects) -> Sequence[FileVersions] | None:
    """The files of an output, with what its pointer says of them; None where that is nowhere. Raises StoreDamagedError."""
    assert output.name is not None
    if output.files:
        return output.files
    if not output.name.is_dir:
        return [FileVersions("", output.name, output.size, ())]
    raw = objects.manifest(output.name)
    if raw is None:
        return None
    entries = manifest.parse(raw, source=str(output.name), algo=output.name.algo)
    return [FileVersions(relpath, name, None, ()) for relpath, name in entries]


def refuse_undecodable(key: str) -> None:
    """Raise UsageError for a name that no key in a bucket, and no .dvc file, can have."""
    if not is_utf8(key):
        shown = printable(key)
        raise UsageError(
            f"the name of '{shown}' is no UTF-8, and on a remote with versions a file has its own name",
            path=shown,
            hint="rename it",
        )


def tag_of(entry: Entry) -> str | None:
    """An ETag as pointers have it."""
    return None if entry.etag is None else entry.etag.strip('"')


def _md5(data: bytes) -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def refuse_revisions(params: Mapping[str, object], kind: str, name: str) -> None:
    """Raise UsageError for a push of other revisions: their pointers are committed, and cannot be told what became of their files."""
    if any(params.get(key) for key in ("all_branches", "all_tags", "all_commits")):
        raise UsageError(
            f"remote '{name}' is {kind}: only the workspace can be pushed there, for its .dvc files are told the versions",
            hint="check the revision out, and push it by itself",
        )
