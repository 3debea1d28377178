"""An S3 service for lazy reads, the same for every tool: fast, far away, behind a link of a known speed.

Objects are files that nginx gives and takes (GET with ranges and If-Match, HEAD, PUT); s3list.py, behind it, lists them. Signatures are
not looked at. Every request, listings too, waits `LATENCY_S` in nginx before it is answered: a request costs a round trip, a connection
does not. As root the service lives in a network namespace of its own behind a pair of devices that pass `LINK_BYTES` a second each way;
else it is on the loopback device, whose speed is not bounded. What was asked and sent is counted from nginx's log.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from bench.host import BenchError, run

LATENCY_S = 0.02
# 1 Gbit/s.
LINK_BYTES = 125_000_000
# nginx's modules, and the packages that have them.
_MODULES = Path("/usr/lib/nginx/modules")
_NEEDED = {
    "ngx_http_echo_module.so": "libnginx-mod-http-echo",
    "ngx_http_headers_more_filter_module.so": "libnginx-mod-http-headers-more-filter",
}
BUCKET = "bench"
_PORT, _LIST_PORT = 9480, 9481
_CONFIG = """\
{modules}
user root;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 2;
events {{ worker_connections 2048; }}
http {{
  log_format counted '$request_method $status $bytes_sent $request_length $msec $request_time $uri';
  access_log {folder}/access.log counted;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_max_body_size 0;
  # S3 takes an ETag without its quotes, too.
  map $http_if_match $if_match {{ '' ''; '~^"?(?<tag>[^"]+)' '"$tag"'; }}
  map $request_method $of_put {{ PUT '"of-a-put"'; default ''; }}
  upstream list {{ server {address}:{list_port}; keepalive 64; }}
  server {{
    listen {address}:{port} backlog=1024;
    location / {{ more_set_input_headers 'If-Match: $if_match'; echo_sleep {latency}; echo_exec @object; }}
    location @object {{ root {root}; dav_methods PUT; create_full_put_path on; if (-d $request_filename) {{ return 404; }} add_header ETag $of_put; }}
    location ~ ^/[^/]*/?$ {{ echo_sleep {latency}; echo_exec @list; }}
    location @list {{ proxy_pass http://list; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def missing() -> str | None:
    """What the service lacks on this machine."""
    if shutil.which("nginx") is None:
        return "nginx is not installed"
    packages = [package for module, package in _NEEDED.items() if not (_MODULES / module).exists()]
    return f"{', '.join(packages)} not installed" if packages else None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that were answered, bytes that were sent, and the seconds from the first listing's start to the last one's end."""

    requests: int
    bytes: int
    listing_s: float


class S3:
    """The service, until `close`. `root / BUCKET` is its bucket's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.root = folder / "root"
        (self.root / BUCKET).mkdir(parents=True)
        try:
            self._link()
            self._serve()
        except BaseException:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://{self._address}:{_PORT}"

    @property
    def environ(self) -> dict[str, str]:
        """What clients find their credentials in."""
        return {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}

    @property
    def bucket(self) -> Path:
        return self.root / BUCKET

    def config(self, prefix: str) -> str:
        """The text of a `.dvc/config` whose default remote is below a prefix of the bucket."""
        url = f"s3://{BUCKET}/{prefix}"
        return f"[core]\n    remote = r\n    no_scm = True\n['remote \"r\"']\n    url = {url}\n    endpointurl = {self.endpoint}\n"

    def mark(self) -> int:
        """Where the log is now, for `since`."""
        return self._log.stat().st_size

    def since(self, mark: int) -> Traffic:
        """What was asked since a mark."""
        requests = sent = 0
        first, last = float("inf"), 0.0
        with open(self._log, "rb") as log:
            log.seek(mark)
            for line in log:
                _, _, size, _, ended, took, path = line.split(b" ", 6)
                requests += 1
                sent += int(size)
                if path.strip().strip(b"/").count(b"/") == 0:
                    first, last = min(first, float(ended) - float(took)), max(last, float(ended))
        return Traffic(requests, sent, max(0.0, last - first))

    def fetch(self, key: str) -> tuple[float, int]:
        """(seconds, bytes) of an object got whole by one request: what the link gives."""
        connection = HTTPConnection(self._address, _PORT, timeout=120)
        try:
            began = time.perf_counter()
            connection.request("GET", f"/{BUCKET}/{key}")
            answer = connection.getresponse()
            size = 0
            buffer = bytearray(1 << 20)
            while got := answer.readinto(buffer):
                size += got
            return time.perf_counter() - began, size
        finally:
            connection.close()

    def close(self) -> None:
        """End the service and its link."""
        self._stack.close()

    def _link(self) -> None:
        """A network namespace behind a link of a known speed, or the loopback device."""
        self._address, self._inside, self.has_link = "127.0.0.1", list[str](), False
        if os.geteuid() or shutil.which("ip") is None or shutil.which("tc") is None:
            return
        name = f"mpb-{os.getpid()}"
        here, there = f"mpb{os.getpid() % 10**8}a", f"mpb{os.getpid() % 10**8}b"
        # A network of the range for tests between machines (RFC 2544), one of many.
        net = f"198.18.{os.getpid() % 250}"
        inside = ["ip", "netns", "exec", name]
        shape = f"root tbf rate {LINK_BYTES * 8} burst 1mb latency 100ms".split()
        self._stack.callback(lambda: subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False))
        try:
            for command in (
                ["ip", "netns", "add", name],
                ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name],
                ["ip", "addr", "add", f"{net}.1/30", "dev", here],
                ["ip", "link", "set", here, "up"],
                [*inside, "ip", "addr", "add", f"{net}.2/30", "dev", there],
                [*inside, "ip", "link", "set", there, "up"],
                [*inside, "ip", "link", "set", "lo", "up"],
                ["tc", "qdisc", "add", "dev", here, *shape],
                [*inside, "tc", "qdisc", "add", "dev", there, *shape],
            ):
                run(command, cwd=self._folder, env=os.environ)
        except BenchError as error:
            print(f"bench: no link of a known speed: {error}", file=sys.stderr)
            return
        self._address, self._inside, self.has_link = f"{net}.2", inside, True

    def _serve(self) -> None:
        self._log = self._folder / "access.log"
        config = self._folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                modules="\n".join(f"load_module {_MODULES / module};" for module in _NEEDED),
                folder=self._folder,
                root=self.root,
                address=self._address,
                port=_PORT,
                list_port=_LIST_PORT,
                latency=LATENCY_S,
            )
        )
        listing = [sys.executable, "-m", "bench.s3list", f"{self._address}:{_LIST_PORT}", str(self.root)]
        for command in (listing, ["nginx", "-c", str(config)]):
            output = open(self._folder / "output", "ab")  # noqa: SIM115 - the process's
            process = subprocess.Popen(
                [*self._inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).resolve().parents[1],
            )
            output.close()
            self._stack.callback(_end, process)
        deadline = time.monotonic() + 30
        while True:
            try:
                connection = HTTPConnection(self._address, _PORT, timeout=10)
                connection.request("HEAD", f"/{BUCKET}")
                status = connection.getresponse().status
                connection.close()
                if status == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline or process.poll() is not None:
                raise BenchError(f"the S3 service does not start: {(self._folder / 'output').read_text()[-2000:]}")
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
