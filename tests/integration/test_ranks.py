"""Runs on several processes, with a real launcher."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxexp.records import task_seed
from tests.program import FAKE, TINY, Done, Program, read_events

OF_SEVEN = (*TINY, "dataset.limit=7")
STATIC = "parallelism.schedule=static"


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


UNEVEN = (
    *FAKE,
    "model.seconds_per_step=[0.01,0.15]",
    "sampling.steps=2",
    "dataset.limit=12",
    "sampling.batch_size=1",
)
"""The second of two ranks is slow."""


@pytest.fixture(scope="module")
def stolen(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run with an uneven load, of which the fast rank takes more."""
    return Program(tmp_path_factory.mktemp("stolen")).run(*UNEVEN, processes=2)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run with an uneven load, of which each rank does one half."""
    return Program(tmp_path_factory.mktemp("static")).run(*UNEVEN, STATIC, processes=2)


@pytest.mark.parametrize(
    "launcher", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("accelerate", "torchrun"))]
)
def test_two_processes_write_the_bytes_of_one(program: Program, alone: Done, launcher: str | None) -> None:
    done = program.run(*OF_SEVEN, "sampling.batch_size=1", STATIC, processes=2, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr, "the library warns when the process group is left behind"
    assert done.images == alone.images
    assert done.summary["world_size"] == 2
    assert [rank["num_images"] for rank in done.summary["ranks"]] == [4, 3]
    assert {record.rank for record in done.records.values()} == {0, 1}
    assert done.stdout.count("tasks      7") == 1, "only rank 0 prints"
    assert sorted(path.name[:9] for path in (done.directory / "events").iterdir()) == ["rank-0000", "rank-0001"]


def test_larger_batches_differ_only_by_rounding(program: Program, alone: Done) -> None:
    done = program.run(*OF_SEVEN, "sampling.batch_size=4")
    images = alone.images
    assert done.images.keys() == images.keys()
    assert {record.batch_size for record in done.records.values()} == {4, 3}
    for name, data in done.images.items():
        assert np.abs(pixels(data) - pixels(images[name])).max() <= 1


def test_fewer_tasks_than_ranks(program: Program) -> None:
    done = program.run(*FAKE, "dataset.limit=1", "parallelism=data", STATIC, processes=2)
    assert done.returncode == 0, done.stderr
    assert [rank["num_images"] for rank in done.summary["ranks"]] == [1, 0]
    assert done.summary["status"] == "complete"


def test_an_uneven_load_is_in_the_summary(static: Done) -> None:
    balance = static.summary["balance"]
    assert balance["straggler"] == 1
    assert balance["imbalance"] > 1.2
    assert balance["efficiency"] < 0.95
    assert balance["cause"] == "slower device, or more expensive images"
    fast, slow_rank = static.summary["ranks"]
    assert fast["idle_s"] > slow_rank["idle_s"] == 0, "idle time lasts from a rank's end to the end of the last rank"
    assert "rank 1 took longest: slower device" in static.stdout


def test_a_failed_task_on_one_rank_stops_no_other_task(program: Program) -> None:
    done = program.run(*FAKE, "model.fail_every=3", "dataset.limit=12", processes=2)
    assert done.summary["status"] == "complete_with_failures"
    failed = [record for record in done.records.values() if record.status == "failed"]
    assert done.summary["num_failed"] == len(failed) > 0
    assert all("not finite" in str(record.error) for record in failed)
    assert done.summary["num_ok"] == len(done.images) == 12 - len(failed)


@pytest.mark.slow
def test_if_a_rank_cannot_work_the_others_make_its_static_shard_in_another_round(program: Program) -> None:
    broken = 0
    slow = ("model.seconds_per_step=[0.1]", "sampling.steps=2", "dataset.limit=6")
    done = program.run(*FAKE, *slow, STATIC, f"model.broken_rank={broken}", processes=2)
    assert done.returncode == 0
    assert (done.summary["status"], done.summary["num_ok"]) == ("complete", 6)
    assert {record.rank for record in done.records.values()} == {1 - broken}
    assert done.stderr.count(f"rank {broken}: model.broken_rank={broken}") == 1
    assert "rank(s) 0 stopped early: rank(s) 1 make the 3 images that are left" in done.stdout


@pytest.mark.slow
def test_other_ranks_do_the_work_of_a_rank_that_fails(program: Program) -> None:
    done = program.run(*FAKE, "dataset.limit=6", "model.broken_rank=1", processes=2)
    assert done.returncode != 0, "the failed rank has an error"
    assert done.summary["status"] == "complete"
    assert {record.rank for record in done.records.values()} == {0}
    assert "rank 1: model.broken_rank=1" in done.stderr
    assert "the other ranks did its work" in done.stderr


def test_stealing_from_a_slow_rank_changes_no_pixel(stolen: Done, static: Done) -> None:
    assert stolen.returncode == 0, stolen.stderr
    fast, slow_rank = stolen.summary["ranks"]
    assert fast["num_images"] == 12 - slow_rank["num_images"] > 6
    assert fast["num_stolen"] == fast["num_images"] - 6
    assert fast["steal_s"] > 0
    events = read_events(next((stolen.directory / "events").glob("rank-0000*")))
    assert any(event.span == "steal" for event in events)
    assert [rank["num_images"] for rank in static.summary["ranks"]] == [6, 6]
    assert static.images == stolen.images


@pytest.mark.slow
def test_a_few_small_images_are_made_by_one_rank(program: Program) -> None:
    small = ("sampling.height=16", "sampling.width=16", "sampling.max_sequence_length=1", "model.resolution=16")
    few = program.run(*FAKE, *small, "dataset.limit=3", processes=2)
    assert [rank["num_images"] for rank in few.summary["ranks"]] == [3, 0]
    assert "1 of 2 (3 images, and 16 keep a device busy" in few.stdout


@pytest.mark.slow
def test_if_a_rank_cannot_follow_the_session_plan_the_others_finish(program: Program) -> None:
    """Rank 1 starts in another folder, which does not contain the dataset."""
    Image.new("RGB", (32, 32)).save(program.cwd / "a.png")
    (program.cwd / "t.csv").write_text("prompt,image\nx,a.png\ny,a.png\n")
    (program.cwd / "elsewhere").mkdir()
    wrapper = program.cwd / "wrapper.py"
    wrapper.write_text(
        "import os, runpy, sys\n"
        "if os.environ['RANK'] == '1':\n"
        "    import fluxexp.cli.main as m; m.check_command = lambda *a, **k: None\n"
        "    os.chdir('elsewhere')\n"
        "sys.argv[0] = 'fluxexp'\n"
        "from fluxexp.cli import main; main()\n"
    )
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", str(wrapper)]
    data = ("dataset=table", "dataset.path=t.csv", "dataset.mask=box", f"output.dir={program.cwd / 'outputs'}")
    command = [*launcher, "model=fake", "metrics=none", "report=off", "tracking=disabled", "parallelism=data", *data]
    done = subprocess.run(command, cwd=program.cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "rank 1: " in done.stderr
    assert "dataset.path='t.csv': is not a file" in done.stderr
    (directory,) = program.directories()
    assert len(list((directory / "images").iterdir())) == 2, "rank 0 also did the work of rank 1"


def test_the_config_of_rank_0_counts(program: Program) -> None:
    """The same command, but one value differs between ranks."""
    (program.cwd / "mine" / "experiment").mkdir(parents=True)
    file = program.cwd / "mine" / "experiment" / "odd.yaml"
    file.write_text("# @package _global_\nsampling:\n  seed: ${oc.decode:${oc.env:RANK}}\n")
    done = program.run("--config-dir", "mine", "+experiment=odd", *FAKE, "dataset.limit=8", STATIC, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(program.directories()) == 1
    assert all(r.seed == task_seed(0, r.sample_key, r.variant) for r in done.records.values())
    assert {record.rank for record in done.records.values()} == {0, 1}


def test_events_of_ranks_share_one_clock(stolen: Done) -> None:
    spans = [
        (min(e.start_s for e in events), max(e.end_s for e in events))
        for events in (read_events(path) for path in (stolen.directory / "events").iterdir())
    ]
    (first_start, first_end), (second_start, second_end) = spans
    assert max(first_start, second_start) < min(first_end, second_end), "they worked at the same time"


def test_a_wrong_number_of_processes_is_refused_by_expect_world_size(program: Program) -> None:
    with program.start(*FAKE, "parallelism.expect_world_size=3", processes=2) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert stderr.count("does not match: 2 process(es) were started") == 1
    assert not program.directories()


def test_a_slow_device_is_named_although_stealing_hides_it_in_the_imbalance(program: Program) -> None:
    uneven = ("model.seconds_per_step=[0.02,0.06]", "sampling.steps=2", "dataset.length=48", "sampling.batch_size=1")
    done = program.run(*FAKE, *uneven, processes=2)
    assert done.returncode == 0, done.stderr
    balance = done.summary["balance"]
    assert balance["imbalance"] < 1.1
    assert balance["straggler"] is None
    (slow,) = balance["slow_ranks"]
    assert slow["rank"] == 1
    assert slow["relative_speed"] == pytest.approx(1 / 3, rel=0.3)
    # 48 images of 0.04 s take 1.44 s at 1 1/3 of the speed of one device, and 0.96 s at twice its speed.
    assert slow["cost_s"] == pytest.approx(0.48, rel=0.4)
    assert "rank 1 is slow: it denoises at 3" in done.stdout
    fast, slow_rank = done.summary["ranks"]
    assert fast["work_per_s"] > 2 * slow_rank["work_per_s"] > 0
