"""Notices that a W&B server stops answering while a run is logged. wandb then retries and says nothing.

The child process (`child.py`) owns the watch. It asks the server itself, because wandb has no public state of its
connection. It knows only HTTP.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

CHECK_S = 10.0
"""Time between two requests, and the longest wait for an answer. A server that stops is known after 40 s at most."""
_MAX_MISSED = 2
"""So many requests without an answer, one after the other, are told. One alone can be lost."""
_GATEWAY_ERRORS = range(502, 505)
"""HTTP status codes of a proxy whose server does not answer."""


class ServerWatch:
    """Asks a server regularly in a thread, from `__enter__` to `__exit__`.

    Nothing is told before the first answer: wandb may reach its server in a way that this watch does not know, and then
    there must be no false alarm.

    Args:
        url: address of the server.
        proxies: URLs of proxies by scheme, in addition to those of the environment.
        tell: receives a text when the server stops answering, and when it answers again. Called from the thread.
        check_s: seconds between two requests, and the longest wait for an answer.
    """

    def __init__(
        self, url: str, proxies: Mapping[str, str], tell: Callable[[str], None], check_s: float = CHECK_S
    ) -> None:
        self._url = url
        self._tell = tell
        self._check_s = check_s
        # Without an argument, the opener uses the proxies of the environment.
        self._open = build_opener(*([ProxyHandler(dict(proxies))] if proxies else [])).open
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="server watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: a request may still wait for its answer.
        self._ended.set()

    def _watch(self) -> None:
        answered_s: float | None = None
        missed = 0
        while True:
            reason = self._missing_answer()
            if self._ended.is_set():
                return
            if reason is None:
                if missed >= _MAX_MISSED:
                    self._tell(f"the server {self._url} answers again")
                answered_s, missed = time.monotonic(), 0
            elif answered_s is not None:
                missed += 1
                if missed == _MAX_MISSED:
                    silent_s = time.monotonic() - answered_s
                    self._tell(
                        f"the server {self._url} has not answered for {silent_s:.0f} s ({reason}): "
                        "the figures wait in wandb's files, and the run goes on"
                    )
            if self._ended.wait(self._check_s):
                return

    def _missing_answer(self) -> str | None:
        """Why the server did not answer a request; None if it did. An error of HTTP or TLS is an answer, too."""
        try:
            with self._open(self._url, timeout=self._check_s):
                return None
        except HTTPError as error:
            error.close()
            return f"HTTP status {error.code}" if error.code in _GATEWAY_ERRORS else None
        except URLError as error:
            return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
        except ssl.SSLError:
            return None
        except (OSError, HTTPException) as error:
            return str(error) or type(error).__name__
