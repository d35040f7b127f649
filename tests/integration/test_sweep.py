"""Sweeps, with a real launcher: one pool of tasks, and one run directory for each point."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxexp.config.model_paths import model_directory
from tests.integration.test_wandb import records_of, text_of
from tests.program import FAKE, TINY, Done, Program, Sweep, read_events


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four points with five images each, made by two ranks, one of them slower."""
    points = ("sampling.steps=1,4", "sampling.guidance=1,4", "dataset.limit=5")
    program = Program(tmp_path_factory.mktemp("spread"))
    return program.sweep(*FAKE, "model.seconds_per_step=[0.02,0.05]", *points, processes=2)


def test_every_point_of_a_sweep_equals_a_single_run(program: Program, alone: Done) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("sampling.steps")]
    sweep = program.sweep(*tiny, "dataset.limit=7", "sampling.batch_size=1", "sampling.steps=2,3")
    assert sweep.returncode == 0, sweep.stderr
    point, single = sweep.run("sampling.steps=2"), alone
    assert point.images == single.images, "byte for byte"
    assert point.directory.name == single.directory.name
    assert {path.name for path in point.directory.iterdir()} == {path.name for path in single.directory.iterdir()}
    assert point.summary.keys() == single.summary.keys()
    assert point.summary["sweep"] == sweep.directory.name
    assert "sampling.steps=2" in yaml.safe_load((point.directory / "overrides.yaml").read_text())
    assert yaml.safe_load((point.directory / "config.yaml").read_text())["sampling"]["steps"] == 2
    spans = [event for file in (point.directory / "events").iterdir() for event in read_events(file)]
    assert sum(event.tasks or 0 for event in spans if event.span == "write") == 7
    assert all(event.extra["share"] == 1 for event in spans if event.span == "denoise" and not event.warmup)


def test_sweep_json_has_status_and_cost_of_each_point(spread: Sweep) -> None:
    assert spread.returncode == 0, spread.stderr
    summary = spread.summary
    assert (summary["status"], summary["num_points"], summary["num_ok"]) == ("complete", 4, 20)
    assert len(summary["ranks"]) == 2
    assert sum(rank["num_images"] for rank in summary["ranks"]) == 20
    assert [point["status"] for point in summary["points"]] == ["complete"] * 4
    cheap, dear = (spread.run(f"sampling.steps={steps}", "sampling.guidance=1").directory.name for steps in (1, 4))
    cost = {point["directory"]: point["cost"]["device_s_per_image"] for point in summary["points"]}
    assert cost[dear] > 1.5 * cost[cheap] > 0
    assert spread.stdout.count("\ngenerating 20 images\n") == 1, "one phase for all points"


def test_points_that_differ_in_guidance_share_batches_and_conditioning(program: Program) -> None:
    sweep = program.sweep(*FAKE, "dataset.limit=4", "sampling.guidance=1,2,3,4", "sampling.batch_size=8")
    (file,) = (sweep.directory / "events").iterdir()
    denoised = [event for event in read_events(file) if event.span == "denoise" and not event.warmup]
    assert [event.tasks for event in denoised] == [8, 8]
    assert all(len(event.extra["runs"]) == 4 for event in denoised)
    seconds = sum(rank["busy_s"] for point in sweep.summary["points"] for rank in ranks_of(sweep, point))
    assert seconds == pytest.approx(sweep.summary["ranks"][0]["busy_s"], rel=0.02, abs=0.002)


def ranks_of(sweep: object, point: dict[str, object]) -> list[dict[str, float]]:
    directory = sweep.directory.parent / str(point["directory"])  # type: ignore[attr-defined]
    ranks: list[dict[str, float]] = json.loads((directory / "summary.json").read_text())["ranks"]
    return ranks


