import json
import threading
import time

import pytest

from fluxexp.telemetry import Event, EventLog, RankTotals, part_of_run


@pytest.fixture
def lines() -> list[bytes]:
    return []


def parse(lines: list[bytes]) -> list[Event]:
    return [Event.from_json(line) for line in lines]


def test_a_span_is_written_and_read_back(lines: list[bytes]) -> None:
    before_s = time.time()
    with EventLog(lines.append).span("denoise", batch=3, tasks=8, warmup=True, steps=28):
        time.sleep(0.02)
    (event,) = parse(lines)
    assert (event.span, event.batch, event.tasks, event.warmup, event.error) == ("denoise", 3, 8, True, None)
    assert event.extra == {"steps": 28}
    assert event.seconds >= 0.019
    assert before_s - 1 <= event.start_s <= time.time() + 1


def test_unknown_values_are_left_out_of_the_line(lines: list[bytes]) -> None:
    with EventLog(lines.append).span("load"):
        pass
    assert json.loads(lines[0]).keys() == {"span", "start_s", "end_s", "warmup"}


def test_a_span_that_fails_is_recorded_and_the_error_passes_through(lines: list[bytes]) -> None:
    log = EventLog(lines.append)
    with pytest.raises(KeyError), log.span("decode", tasks=2):
        raise KeyError("nan")
    with log.span("write"):
        pass
    failed, written = parse(lines)
    assert failed.error == "KeyError: 'nan'"
    assert failed.tasks == 2
    assert written.error is None


def test_the_device_is_synchronized_before_the_clock_stops(lines: list[bytes]) -> None:
    log = EventLog(lines.append)
    with log.span("denoise", synchronize=lambda: time.sleep(0.05)):
        pass
    with log.span("write"):
        pass
    denoise, write = parse(lines)
    assert denoise.seconds >= 0.045
    assert write.seconds < denoise.seconds


def test_a_device_error_found_while_waiting_belongs_to_the_span(lines: list[bytes]) -> None:
    def broken() -> None:
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError), EventLog(lines.append).span("denoise", synchronize=broken):
        pass
    (event,) = parse(lines)
    assert event.error == "RuntimeError: device-side assert"


def test_listeners_receive_events(lines: list[bytes]) -> None:
    heard: list[Event] = []
    with EventLog(lines.append, listeners=[heard.append]).span("wait", reason="data"):
        pass
    assert [(event.span, event.extra) for event in heard] == [("wait", {"reason": "data"})]


def test_appends_of_many_threads_do_not_overlap() -> None:
    seen: list[Event] = []
    inside = threading.Lock()

    def append(line: bytes) -> None:
        assert inside.acquire(blocking=False), "two threads append at the same time"
        seen.append(Event.from_json(line))
        inside.release()

    def work(thread: int) -> None:
        for batch in range(50):
            with log.span("write", batch=batch, thread=thread):
                pass

    log = EventLog(append)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(event.extra["thread"], event.batch) for event in seen} == {(t, b) for t in range(8) for b in range(50)}


@pytest.mark.parametrize("line", ["[]", "{}", '{"span":"load"}'])
def test_a_line_that_is_not_an_event_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"object|missing"):
        Event.from_json(line)


def test_a_span_for_several_runs_is_shared_by_their_tasks() -> None:
    both = Event(span="denoise", start_s=1.0, end_s=5.0, tasks=4, batch=2, extra={"runs": {0: 1, 3: 3}})
    part = part_of_run(both, 3)
    assert part is not None
    assert (part.tasks, part.batch, part.extra) == (3, 2, {"share": 0.75})
    totals = RankTotals()
    totals.add(part)
    assert totals.snapshot().busy_s == 3.0
    assert part_of_run(both, 1) is None
    again = part_of_run(Event.from_json(both.to_json()), 0)
    assert again is not None
    assert again.extra == {"share": 0.25}
