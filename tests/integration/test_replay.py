"""Replay of W&B runs from run directories, read back from W&B's offline files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fluxexp.address import Address
from fluxexp.config.build import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.replay import replay
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.tracking import Tracker, child_link, tracker
from fluxexp.tracking.line_pipe import LinePipe
from tests.program import FAKE, Done, Program

PICTURES = (
    *("dataset=folder", "dataset.path=pictures", "dataset.mask=center", "dataset.prompt=a cat"),
    *("dataset.controls=edges", "dataset.references=looks"),
)
SLOW = ("model.seconds_per_step=[0.02]", "sampling.steps=2", "sampling.batch_size=1")
TRACKED = ("tracking.every_s=0.02", "tracking.images=3")
SAMPLES = ["key", "sample", "input", "control", "reference", "mask", "result", "truth", "prompt", "seed"]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run of two ranks with five images and without tracking."""
    program = Program(tmp_path_factory.mktemp("untracked"))
    for folder, color in (("pictures", (200, 30, 30)), ("edges", (30, 200, 30)), ("looks", (30, 30, 200))):
        (program.cwd / folder).mkdir()
        for number in range(5):
            Image.new("RGB", (32, 32), color).save(program.cwd / folder / f"p{number}.png")
    options = ("model=fake", "tracking=disabled", *PICTURES, *SLOW, *TRACKED)
    done = program.run(*options, processes=2)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def copy(untracked: Done, tmp_path: Path) -> Path:
    """A copy of the run's directory, which a test can damage."""
    return Path(shutil.copytree(untracked.directory, tmp_path / untracked.directory.name))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[LinePipe]:
    """Every child process that a tracker starts."""
    started: list[LinePipe] = []

    class Counted(LinePipe):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(child_link, "LinePipe", Counted)
    return started


@pytest.fixture
def tracking(untracked: Done) -> TrackingConfig:
    config = yaml.safe_load((untracked.directory / "config.yaml").read_text())
    return replace(build(TrackingConfig, config["tracking"]), mode="offline")


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return Program(cwd).run_module("fluxexp.replay", *map(str, arguments))


