import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import (
    RANKS_COLUMNS,
    RANKS_TABLE,
    NullTracker,
    SampleRow,
    Tracker,
    TrackingReport,
    open_tracker,
    ranks_table,
    series,
)

Records = list[dict[str, Any]]
Read = Callable[[Path], Records]
Summarize = Callable[[Path], dict[str, Any]]
RED, GREEN = (220, 30, 30), (30, 200, 30)
A_KEY = "0123456789" * 4


def row(key: str, **images: Any) -> SampleRow:
    return SampleRow(
        **{
            "key": key,
            "sample": f"s-{key}",
            "input": None,
            "mask": None,
            "result": None,
            "truth": None,
            "prompt": "a cat",
            "seed": 7,
        }
        | images
    )


def start(tracker: Tracker | NullTracker, run_dir: Path) -> None:
    tracker.start({"sampling": {"steps": 4}, "path": run_dir}, run_dir, run_id="base-1", name="base", group="sessions")


def child_pid(tracker: Tracker) -> int:
    assert tracker._child.pipe is not None
    return tracker._child.pipe._process.pid


@dataclass
class Finished:
    run_dir: Path
    report: TrackingReport
    records: Records
    summary: dict[str, Any]

    def of_type(self, kind: str) -> Records:
        return [record[kind] for record in self.records if record["type"] == kind]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tracking: TrackingConfig, read_run: Read, summarize_run: Summarize
) -> Finished:
    run_dir = tmp_path_factory.mktemp("run") / "fill-0123"
    result = run_dir / "result.png"
    tracker = Tracker(tracking)
    run_dir.mkdir()
    Image.new("RGB", (640, 320), GREEN).save(result)
    start(tracker, run_dir)
    for step in range(30):
        figures = {rank: {"images_per_s": 1.5, "busy": 0.5, "utilisation": None, "images": step} for rank in (0, 1)}
        tracker.log(series(figures, wall_s=5.0 * step, session={"load/imbalance": 1.25}), wall_s=5.0 * step)
    tracker.add_sample_row(row("k0", result=result.read_bytes))
    for index in range(1, 6):
        tracker.add_sample_row(row(f"k{index}", input=Image.new("RGB", (512, 512), RED), result=result.read_bytes))
    tracker.summary({"num_images": 30, "images_per_s": 3.0})
    report = tracker.finish(0)
    assert tracker.finish(1) is report
    return Finished(run_dir, report, read_run(run_dir), summarize_run(run_dir))


def test_the_report_says_where_the_run_is(finished: Finished) -> None:
    report = finished.report
    assert (report.mode, report.run_id, report.url, report.dropped, report.error) == (
        "offline",
        "base-1",
        None,
        0,
        None,
    )
    assert report.directory is not None
    assert (finished.run_dir / report.directory / "run-base-1.wandb").is_file()


def test_every_point_of_the_series_is_logged(finished: Finished) -> None:
    points = [history["item"] for history in finished.of_type("history") if "rank/0/images" in history["item"]]
    assert [point["wall_s"] for point in points] == [5.0 * step for step in range(30)]
    assert [point["rank/1/images"] for point in points] == list(range(30))
    assert {point["load/imbalance"] for point in points} == {1.25}
    assert not any("utilisation" in name for point in points for name in point)


def test_the_x_axis_of_series_is_wall_s(finished: Finished) -> None:
    steps = {metric.get("glob_name"): metric.get("step_metric") for metric in finished.of_type("metric")}
    assert steps["rank/*"] == steps["load/*"] == "wall_s"
    assert "wall_s" in [metric.get("name") for metric in finished.of_type("metric")]


def test_config_summary_and_names_are_logged(finished: Finished) -> None:
    summary = finished.summary
    assert summary["config"] == {"sampling": {"steps": 4}, "path": str(finished.run_dir)}
    assert summary["summary"]["num_images"] == 30
    assert (summary["state"], summary["exit_code"]) == ("finished", 0)
    assert (summary["name"], summary["project"], summary["tags"]) == ("base", "fluxexp-tests", ["a", "b"])
    run = finished.of_type("run")[0]
    assert (run["run_group"], run["job_type"]) == ("sessions", "run")


