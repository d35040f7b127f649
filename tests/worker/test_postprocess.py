"""The postprocessor finishes batches in order, on another thread, and passes errors on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.models.base import CutTexts, DecodedImages
from fluxexp.plan import Plan
from fluxexp.telemetry import Event, EventLog
from fluxexp.worker import WorkOrder
from fluxexp.worker.assignment import Assignment
from fluxexp.worker.postprocess import Postprocessor, StartedBatch
from fluxexp.worker.prefetch import Prefetcher, PreparedSample
from tests.conftest import Compose

PICTURE = Image.new("RGB", (16, 16))


class LateClock:
    """Marks are the times themselves. The test sets `may_end` when the device is done."""

    is_ahead = True

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def mark(self) -> float:
        return 0.0

    def is_past(self, mark: float) -> bool:
        return self.may_end.is_set()

    def times(self, marks: Sequence[float]) -> list[float]:
        assert self.may_end.wait(10)
        return list(marks)


@pytest.fixture
def items(compose: Compose, tmp_path: Path) -> list[PreparedSample]:
    config: RunConfig = compose("model=fake", "dataset.height=32", "dataset.width=32", "dataset.length=3")
    plan = Plan.of(config, open_dataset(config.dataset), Address.of(tmp_path))
    order = WorkOrder(
        number=0, config=config, dataset=plan.dataset, directory=plan.directory, attempts={}, is_alone=True
    )
    with Prefetcher(4) as prefetcher:
        found = [prefetcher.get(Assignment(order, plan.task(number))) for number in range(3)]
    return [item for item in found if isinstance(item, PreparedSample)]


def begun(number: int, items: Sequence[PreparedSample], marks: Sequence[float]) -> StartedBatch:
    count = len(items)
    decoded = DecodedImages([PICTURE] * count)
    return StartedBatch(number, items, "shape", marks[0], marks, decoded, [4] * count, [CutTexts(None)] * count)


def test_a_finished_batch_reports_its_seconds(items: list[PreparedSample]) -> None:
    clock = LateClock()
    delivered: list[tuple[int, dict[str, float]]] = []
    lines: list[bytes] = []

    def deliver(batch: StartedBatch, _: object, seconds: Mapping[str, float]) -> None:
        delivered.append((batch.number, dict(seconds)))

    with Postprocessor(clock, EventLog(lines.append), deliver) as postprocessor:
        postprocessor.begin(begun(0, items[:2], [10.0, 11.0, 15.0, 16.0]))
        assert postprocessor.finished() == []
        clock.may_end.set()
        postprocessor.wait(at_most=0)
        # Begun at the end of the first batch.
        postprocessor.begin(begun(1, items[2:], [16.0, 17.0, 21.0, 22.0]))
        postprocessor.wait(at_most=0)
        assert [(seconds, len(made)) for seconds, made in postprocessor.finished()] == [(6.0, 2), (6.0, 1)]
    assert delivered == [
        (0, {"condition": 0.5, "denoise": 2.0, "decode": 0.5}),
        (1, {"condition": 1.0, "denoise": 4.0, "decode": 1.0}),
    ]
    spans = [(event.span, event.batch, event.tasks, event.seconds) for event in map(Event.from_json, lines)]
    assert spans[:3] == [("condition", 0, 2, 1.0), ("denoise", 0, 2, 4.0), ("decode", 0, 2, 1.0)]
    assert len(spans) == 6


def test_an_error_in_postprocessing_is_raised_by_wait(items: list[PreparedSample]) -> None:
    class Lost:
        def images(self) -> list[Image.Image | None]:
            raise RuntimeError("the device is lost")

    with Postprocessor(LateClock(), EventLog(lambda _: None), lambda *_: None) as postprocessor:
        cut = [CutTexts(None)] * 3
        postprocessor.begin(StartedBatch(0, items, "shape", 0.0, [0.0, 1.0, 2.0, 3.0], Lost(), [4] * 3, cut))
        with pytest.raises(RuntimeError, match="the device is lost"):
            postprocessor.wait(at_most=0)
        assert postprocessor.expected_end_s() is None


def test_an_idle_device_has_no_expected_end(items: list[PreparedSample]) -> None:
    """There is also no expected end if no batch of the same shape was measured."""
    clock = LateClock()
    with Postprocessor(clock, EventLog(lambda _: None), lambda *_: None) as postprocessor:
        assert postprocessor.expected_end_s() is None
        postprocessor.begin(begun(0, items, [10.0, 11.0, 15.0, 16.0]))
        assert postprocessor.expected_end_s() is None, "no batch of its shape was measured before"
        clock.may_end.set()
        postprocessor.wait(at_most=0)
        assert postprocessor.expected_end_s() is None, "the batch is done"
        clock.may_end.clear()
        postprocessor.begin(begun(1, items, [15.5, 17.0, 21.0, 22.0]))  # begun before the first was done
        assert postprocessor.expected_end_s() == 16.0 + 6.0
        clock.may_end.set()
        postprocessor.wait(at_most=0)
        clock.may_end.clear()
        postprocessor.begin(begun(2, items, [30.0, 31.0, 35.0, 36.0]))  # the device was idle
        assert postprocessor.expected_end_s() == 30.0 + 6.0
        clock.may_end.set()