@pytest.mark.slow
def test_the_same_sweep_makes_no_image_and_a_larger_one_only_new_ones(program: Program) -> None:
    first = program.sweep(*FAKE, "dataset.limit=3", "sampling.steps=1,2", processes=2)
    again = program.sweep(*FAKE, "dataset.limit=3", "sampling.steps=1,2")
    assert again.returncode == 0, again.stderr
    assert "all 6 images exist" in again.stdout
    assert again.summary["ranks"] == first.summary["ranks"], "figures of the session that did the work"
    wider = program.sweep(*FAKE, "dataset.limit=4", "sampling.steps=1,2,3")
    assert wider.returncode == 0, wider.stderr
    assert (wider.summary["num_resumed"], wider.summary["num_ok"]) == (6, 12)
    assert len(wider.run("sampling.steps=1").attempts) == 4
    assert len(program.directories("multirun")) == 3


@pytest.mark.slow
def test_a_point_that_cannot_run_does_not_stop_the_others(program: Program) -> None:
    """One directory belongs to another program. The damaged summary of another point is written again."""
    blocked = program.sweep(*FAKE, "dataset.limit=4", "sampling.steps=1,2")
    (blocked.run("sampling.steps=1").directory / "fingerprint.json").unlink()
    (blocked.run("sampling.steps=2").directory / "summary.json").write_text("{")
    sweep = program.sweep(*FAKE, "dataset.limit=4", "sampling.steps=1,2,3", processes=2)
    assert sweep.returncode != 0
    status = {point["overrides"][-1]: point["status"] for point in sweep.summary["points"]}
    assert status == {"sampling.steps=1": "failed", "sampling.steps=2": "complete", "sampling.steps=3": "complete"}
    assert "was made by another config" in sweep.summary["points"][0]["error"]
    assert "summary.json is damaged" in sweep.stdout
    assert sweep.run("sampling.steps=2").summary["num_ok"] == 4
    assert sweep.summary["status"] == "incomplete"
    assert sweep.stderr.count("was made by another config") == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_fails_only_its_points(program: Program) -> None:
    shipped = model_directory("embedded:tiny_fill")
    assert shipped is not None
    torn = shutil.copytree(shipped, program.cwd / "torn")
    # Only the library finds this fault: it has no tokenizer of this type.
    (torn / "tokenizer_2" / "tokenizer.json").write_text('{"model": {"type": "Riddle", "vocab": {"a": 0}}}')
    sweep = program.sweep(*TINY, "dataset.limit=4", "model.path=torn,embedded:tiny_fill", processes=2)
    assert sweep.returncode != 0
    first, second = sweep.summary["points"]
    assert (first["status"], first["num_ok"]) == ("incomplete", 0)
    assert "model.path='torn' cannot be loaded" in first["error"]
    assert (second["status"], second["num_ok"], second["error"]) == ("complete", 4, None)
    assert sweep.stderr.count("run the same command again") == 1


def test_a_failed_task_affects_only_its_point(program: Program) -> None:
    sweep = program.sweep(*FAKE, "dataset.limit=6", "model.fail_every=3", "sampling.seed=1,2,3")
    assert sweep.returncode != 0
    assert sweep.summary["num_failed"] > 0
    for point in sweep.summary["points"]:
        assert point["num_ok"] + point["num_failed"] == 6
        expected = "complete_with_failures" if point["num_failed"] else "complete"
        assert point["status"] == expected


def test_points_that_differ_only_in_speed_or_counts_are_one_run(program: Program) -> None:
    axes = ("dataset.limit=2,3", "sampling.batch_size=1,4", "name=a,b")
    sweep = program.sweep(*FAKE, *axes)
    assert sweep.returncode == 0, sweep.stderr
    assert (sweep.summary["num_points"], sweep.summary["num_ok"]) == (2, 6), "under two names"
    assert len(program.directories("multirun")) == 2


@pytest.mark.slow
def test_models_that_do_not_need_all_ranks_get_different_ranks(program: Program) -> None:
    small = ("sampling.height=16", "sampling.width=16", "sampling.max_sequence_length=1", "dataset.limit=4")
    sweep = program.sweep(*FAKE, *small, "model.resolution=64,128", processes=2)
    assert sweep.returncode == 0, sweep.stderr
    assert "ranks      2 of 2 (2 models)" in sweep.stdout
    assert [rank["num_images"] for rank in sweep.summary["ranks"]] == [4, 4]


