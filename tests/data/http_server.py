"""A web server on this machine that counts requests, has ETags, and can make trouble."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """Serves the files of a folder. `num_busy` requests are answered with 503 first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.num_busy = 0
        self.has_etags = True
        self.url = ""


@contextmanager
def serving(folder: Path) -> Generator[Server]:
    """Serve `folder` on a free port."""
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_HEAD(self) -> None:
            self._answer(is_head=True)

        def do_GET(self) -> None:
            self._answer(is_head=False)

        def _answer(self, *, is_head: bool) -> None:
            server.requests[f"{self.command} {self.path}"] += 1
            file = folder / self.path.lstrip("/")
            if not is_head and server.num_busy > 0:
                server.num_busy -= 1
                self._send(503, b"")
            elif not file.is_file():
                self._send(404, b"")
            else:
                self._send_file(file.read_bytes(), is_head=is_head)

        def _send_file(self, data: bytes, *, is_head: bool) -> None:
            headers = {"Accept-Ranges": "bytes"}
            if server.has_etags:
                headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            wanted = self.headers.get("Range")
            if wanted is None:
                self._send(200, data, headers, is_head=is_head)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            if start >= len(data):
                self._send(416, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(206, data[start : end + 1], headers, is_head=is_head)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, *, is_head: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not is_head and self.command != "HEAD":
                self.wfile.write(body)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
