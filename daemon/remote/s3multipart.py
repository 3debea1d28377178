"""Large objects to S3, in parts: an upload that was cut is gone on with by the next one of the same object.

What is under way is noted in the caller's own cache, a file for each object: the upload's id, then a line for each part that the
service took, with its MD5 and the ETag that it was given. A part counts when the service lists it with that ETag and the bytes at hand
have that MD5, however the bucket is encrypted. Who holds the file's lock goes on with it; another uploads for himself. What nobody went
on with for a week is aborted by the next large upload to the same bucket.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from millpond.daemon.objects import Data
from millpond.daemon.remote.backend import PART_BYTES, Sent, parts
from millpond.daemon.remote.pace import Pace

# Parts under way at once, each in memory.
_MOST = 6
# S3 takes 10,000 parts.
_MAX_PARTS = 9_000
KEPT_S = 7 * 86_400.0
_GONE = "NoSuchUpload"


def part_bytes(size: int) -> int:
    """How large the parts of an object are: larger ones where there would be too many."""
    return max(PART_BYTES, -(-size // (_MAX_PARTS << 20)) << 20)


class Uploads:
    """Uploads to one bucket by what `client` gives, boto3's. `folder` is where they are noted, None: nowhere; `where` tells the service from others;
    `reading` and `writing` are what goes with each part, and with the upload, beside its key."""

    def __init__(
        self,
        client: Callable[[], Any],
        bucket: str,
        *,
        folder: str | None,
        where: str,
        reading: dict[str, Any],
        writing: dict[str, Any],
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._folder = folder
        self._where = where
        self._reading = reading
        self._writing = writing
        self._swept = False

    def put(self, key: str, pieces: Iterable[Data], size: int, sent: Sent | None = None) -> Mapping[str, Any]:
        """Write an object of `size` bytes, more than one part; the service's answer, with ETag and VersionId. `sent` is told of each part that
        it has, from any thread. Raises botocore's errors, and what `pieces` raises."""
        self._sweep()
        note = (
            None if self._folder is None else _Note.open(self._folder, f"{self._where}\0{self._bucket}\0{key}\0{size}")
        )
        at = {"Bucket": self._bucket, "Key": key}
        try:
            upload, known = self._begun(note, at)
            try:
                tags = self._send(note, at, upload, known, parts(pieces, part_bytes(size)), sent or (lambda _: None))
                made = self._complete(at, upload, tags, size)
            except BaseException:
                if note is None:
                    self._abort(at, upload)
                raise
            if note is not None:
                note.remove()
            return made
        finally:
            if note is not None:
                note.close()

    def _begun(self, note: _Note | None, at: dict[str, str]) -> tuple[str, dict[int, tuple[str, str]]]:
        """An upload's id, and MD5 and ETag of the parts that the service has."""
        if note is not None and note.upload is not None and time.time() - note.at > KEPT_S:
            self._abort(at, note.upload)
            note.begin({})
        if note is not None and note.upload is not None:
            try:
                return note.upload, self._listed(at, note.upload, note.parts)
            except Exception as error:
                if code_of(error) != _GONE:
                    raise
        upload = str(self._client().create_multipart_upload(**at, **self._writing)["UploadId"])
        if note is not None:
            note.begin({**at, "where": self._where, "upload": upload})
        return upload, {}

    def _listed(self, at: dict[str, str], upload: str, noted: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
        found: dict[int, tuple[str, str]] = {}
        for page in self._client().get_paginator("list_parts").paginate(**at, UploadId=upload, **self._reading):
            for part in page.get("Parts", ()):
                number = int(part["PartNumber"])
                if number in noted and noted[number][1] == part["ETag"]:
                    found[number] = noted[number]
        return found

    def _send(
        self,
        note: _Note | None,
        at: dict[str, str],
        upload: str,
        known: dict[int, tuple[str, str]],
        pieces: Iterable[bytes],
        sent: Sent,
    ) -> list[dict[str, Any]]:
        """Send what is not there; as many parts at once as still bring more."""
        pace = Pace(_MOST, least=1, first=3)
        flying: deque[tuple[int, int, Future[str]]] = deque()
        tags: dict[int, str] = {}

        def land(limit: int) -> None:
            while len(flying) > limit:
                number, length, task = flying.popleft()
                tags[number] = task.result()
                pace.done(length)

        def send(number: int, data: bytes, digest: str) -> str:
            answer = self._client().upload_part(**at, UploadId=upload, PartNumber=number, Body=data, **self._reading)
            if note is not None:
                note.add(number, digest, str(answer["ETag"]))
            sent(len(data))
            return str(answer["ETag"])

        pool = ThreadPoolExecutor(_MOST, thread_name_prefix="s3-part")
        try:
            for number, part in enumerate(pieces, 1):
                digest = hashlib.md5(part, usedforsecurity=False).hexdigest()
                if known.get(number, ("", ""))[0] == digest:
                    tags[number] = known[number][1]
                    sent(len(part))
                    continue
                land(pace.limit - 1)
                flying.append((number, len(part), pool.submit(send, number, part, digest)))
            land(0)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]

    def _complete(self, at: dict[str, str], upload: str, tags: list[dict[str, Any]], size: int) -> Mapping[str, Any]:
        parts_sent = {"Parts": tags}
        try:
            return dict(self._client().complete_multipart_upload(**at, UploadId=upload, MultipartUpload=parts_sent))
        except Exception as error:
            # Its answer was lost, and it was asked for again: the object is there.
            if code_of(error) != _GONE:
                raise
            found = dict(self._client().head_object(**at, **self._reading))
            if found["ContentLength"] != size:
                raise
            return found

    def _abort(self, at: dict[str, str], upload: str) -> None:
        with contextlib.suppress(Exception):  # what led here is told, not this
            self._client().abort_multipart_upload(**at, UploadId=upload)

    def _sweep(self) -> None:
        """Abort what nobody went on with, once."""
        if self._swept or self._folder is None:
            return
        self._swept = True
        for note in _Note.old(self._folder):
            about = note.about
            if about.get("where") == self._where and about.get("Bucket") == self._bucket and note.upload is not None:
                self._abort({"Bucket": self._bucket, "Key": str(about["Key"])}, note.upload)
                note.remove()
            note.close()