def test_the_panel_of_images_has_the_images_of_a_sample_side_by_side(finished: Finished) -> None:
    logged = [item for history in finished.of_type("history") if "images.count" in (item := history["item"])]
    assert [item["images.count"] for item in logged] == [4, 6], "all are sent again when their number has doubled"
    assert logged[1]["images.captions"][1] == "s-k1: input | result \u00b7 a cat"
    (folder,) = finished.run_dir.glob("wandb/offline-run-*/files")
    assert {len(set(item["images.filenames"])) for item in logged} == {2}, "five samples have the same images"
    with Image.open(folder / logged[1]["images.filenames"][1]) as strip:
        assert strip.size == (256 + 4 + 256, 256)
        assert strip.getpixel((100, 100)) == pytest.approx(RED, abs=8)
        assert strip.getpixel((300, 100)) == pytest.approx(GREEN, abs=8)


def test_wandb_shows_the_command_of_the_rank(finished: Finished) -> None:
    (environment,) = [record for record in finished.of_type("environment") if "program" in record]
    assert environment["program"] == sys.argv[0]
    assert environment.get("args", []) == sys.argv[1:]


def test_the_table_has_every_row_and_its_images(finished: Finished) -> None:
    files = [file for artifact in finished.of_type("artifact") for file in artifact["manifest"]["contents"]]
    paths = {file["path"]: Path(file["local_path"]) for file in files}
    tables = [json.loads(path.read_text()) for name, path in paths.items() if name.endswith(".table.json")]
    assert {tuple(table["columns"]) for table in tables} == {
        ("key", "sample", "input", "control", "reference", "mask", "result", "truth", "prompt", "seed")
    }
    rows = [row for table in tables for row in table["data"]]
    assert sorted(row[0] for row in rows) == [f"k{index}" for index in range(6)]
    for key, sample, before, control, reference, mask, result, truth, prompt, seed in rows:
        assert sample == f"s-{key}"
        assert (control, reference, mask, truth, prompt, seed) == (None, None, None, None, "a cat", "7")
        assert _color(paths[result["path"]], size=(256, 128)) == pytest.approx(GREEN, abs=8)
        if key == "k0":
            assert before is None
        else:
            assert _color(paths[before["path"]], size=(256, 256)) == pytest.approx(RED, abs=8)


def test_all_files_of_wandb_are_in_the_run_directory(finished: Finished, home: Path) -> None:
    files = [file for artifact in finished.of_type("artifact") for file in artifact["manifest"]["contents"]]
    assert files
    assert all(Path(file["local_path"]).is_relative_to(finished.run_dir) for file in files)
    assert not list(home.rglob("artifacts"))


def _color(path: Path, size: tuple[int, int]) -> tuple[int, ...]:
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", size)
        return tuple(image.resize((1, 1)).tobytes())


def test_rows_have_a_limit(tmp_path: Path, tracking: TrackingConfig) -> None:
    tracker = Tracker(replace(tracking, images=2), command=(sys.executable, "-c", "import sys; sys.stdin.read()"))
    start(tracker, tmp_path)
    for index in range(2):
        assert tracker.wants_rows
        tracker.add_sample_row(row(f"k{index}", result=(tmp_path / "missing.png").read_bytes))
    assert not tracker.wants_rows
    tracker.add_sample_row(row("k2", result=(tmp_path / "missing.png").read_bytes))
    report = tracker.finish()
    assert report.dropped == 2  # the third row does not count as dropped, because it is beyond the limit
    assert report.error is not None
    assert "missing.png" in report.error


