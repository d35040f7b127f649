"""Results that fluxexp 0.1 left before configs had a version: everything that reads results still works on them.

`tests/fixtures/results_0_1` contains a run and a sweep that the program of that time made. Never make them again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxexp.address import Address
from fluxexp.compare.__main__ import main as compare_main
from fluxexp.plan import Plan
from fluxexp.replay import replay
from fluxexp.replay.source import Source
from fluxexp.report.__main__ import main as report_main
from fluxexp.storage.run_directory import RunDirectory
from tests.integration.test_scores import score
from tests.program import Done, Program

FIXTURES = Path(__file__).parents[1] / "fixtures" / "results_0_1"
RUN, SWEEP = "old_run-ca101845cccf02da", "old_sweep-sweep-f873a92c135e056d"
POINTS = ("old_sweep-ca101845cccf02da", "old_sweep-cf74317aeb3e8e1d")
TYPED = ("+experiment=fill", "dataset.limit=3", "tracking=disabled")


def as_it_was(config: dict[str, Any]) -> None:
    """The config as it was written."""


def older_still(config: dict[str, Any]) -> None:
    """An even older version had neither these groups nor these keys."""
    for group in ("metrics", "cost", "report", "debug", "objective"):
        del config[group]
    for group, names in {
        "model": ("revision", "weights", "layout"),
        "sampling": ("strength", "max_sequence_length", "images_per_sample"),
        "dataset": ("placement",),
        "parallelism": ("mode", "context_size", "context_kind", "schedule"),
        "optimization": ("no_matmul_workspace", "fp8_attention", "onednn_linears", "step_cache"),
        "tracking": ("finish_timeout_s", "images"),
    }.items():
        for name in names:
            del config[group][name]


def newer(config: dict[str, Any]) -> None:
    """A newer fluxexp added keys and a group."""
    config["config_version"] = 1000
    config["sampling"]["from_the_future"] = True
    config["dataset"]["from_the_future"] = 1
    config["tracking"]["from_the_future"] = 1
    config["future"] = {"a": 1}


VERSIONS = [as_it_was, pytest.param(older_still, marks=pytest.mark.slow), newer]


@pytest.fixture(params=VERSIONS)
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the results, with configs as another version writes them."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*/*/config.yaml"):
        rewrite_config(file, request.param)
    return tmp_path


def rewrite_config(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def chosen_points(sweep: dict[str, Any]) -> dict[str, Any]:
    """The points that answer the sweep's question. A newer version may write more about them."""
    return {name: sweep["answer"][name] for name in ("best", "cheapest")}


def without_intervals(values: Any) -> Any:
    """fluxexp 0.1 had intervals for three samples. Today there are none for so few."""
    if isinstance(values, dict):
        return {name: without_intervals(value) for name, value in values.items() if name not in ("low", "high")}
    return [without_intervals(value) for value in values] if isinstance(values, list) else values


def files(directory: Path) -> dict[str, bytes]:
    """Images and records, which nothing may change."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for folder in ("images", "manifest")
        for file in (directory / folder).iterdir()
    }


@pytest.fixture(scope="module")
def made_today(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The run of the fixture, made by this version: its pixels are those of today."""
    return Program(tmp_path_factory.mktemp("today")).run(*TYPED, "sampling.steps=2", "name=old_run", "report=off")


@pytest.fixture(params=VERSIONS)
def resumable(request: pytest.FixtureRequest, made_today: Done, tmp_path: Path) -> Path:
    """A copy of `made_today`, with a config as another version writes it."""
    directory = tmp_path / "outputs" / made_today.directory.name
    shutil.copytree(made_today.directory, directory)
    rewrite_config(directory / "config.yaml", request.param)
    return directory


def test_resuming_finds_everything_done(resumable: Path, tmp_path: Path) -> None:
    before, summary = files(resumable), (resumable / "summary.json").read_text()
    done = Program(tmp_path).run(*TYPED, "sampling.steps=2", "name=old_run", "report=off")
    assert done.returncode == 0, done.stderr
    assert done.directory == resumable, "the fingerprint is the same"
    assert "all 3 images exist" in done.stdout
    assert files(resumable) == before
    assert (resumable / "summary.json").read_text() == summary


def test_a_larger_run_adds_to_the_old_one(resumable: Path, tmp_path: Path) -> None:
    before = files(resumable)
    done = Program(tmp_path).run(*TYPED, "dataset.limit=4", "sampling.steps=2", "name=old_run", "report=off")
    assert done.returncode == 0, done.stderr
    assert (done.directory, done.summary["num_resumed"], done.summary["num_ok"]) == (resumable, 3, 4)
    assert before.items() <= files(resumable).items()
    assert next(iter(yaml.safe_load((resumable / "config.yaml").read_text()))) == "config_version"


