"""Ranks stop together, and a run that only fails stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from fluxexp.experiment.session_stop import MIN_TASKS, FailureLimit, SessionStop, StopReason, stop_figures
from fluxexp.interruption import interruption
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.telemetry import RankFigures, Totals


@pytest.fixture(autouse=True)
def not_interrupted() -> Iterator[None]:
    """The watch belongs to the process."""
    with interruption.deferred():
        yield
        interruption.requested = None


def figures(ok: int, failed: int) -> RankFigures:
    totals = Totals(num_images=ok, num_failed=failed)
    return RankFigures(totals=totals, utilization=None, memory_gib=None, finished_s=None)


def until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_an_interrupted_rank_stops_the_others_and_says_so_once() -> None:
    zero, one = LocalCoordinator.group(2)
    told: list[int] = []
    with SessionStop(zero) as main, SessionStop(one) as other:
        main.on_interruption = lambda: told.append(0)
        assert not main.is_requested
        interruption.requested = "SIGTERM"
        until(lambda: bool(told))
        interruption.requested = None  # what rank 0 published is what the other rank sees
        until(lambda: other.is_interrupted)
    assert told == [0]
    assert other.request is not None
    assert other.request.text == "SIGTERM"


@pytest.mark.parametrize(
    ("rate", "counts", "stops"),
    [
        (None, (0, 1000), False),
        (0.5, (0, MIN_TASKS - 1), False),
        (0.5, (0, MIN_TASKS), True),
        (0.5, (50, 50), False),
        (0.5, (49, 51), True),
        (1.0, (0, 1000), False),
        (0.0, (999, 1), True),
    ],
)
def test_the_failure_rate_is_judged_by_the_counts_of_all_ranks(
    rate: float | None, counts: tuple[int, int], stops: bool
) -> None:
    zero, one = LocalCoordinator.group(2)
    ok, failed = counts
    with SessionStop(zero) as main, SessionStop(one) as other:
        FailureLimit(rate, main).judge([figures(ok // 2, failed), figures(ok - ok // 2, 0)])
        assert main.is_requested == stops
        assert not main.is_interrupted
        if stops:
            until(lambda: other.is_requested)
            assert other.request is not None
            assert other.request.reason is StopReason.FAILURES
            assert f"{failed} of {ok + failed} tasks failed" in other.request.text


def test_a_request_that_came_after_the_last_task_changes_nothing() -> None:
    zero = LocalCoordinator()
    stop = SessionStop(zero)
    stop.stop_for_failures("21 of 22 tasks failed")
    done = {"status": "complete_with_failures", "scoring": {"error": None}}
    assert stop_figures(stop.request, done) == {"interrupted": False, "stopped": None}
    assert stop_figures(stop.request, {"status": "incomplete"})["stopped"] == "21 of 22 tasks failed"
    interruption.requested = "SIGINT"
    unscored = {"status": "complete", "scoring": {"error": "interrupted (SIGINT)"}}
    assert stop_figures(stop.request, unscored) == {"interrupted": True, "stopped": None}
