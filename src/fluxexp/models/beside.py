"""Work beside other work of the same GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


class Beside:
    """A second stream of a GPU: what it is given goes on beside what the current stream is given meanwhile.

    Tensors of one are used in the other: they must be kept until `join`.

    Args:
        device: a GPU; with None there is no second stream, and all goes in the order in which it is given.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = None if device is None else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fork(self) -> None:
        """What is given next begins after all that the current stream was given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    @contextmanager
    def stream(self) -> Generator[None]:
        """Give it what is within."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def join(self) -> None:
        """What the current stream is given next begins after all that this one was given."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