def inspect(log: Path, *options: str) -> str:
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run(
        [str(wandb), "leet", "inspect", *options, "--json", str(log)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def only_run(directory: Path) -> Path:
    (run,) = directory.glob("wandb/offline-run-*")
    return run


def points(directory: Path) -> list[dict[str, Any]]:
    """The series of the one run in `directory`: every logged point that has `wall_s`."""
    records = [json.loads(line) for line in inspect(only_run(directory)).splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [item for item in items if "wall_s" in item]


def names_in(series: list[dict[str, Any]]) -> set[str]:
    return {name for point in series for name in point if "/" in name}


def state(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(inspect(only_run(directory), "--summary"))
    return summary


def rows(directory: Path) -> list[dict[str, Any]]:
    tables = [json.loads(path.read_text()) for path in directory.glob("wandb/offline-run-*/**/*.table.json")]
    return [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]


def test_a_run_without_tracking_gets_its_w_and_b_run(untracked: Done, copy: Path) -> None:
    untracked_cwd = untracked.directory.parents[1]  # dataset.path in the config is relative to it
    done = command(copy, "--mode", "offline", "--project", "again", "--group", "night", cwd=untracked_cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert only_run(copy).name in done.stdout
    series = points(copy)
    for rank in (0, 1):
        assert all(f"rank/{rank}/{name}" in series[-1] for name in ("images_per_s", "busy", "images"))
        assert not any(f"rank/{rank}/{name}" in series[-1] for name in ("utilisation", "memory_gib"))
    assert series[-1]["rank/0/images"] + series[-1]["rank/1/images"] == 5
    assert (series[-1]["progress/done"], series[-1]["progress/total"]) == (5, 5)
    assert all(point["load/imbalance"] >= 1 for point in series if "load/imbalance" in point)
    assert any("load/slowest_speed" in point for point in series)
    assert [point["wall_s"] for point in series] == sorted(point["wall_s"] for point in series)
    assert len(series) > 2
    told = state(copy)
    assert (told["state"], told["project"], told["name"]) == (
        "finished",
        "again",
        "fill: fake flow_match_euler steps=2 guidance=30 seed=0",
    )
    assert told["config"]["fingerprint"] == copy.name.rpartition("-")[2]
    assert told["config"]["sampling"]["steps"] == 2
    assert told["summary"]["num_ok"] == 5
    assert told["summary"]["status"] == "complete"
    table = rows(copy)
    assert [list(row) for row in table] == [SAMPLES] * 3
    for row in table:
        record = untracked.records[row["key"]]
        assert (row["prompt"], row["seed"]) == ("a cat", str(record.seed))
        assert all(row[name] is not None for name in ("input", "control", "reference", "mask", "result"))
    assert '"night"' in inspect(only_run(copy))


def test_last_figures_equal_those_of_a_live_run(program: Program, tracking: TrackingConfig) -> None:
    live = tuple(option for option in FAKE if not option.startswith("tracking"))
    done = program.run(*live, *SLOW, "dataset.length=6", "tracking.every_s=0.5")
    assert done.returncode == 0, done.stderr
    live_points = points(done.directory)
    before = live_points[-1]
    shutil.rmtree(done.directory / "wandb")
    (report,) = replay([RunDirectory(Address.of(done.directory))], tracking)
    assert (report.mode, report.error, report.dropped) == ("offline", None, 0)
    replayed_points = points(done.directory)
    after = replayed_points[-1]
    devices = {"rank/0/utilisation", "rank/0/memory_gib"}
    assert names_in(replayed_points) == names_in(live_points) - devices
    for name in ("rank/0/images", "load/idle_s", "progress/done", "progress/failed", "progress/total"):
        assert after[name] == pytest.approx(before[name], rel=1e-3, abs=1e-3)
    assert 0 < after["wall_s"] <= before["wall_s"] + 0.1  # from the first span on, not from the start of the process


def test_a_crashed_run_is_replayed_up_to_the_crash(copy: Path, tracking: TrackingConfig) -> None:
    (copy / "summary.json").unlink()
    for file in [*copy.glob("events/*.jsonl"), *copy.glob("manifest/*.jsonl")]:
        with file.open("a") as stream:
            stream.write('{"torn": ')
    next(copy.glob("images/*")).unlink()
    (report,) = replay([RunDirectory(Address.of(copy))], tracking)  # from a folder where dataset.path does not exist
    assert (report.mode, report.error) == ("offline", None)
    told = state(copy)
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert (told["summary"]["status"], told["summary"]["num_ok"]) == ("incomplete", 4)
    assert points(copy)[-1]["rank/0/images"] > 0
    table = rows(copy)
    assert len(table) == 3
    assert all(row["result"] is not None and row["input"] is None and row["truth"] is None for row in table)


def test_a_changed_sample_is_not_shown_beside_the_result(
    untracked: Done, copy: Path, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(untracked.directory.parents[1])
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["dataset"]["prompt"] = "a dog"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    replay([RunDirectory(Address.of(copy))], tracking)
    assert [(row["prompt"], row["input"]) for row in rows(copy)] == [("a cat", None)] * 3


@pytest.mark.slow
def test_several_runs_are_replayed_by_one_child(
    untracked: Done, tmp_path: Path, tracking: TrackingConfig, children: list[LinePipe]
) -> None:
    copies = [Path(shutil.copytree(untracked.directory, tmp_path / name)) for name in ("a", "b", "c")]
    damaged = next(copies[1].glob("events/*.jsonl"))
    damaged.write_text("nonsense\n" + damaged.read_text())
    first, second, third = replay(
        [RunDirectory(Address.of(copy)) for copy in copies], replace(tracking, group="own"), group="sweep"
    )
    assert len(children) == 1
    assert children[0].wait(0) == 0
    assert (first.error, second.error, third.error) == (None, None, None), "a damaged line is left out"
    assert len({first.run_id, second.run_id, third.run_id}) == 3
    for copy in copies:
        assert points(copy)[-1]["rank/0/images"] + points(copy)[-1]["rank/1/images"] > 0
        assert len(rows(copy)) == 3
        assert '"sweep"' in inspect(only_run(copy))


def test_a_replay_drops_no_message(copy: Path, tracking: TrackingConfig) -> None:
    (report,) = replay([RunDirectory(Address.of(copy))], replace(tracking, every_s=0.00005))
    assert report.dropped == 0
    assert len(points(copy)) > 1.5 * tracker.QUEUE_LIMIT


def test_disabled_tracking_replays_nothing(copy: Path, tracking: TrackingConfig, children: list[LinePipe]) -> None:
    (report,) = replay([RunDirectory(Address.of(copy))], replace(tracking, mode="disabled"))
    assert report.mode == "disabled"
    assert children == []


def no_config(path: Path) -> None:
    (path / "config.yaml").unlink()


def broken_config(path: Path) -> None:
    (path / "config.yaml").write_text("a: [1\nb: 2")


def no_name(path: Path) -> None:
    (path / "config.yaml").write_text("- 1\n")


def broken_fingerprint(path: Path) -> None:
    (path / "fingerprint.json").write_text("{")


@pytest.mark.parametrize("spoil", [no_config, broken_config, no_name, broken_fingerprint, shutil.rmtree])
def test_the_error_for_a_broken_run_directory_is_one_line(
    untracked: Done, copy: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    good = Path(shutil.copytree(untracked.directory, tmp_path / "good"))
    spoil(copy)
    done = command(good, copy, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fluxexp: {copy}")
    assert done.stderr.count("\n") == 1
    assert not (good / "wandb").exists()


def test_an_invalid_project_is_an_error(copy: Path, tmp_path: Path) -> None:
    done = command(copy, "--project", "a b", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("fluxexp: project='a b'")
    assert done.stderr.count("\n") == 1


def test_damaged_events_and_a_damaged_summary_are_left_out_of_a_replay(copy: Path, tmp_path: Path) -> None:
    events = next(copy.glob("events/*.jsonl"))
    events.write_text("nonsense\n" + events.read_text())
    (copy / "summary.json").write_text("{")
    done = command(copy, cwd=tmp_path)
    assert done.returncode == 0
    assert "summary.json" in done.stderr
    assert points(copy)[-1]["rank/0/images"] + points(copy)[-1]["rank/1/images"] > 0


def test_exit_code_1_if_a_run_gets_no_w_and_b_run(copy: Path, tmp_path: Path) -> None:
    (copy / "wandb").write_text("a file where W&B needs a folder")
    done = command(copy, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "wandb" in done.stderr


def test_null_tracker_has_the_methods_that_replay_uses(tmp_path: Path, tracking: TrackingConfig) -> None:
    """`finish` and `close` of NullTracker have the parameters of Tracker's."""
    off = tracker.open_tracker(replace(tracking, mode="disabled"))
    assert off.finish(more=True).mode == "disabled"
    off.close()
    Tracker(tracking).close()  # never started