def test_a_sweep_of_one_point_writes_the_spans_of_the_point(program: Program) -> None:
    sweep = program.sweep(*FAKE, "dataset.limit=2")
    (file,) = (sweep.run("dataset.limit=2").directory / "events").iterdir()
    assert {event.span for event in read_events(file)} >= {"condition", "denoise", "decode", "write"}


@pytest.mark.slow
def test_many_schedulers_and_sizes_on_one_loaded_model(program: Program) -> None:
    axes = ("scheduler=flow_match_euler,unipc", "sampling.height=64,80", "sampling.strength=1,0.5")
    sweep = program.sweep(*TINY, "dataset.limit=2", *axes)
    assert sweep.returncode == 0, sweep.stderr
    assert (sweep.summary["num_points"], sweep.summary["num_ok"]) == (8, 16)
    (file,) = (sweep.directory / "events").iterdir()
    assert [event.span for event in read_events(file)].count("load") == 1


@pytest.mark.slow
def test_the_basic_launcher_of_hydra_works_and_others_are_refused(program: Program) -> None:
    done = program.run(
        "-m", *FAKE, "dataset.limit=2", "sampling.steps=1,2", "hydra/launcher=basic", root="multirun", processes=2
    )
    assert done.returncode == 0, done.stderr
    assert len(program.directories("multirun")) == 2
    with program.start("-m", *FAKE, "sampling.steps=1,2", "hydra/launcher=joblib") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "hydra/launcher='joblib': does not work with several ranks" in stderr
    assert "allowed: fluxexp, basic" in stderr


@pytest.mark.slow
def test_output_dir_also_contains_sweeps(program: Program) -> None:
    with program.start("-m", *FAKE, "dataset.limit=1", "sampling.steps=1,2", "output.dir=there") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(program.directories("there")) == 2
    assert len(program.directories("there", sweeps=True)) == 1
    assert not program.directories("multirun")


@pytest.mark.slow
def test_a_killed_sweep_is_continued_with_another_number_of_processes(program: Program) -> None:
    slow = (*FAKE, "model.seconds_per_step=[0.05]", "dataset.limit=8", "sampling.steps=1,2", "sampling.batch_size=1")
    with program.start("-m", *slow, processes=2) as process:
        while len(list(program.cwd.glob("multirun/*/images/*.png"))) < 5:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    sweep = program.sweep(*slow, processes=3)
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.summary["world_size"] == 3
    assert (sweep.summary["num_ok"], sweep.summary["status"]) == (16, "complete")
    assert sweep.summary["num_resumed"] >= 4
    for steps in (1, 2):
        finished = Counter(record.key for record in sweep.run(f"sampling.steps={steps}").attempts)
        assert len(finished) == 8
        assert set(finished.values()) == {1}


def test_spans_account_for_all_time_and_all_tasks(spread: Sweep) -> None:
    """The spans of a rank add up to the time from loading to its end."""
    made = 0
    for rank, file in enumerate(sorted((spread.directory / "events").iterdir())):
        events = read_events(file)
        own = sorted((event for event in events if event.span != "write"), key=lambda event: event.start_s)
        assert all(one.end_s <= next_one.start_s + 1e-4 for one, next_one in pairwise(own)), "one after the other"
        accounted_s = sum(event.seconds for event in own)
        assert accounted_s > 0.7 * (own[-1].end_s - own[0].start_s), "the rest is between spans"
        figures = spread.summary["ranks"][rank]
        for stage, seconds in figures["stages"].items():
            assert seconds == pytest.approx(sum(e.seconds for e in events if e.span == stage), abs=1e-3)
        busy = sum(figures["stages"][stage] for stage in ("condition", "denoise", "decode"))
        assert figures["busy_s"] == pytest.approx(busy, abs=1e-3)
        made += sum(event.tasks or 0 for event in events if event.span == "decode")
    assert made == 20


