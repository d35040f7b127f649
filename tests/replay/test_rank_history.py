from functools import partial
from pathlib import Path

import pytest

from fluxexp.replay.rank_history import timeline
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.result_files import events_stream
from fluxexp.storage.run_reader import RunReader
from fluxexp.telemetry import Event, EventLog

T0 = 1_800_000_000.0


def write(directory: Path, rank: int, session: str, *spans: tuple[str, float, float]) -> Path:
    log = open_log(directory, rank, session)
    for span, start_s, end_s in spans:
        log.write(Event(span=span, start_s=T0 + start_s, end_s=T0 + end_s, tasks=1))
    return directory / events_stream(rank, session)


def open_log(directory: Path, rank: int, session: str) -> EventLog:
    return EventLog(partial(LocalStore(directory).append_record, events_stream(rank, session)))


def test_a_moment_has_the_figures_of_all_ranks(tmp_path: Path) -> None:
    write(tmp_path, 0, "a", ("load", 0, 1), ("denoise", 1, 5), ("write", 5, 6), ("wait", 5, 9))
    write(tmp_path, 1, "a", ("load", 0, 1), ("denoise", 1, 3), ("wait", 3, 4), ("write", 4, 12))
    moments = list(timeline(RunReader(LocalStore(tmp_path)), every_s=5.0))
    assert [moment.wall_s for moment in moments] == pytest.approx([5.0, 10.0, 12.0])
    images = [[values.totals.num_images for values in moment.figures.values()] for moment in moments]
    assert images == [[0, 0], [1, 0], [1, 1]]
    busy = [[values["busy"] for values in moment.window.ranks.values()] for moment in moments]
    assert busy == [[pytest.approx(0.8), pytest.approx(2 / 3)], [0, None], [0, 0]]
    assert moments[1].window.ranks[0]["images_per_s"] == pytest.approx(1 / 5)
    assert moments[1].window.ranks[0]["idle"] == pytest.approx(1 / 5)
    assert moments[0].window.ranks[1]["utilisation"] is None
    assert moments[0].window.imbalance == pytest.approx(0.8 / (22 / 30))
    assert [moment.window.idle_s for moment in moments] == pytest.approx([0, 1, 3]), "rank 0 is idle after second 9"


def test_sessions_are_consecutive_and_counted_separately(tmp_path: Path) -> None:
    write(tmp_path, 0, "20260101T000000", ("write", 0, 2))
    write(tmp_path, 1, "20260101T000000", ("write", 0, 4))
    write(tmp_path, 0, "20260102T000000", ("write", 86400, 86403))
    moments = list(timeline(RunReader(LocalStore(tmp_path)), every_s=100.0))
    assert [moment.wall_s for moment in moments] == pytest.approx([4.0, 7.0])
    assert [sorted(moment.figures) for moment in moments] == [[0, 1], [0]]
    assert [moment.figures[0].totals.num_images for moment in moments] == [1, 1]
    assert [moment.resumed for moment in moments] == [0, 2]


def test_an_image_that_was_not_written_does_not_count(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0, "a")
    log.write(Event(span="write", start_s=0, end_s=1, tasks=1, error="OSError: disk full"))
    (moment,) = timeline(RunReader(LocalStore(tmp_path)), every_s=5.0)
    assert moment.figures[0].totals.num_images == 0


def test_device_readings_are_shown_if_recorded(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0, "a")
    log.write(Event(span="device", start_s=0, end_s=1, extra={"utilisation": 0.75, "memory_gib": 40.0}))
    log.write(Event(span="denoise", start_s=0, end_s=2))
    (moment,) = timeline(RunReader(LocalStore(tmp_path)), every_s=5.0)
    figures = moment.window.ranks[0]
    assert (figures["utilisation"], figures["memory_gib"]) == (0.75, 40.0)


def test_a_torn_line_is_skipped_and_a_damaged_line_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, 0, "a", ("write", 0, 1))
    with path.open("a") as stream:
        stream.write('{"span":"wri')
    assert len(list(timeline(RunReader(LocalStore(tmp_path)), every_s=5.0))) == 1
    with path.open("a") as stream:
        stream.write("\n")
    assert len(list(timeline(RunReader(LocalStore(tmp_path)), every_s=5.0))) == 1
    assert capsys.readouterr().err.count("line 2 is not an event") == 1


def test_a_damaged_time_does_not_make_a_session_of_years(tmp_path: Path) -> None:
    write(tmp_path, 0, "a", ("write", 0, 1), ("write", 1, 1e9))
    assert len(list(timeline(RunReader(LocalStore(tmp_path)), every_s=0.001))) <= 10_001


def test_without_events_there_are_no_moments(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "notes.jsonl").write_text("not an event file\n")
    assert list(timeline(RunReader(LocalStore(tmp_path)), every_s=5.0)) == []
    assert list(timeline(RunReader(LocalStore(tmp_path / "missing")), every_s=5.0)) == []
