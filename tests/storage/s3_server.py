"""A real S3 server on this machine (moto's), and a proxy before it that counts requests and makes trouble."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple, TypeAlias

BUCKET = "bucket"
_START_S = 60.0
_FORWARDED = 30.0


class Request(NamedTuple):
    """One request to the server."""

    method: str
    path: str
    """With the query."""


Trouble: TypeAlias = Literal["busy", "slow", "lost request", "lost answer", "expired", "denied"]
"""`busy`: 503. `slow`: no answer for some seconds. `lost request`: the connection ends before the server gets it.
`lost answer`: the server does it, and the connection ends before its answer."""
_ANSWERS: dict[str, tuple[int, str]] = {
    "busy": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}
SLOW_S = 3.0


class FaultyProxy:
    """Passes requests on to the server on `port`. Thread-safe."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self.trouble: Callable[[Request, dict[str, str]], Trouble | None] = lambda request, headers: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.answer(self, body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def calm(self) -> None:
        """No more trouble, and no counted requests."""
        with self._lock:
            self.requests.clear()
            self.trouble = lambda request, headers: None

    def kinds(self) -> Counter[str]:
        """Numbers of requests by kind: PUT, GET, HEAD, LIST, DELETE."""
        with self._lock:
            return Counter(_kind(request) for request in self.requests)

    def fail_times(self, number: int, trouble: Trouble, which: str = "") -> None:
        """Make `trouble` for the next `number` requests whose method and path contain `which`."""
        left = [number]

        def decide(request: Request, headers: dict[str, str]) -> Trouble | None:
            if which not in f"{request.method} {request.path}" or not left[0]:
                return None
            left[0] -= 1
            return trouble

        with self._lock:
            self.trouble = decide

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        request = Request(handler.command, handler.path)
        headers = dict(handler.headers.items())
        with self._lock:
            self.requests.append(request)
            trouble = self.trouble(request, headers)
        if trouble in _ANSWERS:
            status, code = _ANSWERS[trouble]
            _send(handler, status, {}, f"<Error><Code>{code}</Code><Message>trouble</Message></Error>".encode())
            return
        if trouble == "slow":
            time.sleep(SLOW_S)
        if trouble != "lost request":
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_FORWARDED)
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            connection.close()
        if trouble in ("lost request", "lost answer"):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        _send(handler, response.status, dict(response.getheaders()), content)


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    handler.send_response_only(status)
    own = {"connection", "transfer-encoding", "content-length"}
    for name, value in headers.items():
        if name.lower() not in own:
            handler.send_header(name, value)
    length = headers.get("Content-Length", "0") if handler.command == "HEAD" else str(len(content))
    handler.send_header("Content-Length", length)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


def _kind(request: Request) -> str:
    if "list-type" in request.path:
        return "LIST"
    return "DELETE" if request.method == "POST" else request.method


@contextmanager
def s3_server() -> Generator[int]:
    """Start moto's server in a process of its own, with an empty bucket. Yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/{BUCKET}"
        end_s = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
                break
            except OSError:
                if time.monotonic() > end_s or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()
