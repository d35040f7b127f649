"""A W&B server that stops answering in the middle of a run is told, and so is its return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import Tracker
from fluxexp.tracking.server_watch import ServerWatch

Wait = Callable[[Callable[[], bool]], None]
CHECK_S = 0.1


class Server:
    """An HTTP server that answers `status`, or does not answer while `status` is None. Its port stays the same."""

    def __init__(self) -> None:
        self.status: int | None = 404
        self.num_requests = 0
        self._port = 0
        self.open()

    def open(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.num_requests += 1
                while owner.status is None:
                    time.sleep(0.01)
                self.send_response(owner.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # the watch no longer waits
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.status = server.status or 404
        server.close()


@contextmanager
def watched(url: str) -> Iterator[list[str]]:
    told: list[str] = []
    with ServerWatch(url, {}, told.append, CHECK_S):
        yield told


@pytest.mark.parametrize("kind", ["silent", "gateway", "closed"])
def test_a_server_that_stops_answering_and_returns_is_told(server: Server, kind: str, wait_until: Wait) -> None:
    with watched(server.url) as told:
        wait_until(lambda: server.num_requests >= 3)
        assert told == []
        if kind == "closed":
            server.close()
        else:
            server.status = None if kind == "silent" else 503
        wait_until(lambda: bool(told))
        reason = {"silent": "timed out", "gateway": "HTTP status 503", "closed": "Connection refused"}[kind]
        assert f"the server {server.url} has not answered for" in told[0]
        assert reason in told[0]
        time.sleep(4 * CHECK_S)
        assert len(told) == 1, "told once"
        if kind == "closed":
            server.open()
        server.status = 404
        wait_until(lambda: len(told) > 1)
    assert told[1:] == [f"the server {server.url} answers again"]


def test_a_server_that_never_answered_is_not_told(server: Server) -> None:
    """wandb may reach it in another way."""
    server.status = 503
    with watched(server.url) as told:
        while server.num_requests < 5:
            time.sleep(0.01)
    assert told == []


def test_errors_of_the_server_itself_are_answers(server: Server) -> None:
    server.status = 500
    with watched(server.url) as told:
        while server.num_requests < 5:
            time.sleep(0.01)
    assert told == []


ONLINE = """
import types
class Settings:
    def __init__(self, **_): pass
class Table:
    def __init__(self, **_): pass
class Image: pass
class Run:
    id, url = "base-1", "http://example.invalid/base-1"
    summary = {{}}
    settings = types.SimpleNamespace(sync_dir="/nowhere", base_url={url!r}, http_proxy=None, https_proxy=None)
    def define_metric(self, *_, **__): pass
    def log(self, _): pass
    def finish(self, exit_code): pass
def init(**_): return Run()
def teardown(**_): pass
"""


def test_a_server_that_stops_in_the_middle_of_a_run_is_news_and_no_error(
    tmp_path: Path, tracking: TrackingConfig, server: Server, fake_wandb: Callable[[str], None], wait_until: Wait
) -> None:
    fake_wandb(ONLINE.format(url=server.url))
    tracker = Tracker(replace(tracking, mode="online"), server_check_s=CHECK_S)
    tracker.start({}, tmp_path, run_id="base-1", name="base")
    wait_until(lambda: server.num_requests > 1)
    assert tracker.news() == []
    server.status = 502
    news: list[str] = []

    def is_told() -> bool:
        news.extend(tracker.news())
        return bool(news)

    wait_until(is_told)
    assert "has not answered for" in news[0]
    assert "the run goes on" in news[0]
    report = tracker.finish(0)
    assert (report.mode, report.error, report.dropped) == ("online", None, 0)


def test_an_offline_run_asks_no_server(
    tmp_path: Path, tracking: TrackingConfig, server: Server, fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb(ONLINE.format(url=server.url))
    tracker = Tracker(tracking, server_check_s=CHECK_S)
    tracker.start({}, tmp_path, run_id="base-1", name="base")
    assert tracker.finish(0).mode == "offline"
    assert server.num_requests == 0
