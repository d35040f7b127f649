import io

import pytest

from fluxexp.telemetry import Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_terminal_a_plain_line_comes_every_few_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(64, 0, stream, is_terminal=False, clock=clock)
    for second in range(12):
        clock.now_s = 1000.0 + second
        progress.update(done=second, failed=0, images_per_s=None)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["0/64 done", "5/64 done", "10/64 done", "11/64 done"]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_line_shows_all_known_values(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(64, 2, stream, is_terminal=False, clock=clock)
    clock.now_s += 4
    progress.update(done=10, failed=1, images_per_s=3.14)
    assert stream.getvalue() == "12/64 done · 3.1 images/s · ETA 0:19 · 1 failed\n"


def test_unknown_values_are_left_out(clock: Clock) -> None:
    stream = io.StringIO()
    Progress(64, 0, stream, is_terminal=False, clock=clock).update(done=0, failed=0, images_per_s=None)
    assert stream.getvalue() == "0/64 done\n"


@pytest.mark.parametrize(("rate", "text"), [(0.0123, "0.012"), (3.14, "3.1"), (12.3, "12"), (1234.5, "1234")])
def test_rates_are_rounded(clock: Clock, rate: float, text: str) -> None:
    stream = io.StringIO()
    Progress(9, 0, stream, is_terminal=False, clock=clock).update(done=0, failed=0, images_per_s=rate)
    assert f"{text} images/s" in stream.getvalue()


def test_a_terminal_has_one_line_that_is_rewritten(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(3, 0, stream, is_terminal=True, clock=clock)
    for done in range(3):
        clock.now_s += 1
        progress.update(done=done, failed=0, images_per_s=None)
    assert stream.getvalue().count("\n") == 0
    assert [frame.split(" done")[0] for frame in stream.getvalue().split("\r")[1:]] == ["0/3", "1/3", "2/3"]
    progress.close()
    progress.close()
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\n") == 1


def test_a_narrow_terminal_is_never_wrapped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    progress = Progress(640, 0, stream, is_terminal=True, clock=clock)
    clock.now_s += 9
    progress.update(done=12, failed=3, images_per_s=3.1)
    assert stream.getvalue() == "\r12/640 done · 3.1 i\x1b[K"


def test_the_eta_follows_the_recent_rate(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(1000, 0, stream, is_terminal=True, clock=clock)
    for _ in range(100):  # a slow start: one image in 10 s
        clock.now_s += 10
        progress.update(done=1, failed=0, images_per_s=None)
    for second in range(120):  # then one image per second
        clock.now_s += 1
        progress.update(done=2 + second, failed=0, images_per_s=None)
    eta = stream.getvalue().rsplit("ETA ", 1)[1].split("\x1b")[0]
    assert eta == "14:39"


def test_failed_tasks_need_no_more_time(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(4, 0, stream, is_terminal=False, clock=clock)
    clock.now_s += 2
    progress.update(done=0, failed=2, images_per_s=None)
    assert "ETA 0:02" in stream.getvalue()


def test_a_long_eta_has_hours(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(3601, 0, stream, is_terminal=False, clock=clock)
    clock.now_s += 2
    progress.update(done=1, failed=0, images_per_s=None)
    assert "ETA 2:00:00" in stream.getvalue()


def test_a_finished_run_has_no_eta(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(4, 2, stream, is_terminal=False, clock=clock)
    clock.now_s += 2
    progress.update(done=2, failed=0, images_per_s=None)
    assert stream.getvalue() == "4/4 done\n"


def test_an_ascii_stream_gets_ascii(clock: Clock) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Progress(4, 0, stream, is_terminal=False, clock=clock).update(done=1, failed=2, images_per_s=None)
    assert raw.getvalue() == b"1/4 done - 2 failed\n"


def test_a_stream_that_breaks_ends_the_display_only(clock: Clock) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = Progress(4, 0, Broken(), is_terminal=True, clock=clock)
    progress.update(done=1, failed=0, images_per_s=None)
    progress.update(done=2, failed=0, images_per_s=None)
    progress.close()
