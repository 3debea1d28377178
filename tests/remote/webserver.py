"""A web server for tests, aiohttp's: a folder below prefixes that differ in what they can and ask for.

    webserver.py FOLDER PORT [CERT KEY]

/open/ ranges, ETag, HEAD; /basic/, /digest/, /custom/ the same for who logs in; /nohead/ refuses HEAD; /norange/ gives no ranges;
/signed/ is open to who has the right signature, and has it sign the method, as S3 does;
/bare/ gives neither length nor validators; /gzip/ compresses though nobody asked; /moved/ asks for a login and leads to another host; /loop/ leads to itself; /denied/,
/failing/ answer 403 and 500.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import sys
import urllib.parse
from pathlib import Path

from aiohttp import BasicAuth, hdrs, web

USER, PASSWORD = "ann", 'a "secret": of hers'
SIGNATURE = "a/b+c="
HEADER, TOKEN = "X-Token", "a-token-of-hers"
_NONCE = "a-nonce-of-the-server"


def may(request: web.Request, kind: str) -> bool:
    """Whether a request's login is right."""
    told = request.headers.get(hdrs.AUTHORIZATION, "")
    if kind == "custom":
        return request.headers.get(HEADER) == TOKEN
    if kind == "digest":
        fields = dict(re.findall(r'(\w+)="?((?:[^",\\]|\\.)*)"?', told.removeprefix("Digest ")))

        def sha(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        one, two = sha(f"{USER}:the realm:{PASSWORD}"), sha(f"{request.method}:{fields.get('uri')}")
        wanted = sha(f"{one}:{_NONCE}:{fields.get('nc')}:{fields.get('cnonce')}:auth:{two}")
        return told.startswith("Digest ") and fields.get("uri") == request.raw_path and fields.get("response") == wanted
    return told == BasicAuth(USER, PASSWORD, "utf-8").encode()


async def serve(request: web.Request) -> web.StreamResponse:
    kind, key = request.match_info["kind"], request.match_info["key"]
    if kind in ("basic", "digest", "custom", "moved") and not may(request, kind):
        asked = f'Digest realm="the realm", qop="auth", algorithm=SHA-256, nonce="{_NONCE}", opaque="o"'
        return web.Response(status=401, headers={"WWW-Authenticate": asked if kind == "digest" else 'Basic realm="r"'})
    if kind == "signed" and (request.query.get("sig") != SIGNATURE or request.method != "GET"):
        return web.Response(status=403)
    if kind == "moved":
        host = "localhost" if request.host.startswith("127") else "127.0.0.1"
        raise web.HTTPFound(f"http://{host}:{request.url.port}/strict/{urllib.parse.quote(key)}")
    if kind == "strict" and (hdrs.AUTHORIZATION in request.headers or HEADER in request.headers):
        return web.Response(status=418)
    if kind == "loop":
        raise web.HTTPFound(request.raw_path)
    if kind in ("denied", "failing") or (kind == "nohead" and request.method == "HEAD"):
        return web.Response(status={"denied": 403, "failing": 500, "nohead": 405}[kind])
    path = Path(request.app["folder"]) / key
    if not path.is_file():
        raise web.HTTPNotFound()
    if kind == "norange":
        found = path.stat()
        return web.Response(body=path.read_bytes(), headers={"ETag": f'"{found.st_ino:x}-{found.st_mtime_ns:x}"'})
    if kind == "gzip":
        packed = web.Response(body=path.read_bytes())
        packed.enable_compression(web.ContentCoding.gzip)
        return packed
    if kind == "bare":
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        if request.method != "HEAD":
            await answer.write(path.read_bytes())
        return answer
    return web.FileResponse(path)


def main(folder: str, port: str, *certificate: str) -> None:
    app = web.Application()
    app["folder"] = folder
    app.router.add_route("*", "/{kind}/{key:.*}", serve)
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    web.run_app(app, host="127.0.0.1", port=int(port), ssl_context=context, print=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