def test_the_child_outlasts_signals_and_passes_on_the_exit_code(
    tmp_path: Path, tracking: TrackingConfig, summarize_run: Summarize, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    tracker = Tracker(tracking)
    start(tracker, tmp_path)
    wait_until(lambda: bool(tracker._started))
    os.kill(child_pid(tracker), signal.SIGTERM)
    os.kill(child_pid(tracker), signal.SIGINT)
    tracker.log({"rank/0/images": 5.0}, wall_s=1.0)
    assert tracker.finish(3).error is None
    summary = summarize_run(tmp_path)
    assert (summary["exit_code"], summary["summary"]["rank/0/images"]) == (3, 5)


@pytest.mark.parametrize("environ", [{}, {"WANDB_MODE": "offline", "WANDB_API_KEY": A_KEY}], ids=["no key", "told so"])
def test_without_a_mode_the_environment_decides(
    tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    tracker = open_tracker(replace(tracking, mode=None))
    start(tracker, tmp_path)
    report = tracker.finish()
    assert (report.mode, report.error) == ("offline", None)


def use_key_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", A_KEY)


def use_key_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:9 login user password {A_KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "use_key"), [("online", use_key_in_environment), (None, use_key_in_netrc)])
def test_online_without_a_network_is_logged_offline_and_reported(
    tmp_path: Path,
    tracking: TrackingConfig,
    summarize_run: Summarize,
    monkeypatch: pytest.MonkeyPatch,
    mode: Any,
    use_key: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    use_key(monkeypatch, tmp_path)
    tracker = Tracker(replace(tracking, mode=mode), init_timeout_s=0.5)
    start(tracker, tmp_path)
    tracker.log({"rank/0/images": 5.0}, wall_s=1.0)
    report = tracker.finish()
    assert (report.mode, report.run_id, report.url, report.dropped) == ("offline", "base-1", None, 0)
    assert report.error is not None
    assert "logged offline, because online failed" in report.error
    assert summarize_run(tmp_path)["summary"]["rank/0/images"] == 5


def test_an_invalid_api_key_is_logged_offline_and_reported(
    tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    tracker = Tracker(replace(tracking, mode=None))
    start(tracker, tmp_path)
    report = tracker.finish()
    assert report.mode == "offline"
    assert report.error is not None
    assert "WANDB_API_KEY invalid" in report.error


def test_settings_of_wandb_can_disable_it(
    tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings").write_text("[default]\nmode = disabled\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    tracker = Tracker(replace(tracking, mode=None))
    start(tracker, tmp_path)
    tracker.log({"rank/0/images": 5.0}, wall_s=1.0)
    tracker.add_sample_row(row("k0", result=Image.new("RGB", (8, 8))))
    report = tracker.finish()
    assert (report.mode, report.directory, report.error) == ("disabled", None, None)


def test_a_disabled_tracker_does_nothing(
    tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker(replace(tracking, mode="disabled"))
    start(tracker, tmp_path)
    tracker.log({"rank/0/images": 5.0}, wall_s=1.0)
    tracker.add_sample_row(row("k0"))
    tracker.summary({})
    assert not tracker.wants_rows
    assert tracker.finish(0) == TrackingReport(mode="disabled")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(open_tracker(replace(tracking, mode=None)), NullTracker)
    assert isinstance(open_tracker(replace(tracking, mode="offline")), Tracker)


@pytest.mark.slow
def test_one_child_opens_several_runs_one_after_another(
    tmp_path: Path, tracking: TrackingConfig, read_run: Read, summarize_run: Summarize
) -> None:
    tracker = Tracker(replace(tracking, images=1))
    pids, reports = set(), []
    for number in range(2):
        run_dir = tmp_path / str(number)
        tracker.start({"number": number}, run_dir, run_id=f"id-{number}", name="base")
        pids.add(child_pid(tracker))
        tracker.log({"rank/0/images": float(number)}, wall_s=1.0)
        tracker.add_sample_row(row(f"k{number}", result=Image.new("RGB", (8, 8))))
        reports.append(tracker.finish(number, more=True))
        assert tracker.finish() is reports[number]
    pipe = tracker._child.pipe
    assert pipe is not None
    tracker.close()
    assert pipe.wait(0) == 0
    assert len(pids) == 1
    for number, report in enumerate(reports):
        assert (report.mode, report.run_id, report.dropped, report.error) == ("offline", f"id-{number}", 0, None)
        run_dir = tmp_path / str(number)
        summary = summarize_run(run_dir)
        assert (summary["config"], summary["exit_code"]) == ({"number": number}, number)
        assert summary["summary"]["rank/0/images"] == number
        artifacts = [record["artifact"] for record in read_run(run_dir) if record["type"] == "artifact"]
        files = [Path(file["local_path"]) for artifact in artifacts for file in artifact["manifest"]["contents"]]
        assert files
        assert all(file.is_relative_to(run_dir) for file in files)


def test_figures_of_many_ranks_are_quantiles_and_a_table(
    tmp_path: Path, tracking: TrackingConfig, read_run: Read
) -> None:
    ranks = {rank: {"images": float(rank), "busy": None} for rank in range(70)}
    rows = ranks_table(ranks)
    assert rows is not None
    tracker = Tracker(tracking)
    start(tracker, tmp_path)
    tracker.log(series(ranks, wall_s=3.0), wall_s=3.0)
    tracker.table(RANKS_TABLE, RANKS_COLUMNS, rows)
    assert tracker.finish(0).error is None
    records = read_run(tmp_path)
    points = [record["history"]["item"] for record in records if record["type"] == "history"]
    (point,) = [point for point in points if "ranks/images/max" in point]
    assert (point["ranks/images/min"], point["ranks/images/max"], point["wall_s"]) == (0, 69, 3)
    steps = {record["metric"].get("glob_name") for record in records if record["type"] == "metric"}
    assert "ranks/*" in steps
    (table,) = [json.loads(path.read_text()) for path in tmp_path.glob("wandb/**/files/**/*.table.json")]
    assert table["columns"] == list(RANKS_COLUMNS)
    assert [line[0] for line in table["data"]] == list(range(70))
    assert table["data"][69] == [69, *[None] * 8, 69]


class SilentServer:
    """A server that accepts connections and never answers."""

    def __init__(self) -> None:
        self._connections: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for connection in (self._socket, *self._connections):
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._connections.append(self._socket.accept()[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", pytest.param("closed", marks=pytest.mark.slow)])
def test_an_unreachable_server_is_news_while_the_run_continues(
    tmp_path: Path,
    tracking: TrackingConfig,
    summarize_run: Summarize,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
    kind: str,
) -> None:
    server = SilentServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url if kind == "silent" else "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", A_KEY)
    tracker = Tracker(replace(tracking, mode="online"), init_timeout_s=0.5)
    start(tracker, tmp_path)
    news: list[str] = []

    def is_told() -> bool:
        news.extend(tracker.news())
        return bool(news)

    wait_until(is_told)
    assert "logged offline, because online failed" in news[0]
    tracker.log({"rank/0/images": 5.0}, wall_s=1.0)
    report = tracker.finish()
    assert (report.mode, report.dropped, report.error) == ("offline", 0, news[0])
    assert tracker.news() == []
    assert summarize_run(tmp_path)["summary"]["rank/0/images"] == 5
    server.close()


def test_a_w_and_b_that_does_not_start_is_news(
    tmp_path: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxexp.tracking.tracker.START_S", 0.0)
    silent = (sys.executable, "-c", "import time; time.sleep(600)")
    tracker = Tracker(replace(tracking, finish_timeout_s=0.1), command=silent)
    start(tracker, tmp_path)
    assert tracker.news() == ["no W&B run after 0 s: the figures wait, and the run goes on"]
    assert tracker.news() == []
    tracker.finish()
    os.kill(child_pid(tracker), signal.SIGKILL)
