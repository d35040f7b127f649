import json
import threading
import time
from pathlib import Path

import pytest

from fluxexp.telemetry import Event, EventLog, RankTotals, part_of_run, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events" / "rank-0.jsonl"


def test_a_span_is_written_and_read_back(path: Path) -> None:
    before_s = time.time()
    with EventLog(path) as log, log.span("denoise", batch=3, tasks=8, warmup=True, steps=28):
        time.sleep(0.02)
    (event,) = read_events(path)
    assert (event.span, event.batch, event.tasks, event.warmup, event.error) == ("denoise", 3, 8, True, None)
    assert event.extra == {"steps": 28}
    assert event.seconds >= 0.019
    assert before_s - 1 <= event.start_s <= time.time() + 1


def test_unknown_values_are_left_out_of_the_line(path: Path) -> None:
    with EventLog(path) as log, log.span("load"):
        pass
    assert json.loads(path.read_text()).keys() == {"span", "start_s", "end_s", "warmup"}


def test_a_span_that_fails_is_recorded_and_the_error_passes_through(path: Path) -> None:
    with EventLog(path) as log:
        with pytest.raises(KeyError), log.span("decode", tasks=2):
            raise KeyError("nan")
        with log.span("write"):
            pass
    failed, written = read_events(path)
    assert failed.error == "KeyError: 'nan'"
    assert failed.tasks == 2
    assert written.error is None


def test_the_device_is_synchronized_before_the_clock_stops(path: Path) -> None:
    with EventLog(path) as log:
        with log.span("denoise", synchronize=lambda: time.sleep(0.05)):
            pass
        with log.span("write"):
            pass
    denoise, write = read_events(path)
    assert denoise.seconds >= 0.045
    assert write.seconds < denoise.seconds


def test_a_device_error_found_while_waiting_belongs_to_the_span(path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("device-side assert")

    with EventLog(path) as log, pytest.raises(RuntimeError), log.span("denoise", synchronize=broken):
        pass
    (event,) = read_events(path)
    assert event.error == "RuntimeError: device-side assert"


def test_listeners_receive_events(path: Path) -> None:
    heard: list[Event] = []
    with EventLog(path, listeners=[heard.append]) as log, log.span("wait", reason="data"):
        pass
    assert [(event.span, event.extra) for event in heard] == [("wait", {"reason": "data"})]


def test_lines_from_many_threads_stay_whole(path: Path) -> None:
    def work(thread: int) -> None:
        for batch in range(50):
            with log.span("write", batch=batch, thread=thread, padding="x" * 200):
                pass

    with EventLog(path) as log:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = {(event.extra["thread"], event.batch) for event in read_events(path)}
    assert seen == {(thread, batch) for thread in range(8) for batch in range(50)}


def test_only_an_incomplete_last_line_is_left_out(path: Path) -> None:
    with EventLog(path) as log, log.span("load"):
        pass
    with path.open("a") as file:
        file.write('{"span":"deno')
    assert [event.span for event in read_events(path)] == ["load"]
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"line 2: not an event"):
        read_events(path)


@pytest.mark.parametrize("line", ["[]", "{}", '{"span":"load"}'])
def test_a_line_that_is_not_an_event_is_an_error(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_events(path)


@pytest.mark.parametrize("torn", ['{"span":"deno', "x" * 10_000, ""])
def test_a_second_session_appends_after_the_last_whole_line(path: Path, torn: str) -> None:
    with EventLog(path) as log, log.span("load"):
        pass
    with path.open("a") as file:
        file.write(torn)
    with EventLog(path) as log, log.span("denoise"):
        pass
    assert [event.span for event in read_events(path)] == ["load", "denoise"]


def test_a_file_with_only_an_incomplete_line_is_emptied(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"span":"lo')
    with EventLog(path) as log, log.span("load"):
        pass
    assert len(read_events(path)) == 1


def test_a_closed_log_refuses_events(path: Path) -> None:
    log = EventLog(path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"), log.span("load"):
        pass


def test_a_span_for_several_runs_is_shared_by_their_tasks() -> None:
    both = Event(span="denoise", start_s=1.0, end_s=5.0, tasks=4, batch=2, extra={"runs": {0: 1, 3: 3}})
    part = part_of_run(both, 3)
    assert part is not None
    assert (part.tasks, part.batch, part.extra) == (3, 2, {"share": 0.75})
    totals = RankTotals()
    totals.add(part)
    assert totals.snapshot()["busy_s"] == 3.0
    assert part_of_run(both, 1) is None
    again = part_of_run(Event.from_json(both.to_json()), 0)
    assert again is not None
    assert again.extra == {"share": 0.25}
