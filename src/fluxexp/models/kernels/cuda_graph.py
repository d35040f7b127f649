"""A function of tensors, recorded once for each shape as a CUDA graph and replayed: the host's part becomes one launch.

The kernels are the same, and so are the bits. A step of FLUX is some thousand launches, for which a slow host needs
longer than a GPU needs for the work itself at small sizes.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.parallel.topology import is_device_lost

_RECORDS = 16
"""Shapes kept at the most: each holds its inputs; what is computed in between is shared."""


@dataclass(frozen=True, slots=True)
class _CapturedGraph:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


class GraphedFunction:
    """Calls `function`, the first time for a shape as it is, the second time to record it, and from then on by replay.

    The function must do all its work on the device, the same for the same shapes, and return one tensor. Its first call
    is where kernels are loaded and libraries make their choices. Not thread-safe; other threads may use the device.

    Args:
        depends_on: what besides the shapes of its tensors the function's work depends on.
        is_at_once: whether the first time it is recorded, too. To record waits for the device.
        on_failure: of a function that may not be like that, such as a library's, or that can do without: hears why it
            cannot be recorded, once, and it is called as it is from then on. Without this the error is raised.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        depends_on: Callable[[], Hashable] = lambda: None,
        *,
        is_at_once: bool = False,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._function = function
        self._depends_on = depends_on
        self._is_at_once = is_at_once
        self._on_failure = on_failure
        self._has_failed = False
        self._records: OrderedDict[Hashable, _CapturedGraph | None] = OrderedDict()
        self._pool: Any = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The function's value, in memory of its own."""
        if self._has_failed:
            return self._function(*inputs)
        key = (self._depends_on(), *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._records:
            output = self._function(*inputs)
            self._records[key] = None
            if self._is_at_once:
                self._record(key, inputs)
            return output
        if self._records[key] is None:
            self._record(key, inputs)
        record = self._records.get(key)
        if record is None:
            return self._function(*inputs)
        self._records.move_to_end(key)
        for place, tensor in zip(record.inputs, inputs, strict=True):
            place.copy_(tensor, non_blocking=True)
        record.graph.replay()
        return record.output.clone()  # the next replay, of whatever shape, may write over it

    def forget(self) -> None:
        """Give back the memory of all records."""
        self._records.clear()
        self._pool = None

    def _record(self, key: Hashable, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        places = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with _capturing(graph, self._pool):
                output = self._function(*places)
        except Exception as error:
            if self._on_failure is None or is_device_lost(error):
                raise
            self.forget()
            self._has_failed = True
            self._on_failure(error)
            return
        self._records[key] = _CapturedGraph(graph, places, output)
        self._records.move_to_end(key)
        while len(self._records) > _RECORDS:
            self._records.popitem(last=False)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Generator[None]:
    """Capture the block into `graph`.

    PyTorch also ends the capture if the block raises. If no kernel was captured by then, it warns that the graph is
    empty. The block's own error says why, so this function ignores the warning, but only in that case. Where warnings
    are errors, it would replace the block's error and leave the capture stream current.
    """
    # Only this thread's calls can invalidate the capture: other threads read samples and copy results meanwhile.
    capture = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    with ExitStack() as ignoring, capture:  # the filter is on while `capture` ends, and off after that
        try:
            yield
        except BaseException:
            ignoring.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            raise
