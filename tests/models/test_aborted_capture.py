"""A function that fails while it is captured: its own error comes out, whatever PyTorch warns about the empty graph."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

from fluxexp.models.kernels.cuda_graph import GraphedFunction


class EmptyCapture:
    """Stands for `torch.cuda.graph`: it warns when the capture ends, as PyTorch 2.11 does for an empty graph."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        warnings.warn("The CUDA Graph is empty. This usually means ...", stacklevel=1)


@pytest.fixture(autouse=True)
def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph", EmptyCapture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)


def fails_the_second_time() -> GraphedFunction:
    calls: list[torch.Tensor] = []

    def work(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("none left")
        return 2 * x

    return GraphedFunction(work)


def test_the_error_of_an_aborted_capture_is_not_replaced_by_a_warning() -> None:
    function, filters = fails_the_second_time(), list(warnings.filters)
    function(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        function(torch.ones(1))
    assert list(warnings.filters) == filters


def test_an_empty_graph_of_a_function_that_succeeds_is_still_reported() -> None:
    function = GraphedFunction(lambda x: 2 * x)
    function(torch.ones(1))
    with pytest.raises(UserWarning, match="The CUDA Graph is empty"):
        function(torch.ones(1))


def test_the_garbage_collector_is_off_during_a_capture_only() -> None:
    seen: list[bool] = []
    function = GraphedFunction(lambda x: seen.append(gc.isenabled()) or 2 * x)  # type: ignore[func-returns-value]
    function(torch.ones(1))
    with pytest.raises(UserWarning, match="The CUDA Graph is empty"):
        function(torch.ones(1))
    assert seen == [True, False]
    assert gc.isenabled()
