"""Phases without a terminal, and their remaining time."""

import io
import random
from itertools import pairwise

import pytest

from fluxexp.telemetry import Phase
from fluxexp.telemetry.remaining_time import RemainingTime


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def phase_of(stream: io.StringIO | io.TextIOWrapper, clock: Clock, total: int | None = 64, done: int = 0) -> Phase:
    return Phase("generating", "images", total, done, stream=stream, is_live=False, clock=clock)


def test_a_phase_is_a_line_and_at_most_one_more_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock)
    for second in range(25):
        clock.now_s = 1000.0 + second
        phase.update(second)
    phase.close()
    phase.close()
    lines = [line.split(" · ")[0] for line in stream.getvalue().splitlines()]
    assert lines == [
        "generating 64 images",
        "generating 10/64 images",
        "generating 20/64 images",
        "generating 24/64 images",
    ]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_short_phase_is_one_line(clock: Clock) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock, done=4)
    clock.now_s += 2
    phase.update(64)
    phase.close()
    assert stream.getvalue() == "generating 60 images\n"


def test_a_phase_without_numbers_says_what_it_does(clock: Clock) -> None:
    stream = io.StringIO()
    with Phase("loading", "model tiny", stream=stream, is_live=False, clock=clock) as phase:
        clock.now_s += 11
        phase.update(0, note="on 2 ranks")
    assert stream.getvalue() == "loading    model tiny\nloading    model tiny · on 2 ranks\n"


def last_line(stream: io.StringIO) -> str:
    return stream.getvalue().splitlines()[-1]


def test_the_line_shows_all_known_values(clock: Clock) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock, done=2)
    clock.now_s += 10
    phase.update(12, failed=1, per_s=3.14)
    assert last_line(stream) == "generating 12/64 images · 3.1 images/s · ETA 0:16 · 1 failed"


def test_an_unknown_remaining_time_is_said(clock: Clock) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock)
    clock.now_s += 10
    phase.update(0)
    assert last_line(stream) == "generating 0/64 images · ETA unknown"


@pytest.mark.parametrize(("rate", "text"), [(0.0123, "0.012"), (3.14, "3.1"), (12.3, "12"), (1234.5, "1234")])
def test_rates_are_rounded(clock: Clock, rate: float, text: str) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock)
    clock.now_s += 10
    phase.update(0, per_s=rate)
    assert f"{text} images/s" in stream.getvalue()


def test_a_long_remaining_time_has_hours_and_a_finished_phase_has_none(clock: Clock) -> None:
    stream = io.StringIO()
    phase = phase_of(stream, clock, 3601)
    clock.now_s += 10
    phase.update(5)
    assert "ETA 1:59:52" in last_line(stream)
    clock.now_s += 10
    phase.update(3601)
    assert last_line(stream) == "generating 3601/3601 images"


def test_an_ascii_stream_gets_ascii(clock: Clock) -> None:
    raw = io.BytesIO()
    phase = phase_of(io.TextIOWrapper(raw, encoding="ascii"), clock, 3)
    clock.now_s += 10
    phase.update(1, failed=2)
    assert raw.getvalue().endswith(b"generating 1/3 images - 2 failed\n")


def test_a_stream_that_breaks_ends_the_display_only(clock: Clock) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    phase = phase_of(Broken(), clock)
    clock.now_s += 20
    phase.update(1)
    phase.close()


def remaining(batches: list[tuple[float, int]], total: int) -> list[tuple[float, float | None]]:
    """(second, remaining seconds) once per second, if `batches` finish as (second, number) says."""
    estimate = RemainingTime(0.0)
    shown: list[tuple[float, float | None]] = []
    for second in range(1, int(batches[-1][0]) + 1):
        finished = sum(number for at_s, number in batches if at_s <= second)
        estimate.update(second, finished, total - finished)
        shown.append((second, estimate.seconds(second)))
    return shown


def test_the_remaining_time_of_steady_batches_counts_down() -> None:
    shown = remaining([(4.0 * (number + 1), 10) for number in range(18)], 180)
    assert [value for _, value in shown[:3]] == [None] * 3
    for second, value in shown[3:-1]:
        assert value == pytest.approx(72 - second, abs=1e-6)


def test_the_remaining_time_does_not_jump_when_batches_are_irregular() -> None:
    rng = random.Random(0)
    ends, at_s = [], 0.0
    for _ in range(60):
        at_s += rng.uniform(1, 7)
        ends.append((at_s, rng.choice((6, 10))))
    shown = [value for _, value in remaining(ends, sum(number for _, number in ends)) if value is not None]
    settled = shown[20:]
    growth = [after - before for before, after in pairwise(settled)]
    assert max(growth) < 0.1 * at_s, "it must not grow by a tenth of the whole time at once"
    assert settled[-1] < 15


def test_a_batch_that_began_before_the_phase_does_not_shorten_the_remaining_time(clock: Clock) -> None:
    phase = phase_of(io.StringIO(), clock, total=60)
    for batch in range(1, 8):  # one batch of 4 images per second; the first one ends when the phase begins
        phase.update(4 * batch, per_s=4.0)
        assert f"{4 * batch}/60 images · 4 images/s · ETA 0:{15 - batch:02}" in phase.state
        clock.now_s += 1


def test_a_slow_start_does_not_count_for_long() -> None:
    start = [(100.0 * (number + 1), 1) for number in range(3)]
    shown = remaining([*start, *((301.0 + second, 1) for second in range(200))], 1003)
    assert shown[-1][1] == pytest.approx(800, rel=0.1)


def test_after_the_estimated_end_the_remaining_time_is_unknown() -> None:
    estimate = RemainingTime(0.0)
    estimate.update(10, 5, 5)
    assert estimate.seconds(19) == pytest.approx(1)
    assert estimate.seconds(21) is None