def in_wandb(directory: Path) -> dict[str, Any]:
    """Name, job type, group and series of the only W&B run in `directory`."""
    (run,) = json.loads(text_of(directory, "run"))
    items = [record["history"]["item"] for record in json.loads(text_of(directory, "history"))]
    series = {name for item in items for name in item if name.startswith(("rank/", "load/", "progress/"))}
    names = {name: run["run"].get(name) for name in ("display_name", "job_type", "run_group")}
    # A replay does not know the device, and whether a short window is long enough for a rate depends on the clock.
    return names | {"series": {name for name in series if not name.endswith(("utilisation", "memory_gib", "per_s"))}}


@pytest.mark.slow
def test_wandb_has_the_sweep_with_its_answer_and_a_run_of_each_point(program: Program) -> None:
    tracked = [argument for argument in FAKE if not argument.startswith(("tracking", "metrics"))]
    sweep = program.sweep(*tracked, "metrics=basic", "tracking.every_s=0.2", "dataset.limit=4", "sampling.guidance=1,2")
    assert sweep.returncode == 0, sweep.stderr
    directories = [sweep.directory, *(sweep.run(f"sampling.guidance={g}").directory for g in (1, 2))]
    found = [in_wandb(directory) for directory in directories]
    names = [(run["display_name"], run["job_type"], run["run_group"]) for run in found]
    group = sweep.directory.name
    assert names == [
        ("fill: 2 points over guidance", "sweep", group),
        ("guidance=1", "point", group),
        ("guidance=2", "point", group),
    ]
    answer = sweep.summary["answer"]["sentence"]
    assert answer in text_of(sweep.directory, "summary")
    (table,) = sweep.directory.glob("wandb/offline-run-*/**/points_*.table.json")
    rows = [dict(zip(json.loads(table.read_text())["columns"], row, strict=True)) for row in _data(table)]
    assert [(row["label"], row["sampling.guidance"], row["num_ok"]) for row in rows] == [
        ("guidance=1", 1, 4),
        ("guidance=2", 2, 4),
    ]
    assert all(row["cost.device_s_per_image"] > 0 for row in rows)
    assert sum(row["is_cheapest"] for row in rows) == 1
    for directory in directories[1:]:
        assert "num_ok" in text_of(directory, "summary")
        tracking = json.loads((directory / "summary.json").read_text())["tracking"]
        assert (tracking["mode"], tracking["error"]) == ("offline", None)
        shutil.rmtree(directory / "wandb")
    shutil.rmtree(sweep.directory / "wandb")
    records_of.cache_clear()
    done = program.run_module("fluxexp.replay", "--mode", "offline", str(sweep.directory))
    assert (done.returncode, done.stderr) == (0, "")
    assert [in_wandb(directory) for directory in directories] == found
    assert answer in text_of(sweep.directory, "summary")
    assert len(list(sweep.directory.glob("wandb/offline-run-*/**/points_*.table.json"))) == 1


def _data(table: Path) -> list[list[Any]]:
    rows: list[list[Any]] = json.loads(table.read_text())["data"]
    return rows


@pytest.mark.slow
def test_optuna_runs_on_rank_0_and_all_ranks_work_on_its_points(program: Program) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    space = ("sampling.steps=choice(1,4)", "sampling.guidance=interval(1,10)", "objective=device_s_per_image")
    data = ("model.seconds_per_step=[0.01]", "dataset.limit=8", "parallelism.schedule=static")
    with program.start("-m", *FAKE, *data, *search, *space, "output.dir=there", processes=2) as process:
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert stderr.count("A new study created") == 1
    sweeps = [json.loads((path / "sweep.json").read_text()) for path in program.directories("there", sweeps=True)]
    assert 1 <= len(sweeps) <= 3, "a point that is asked for twice is made once"
    assert all(rank["num_images"] for sweep in sweeps for rank in sweep["ranks"])
    found = yaml.safe_load((program.cwd / "multirun" / "optimization_results.yaml").read_text())
    assert found["best_value"] == min(p["cost"]["device_s_per_image"] for sweep in sweeps for p in sweep["points"])


def test_a_search_needs_an_objective(program: Program) -> None:
    with program.start("-m", *FAKE, "hydra/sweeper=optuna", "sampling.steps=choice(1,4)") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "objective: is not set" in stderr
