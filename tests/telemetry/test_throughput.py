import threading

import pytest

from fluxexp.telemetry import Event, EventLog, RankTotals, Totals


def event(span: str, seconds: float, *, warmup: bool = False) -> Event:
    return Event(span=span, start_s=100.0, end_s=100.0 + seconds, warmup=warmup)


def test_warm_up_and_loading_never_enter_throughput() -> None:
    totals = RankTotals()
    totals.add(event("load", 50))
    totals.add(event("denoise", 30, warmup=True))
    totals.add(event("wait", 1, warmup=True))
    totals.add(event("condition", 1))
    totals.add(event("denoise", 6))
    totals.add(event("decode", 1))
    totals.add(event("wait", 2))
    totals.add(event("steal", 1))
    totals.count(images=5, failed=1)
    snapshot = totals.snapshot()
    assert snapshot == Totals(
        num_images=5,
        num_failed=1,
        busy_s=38,
        wait_s=3,
        load_s=50,
        steal_s=1,
        warmup_s=31,
        stages={"load": 50, "denoise": 36, "wait": 3, "condition": 1, "decode": 1, "steal": 1},
        batch_size_mean=0,
        until_s=150,
    )
    assert snapshot.measured_s == 11
    assert snapshot.images_per_s == pytest.approx(5 / 11)


def test_overlapping_spans_are_not_added() -> None:
    totals = RankTotals()
    totals.add(event("write", 9))
    totals.add(event("read", 9))
    snapshot = totals.snapshot()
    assert snapshot.busy_s == snapshot.wait_s == 0


def test_throughput_is_unknown_during_warm_up() -> None:
    totals = RankTotals()
    assert totals.snapshot().images_per_s is None
    for seconds in (0.1, 0.2, 0.3):
        totals.add(event("denoise", seconds, warmup=True))
    assert totals.snapshot().images_per_s is None


def test_throughput_is_zero_if_all_images_failed() -> None:
    totals = RankTotals()
    totals.add(event("denoise", 2))
    totals.count(failed=1)
    assert totals.snapshot().images_per_s == 0


def test_totals_are_a_listener() -> None:
    totals = RankTotals()
    with EventLog(lambda _: None, listeners=[totals.add]).span("denoise"):
        pass
    assert totals.snapshot().busy_s > 0


def test_no_count_is_lost_between_threads() -> None:
    totals = RankTotals()

    def work() -> None:
        for _ in range(5000):
            totals.count(images=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals.snapshot().num_images == 20_000


def test_the_rate_of_work_leaves_out_warm_up_failures_and_other_spans() -> None:
    totals = RankTotals()
    assert totals.snapshot().work_per_s is None
    totals.add(event("denoise", 30, warmup=True))
    totals.add(event("condition", 5))
    totals.add(Event(span="denoise", start_s=0, end_s=2, error="RuntimeError: no", extra={}))
    for work, share in ((30.0, 1.0), (90.0, 0.5)):
        totals.add(Event(span="denoise", start_s=0, end_s=4, extra={"work": work, "share": share}))
    snapshot = totals.snapshot()
    assert (snapshot.work, snapshot.work_s) == (75, 6)
    assert snapshot.work_per_s == 12.5
