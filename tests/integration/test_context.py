"""Context parallelism in the program."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagespeed.models import MODELS
from tests.program import FAKE, TINY, Done, Program, read_events
from tests.warm import PATCH

CONTEXT = "parallelism=context"


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_two_processes_make_each_image_together(program: Program, alone: Done) -> None:
    done = program.run(*TINY, "sampling.batch_size=1", "dataset.limit=7", CONTEXT, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.directory.name == alone.directory.name, "the work layout is not part of the run's name"
    images = alone.images
    assert done.images.keys() == images.keys()
    assert max(np.abs(pixels(data) - pixels(images[name])).max() for name, data in done.images.items()) <= 1
    assert {record.context_size for record in alone.records.values()} == {1}
    assert {(record.rank, record.context_size) for record in done.records.values()} == {(0, 2)}
    assert "context=ulysses on 2 ranks" in done.summary["applied_optimizations"]
    assert "ranks      2 of 2 (7 images, each by 2 ranks together)" in done.stdout
    leader, follower = done.summary["ranks"]
    assert (leader["num_images"], follower["num_images"]) == (7, 0), "images count once"
    assert follower["busy_s"] > 0
    events = read_events(next((done.directory / "events").glob("rank-0001*")))
    assert [event.warmup for event in events if event.span == "denoise"] == [True] + [False] * 7


@pytest.mark.slow
def test_another_replica_does_the_work_of_a_replica_with_a_failed_rank(program: Program) -> None:
    fake = (*FAKE, "dataset.limit=6", "sampling.batch_size=1", CONTEXT, "parallelism.context_size=2")
    done = program.run(*fake, "model.broken_rank=1", processes=4)
    assert done.returncode != 0, "the ranks that failed have an error"
    assert done.summary["status"] == "complete"
    assert {(record.rank, record.context_size) for record in done.records.values()} == {(2, 2)}
    errors = [rank["error"] for rank in done.summary["ranks"]]
    assert "rank 1 of the same replica failed to load: ModelError: model.broken_rank=1" in errors[0]
    assert errors[1].startswith("model.broken_rank=1")
    assert errors[2:] == [None, None]


LAST = """
from dataclasses import replace
from fluxexp.experiment import session_plan
chosen = session_plan.choose_work_layout
session_plan.choose_work_layout = lambda *args, **options: replace(chosen(*args, **options), num_last=1, last_size=2)
"""


@pytest.mark.parametrize("is_broken", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_ranks_make_the_last_image_or_one_if_the_other_failed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """The work layout that `auto` chooses on GPUs with NVLink; here the test sets it."""
    (tmp_path / "last.py").write_text(LAST)
    monkeypatch.setenv(PATCH, str(tmp_path / "last.py"))
    broken = ["model.broken_rank=1"] if is_broken else []
    done = program.run(*FAKE, "dataset.limit=5", "sampling.batch_size=1", "parallelism=data", *broken, processes=2)
    assert (done.returncode != 0) == is_broken, done.stderr
    records = done.records.values()
    assert {record.status for record in records} == {"ok"}
    assert sorted(record.context_size for record in records) == [1, 1, 1, 1, 1 if is_broken else 2]


def measured(directory: Path, *options: str) -> list[dict[str, Any]]:
    """The rows of the benchmark of context parallelism, with two processes."""
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    benchmark = str(Path(__file__).parents[2] / "benchmarks" / "context.py")
    always = ["--repeats", "1", "--kinds", "ulysses", "ring", "--json", "out.json"]
    subprocess.run([*launcher, benchmark, *always, *options], cwd=directory, check=True, timeout=110)
    rows: list[dict[str, Any]] = json.loads((directory / "out.json").read_text())["rows"]
    return rows


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="small models are for a CPU")
def test_two_processes_make_the_latents_of_one_with_every_family(tmp_path: Path) -> None:
    """In one launch, with the lossless optimizations of a CPU."""
    rows = measured(tmp_path, "--sizes", "64", "--steps", "2", "--families", *MODELS)
    kinds = [(1, "-"), (2, "ulysses"), (2, "ring")]
    expected = [(name, *kind) for name in MODELS for kind in kinds]
    assert [(row["family"], row["ranks"], row["kind"]) for row in rows] == expected
    assert max(row["difference"] for row in rows) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", ["flux_fill", "flux_kontext"])
def test_two_gpus_make_the_latents_of_one(family: str, tmp_path: Path) -> None:
    """The full-sized model with random weights, each step a CUDA graph that holds the collectives."""
    rows = measured(tmp_path, "--sizes", "512", "--steps", "4", "--families", family)
    assert [(row["ranks"], row["kind"]) for row in rows] == [(1, "-"), (2, "ulysses"), (2, "ring")]
    assert max(row["difference"] for row in rows) < 1e-2
