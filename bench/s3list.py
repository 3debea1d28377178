"""Lists the objects of the bench's S3 service (s3.py): `python -m bench.s3list PORT ROOT`.

Buckets are folders of ROOT, objects the files in them. ListObjects of both versions, with prefix, delimiter, pages and
continuation; the location of a bucket and whether it is there. A listing that is begun is kept in memory until its last page.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import gmtime, strftime
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

MAX_KEYS = 1000
_KEPT = 64
_SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Objects:
    """The keys of buckets. What was listed from its beginning is read anew; the pages behind it are of that reading."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[tuple[str, str], list[str]] = {}

    def page(
        self, bucket: str, prefix: str, delimiter: str, after: str, limit: int
    ) -> tuple[list[str], list[str], str | None]:
        """(keys, common prefixes, what to go on after) of a page."""
        keys = self._keys(bucket, prefix, fresh=not after)
        at = bisect_right(keys, after) if after else 0
        found: list[str] = []
        common: list[str] = []
        last = after
        while at < len(keys):
            if len(found) + len(common) >= limit:
                return found, common, last
            key = keys[at]
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                folder = prefix + head + cut
                common.append(folder)
                last = folder + "\U0010ffff"
                at = bisect_left(keys, last, at)
            else:
                found.append(key)
                last = key
                at += 1
        return found, common, None

    def _keys(self, bucket: str, prefix: str, *, fresh: bool) -> list[str]:
        if fresh or (bucket, prefix) not in self._read:
            if len(self._read) >= _KEPT:
                self._read.clear()
            self._read[bucket, prefix] = sorted(self._walk(bucket, prefix))
        return self._read[bucket, prefix]

    def _walk(self, bucket: str, prefix: str) -> Iterator[str]:
        top = os.path.join(self._root, bucket)
        start = os.path.join(top, os.path.dirname(prefix))
        for folder, _, names in os.walk(start):
            inner = os.path.relpath(folder, top)
            for name in names:
                key = name if inner == "." else f"{inner}/{name}"
                if key.startswith(prefix):
                    yield key

    def told(self, bucket: str, key: str) -> tuple[int, float]:
        """(bytes, seconds since the epoch) of an object."""
        found = os.stat(os.path.join(self._root, bucket, key))
        return found.st_size, found.st_mtime


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    objects: Objects
    # Answers are small: waiting for more to send would cost 40 ms each.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket = parts.path.strip("/")
        if "location" in query:
            self._answer(f'<LocationConstraint xmlns="{_SPACE}">us-east-1</LocationConstraint>')
        elif not bucket:
            self._answer(f'<ListAllMyBucketsResult xmlns="{_SPACE}"><Buckets/></ListAllMyBucketsResult>')
        else:
            self._answer(self._listing(bucket, query))

    def do_HEAD(self) -> None:
        self._answer("")

    do_PUT = do_HEAD

    def _listing(self, bucket: str, query: dict[str, str]) -> str:
        second = query.get("list-type") == "2"
        after = query.get("continuation-token") or query.get("start-after") or query.get("marker") or ""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(MAX_KEYS, int(query.get("max-keys") or MAX_KEYS))
        keys, common, following = self.objects.page(bucket, prefix, delimiter, after, limit)
        name = quote if query.get("encoding-type") == "url" else escape
        lines = [f"<IsTruncated>{'false' if following is None else 'true'}</IsTruncated>"]
        lines += [f"<Name>{bucket}</Name><Prefix>{name(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"]
        lines += [f"<KeyCount>{len(keys) + len(common)}</KeyCount>"] if second else []
        if following is not None:
            tag = "NextContinuationToken" if second else "NextMarker"
            lines.append(f"<{tag}>{name(following)}</{tag}>")
        for key in keys:
            size, when = self.objects.told(bucket, key)
            # As nginx makes it.
            etag = f"{int(when):x}-{size:x}"
            stamp = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(when))
            lines.append(
                f"<Contents><Key>{name(key)}</Key><LastModified>{stamp}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
                f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        lines += [f"<CommonPrefixes><Prefix>{name(folder)}</Prefix></CommonPrefixes>" for folder in common]
        return f'<ListBucketResult xmlns="{_SPACE}">{"".join(lines)}</ListBucketResult>'

    def _answer(self, text: str) -> None:
        data = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode() if text else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("x-amz-bucket-region", "us-east-1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """nginx, which is in front, keeps the log."""


def main() -> None:
    """Serve until killed."""
    Handler.objects = Objects(Path(sys.argv[2]))
    ThreadingHTTPServer((sys.argv[1].partition(":")[0], int(sys.argv[1].partition(":")[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
