"""Batches for networks, with threads that bring their inputs at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fluxexp.metrics.full.batcher import Batcher


def test_inputs_that_wait_go_through_the_network_together() -> None:
    sizes: list[int] = []
    is_first_in, all_wait = threading.Event(), threading.Event()

    def compute(values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(values))
        is_first_in.set()
        assert all_wait.wait(10)
        return values.sum(dim=1)

    batcher = Batcher(compute, "cpu", size=4)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(batcher, torch.tensor([1.0, 2.0]))
        assert is_first_in.wait(10)
        others = [pool.submit(batcher, torch.tensor([float(number), 1.0])) for number in range(5)]
        while len(batcher._waiting) < 5:
            pass
        all_wait.set()
        assert float(first.result()) == 3
        assert [float(other.result()) for other in others] == [1, 2, 3, 4, 5]
    assert sizes == [4, 4, 4], "1, 4 and 1 inputs: every batch is filled to the same size"


def test_inputs_of_other_shapes_have_their_own_batch() -> None:
    shapes: list[torch.Size] = []

    def compute(values: torch.Tensor) -> torch.Tensor:
        shapes.append(values.shape)
        return values.flatten(1).sum(dim=1)

    batcher = Batcher(compute, "cpu", size=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(batcher, [torch.ones(2), torch.ones(3), torch.ones(2), torch.ones(3)]))
    assert [float(value) for value in found] == [2, 3, 2, 3]
    assert all(len(shape) == 2 and shape[0] == 2 for shape in shapes)


def test_an_input_that_fails_does_not_fail_the_others() -> None:
    def compute(values: torch.Tensor) -> torch.Tensor:
        if (values < 0).any():
            raise ValueError("negative")
        return values[:, 0]

    batcher = Batcher(compute, "cpu", size=4)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(batcher, torch.tensor([float(value)])) for value in (1, -1, 2, 3) * 5]
    for future, value in zip(futures, (1, -1, 2, 3) * 5, strict=True):
        if value < 0:
            with pytest.raises(ValueError, match="negative"):
                future.result()
        else:
            assert float(future.result()) == value


def test_on_a_cpu_an_input_is_alone() -> None:
    sizes: list[int] = []

    def compute(values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(values))
        return values[:, 0]

    batcher = Batcher(compute, "cpu")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(batcher, [torch.ones(1)] * 8))
    assert sizes == [1] * 8


def test_a_large_input_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.metrics.full.batcher.LARGE_PIXELS", 2)
    sizes: list[int] = []

    def compute(values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(values))
        return values[:, 0]

    batcher = Batcher(compute, "cpu", size=4)
    batcher(torch.ones(6))
    batcher(torch.ones(7))
    assert sizes == [4, 1]
