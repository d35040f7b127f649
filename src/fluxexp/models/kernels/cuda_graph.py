"""Captures a function of tensors as a CUDA graph, once per input shape, and replays it: one launch replaces thousands.

A replay runs the same kernels, so that the result has the same bits. A FLUX step launches some thousand kernels. At
small sizes a slow host needs longer to launch them than the GPU needs to run them.
"""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fluxexp.parallel.topology import is_device_lost

_MAX_GRAPHS = 16
"""Maximum number of graphs. Each has its own inputs; the graphs of a function share the memory of intermediates."""


@dataclass(frozen=True, slots=True)
class _CapturedGraph:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


class GraphedFunction:
    """Calls `function` by replaying a CUDA graph: the first call of a shape runs it, the second captures it.

    The function must do all its work on the device, do the same work for the same shapes, and return one tensor. The
    first call loads kernels and lets libraries choose algorithms, which a capture does not allow. Not thread-safe;
    other threads may use the device.

    Args:
        depends_on: returns other values that the work depends on, in addition to the shapes and dtypes of the inputs.
            If they change, a new graph is captured.
        captures_first_call: capture right after the first call. A capture waits for the device.
        on_failure: for a function that may not be capturable, such as a library's, or that works without a graph. It
            gets the reason once, and the function then runs without a graph. Without it, the error is raised.
    """

    num_captured: ClassVar[int] = 0
    """How many graphs this process has captured, of all functions. For tests and benchmarks."""

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        depends_on: Callable[[], Hashable] = lambda: None,
        *,
        captures_first_call: bool = False,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._function = function
        self._depends_on = depends_on
        self._captures_first_call = captures_first_call
        self._on_failure = on_failure
        self._has_failed = False
        self._graphs: OrderedDict[Hashable, _CapturedGraph | None] = OrderedDict()
        self._pool: Any = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The function's result, in memory of its own."""
        if self._has_failed:
            return self._function(*inputs)
        key = (self._depends_on(), *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._graphs:
            output = self._function(*inputs)
            self._graphs[key] = None
            if self._captures_first_call:
                self._capture(key, inputs)
            return output
        if self._graphs[key] is None:
            self._capture(key, inputs)
        captured = self._graphs.get(key)
        if captured is None:
            return self._function(*inputs)
        self._graphs.move_to_end(key)
        for static, tensor in zip(captured.inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.output.clone()  # the next replay of any shape may overwrite it

    def forget(self) -> None:
        """Free the memory of all graphs."""
        self._graphs.clear()
        self._pool = None

    def _capture(self, key: Hashable, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        static_inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with _capturing(graph, self._pool):
                output = self._function(*static_inputs)
        except Exception as error:
            self._pool = None  # the state of the pool is unknown after an aborted capture
            if self._on_failure is None or is_device_lost(error):
                raise
            self.forget()
            self._has_failed = True
            self._on_failure(error)
            return
        GraphedFunction.num_captured += 1
        self._graphs[key] = _CapturedGraph(graph, static_inputs, output)
        self._graphs.move_to_end(key)
        while len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Generator[None]:
    """Capture the block into `graph`.

    The garbage collector is off meanwhile. It could free CUDA objects that belong to other graphs, and some of these
    calls invalidate a capture in progress.

    PyTorch also ends the capture if the block raises. If no kernel was captured by then, it warns that the graph is
    empty. The block's own error says why, so this function ignores the warning, but only in that case. Where warnings
    are errors, it would replace the block's error and leave the capture stream current.
    """
    # Only calls of this thread can invalidate the capture: other threads read samples and copy results meanwhile.
    capture = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with ExitStack() as ignoring, capture:  # the filter is on while `capture` ends, and off after that
            try:
                yield
            except BaseException:
                ignoring.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
                raise
    finally:
        if was_collecting:
            gc.enable()
