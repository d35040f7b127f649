"""Batches for networks: inputs that several threads bring at the same time go through the network together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Inputs = tuple[torch.Tensor, ...]
Compute = Callable[..., torch.Tensor]
"""Gets tensors whose first dimension is the batch, and returns one tensor with that dimension."""

GPU_BATCH = 8
"""Every batch on a GPU has this size: if fewer inputs wait, the last one is repeated. So the same kernels run for each
input, and a result does not depend on how many inputs happened to wait. As many threads score at most."""

LARGE_PIXELS = 512 * 512
"""Images with more pixels are not batched."""


@dataclass(slots=True, eq=False)
class _Request:
    inputs: Inputs
    result: torch.Tensor | None = None
    error: Exception | None = None

    @property
    def shapes(self) -> list[torch.Size]:
        return [tensor.shape for tensor in self.inputs]


class Batcher:
    """Calls `compute` for one batch at a time, on `device`. On a CPU a batch has one input.

    Thread-safe. The thread that has the network takes the inputs of waiting threads along, if they have the same
    shapes. Large inputs are alone, because one of them keeps a GPU busy.
    """

    def __init__(self, compute: Compute, device: Any, size: int | None = None) -> None:
        self._compute = compute
        self._device = torch.device(device)
        self._size = size or (GPU_BATCH if self._device.type == "cuda" else 1)
        self._network_lock = threading.Lock()
        self._waiting_lock = threading.Lock()
        self._waiting: list[_Request] = []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The result for one input, without the batch dimension, which the tensors of `inputs` do not have either.

        Raises:
            Exception: what `compute` raised for this input alone.
        """
        request = _Request(inputs)
        with self._waiting_lock:
            self._waiting.append(request)
        with self._network_lock:
            if request.result is None and request.error is None:
                self._run(self._take_batch(request))
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def _take_batch(self, first: _Request) -> list[_Request]:
        with self._waiting_lock:
            others = [r for r in self._waiting if r is not first and r.shapes == first.shapes]
            batch = [first, *others[: self._size_for(first) - 1]]
            self._waiting = [request for request in self._waiting if request not in batch]
        return batch

    def _size_for(self, request: _Request) -> int:
        """Depends only on the input, so that the same input always has the same kernels."""
        return 1 if request.inputs[0].numel() > 3 * LARGE_PIXELS else self._size

    def _run(self, batch: list[_Request]) -> None:
        try:
            results = self._results(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for request in batch:  # one input, or the memory for all of them, must not fail the others
                self._run([request])
            return
        for request, result in zip(batch, results, strict=False):  # behind them are those of repeated inputs
            request.result = result

    @torch.inference_mode()
    def _results(self, batch: list[_Request]) -> torch.Tensor:
        padded = [*batch, *[batch[-1]] * (self._size_for(batch[0]) - len(batch))]
        columns = zip(*(request.inputs for request in padded), strict=True)
        return self._compute(*(torch.stack(column).to(self._device) for column in columns))
