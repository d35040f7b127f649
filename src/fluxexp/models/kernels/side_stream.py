"""Work beside other work of the same GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Self

import torch


class SideStream:
    """A second stream of a GPU: what it is given goes on beside what the current stream is given meanwhile.

    Used as a context, with `stream` within: the second stream begins after all that the current one was given so far,
    and behind the end the current one goes on after both, also where an error ends it: a recording that fails can
    be ended only so.

    Memory needs no more care than that. What one stream reads of the other's must be kept until the end, and what the
    second one made may be given up at any time later: it is used again only by the second stream, within a later
    context, and so after whatever the current stream was given before that.

    Args:
        device: a GPU; with None there is no second stream, and all goes in the order in which it is given.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = None if device is None else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_within = False

    def __enter__(self) -> Self:
        self._is_within = True
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self

    def __exit__(self, *_: object) -> None:
        self._is_within = False
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    @contextmanager
    def stream(self) -> Generator[None]:
        """Give the second stream what is within."""
        assert self._is_within, "memory would be used again too early"
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield
