"""A second stream, for work that runs at the same time as other work of the same GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Self

import torch


class SideStream:
    """A second stream of a GPU, for work that runs at the same time as the work on the current stream.

    Use it as a context manager, with `stream` inside for the work of the second stream. On entry, the second stream
    waits for all work queued on the current one. On exit, the current stream waits for the second one. It does so after
    an error, too: a capture can only end once its streams are joined.

    Memory: while inside, keep references to all tensors that the other stream reads. The caching allocator gives freed
    memory only to later work of the stream that allocated it. Memory of the second stream is reused only inside a
    later `with`, which waits for all work queued before it. So no `record_stream` is needed.

    Args:
        device: a GPU. With None there is no second stream, and all work runs in the order in which it is queued.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = None if device is None else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_within = False

    def __enter__(self) -> Self:
        self._is_within = True
        if self._stream is not None:  # it reads what the current stream has written
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self

    def __exit__(self, *_: object) -> None:
        self._is_within = False
        if self._stream is not None:  # later work may read or overwrite memory that the second stream uses
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    @contextmanager
    def stream(self) -> Generator[None]:
        """Queue the work inside on the second stream."""
        assert self._is_within, "enter the SideStream first: otherwise memory could be reused too early"
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield
