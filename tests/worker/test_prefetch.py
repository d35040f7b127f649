"""Read-ahead keeps a limited number of bytes, whatever the size of the photos is."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.plan import Plan
from fluxexp.worker.assignment import Assignment, WorkOrder
from fluxexp.worker.prefetch import CAPACITY_BYTES, Prefetcher, PreparedSample
from fluxexp.worker.sample_bytes import ByteBudget, sample_bytes

Compose = Callable[..., RunConfig]
MIB = 1 << 20


def assignments(config: RunConfig, root: Path) -> list[Assignment]:
    plan = Plan.of(config, open_dataset(config.dataset), Address.of(root))
    order = WorkOrder(
        number=0, config=config, dataset=plan.dataset, directory=plan.directory, attempts={}, is_alone=True
    )
    return [Assignment(order, task) for task in plan.tasks(range(plan.num_tasks))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 photos of 12 megapixels. Decoded with their masks, they need more than a gibibyte."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((4000, 3000)).save(folder / "0.jpg", quality=50)
    for number in range(1, 24):
        shutil.copy(folder / "0.jpg", folder / f"{number}.jpg")
    return folder


@pytest.mark.slow
def test_the_memory_of_large_photos_is_limited(compose: Compose, tmp_path: Path, photos: Path) -> None:
    tasks = assignments(
        compose("dataset=folder", f"dataset.path={photos}", "dataset.prompt=x", "dataset.mask=center"), tmp_path
    )
    process = psutil.Process()
    before = peak = process.memory_info().rss
    with Prefetcher(64) as prefetcher:
        for number, assignment in enumerate(tasks):
            started = prefetcher.read_ahead(tasks[number : number + 32])
            assert 1 <= started < 24 or number > 12
            item = prefetcher.get(assignment)
            assert isinstance(item, PreparedSample)
            assert prefetcher.held_bytes() <= CAPACITY_BYTES + sample_bytes(item.sample, item.placed)
            peak = max(peak, process.memory_info().rss)
    assert isinstance(item, PreparedSample)
    assert len(tasks) * sample_bytes(item.sample, item.placed) > 1100 * MIB, "without a limit all would be in memory"
    assert peak - before < 900 * MIB, "the limit, and what two decoders need for a moment"


def test_usual_sizes_are_read_as_far_ahead_as_asked(compose: Compose, tmp_path: Path) -> None:
    tasks = assignments(compose("dataset.height=512", "dataset.width=512", "dataset.length=40"), tmp_path)
    with Prefetcher(64) as prefetcher:
        assert prefetcher.read_ahead(tasks[:32]) == 32
        assert prefetcher.read_ahead(tasks[8:40]) == 32


def test_a_sample_that_exceeds_the_limit_alone_is_read(compose: Compose, tmp_path: Path) -> None:
    tasks = assignments(compose("dataset.height=64", "dataset.width=64", "dataset.limit=4"), tmp_path)
    with Prefetcher(64, capacity_bytes=1) as prefetcher:
        assert prefetcher.read_ahead(tasks) == 1, "at least the next one"
        for task in tasks:
            assert isinstance(prefetcher.get(task), PreparedSample)


def test_the_samples_of_the_next_tasks_are_never_dropped_for_later_ones(compose: Compose, tmp_path: Path) -> None:
    tasks = assignments(compose("dataset.height=64", "dataset.width=64", "dataset.limit=8"), tmp_path)
    with Prefetcher(64) as probe:
        item = probe.get(tasks[0])
        assert isinstance(item, PreparedSample)
    with Prefetcher(64, capacity_bytes=4 * 64 * 64 * 12) as prefetcher:
        first = prefetcher.read_ahead(tasks)
        loaded = [prefetcher.get(task) for task in tasks[:first]]
        assert prefetcher.read_ahead(tasks) >= first
        again = [prefetcher.get(task) for task in tasks[:first]]
    assert [item.sample for item in loaded if isinstance(item, PreparedSample)] == [
        item.sample for item in again if isinstance(item, PreparedSample)
    ]


def test_a_budget_lets_one_large_item_through_and_then_waits() -> None:
    budget = ByteBudget(10)
    budget.acquire(50)
    assert not budget.try_acquire(1)
    waiting = threading.Thread(target=budget.acquire, args=(5,))
    waiting.start()
    budget.release(50)
    waiting.join(10)
    assert not waiting.is_alive()
    assert budget.try_acquire(5)
