from __future__ import annotations

import pytest

from fluxexp.report.rank_timeline import IDLE, WARM_UP, RankLog, bars, length_s, sessions, throughputs
from fluxexp.telemetry.events import Event


def event(span: str, start_s: float, end_s: float, tasks: int | None = None, **more: object) -> Event:
    return Event(span=span, start_s=start_s, end_s=end_s, tasks=tasks, **more)  # type: ignore[arg-type]


def test_overlapping_logs_form_a_session_and_the_axis_omits_time_between_sessions() -> None:
    first = [RankLog(0, [event("load", 100, 110)]), RankLog(1, [event("load", 105, 120)])]
    second = [RankLog(0, [event("load", 9000, 9005)])]
    found = sessions([*second, *first])
    assert [len(session.logs) for session in found] == [2, 1]
    assert found[1].at(9001) == 21
    assert length_s(found) == 25


def test_gaps_and_the_time_until_the_last_rank_ends_are_idle() -> None:
    logs = [
        RankLog(0, [event("denoise", 0, 4), event("decode", 6, 8)]),
        RankLog(1, [event("denoise", 1, 10), event("write", 4, 12)]),
    ]
    idle = [(bar.rank, bar.start_s, bar.end_s) for bar in bars(sessions(logs)) if bar.kind == IDLE]
    assert idle == [(0, 4, 6), (0, 8, 12), (1, 0, 1), (1, 10, 12)]


def test_warm_up_and_unknown_spans_have_their_own_kinds() -> None:
    log = RankLog(0, [event("denoise", 0, 4, warmup=True), event("unknown", 4, 8)])
    assert [bar.kind for bar in bars(sessions([log]))] == [WARM_UP, "other"]


def test_the_spans_of_a_long_run_are_binned() -> None:
    spans = [event(("condition", "denoise")[n % 2], n, n + 1, tasks=1) for n in range(20_000)]
    drawn = bars(sessions([RankLog(0, spans)]))
    assert 0 < len(drawn) <= 1000
    assert drawn[0].start_s == 0
    assert drawn[-1].end_s == pytest.approx(20_000, rel=0.01)


def test_throughput_sums_to_the_number_of_images_and_excludes_warm_up() -> None:
    log = RankLog(3, [event("denoise", 0, 5, 8, warmup=True), event("denoise", 5, 9, 8), event("decode", 9, 10, 8)])
    found = throughputs(sessions([log]), num_bins=10)
    assert sum(throughput.images_per_s for throughput in found) * 1.0 == pytest.approx(8)
    assert [round(throughput.busy, 6) for throughput in found] == [0] * 5 + [1] * 5
    assert {throughput.rank for throughput in found} == {3}


def test_a_point_of_a_sweep_counts_its_fraction_of_a_batch() -> None:
    log = RankLog(0, [event("denoise", 0, 10, 2, extra={"share": 0.25})])
    assert throughputs(sessions([log]), num_bins=5)[0].busy == pytest.approx(0.25)


def test_without_events_there_are_no_bars_and_no_throughputs() -> None:
    assert bars(sessions([])) == []
    assert throughputs(sessions([])) == []
