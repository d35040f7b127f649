from __future__ import annotations

import pytest

from fluxexp.report.rank_timeline import IDLE, WARM_UP, RankLog, bars, length_s, sessions, throughputs
from fluxexp.telemetry.events import Event


def event(span: str, start_s: float, end_s: float, tasks: int | None = None, **more: object) -> Event:
    return Event(span=span, start_s=start_s, end_s=end_s, tasks=tasks, **more)  # type: ignore[arg-type]


def test_logs_that_overlap_are_a_session_and_the_time_between_sessions_is_left_out() -> None:
    first = [RankLog(0, [event("load", 100, 110)]), RankLog(1, [event("load", 105, 120)])]
    second = [RankLog(0, [event("load", 9000, 9005)])]
    found = sessions([*second, *first])
    assert [len(session.logs) for session in found] == [2, 1]
    assert found[1].at(9001) == 21
    assert length_s(found) == 25


def test_a_gap_is_idle_and_so_is_the_time_until_the_last_rank_ends() -> None:
    logs = [
        RankLog(0, [event("denoise", 0, 4), event("decode", 6, 8)]),
        RankLog(1, [event("denoise", 1, 10), event("write", 4, 12)]),
    ]
    idle = [(bar.rank, bar.start_s, bar.end_s) for bar in bars(sessions(logs)) if bar.kind == IDLE]
    assert idle == [(0, 4, 6), (0, 8, 12), (1, 0, 1), (1, 10, 12)]


def test_warm_up_and_what_is_unknown_have_kinds_of_their_own() -> None:
    log = RankLog(0, [event("denoise", 0, 4, warmup=True), event("sing", 4, 8)])
    assert [bar.kind for bar in bars(sessions([log]))] == [WARM_UP, "other"]


def test_a_long_run_takes_no_more_bars_than_a_screen_can_show() -> None:
    spans = [event(("condition", "denoise")[n % 2], n, n + 1, tasks=1) for n in range(20_000)]
    drawn = bars(sessions([RankLog(0, spans)]))
    assert 0 < len(drawn) <= 1000
    assert drawn[0].start_s == 0
    assert drawn[-1].end_s == pytest.approx(20_000, rel=0.01)


def test_pace_adds_up_to_what_was_made_and_warm_up_is_no_part_of_it() -> None:
    log = RankLog(3, [event("denoise", 0, 5, 8, warmup=True), event("denoise", 5, 9, 8), event("decode", 9, 10, 8)])
    found = throughputs(sessions([log]), num_bins=10)
    assert sum(throughput.images_per_s for throughput in found) * 1.0 == pytest.approx(8)
    assert [round(throughput.busy, 6) for throughput in found] == [0] * 5 + [1] * 5
    assert {throughput.rank for throughput in found} == {3}


def test_a_point_of_a_sweep_counts_its_share_of_a_batch() -> None:
    log = RankLog(0, [event("denoise", 0, 10, 2, extra={"share": 0.25})])
    assert throughputs(sessions([log]), num_bins=5)[0].busy == pytest.approx(0.25)


def test_without_events_there_is_nothing() -> None:
    assert bars(sessions([])) == []
    assert throughputs(sessions([])) == []