def test_images_of_other_pixels_are_not_mixed(tmp_path: Path) -> None:
    """fluxexp 0.1 made other noise (`PIXELS_VERSION`), so the same command makes a new run beside the old one."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path / "outputs" / RUN)
    done = Program(tmp_path).run(*TYPED, "sampling.steps=2", "name=old_run", "report=off")
    assert (done.returncode, done.summary["num_resumed"]) == (0, 0), done.stderr
    assert done.directory.name != RUN
    assert files(tmp_path / "outputs" / RUN) == before


def test_scoring_computes_what_is_missing(results: Path) -> None:
    directory = results / "outputs" / RUN
    before = json.loads((directory / "summary.json").read_text())["scores"]
    shutil.rmtree(directory / "scores")
    done = score(results, str(directory), "metrics=basic")
    assert done.returncode == 0, done.stderr
    assert "scoring    3 images" in done.stdout
    assert ("from_the_future" in done.stderr) == ("config_version" in (directory / "config.yaml").read_text())
    after = json.loads((directory / "summary.json").read_text())["scores"]
    assert set(after) - set(before) == {"colorfulness"}, "the metric that is younger than the results"
    assert without_intervals({name: after[name] for name in before}) == without_intervals(before)
    assert all(mean["low"] is mean["high"] is None for mean in after.values())


def test_scoring_a_sweep_keeps_its_answer(results: Path) -> None:
    directory = results / "multirun" / SWEEP
    before = json.loads((directory / "sweep.json").read_text())
    done = score(results, str(directory), "metrics=basic")
    assert done.returncode == 0, done.stderr
    after = json.loads((directory / "sweep.json").read_text())
    assert chosen_points(after) == chosen_points(before)
    costs = [[point.pop("cost") for point in sweep["points"]] for sweep in (before, after)]
    for point in after["points"]:
        del point["quality"]["colorfulness"]  # the metric that is younger than the results
    assert without_intervals(after["points"]) == without_intervals(before["points"])
    for old, new in zip(*costs, strict=True):
        assert new.keys() > old.keys(), "the same records have an interval now"
        assert new["device_s_per_image"] == pytest.approx(old["device_s_per_image"], rel=0.5), "a trimmed mean now"


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["fluxexp", *map(str, arguments)])
    main()


def test_runs_are_compared(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [results / "multirun" / point for point in POINTS]
    call(compare_main, monkeypatch, *paths, "--json")
    found = json.loads(capsys.readouterr().out)
    (expected,) = json.loads((results / "multirun" / SWEEP / "sweep.json").read_text())["comparisons"]
    ours, theirs = found[str(paths[1])]["metrics"]["psnr_hole"], expected["metrics"]["psnr_hole"]
    assert abs(ours["difference"]) == pytest.approx(abs(theirs["difference"]))
    assert found[str(paths[1])]["num_pairs"] == 3
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, paths), "--metric", "lpips"])
    with pytest.raises(SystemExit) as ended:
        compare_main()
    assert (ended.value.code, "has no such scores" in capsys.readouterr().err) == (2, True)


def test_a_report_is_written(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sweep = results / "outputs" / RUN, results / "multirun" / SWEEP
    call(report_main, monkeypatch, run)
    assert "'num_ok': 3" in capsys.readouterr().out
    assert (run / "contact_sheet.png").stat().st_size > 1000
    call(report_main, monkeypatch, sweep)
    for page in (run, sweep, *(results / "multirun" / point for point in POINTS)):
        html = (page / "report.html").read_text()
        assert '<aside class="notes"' not in html, "nothing is missing"
    assert "a cyan crescent in the top left" in (run / "report.html").read_text()


def test_a_run_is_replayed(results: Path) -> None:
    directory = RunDirectory(Address.of(results / "outputs" / RUN))
    tracking = replace(Source.read(directory).tracking(), mode="offline", finish_timeout_s=60.0)
    (report,) = replay([directory], tracking)
    assert (report.mode, report.error, report.dropped) == ("offline", None, 0)
    assert list((directory.local_directory() / "wandb").glob("offline-run-*"))


def test_a_plan_of_an_old_run_knows_its_tasks(results: Path) -> None:
    plan = Plan.read(RunDirectory(Address.of(results / "outputs" / RUN)))
    assert plan.fingerprint == "ca101845cccf02da"
    assert list(plan.finished()) == [task.key for task in plan.tasks(range(3))]