class _Note:
    """The note of one upload, locked. `parts` are MD5 and ETag of each part; `add` may be called from any thread, also after the end."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._lock = threading.Lock()
        self.about: dict[str, Any] = {}
        self.parts: dict[int, tuple[str, str]] = {}
        raw = b""
        while data := os.pread(fd, 1 << 20, len(raw)):
            raw += data
        first, *lines = raw.split(b"\n")
        with contextlib.suppress(ValueError):
            self.about = dict(json.loads(first))
        for line in lines[:-1]:  # what follows the last line's end was cut
            with contextlib.suppress(ValueError):
                number, digest, tag = line.decode().split(" ", 2)
                self.parts[int(number)] = digest, tag

    @property
    def upload(self) -> str | None:
        """The upload's id; None when there is none that can be gone on with."""
        found = self.about.get("upload")
        return found if isinstance(found, str) else None

    @property
    def at(self) -> float:
        """When it was begun, in seconds since 1970."""
        found = self.about.get("at")
        return float(found) if isinstance(found, int | float) else 0.0

    @classmethod
    def open(cls, folder: str, what: str) -> _Note | None:
        """The note of an object; None while another has it, or where nothing can be kept."""
        name = hashlib.blake2b(what.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            return cls._locked(os.path.join(folder, name), os.O_CREAT)
        return None

    @classmethod
    def old(cls, folder: str) -> Iterable[_Note]:
        """Notes that nobody has gone on with for too long, each to be closed."""
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if time.time() - os.lstat(path).st_mtime > KEPT_S:
                        yield cls._locked(path, 0)

    @classmethod
    def _locked(cls, path: str, flags: int) -> _Note:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise FileNotFoundError
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def begin(self, about: dict[str, str]) -> None:
        """Another upload."""
        self.about, self.parts = {**about, "at": time.time()}, {}
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.write(self._fd, json.dumps(self.about).encode() + b"\n")

    def add(self, number: int, digest: str, tag: str) -> None:
        """The service has a part. One that cannot be noted is sent again."""
        with self._lock, contextlib.suppress(OSError):
            if self._fd >= 0:
                os.write(self._fd, f"{number} {digest} {tag}\n".encode())

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def close(self) -> None:
        with self._lock:
            os.close(self._fd)
            self._fd = -1


def code_of(error: Exception) -> str | None:
    """What the service calls an error."""
    response = getattr(error, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else None
